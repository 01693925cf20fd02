//! Health probes of this node's kubelet pass under the default `deny`, whatever else the rules say, and nothing but
//! the probe that the pod declares for the port passes with them. Nobody else gains the probe: neither another
//! process on the node nor whatever is forwarded or masqueraded by it.

mod common {
    pub mod health;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use common::{
    health,
    policy_yaml::{Clients, server},
    told::{SOON, field, told},
};
use xtask::lab::{
    Lab, Place, Pod, PodSpec,
    apps::{self, Attempt, Outcome},
    eventually,
};

const BODY: &str = "the loom is well\n";
/// The node's address towards its pods, as ptp and bridge plugins give it: in the pods' network, and no pod's.
const GATEWAY: &str = "10.77.1.1";

fn lab(name: &str) -> Result<Lab> {
    let mut lab = Lab::new(name)?.node("node-a")?;
    lab.binary(env!("CARGO_BIN_EXE_heddle"));
    Ok(lab)
}

fn shop(name: &str) -> PodSpec {
    PodSpec::new(name, "node-a").namespace("shop").account(name).meshed()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n")
}

fn ask(from: &Place, to: impl Into<SocketAddr>, bytes: &str) -> Result<Outcome> {
    apps::connect(from, &Attempt { enough: 0, milliseconds: 10_000, ..Attempt::new(to, bytes) })
}

/// Whether it connects, says nothing and is ended in order: what a TCP probe does.
fn open(from: &Place, to: impl Into<SocketAddr>) -> Result<Outcome> {
    apps::connect(from, &Attempt { half_close: true, milliseconds: 10_000, ..Attempt::new(to, "") })
}

fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [(pod.v4, port).into(), (pod.v6, port).into()]
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_http_probe_is_one_get_of_its_path() -> Result<()> {
    let mut lab = lab("probe-http")?;
    let web = lab.pod(&shop("web").readiness_probe("{httpGet: {path: '/ready?full=1', port: 8080}}"))?;
    let client = lab.pod(&shop("client"))?;
    lab.apply("rules.yaml", &server("web", 8080, "opaque", &[Clients::Identities(&[&client.identity()])]))?;
    lab.start_agents()?;
    let nginx = web.nginx(8080, BODY)?;
    let events = lab.agent("node-a")?.events()?;
    let kubelet = lab.at("node-a")?.kubelet()?;

    for to in both(&web, 8080) {
        let answer = ask(&kubelet, to, &get("/ready?full=1"))?;
        ensure!(answer.received.contains(BODY) && answer.closed, "the probe at {to}: {answer:?}");
    }
    let log = std::fs::read_to_string(web.directory().join("nginx-8080/access.log"))?;
    ensure!(log.starts_with(&format!("{GATEWAY} ")), "the application sees the kubelet's address: {log}");

    for (what, bytes) in [
        ("another path", get("/")),
        ("the path without its query", get("/ready")),
        ("another query", get("/ready?full=2")),
        ("the path in disguise", get("/%72eady?full=1")),
        ("another method", get("/ready?full=1").replace("GET", "POST")),
        ("a body", get("/ready?full=1").replace("Host:", "Content-Length: 1\r\nHost:") + "x"),
        ("a second request at once", get("/ready?full=1") + &get("/")),
        ("an upgrade", get("/ready?full=1").replace("Host:", "Upgrade: h2c\r\nHost:")),
        ("another protocol", "SSH-2.0-probe\r\n".into()),
        ("a head without end", format!("GET /ready?full=1 HTTP/1.1\r\nA: {}", "a".repeat(16_000))),
    ] {
        events.drain();
        let answer = ask(&kubelet, (web.v4, 8080), &bytes)?;
        ensure!(answer.refused() && !answer.closed, "{what}: {answer:?}");
        let event = told(&events, "not_the_probe")?;
        ensure!(field(&event, "hook") == "inbound", "{event}");
        // The rules, and nothing else, decide for everybody who has an identity.
        if what == "another path" {
            let answer = ask(client.place(), (web.v4, 8080), &bytes)?;
            ensure!(answer.received.contains(BODY), "an authorized client, {what}: {answer:?}");
        }
    }
    let log = std::fs::read_to_string(web.directory().join("nginx-8080/access.log"))?;
    ensure!(log.lines().count() == 3, "the application heard of two probes and the client alone: {log}");
    // A second request after the answer to the first: the application keeps the connection open for it.
    let keep = get("/ready?full=1").replace("Connection: close\r\n", "");
    let mut line = kubelet.spawn(&["ncat", "--no-shutdown", &web.v4.to_string(), "8080"])?;
    line.write(&keep)?;
    line.wait_for(BODY.trim_end(), SOON)?;
    line.write(&keep)?;
    ensure!(line.ended_within(SOON).is_some(), "a second request ends the connection");
    ensure!(line.stdout().matches(BODY).count() == 1, "{}", line.stdout());

    drop(nginx);
    let answer = ask(&kubelet, (web.v4, 8080), &get("/ready?full=1"))?;
    ensure!(answer.error.as_deref() == Some("ECONNREFUSED"), "nobody listens: {answer:?}");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_tcp_probe_learns_open_or_closed_and_passes_no_byte() -> Result<()> {
    let mut lab = lab("probe-tcp")?;
    let store = lab.pod(&shop("store").readiness_probe("{tcpSocket: {port: 7000}}"))?;
    let shy = lab.pod(&shop("shy").readiness_probe("{tcpSocket: {port: 7000}}"))?;
    lab.start_agents()?;
    let kubelet = lab.at("node-a")?.kubelet()?;
    for to in both(&store, 7000) {
        let closed = open(&kubelet, to)?;
        ensure!(closed.error.as_deref() == Some("ECONNREFUSED"), "{to}, where nobody listens: {closed:?}");
    }
    let echo = store.app(&["echo", "[::]:7000"])?;
    for to in both(&store, 7000) {
        let probe = open(&kubelet, to)?;
        ensure!(probe.connected && probe.closed && probe.error.is_none(), "{to}: {probe:?}");
        let bytes = ask(&kubelet, to, "a byte or two")?;
        ensure!(
            bytes.connected && bytes.refused() && !bytes.closed,
            "bytes on a TCP probe at {to}: {bytes:?}"
        );
    }
    // A busy application finds the connection already reset when it comes to it.
    eventually("the probes to have reached the application", SOON, || {
        Ok(echo.stdout().contains("from ") || echo.stderr().contains("connection: "))
    })?;
    // A greeting is the application's bytes: they do not pass either.
    let greeter = store.app(&["greet", "[::]:7001", "hello"])?;
    let other = ask(&kubelet, (store.v4, 7001), "")?;
    ensure!(other.refused() && !other.closed, "a port without a probe: {other:?}");
    // It listens, but not where its pod is reached.
    let local = shy.spawn(&["socat", "TCP4-LISTEN:7000,bind=127.0.0.1,fork,reuseaddr", "EXEC:cat"])?;
    eventually("the shy application to listen", SOON, || {
        Ok(shy.place().shell("ss -Hltn sport = :7000")?.contains("7000"))
    })?;
    let shut = ask(&kubelet, (shy.v4, 7000), "")?;
    ensure!(shut.refused() && !shut.closed, "an application on loopback alone: {shut:?}");
    drop((echo, greeter, local));
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_grpc_probe_is_one_check_of_its_service() -> Result<()> {
    let mut lab = lab("probe-grpc")?;
    let api = lab.pod(&shop("api").readiness_probe("{grpc: {port: 9000, service: orders}}"))?;
    let server = health::serve(&api, 9000)?;
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    let kubelet = lab.at("node-a")?.kubelet()?;
    for to in both(&api, 9000) {
        let answer = health::call(&kubelet, to, "/grpc.health.v1.Health/Check", "orders")?;
        ensure!(answer.contains("message 0801") && answer.contains("grpc-status 0"), "{to}: {answer}");
    }
    ensure!(
        server.stdout().matches("called /grpc.health.v1.Health/Check").count() == 2,
        "{}",
        server.stdout()
    );
    for (path, service) in [
        ("/grpc.health.v1.Health/Watch", "orders"),
        ("/shop.Orders/Delete", "orders"),
        ("/grpc.health.v1.Health/Check", ""),
        ("/grpc.health.v1.Health/Check", "admin"),
    ] {
        events.drain();
        let answer = health::call(&kubelet, (api.v4, 9000).into(), path, service)?;
        ensure!(answer.contains("no answer"), "{path} of {service:?}: {answer}");
        told(&events, "not_the_probe")?;
        // Inside the pod nobody is asked: the server itself would have answered.
        let control = health::call(api.place(), (api.v4, 9000).into(), path, service)?;
        ensure!(control.contains("grpc-status"), "{path} of {service:?} in the pod: {control}");
    }
    // A plain GET is no gRPC probe.
    let plain = ask(&kubelet, (api.v4, 9000), &get("/"))?;
    ensure!(plain.refused(), "{plain:?}");
    let stranger = health::call(
        lab.at("node-a")?.host(),
        (api.v4, 9000).into(),
        "/grpc.health.v1.Health/Check",
        "orders",
    )?;
    ensure!(stranger.contains("no answer"), "another process on the node: {stranger}");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nobody_but_the_kubelet_itself_gains_a_probe() -> Result<()> {
    let mut lab = lab("probe-others")?;
    let web = lab.pod(&shop("web").readiness_probe("{httpGet: {path: /live, port: 8080}}"))?;
    let late = lab.pod(&shop("late").readiness_probe("{httpGet: {path: /live, port: 8080}}"))?;
    let bare = lab.pod(&shop("bare"))?;
    let plain = lab.pod(&PodSpec::new("plain", "node-a"))?;
    let _nginx = web.nginx(8080, BODY)?;
    let _bare = bare.nginx(8080, BODY)?;
    lab.start_agents()?;
    let events = lab.agent("node-a")?.events()?;
    let node = lab.at("node-a")?;
    let (kubelet, host) = (node.kubelet()?, node.host());
    let probe = get("/live");
    let passes =
        |from: &Place, to: SocketAddr| -> Result<bool> { Ok(ask(from, to, &probe)?.received.contains(BODY)) };
    ensure!(passes(&kubelet, (web.v4, 8080).into())? && passes(&kubelet, (web.v6, 8080).into())?);
    ensure!(!passes(&kubelet, (bare.v4, 8080).into())?, "a pod without a probe has none");
    // Or it would be taken for the next one's.
    told(&events, "unknown_cluster_address")?;
    events.drain();

    // The node's address is not enough.
    for to in both(&web, 8080) {
        let other = ask(host, to, &probe)?;
        ensure!(other.refused() && !other.connected, "another process on the node, {to}: {other:?}");
    }
    let event = told(&events, "unknown_cluster_address")?;
    ensure!(field(&event, "hook") == "lookup", "{event}");
    let from_node = |bytes: &str| {
        let from = Some(SocketAddr::new(node.v4.into(), 0));
        Attempt { from, enough: 0, milliseconds: 10_000, ..Attempt::new((web.v4, 8080), bytes) }
    };
    let other = apps::connect(host, &from_node(&probe))?;
    ensure!(other.refused() && !other.connected, "from the node's other address: {other:?}");
    told(&events, "no_identity")?;
    let own = apps::connect(&kubelet, &from_node(&probe))?;
    ensure!(own.received.contains(BODY), "the kubelet from the node's other address: {own:?}");

    // A relay on the node, as a userland proxy of node ports would be.
    let relay = "TCP4-LISTEN:30080,fork,reuseaddr";
    let _relay = host.spawn(&["socat", relay, &format!("TCP4:{}:8080", web.v4)])?;
    // A node port by destination NAT, with the node's address as the source.
    host.shell(&format!(
        "nft add table ip heddle; nft add chain ip heddle pre '{{ type nat hook prerouting priority -100; }}'; \
         nft add chain ip heddle post '{{ type nat hook postrouting priority 100; }}'; \
         nft add rule ip heddle pre tcp dport 30081 dnat to {pod}:8080; \
         nft add rule ip heddle pre tcp dport 30082 dnat to {plain}:8080; \
         nft add rule ip heddle post ip daddr {{ {pod}, {plain} }} masquerade",
        pod = web.v4,
        plain = plain.v4
    ))?;
    let _plain = plain.nginx(8080, BODY)?;
    ensure!(
        passes(lab.outside(), (node.v4, 30082).into())?,
        "the node port itself works, to a pod in no mesh"
    );
    events.drain();
    for port in [30080, 30081] {
        let forwarded = ask(lab.outside(), (node.v4, port), &probe)?;
        ensure!(!forwarded.answered(), "through the node's port {port}: {forwarded:?}");
        told(&events, "unknown_cluster_address")?;
    }
    host.shell("nft delete table ip heddle")?;
    ensure!(!passes(plain.place(), (web.v4, 8080).into())?, "a pod in no mesh");

    // A probe that was refused leaves nothing for whoever has its port next.
    let from = Some(format!("{GATEWAY}:45454").parse()?);
    let attempt = Attempt { from, enough: 0, milliseconds: 10_000, ..Attempt::new((late.v4, 8080), &probe) };
    let early = apps::connect(&kubelet, &attempt)?;
    ensure!(early.error.as_deref() == Some("ECONNREFUSED"), "nobody listens yet: {early:?}");
    let _late = late.nginx(8080, BODY)?;
    let heir = apps::connect(host, &attempt)?;
    ensure!(heir.refused() && !heir.connected, "the heir of a probe's port: {heir:?}");
    let again = apps::connect(&kubelet, &attempt)?;
    ensure!(again.received.contains(BODY), "the kubelet on the same port: {again:?}");

    // Where the rules let the node in, they hold for its kubelet too: no probe narrows them.
    let anything = from_node(&get("/anything"));
    ensure!(!apps::connect(&kubelet, &anything)?.answered());
    let office = format!("{}/32", node.v4);
    lab.apply("rules.yaml", &server("web", 8080, "opaque", &[Clients::Networks(&[&office])]))?;
    eventually("the rule to let the node in", SOON, || {
        Ok(apps::connect(host, &anything)?.received.contains(BODY))
    })?;
    let free = apps::connect(&kubelet, &anything)?;
    ensure!(free.received.contains(BODY), "{free:?}");

    // Without the kubelet's cgroup there are no probes.
    lab.agent("node-a")?.terminate()?;
    let settings = lab.settings();
    settings.set("kubeletCgroup", serde_json::Value::Null);
    lab.start_agent("node-a")?;
    ensure!(!passes(&kubelet, (late.v4, 8080).into())?, "no cgroup, no probe");
    lab.close()
}
