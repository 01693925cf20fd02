//! What is not TCP passes by L4 policy or not at all: UDP, echoes, ICMP errors, fragments, other protocols. Nothing
//! would encrypt a datagram between meshed pods: none passes unless a rule names it and it stays on its node, which
//! `udp_rules.rs` shows.

mod common {
    pub mod nodes;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use common::{
    nodes::{lab, of_pod, office, shop},
    policy_yaml::{Clients, datagrams, server},
    told::{SOON, field, told},
};
use xtask::lab::{
    OUTSIDE, Place, Pod, PodSpec, Running,
    apps::{self, Attempt},
    eventually,
};

const DNS_SERVICE: &str = "10.78.200.10";

/// Whether a datagram comes back.
fn echoed(from: &Place, to: impl Into<SocketAddr>, text: &str) -> Result<bool> {
    let milliseconds = 1_500;
    let attempt = Attempt { udp: true, milliseconds, ..Attempt::new(to, text) };
    let outcome = apps::connect(from, &attempt)?;
    ensure!(outcome.received.is_empty() || outcome.received == text, "{outcome:?}");
    Ok(outcome.answered())
}

fn udp_echo(pod: &Pod, port: u16) -> Result<Running> {
    pod.app(&["udp-echo", &format!("[::]:{port}")])
}

/// `sendto()` on a socket that is never connected.
fn sent_unconnected(from: &Place, to: SocketAddr, text: &str) -> Result<bool> {
    let target = match to {
        SocketAddr::V4(to) => format!("UDP4-SENDTO:{to}"),
        SocketAddr::V6(to) => format!("UDP6-SENDTO:{to}"),
    };
    let output = from.run(&["sh", "-c", &format!("printf %s {text} | timeout 3 socat -t1.5 - {target}")])?;
    ensure!(output.stdout.is_empty() || output.stdout == text, "{output:?}");
    Ok(!output.stdout.is_empty())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn udp_between_meshed_pods_is_refused_and_told() -> Result<()> {
    let mut lab = lab("udp-mesh")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let open = lab.pod(&PodSpec::new("open", "node-b"))?;
    // Rules about TCP change nothing here.
    for app in ["near", "far"] {
        lab.apply(
            &format!("{app}.yaml"),
            &server(app, 5000, "opaque", &[Clients::Identities(&[&client.identity()])]),
        )?;
    }
    let servers = [udp_echo(&near, 5000)?, udp_echo(&far, 5000)?, udp_echo(&open, 5000)?];
    for pod in [&near, &far, &open] {
        for to in of_pod(pod, 5000) {
            ensure!(echoed(client.place(), to, "before")?, "without the mesh {to} answers");
        }
    }
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    let refused = ["hook=\"guard_from_pod\"", "outcome=\"refuse\""];
    for (pod, reason) in [(&near, "unauthorized"), (&far, "plain_to_meshed")] {
        let label = format!("reason=\"{reason}\"");
        let refused = [refused[0], refused[1], &label];
        for to in of_pod(pod, 5000) {
            let counted = lab.agent("node-a")?.metric("heddle_kernel_decisions_total", &refused)?;
            ensure!(!echoed(client.place(), to, "marker")?, "a connected socket to {to}");
            let event = told(&events, reason)?;
            ensure!(
                field(&event, "hook") == "guard_from_pod" && field(&event, "pod") == "shop/client",
                "{event}"
            );
            ensure!(!sent_unconnected(client.place(), to, "marker")?, "an unconnected socket to {to}");
            told(&events, reason)?;
            eventually("the drops to be counted", SOON, || {
                Ok(lab.agent("node-a")?.metric("heddle_kernel_decisions_total", &refused)? >= counted + 2.0)
            })?;
        }
    }
    ensure!(!servers[0].stdout().contains("marker"));
    // The same sockets to a pod in no mesh.
    for to in of_pod(&open, 5000) {
        ensure!(echoed(client.place(), to, "plain")?, "a connected socket to {to}");
        ensure!(sent_unconnected(client.place(), to, "plain")?, "an unconnected socket to {to}");
    }
    // A datagram in fragments, which are nothing without their first.
    let long = "f".repeat(4_000);
    ensure!(
        echoed(client.place(), (open.v4, 5000), &long)? && echoed(client.place(), (open.v6, 5000), &long)?
    );
    let capture = lab.capture("node-b")?;
    ensure!(
        !echoed(client.place(), (far.v4, 5000), &long)? && !echoed(client.place(), (far.v6, 5000), &long)?
    );
    let traffic = capture.stop()?;
    for ip in [IpAddr::from(far.v4), far.v6.into()] {
        let own: IpAddr = if ip.is_ipv4() { client.v4.into() } else { client.v6.into() };
        ensure!(traffic.packets_between(own, ip) == 0, "not one fragment to {ip} leaves");
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn names_are_asked_of_the_dns_service_alone() -> Result<()> {
    let mut lab = lab("udp-dns")?;
    lab.settings().set("defaultOutbound", "deny");
    let client = lab.pod(&shop("client", "node-a"))?;
    let names =
        lab.pod(&PodSpec::new("names", "node-b").namespace("kube-system").label("k8s-app", "kube-dns"))?;
    lab.apply(
        "dns.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\nspec:\n  \
             clusterIP: {DNS_SERVICE}\n  clusterIPs: [{DNS_SERVICE}]\n  selector: {{k8s-app: kube-dns}}\n  ports:\n  \
             - {{name: dns, port: 53, targetPort: 53, protocol: UDP}}\n  \
             - {{name: metrics, port: 9153, targetPort: 9153, protocol: UDP}}\n"
        ),
    )?;
    let _servers = [udp_echo(&names, 53)?, udp_echo(&names, 9153)?];
    // What kube-proxy does.
    lab.at("node-a")?.host().shell(&format!(
        "nft add table ip heddle; nft add chain ip heddle pre '{{ type nat hook prerouting priority -100; }}'; \
         nft add rule ip heddle pre ip daddr {DNS_SERVICE} dnat to {}",
        names.v4
    ))?;
    let service = |port: u16| SocketAddr::new(DNS_SERVICE.parse().expect("an address"), port);
    for port in [53, 9153] {
        ensure!(echoed(client.place(), service(port), "before")?, "without the mesh port {port} answers");
    }
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    ensure!(echoed(client.place(), service(53), "web.shop")?, "a connected socket");
    ensure!(sent_unconnected(client.place(), service(53), "web.shop")?, "an unconnected socket");
    for to in [service(9153), (names.v4, 9153).into(), (names.v6, 9153).into()] {
        events.drain();
        ensure!(!echoed(client.place(), to, "metrics")?, "{to} is no DNS");
        told(&events, "outbound_denied")?;
    }
    // Who may not even ask for names has no way out by them.
    lab.apply(
        "no-names.yaml",
        "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {name: no-names, namespace: shop}\n\
         spec: {action: Deny, protocol: UDP, to: [{anywhere: true}]}\n",
    )?;
    eventually("the question to be refused", SOON, || Ok(!echoed(client.place(), service(53), "web.shop")?))?;
    events.drain();
    ensure!(!sent_unconnected(client.place(), service(53), "web.shop")?, "an unconnected socket");
    told(&events, "denied")?;
    lab.manifests().remove("no-names.yaml")?;
    eventually("the question to pass again", SOON, || echoed(client.place(), service(53), "web.shop"))?;
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn datagrams_leave_by_default_outbound_and_enter_only_as_answers_or_by_a_rule() -> Result<()> {
    let mut lab = lab("udp-plain")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let open = lab.pod(&PodSpec::new("open", "node-b"))?;
    let _outside = apps::start(lab.outside(), &["udp-echo", "[::]:5000"])?;
    let _open = udp_echo(&open, 5000)?;
    let server_in_pod = udp_echo(&client, 6000)?;
    ensure!(echoed(open.place(), (client.v4, 6000), "before")?, "without the mesh the pod's server answers");
    for (default, pod_passes, outside_passes, reason) in [
        ("allow", true, true, ""),
        ("cluster", true, false, "outbound_outside_cluster"),
        ("deny", false, false, "outbound_denied"),
    ] {
        if lab.agent("node-a")?.is_running() {
            lab.agent("node-a")?.terminate()?;
        }
        lab.settings().set("defaultOutbound", default);
        lab.start_agents()?;
        let events = lab.agent("node-a")?.events()?;
        for (to, passes) in [
            (SocketAddr::new(open.v4.into(), 5000), pod_passes),
            (SocketAddr::new(open.v6.into(), 5000), pod_passes),
            (SocketAddr::new(OUTSIDE[0], 5000), outside_passes),
            (SocketAddr::new(OUTSIDE[1], 5000), outside_passes),
        ] {
            events.drain();
            ensure!(echoed(client.place(), to, default)? == passes, "UDP to {to} under {default}");
            if !passes {
                told(&events, reason)?;
            }
            events.drain();
            ensure!(client.pings(to.ip())? == passes, "an echo to {to} under {default}");
            if !passes {
                told(&events, reason)?;
            }
        }
        // Nobody asked for these.
        for from in [open.place(), lab.outside()] {
            for to in [SocketAddr::new(client.v4.into(), 6000), SocketAddr::new(client.v6.into(), 6000)] {
                events.drain();
                ensure!(!echoed(from, to, "unasked")?, "into the pod under {default}");
                let event = told(&events, "no_identity")?;
                ensure!(field(&event, "hook") == "guard_to_pod", "{event}");
                ensure!(!from.run(&["ping", "-c", "1", "-W", "1", &to.ip().to_string()])?.succeeded());
            }
        }
    }
    ensure!(server_in_pod.stdout().matches("from ").count() == 1, "{}", server_in_pod.stdout());
    let office = office();
    let office = office.each_ref().map(String::as_str);
    // A Server says nothing of datagrams: with it in force they are refused as before.
    lab.apply("rules.yaml", &server("client", 6000, "opaque", &[Clients::Networks(&office)]))?;
    let _echo = client.app(&["echo", "[::]:6000"])?;
    eventually("the Server to be in force", SOON, || {
        Ok(apps::connect(lab.outside(), &Attempt::new((client.v4, 6000), "x"))?.answered())
    })?;
    ensure!(!echoed(lab.outside(), (client.v4, 6000), "asked")?, "a Server opened UDP");
    lab.apply("datagrams.yaml", &datagrams("client", 6000, Clients::Networks(&office)))?;
    eventually("the rule to let outside in", SOON, || echoed(lab.outside(), (client.v4, 6000), "asked"))?;
    ensure!(echoed(lab.outside(), (client.v6, 6000), "asked")?);
    ensure!(!echoed(open.place(), (client.v4, 6000), "unasked")?, "the rule names outside alone");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn icmp_errors_pass_and_echoes_between_meshed_pods_do_not() -> Result<()> {
    let mut lab = lab("icmp")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let open = lab.pod(&PodSpec::new("open", "node-b"))?;
    lab.apply("far.yaml", &server("far", 7000, "opaque", &[Clients::Identities(&[&client.identity()])]))?;
    let office = office();
    let office = office.each_ref().map(String::as_str);
    lab.apply("client.yaml", &datagrams("client", 5999, Clients::Networks(&office)))?;
    let _echo = far.app(&["echo", "[::]:7000"])?;
    let targets: [IpAddr; 4] = [near.v4.into(), near.v6.into(), far.v4.into(), far.v6.into()];
    for address in targets {
        ensure!(client.pings(address)?, "without the mesh {address} answers");
    }
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    for address in targets {
        events.drain();
        ensure!(!client.pings(address)?, "{address}");
        told(&events, "plain_to_meshed")?;
    }
    ensure!(client.pings(open.v4.into())? && client.pings(open.v6.into())?);

    // A port where nobody listens: its refusal comes back, into a pod and out of one.
    for to in [SocketAddr::new(open.v4.into(), 5999), SocketAddr::new(open.v6.into(), 5999)] {
        let outcome = apps::connect(client.place(), &Attempt { udp: true, ..Attempt::new(to, "?") })?;
        ensure!(
            outcome.error.as_deref() == Some("ECONNREFUSED"),
            "an ICMP error into the pod, {to}: {outcome:?}"
        );
    }
    for to in [SocketAddr::new(client.v4.into(), 5999), SocketAddr::new(client.v6.into(), 5999)] {
        let outcome = apps::connect(lab.outside(), &Attempt { udp: true, ..Attempt::new(to, "?") })?;
        ensure!(
            outcome.error.as_deref() == Some("ECONNREFUSED"),
            "an ICMP error out of the pod, {to}: {outcome:?}"
        );
    }

    // A narrower link in the middle: the mesh's own TCP needs to be told.
    let narrow = |place: &Place, interface: &str| {
        place.check(&["ip", "link", "set", interface, "mtu", "1280"]).map(drop)
    };
    // Both its ends: a veth drops what is longer than its own end's, without a word.
    narrow(lab.router(), lab.at("node-b")?.router_interface())?;
    narrow(lab.at("node-b")?.host(), "uplink")?;
    lab.at("node-a")?.host().shell(
        "nft add table inet heddle; nft add chain inet heddle mtu '{ type filter hook forward priority 0; }'; \
         nft add rule inet heddle mtu icmp type destination-unreachable drop; \
         nft add rule inet heddle mtu icmpv6 type packet-too-big drop",
    )?;
    let long = "l".repeat(60_000);
    let carry = |to: SocketAddr, milliseconds| -> Result<bool> {
        let attempt = Attempt { milliseconds, ..Attempt::new(to, &long) };
        Ok(apps::connect(client.place(), &attempt)?.received == long)
    };
    let both = [SocketAddr::new(far.v4.into(), 7000), SocketAddr::new(far.v6.into(), 7000)];
    for to in both {
        ensure!(!carry(to, 1_500)?, "control: without ICMP errors nothing of this size reaches {to}");
    }
    lab.at("node-a")?.host().shell("nft delete table inet heddle")?;
    for to in both {
        ensure!(carry(to, 10_000)?, "60 kB over a link of 1280 bytes to {to}");
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn other_protocols_and_extension_headers_are_dropped() -> Result<()> {
    const MARKER: &str = "heddle-marker-77c0";
    let mut lab = lab("protocols")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let plain = lab.pod(&PodSpec::new("plain", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    let v4 = |from: &Pod, protocol: u8| {
        let length = 20 + MARKER.len() as u8;
        let mut packet = vec![0x45, 0, 0, length, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet.extend(from.v4.octets());
        packet.extend(far.v4.octets());
        packet.extend(MARKER.as_bytes());
        packet
    };
    // SCTP, GRE, IP in IP, and a number that nobody has.
    for protocol in [132, 47, 4, 253] {
        let seen = |from: &Pod| -> Result<usize> {
            let capture = lab.capture("node-b")?;
            apps::send_raw(from.place(), far.v4.into(), protocol, &v4(from, protocol))?;
            Ok(capture.stop()?.hits(MARKER.as_bytes()))
        };
        ensure!(seen(&plain)? > 0, "control: protocol {protocol} leaves a pod in no mesh");
        events.drain();
        ensure!(seen(&client)? == 0, "protocol {protocol} left a meshed pod");
        let event = told(&events, "protocol")?;
        ensure!(field(&event, "hook") == "guard_from_pod", "protocol {protocol}: {event}");
    }
    // ICMP errors that a pod makes up: about nothing, and about a datagram that nobody sent it.
    let error = |from: &Pod, quoted: &[u8]| {
        let length = 20 + 8 + quoted.len() as u8;
        let mut packet = vec![0x45, 0, 0, length, 0, 1, 0, 0, 64, 1, 0, 0];
        packet.extend(from.v4.octets());
        packet.extend(far.v4.octets());
        let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        let sum: u32 = message
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        packet.extend(message);
        packet
    };
    let datagram = |to: &Pod| {
        let mut quoted = vec![0x45, 0, 0, 28 + MARKER.len() as u8, 0, 1, 0, 0, 64, 17, 0, 0];
        quoted.extend(far.v4.octets());
        quoted.extend(to.v4.octets());
        quoted.extend([0x17, 0x70, 0x17, 0x71, 0, 8 + MARKER.len() as u8, 0, 0]);
        quoted.extend(MARKER.as_bytes());
        quoted
    };
    for made_up in [false, true] {
        let seen = |from: &Pod| -> Result<usize> {
            let quoted = if made_up { datagram(from) } else { MARKER.as_bytes().to_vec() };
            let capture = lab.capture("node-b")?;
            apps::send_raw(from.place(), far.v4.into(), 1, &error(from, &quoted))?;
            Ok(capture.stop()?.hits(MARKER.as_bytes()))
        };
        ensure!(seen(&plain)? > 0, "control: it leaves a pod in no mesh");
        events.drain();
        ensure!(seen(&client)? == 0, "an ICMP error about nothing left a meshed pod");
        told(&events, "protocol")?;
    }
    // Routing, destination options, hop-by-hop options and a fragment, each in front of an UDP datagram.
    for (header, reason) in [(43u8, "protocol"), (60, "protocol"), (0, "protocol"), (44, "plain_to_meshed")] {
        let seen = |from: &Pod| -> Result<usize> {
            let capture = lab.capture("node-b")?;
            let mut extension = [17, 0, 0, 0, 0, 0, 0, 0];
            if header != 44 {
                // Padding for options; for routing a type that nobody obeys.
                extension[2..4].copy_from_slice(if header == 43 { &[253, 0] } else { &[1, 4] });
            }
            let length = 8 + MARKER.len() as u8;
            let mut frame = [from.gateway_mac()?, from.mac("eth0")?].concat();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8 + length, header, 64]);
            frame.extend(from.v6.octets());
            frame.extend(far.v6.octets());
            frame.extend(extension);
            frame.extend([0x13, 0x88, 0x13, 0x88, 0, length, 0, 0]);
            frame.extend(MARKER.as_bytes());
            from.send_frame(&frame)?;
            Ok(capture.stop()?.hits(MARKER.as_bytes()))
        };
        ensure!(seen(&plain)? > 0, "control: extension header {header} leaves a pod in no mesh");
        events.drain();
        ensure!(seen(&client)? == 0, "extension header {header} left a meshed pod");
        told(&events, reason).with_context(|| format!("extension header {header}"))?;
    }
    lab.close()
}
