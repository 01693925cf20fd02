//! A rule that names UDP lets datagrams pass between two meshed pods of one node, both of whom the kernel attests by their
//! veths: by identity, on the ports that it names, with the answers and nothing else. Between nodes nothing would
//! encrypt them, and no rule lets them leave.

mod common {
    pub mod nodes;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use common::{
    nodes::{lab, of_pod, shop},
    policy_yaml::{Clients, datagrams},
    told::{SOON, field, told},
};
use serde_json::Value;
use xtask::lab::{
    Agent, Pod, Running,
    apps::{self, Attempt},
    eventually,
};

fn udp_echo(pod: &Pod, port: u16) -> Result<Running> {
    pod.app(&["udp-echo", &format!("[::]:{port}")])
}

/// Whether a datagram comes back, from a port of its own or from `port`.
fn echoed(pod: &Pod, port: Option<u16>, to: SocketAddr, text: &str) -> Result<bool> {
    let own = |port| if to.is_ipv4() { (pod.v4, port).into() } else { (pod.v6, port).into() };
    let attempt = Attempt { udp: true, milliseconds: 1_000, from: port.map(own), ..Attempt::new(to, text) };
    let outcome = apps::connect(pod.place(), &attempt)?;
    ensure!(outcome.received.is_empty() || outcome.received == text, "{outcome:?}");
    Ok(outcome.answered())
}

fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [(pod.v4, port).into(), (pod.v6, port).into()]
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn datagrams_pass_by_identity_on_one_node_and_never_between_nodes() -> Result<()> {
    let mut lab = lab("udp-rules")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let stranger = lab.pod(&shop("stranger", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let identity = client.identity();
    for app in ["near", "far"] {
        lab.apply(&format!("{app}.yaml"), &datagrams(app, 5000, Clients::Identities(&[&identity])))?;
    }
    let servers = [udp_echo(&near, 5000)?, udp_echo(&far, 5000)?, udp_echo(&near, 5001)?];
    for (pod, port) in [(&near, 5000), (&near, 5001), (&far, 5000)] {
        ensure!(echoed(&stranger, None, (pod.v4, port).into(), "before")?, "without the mesh it answers");
    }
    let flows = lab.directory().join("flows.jsonl");
    let mut settings = lab.settings().clone();
    settings.set("flowLog", serde_json::json!({"file": flows, "megabytes": 8}));
    lab.agent("node-a")?.start(&lab.heddle()?, &settings)?;
    lab.start_agent("node-a")?;
    lab.start_agent("node-b")?;
    let events = lab.agent("node-a")?.events()?;
    for to in of_pod(&near, 5000) {
        ensure!(echoed(&client, None, to, "allowed")?, "the rule names the client: {to}");
    }
    let recorded = |from: &Pod, outcome: &str, rule: &str| -> Result<bool> {
        let text = std::fs::read_to_string(&flows).unwrap_or_default();
        let of_udp = text.lines().filter(|line| line.contains("\"protocol\":\"udp\""));
        let wanted =
            [format!("\"address\":\"{}\"", from.v4), format!("\"outcome\":\"{outcome}\""), rule.to_owned()];
        Ok(of_udp.into_iter().any(|line| wanted.iter().all(|part| line.contains(part.as_str()))))
    };
    eventually("what passed to be recorded", SOON, || {
        recorded(&client, "allowed", "\"rule\":\"AccessRule shop/")
    })?;
    let refused = [(&stranger, &near, 5000, "unauthorized"), (&client, &near, 5001, "unauthorized")];
    let between = [(&client, &far, 5000, "plain_to_meshed")];
    let capture = lab.capture("node-b")?;
    for (from, to, port, reason) in refused.into_iter().chain(between) {
        for to in both(to, port) {
            events.drain();
            ensure!(!echoed(from, None, to, "refused")?, "{to}");
            let event = told(&events, reason)?;
            ensure!(field(&event, "hook") == "guard_from_pod", "{event}");
        }
    }
    eventually("what was refused to be recorded", SOON, || recorded(&stranger, "refused", "unauthorized"))?;
    ensure!(!recorded(&stranger, "allowed", "")?, "a stranger's datagrams never passed");
    let traffic = capture.stop()?;
    for (own, far) in [(IpAddr::from(client.v4), far.v4.into()), (client.v6.into(), IpAddr::from(far.v6))] {
        ensure!(traffic.packets_between(own, far) == 0, "a datagram to {far} left the node");
    }
    ensure!(servers.iter().all(|server| !server.stdout().contains("refused")));
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn answers_pass_and_nothing_else_does_and_none_once_the_rule_is_gone() -> Result<()> {
    const OWN: Option<u16> = Some(7_777);
    let mut lab = lab("udp-answers")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a"))?;
    let identity = client.identity();
    let rule = datagrams("near", 5000, Clients::Identities(&[&identity]));
    lab.apply("near.yaml", &rule)?;
    lab.start_agents()?;
    let agent = lab.agent("node-a")?;
    let events = agent.events()?;
    // The client asks from a port, and then attends there: what answers may do so whenever it likes, and as often.
    let asks = || -> Result<()> {
        for to in both(&near, 5000) {
            echoed(&client, OWN, to, "asked")?;
        }
        Ok(())
    };
    let attends = || -> Result<[Running; 2]> { Ok([udp_echo(&client, 7_777)?, udp_echo(&client, 7_778)?]) };
    let attending = attends()?;
    for to in both(&client, 7_777) {
        ensure!(!echoed(&near, Some(5000), to, "unasked")?, "nobody asked for an answer at {to}");
        told(&events, "unauthorized")?;
    }
    drop(attending);
    asks()?;
    let attending = attends()?;
    for to in both(&client, 7_777) {
        ensure!(echoed(&near, Some(5000), to, "answer")?, "an answer to {to}");
        ensure!(!echoed(&near, Some(5002), to, "unasked")?, "from another port to {to}");
    }
    for to in both(&client, 7_778) {
        ensure!(!echoed(&near, Some(5000), to, "unasked")?, "to another port: {to}");
    }
    // Rules that change around it change nothing.
    let before = generation(agent)?;
    lab.apply("other.yaml", &datagrams("client", 9, Clients::Identities(&[&identity])))?;
    eventually("the next rules", SOON, || Ok(generation(agent)? > before))?;
    for to in both(&client, 7_777) {
        ensure!(echoed(&near, Some(5000), to, "answer")?, "an answer under the next rules to {to}");
    }
    // Without the rule the conversation is over.
    events.drain();
    lab.manifests().remove("near.yaml")?;
    for to in both(&client, 7_777) {
        eventually("the answers to cease", SOON, || Ok(!echoed(&near, Some(5000), to, "late")?))?;
    }
    told(&events, "revoked")?;
    // With it again, it takes a question again.
    let before = generation(agent)?;
    lab.apply("near.yaml", &rule)?;
    eventually("the rule again", SOON, || Ok(generation(agent)? > before))?;
    ensure!(!echoed(&near, Some(5000), (client.v4, 7_777).into(), "unasked")?, "nobody asked again");
    drop(attending);
    asks()?;
    let _attending = attends()?;
    for to in both(&client, 7_777) {
        ensure!(echoed(&near, Some(5000), to, "answer")?, "an answer to {to}, asked for again");
    }
    lab.close()
}

fn generation(agent: &Agent) -> Result<u64> {
    let status = agent.status()?;
    let of = |name: &str| status.pointer(&format!("/rules/{name}")).and_then(Value::as_u64).unwrap_or(0);
    Ok(of("kernelGeneration"))
}
