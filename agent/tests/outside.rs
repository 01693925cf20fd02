//! Plain destinations are reached as `defaultOutbound` says, and a meshed one is never spoken to in the clear. What
//! does not exist is refused, and a verdict does not depend on how the destination is written.

mod common {
    pub mod nodes;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use common::{
    nodes::{every, lab, of_pod, shop},
    policy_yaml::{Clients, server},
    told::{SOON, field, told},
};
use xtask::lab::{
    OUTSIDE, Pod, PodSpec, Service, ServiceSpec,
    apps::{self, Attempt},
    eventually,
};

const MARKER: &str = "heddle-marker-0b61";

fn echoed(from: &Pod, to: SocketAddr) -> Result<bool> {
    let outcome = from.connect(&Attempt { milliseconds: 10_000, ..Attempt::new(to, MARKER) })?;
    ensure!(
        outcome.received == MARKER || outcome.refused(),
        "{to}: neither carried nor refused: {outcome:?}"
    );
    Ok(outcome.answered())
}

fn of_service(service: &Service, port: u16) -> [SocketAddr; 3] {
    every(service.v4, service.v6, port)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn plain_destinations_are_reached_as_default_outbound_says() -> Result<()> {
    let mut lab = lab("outside-plain")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let open = lab.pod(&PodSpec::new("open", "node-b"))?;
    lab.apply("far.yaml", &server("far", 7000, "opaque", &[Clients::Identities(&[&client.identity()])]))?;
    let open_service = lab.service(&ServiceSpec::new("default", "open", "open").port("echo", 70, "7000"))?;
    let _echoes = [
        far.app(&["echo", "[::]:7000"])?,
        open.app(&["echo", "[::]:7000"])?,
        apps::start(lab.outside(), &["echo", "[::]:7000"])?,
    ];
    for (default, cluster, outside, reason) in [
        ("allow", true, true, ""),
        ("cluster", true, false, "outbound_outside_cluster"),
        ("deny", false, false, "outbound_denied"),
    ] {
        for node in ["node-a", "node-b"] {
            if lab.agent(node)?.is_running() {
                lab.agent(node)?.terminate()?;
            }
        }
        lab.settings().set("defaultOutbound", default);
        lab.start_agents()?;
        let events = lab.agent("node-a")?.events()?;
        let mut expected: Vec<(SocketAddr, bool)> = Vec::new();
        expected.extend(of_pod(&open, 7000).map(|to| (to, cluster)));
        expected.extend(of_service(&open_service, 70).map(|to| (to, cluster)));
        expected.extend(OUTSIDE.map(|ip| (SocketAddr::new(ip, 7000), outside)));
        // Whoever is meshed is reached whatever holds for plain text.
        expected.extend(of_pod(&far, 7000).map(|to| (to, true)));
        for (to, passes) in expected {
            events.drain();
            ensure!(echoed(&client, to)? == passes, "{to} under {default}");
            if !passes {
                let event = told(&events, reason)?;
                ensure!(
                    field(&event, "hook") == "connect" && field(&event, "pod") == "shop/client",
                    "{event}"
                );
                let errno = client.connect(&Attempt::new(to, "x"))?.error;
                ensure!(errno.as_deref() == Some("ECONNREFUSED"), "{to} under {default}: {errno:?}");
            }
        }
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_meshed_destination_is_never_spoken_to_in_the_clear() -> Result<()> {
    let mut lab = lab("outside-clear")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let meshed = lab.pod(&shop("meshed", "node-b").label("app", "mixed").port("echo", 7000))?;
    let open =
        lab.pod(&PodSpec::new("open", "node-b").namespace("shop").label("app", "mixed").port("echo", 7000))?;
    let mixed = lab.service(&ServiceSpec::new("shop", "mixed", "mixed").port("echo", 70, "echo"))?;
    lab.apply("mixed.yaml", &server("mixed", 7000, "opaque", &[Clients::Identities(&[&client.identity()])]))?;
    let _echoes = [meshed.app(&["echo", "[::]:7000"])?, open.app(&["echo", "[::]:7000"])?];
    lab.start_agents()?;

    let capture = lab.capture("node-b")?;
    let mut carried = 0;
    for _ in 0..8 {
        for to in of_service(&mixed, 70) {
            ensure!(echoed(&client, to)?, "{to}: an endpoint of either kind answers");
            carried += 1;
        }
    }
    let traffic = capture.stop()?;
    let mut clear = 0;
    let mut sealed = 0;
    for stream in &traffic.streams {
        let hits = stream.bytes.windows(MARKER.len()).filter(|window| *window == MARKER.as_bytes()).count();
        let ends = [stream.from.ip(), stream.to.ip()];
        if ends.contains(&meshed.v4.into()) || ends.contains(&meshed.v6.into()) {
            ensure!(hits == 0, "the marker in the clear from {} to {}", stream.from, stream.to);
            sealed += stream.records()?.application_data;
        } else {
            clear += hits;
        }
    }
    ensure!(clear > 0, "control: {carried} connections, and none went to the pod in no mesh");
    ensure!(sealed > 0, "{carried} connections, and none went to the meshed pod");

    lab.agent("node-b")?.kill()?;
    let capture = lab.capture("node-b")?;
    for to in of_pod(&meshed, 7000) {
        ensure!(!echoed(&client, to)?, "{to} with its agent away");
    }
    ensure!(echoed(&client, (open.v4, 7000).into())?, "control: the pod in no mesh needs no agent");
    let traffic = capture.stop()?;
    let seen: usize = [(client.v4.into(), meshed.v4.into()), (client.v6.into(), meshed.v6.into())]
        .into_iter()
        .flat_map(|(one, other)| traffic.between(one, other))
        .map(|stream| {
            stream.bytes.windows(MARKER.len()).filter(|window| *window == MARKER.as_bytes()).count()
        })
        .sum();
    ensure!(seen == 0 && traffic.hits(MARKER.as_bytes()) > 0, "only the plain pod's bytes are in the clear");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_does_not_exist_is_refused() -> Result<()> {
    let mut lab = lab("outside-none")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let open = lab.pod(&PodSpec::new("open", "node-a"))?;
    let service = lab.service(&ServiceSpec::new("default", "open", "open").port("echo", 70, "7000"))?;
    let empty = lab.service(&ServiceSpec::new("default", "empty", "nobody").port("echo", 70, "7000"))?;
    let _echo = open.app(&["echo", "[::]:7000"])?;
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    let unknown = every(Ipv4Addr::new(10, 77, 2, 200), "fd77:2::c8".parse()?, 7000);
    let unknown_service = every(Ipv4Addr::new(10, 78, 99, 1), "fd78::9901".parse()?, 70);
    for (tos, reason) in [
        (unknown, "unknown_cluster_address"),
        (unknown_service, "unknown_cluster_address"),
        (of_service(&service, 71), "no_service_port"),
        (of_service(&empty, 70), "no_endpoints"),
    ] {
        for to in tos {
            events.drain();
            let outcome = client.connect(&Attempt::new(to, MARKER))?;
            ensure!(outcome.error.as_deref() == Some("ECONNREFUSED"), "{to}: {outcome:?}");
            told(&events, reason)?;
        }
    }
    for to in of_service(&service, 70) {
        ensure!(echoed(&client, to)?, "control: the Service's own port");
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_network_policy_on_the_applications_port_keeps_its_meaning() -> Result<()> {
    let mut lab = lab("outside-netpol")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    for app in ["near", "far"] {
        let own = client.identity();
        let clients = [Clients::Identities(&[&own])];
        let rules = server(app, 7000, "opaque", &clients) + &server(app, 7001, "opaque", &clients);
        lab.apply(&format!("{app}.yaml"), &rules)?;
    }
    let mut echoes = Vec::new();
    for pod in [&near, &far] {
        for port in [7000, 7001] {
            echoes.push(pod.app(&["echo", &format!("[::]:{port}")])?);
        }
    }
    lab.start_agents()?;
    let every_echo =
        |port: u16| [(&near, "node-a"), (&far, "node-b")].map(|(pod, node)| (of_pod(pod, port), node));
    for port in [7000, 7001] {
        for (tos, _) in every_echo(port) {
            for to in tos {
                ensure!(echoed(&client, to)?, "{to} before");
            }
        }
    }
    // What a CNI makes of a NetworkPolicy that lets nobody reach port 7000.
    for node in ["node-a", "node-b"] {
        lab.at(node)?.host().shell(
            "nft add table inet netpol; nft add chain inet netpol pods '{ type filter hook forward priority 0; }'; \
             nft add rule inet netpol pods tcp dport 7000 drop",
        )?;
    }
    for (tos, node) in every_echo(7000) {
        for to in tos {
            let outcome = client.connect(&Attempt { milliseconds: 1_500, ..Attempt::new(to, MARKER) })?;
            ensure!(!outcome.answered(), "{to} on {node} past the NetworkPolicy: {outcome:?}");
        }
    }
    for (tos, node) in every_echo(7001) {
        for to in tos {
            ensure!(echoed(&client, to)?, "another port, {to} on {node}");
        }
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_verdict_is_the_same_however_the_destination_is_written() -> Result<()> {
    let mut lab = lab("outside-same")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let stranger = lab.pod(&shop("stranger", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let own = client.identity();
    let mut places = Vec::new();
    let mut echoes = Vec::new();
    for (pod, app) in [(&near, "near"), (&far, "far")] {
        lab.apply(&format!("{app}.yaml"), &server(app, 7000, "opaque", &[Clients::Identities(&[&own])]))?;
        let service = lab.service(&ServiceSpec::new("shop", app, app).port("echo", 70, "7000"))?;
        places.push((pod, [of_pod(pod, 7000), of_service(&service, 70)].concat()));
        echoes.push(pod.app(&["echo", "[::]:7000"])?);
    }
    lab.start_agents()?;
    for (pod, tos) in &places {
        let events = lab.agent(&pod.node)?.events()?;
        for &to in tos {
            ensure!(echoed(&client, to)?, "the client to {to}");
            events.drain();
            ensure!(!echoed(&stranger, to)?, "a stranger to {to}");
            let event = told(&events, "unauthorized")?;
            let rule = format!("Server shop/{}-7000", pod.name);
            ensure!(field(&event, "rule") == rule, "{to}: the verdict names another rule: {event}");
            // Hairpin: itself, by any of its addresses.
            ensure!(echoed(pod, to)?, "{} to itself by {to}", pod.name);
        }
    }
    // A node port leads there too, and is nobody's identity.
    let node = lab.at("node-b")?;
    let open = |port: u16| apps::connect(lab.outside(), &Attempt::new((node.v4, port), MARKER));
    node.host().shell(&format!(
        "nft add table ip ports; nft add chain ip ports pre '{{ type nat hook prerouting priority -100; }}'; \
         nft add chain ip ports post '{{ type nat hook postrouting priority 100; }}'; \
         nft add rule ip ports pre tcp dport 30000 dnat to {}:7000; nft add rule ip ports post masquerade",
        far.v4
    ))?;
    let events = lab.agent("node-b")?.events()?;
    ensure!(!open(30_000)?.answered(), "through a node port");
    told(&events, "unknown_cluster_address")?;
    lab.agent("node-b")?.detach(&far)?;
    eventually("control: without the mesh the node port answers", SOON, || Ok(open(30_000)?.answered()))?;
    lab.close()
}
