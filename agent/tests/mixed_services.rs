//! A Service some of whose endpoints are refused: chance does not decide who is let in.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use xtask::lab::{Lab, Pod, PodSpec, ServiceSpec, apps::Attempt, eventually};

const PORT: u16 = 7000;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn of_several_endpoints_an_allowed_one_is_taken_whosever_turn_it_is() -> Result<()> {
    let mut lab = Lab::new("mixed")?.node("node-a")?.node("node-b")?;
    lab.binary(env!("CARGO_BIN_EXE_heddle"));
    lab.settings().set("defaultInboundPolicy", "all-authenticated").set("defaultOutbound", "deny");
    let spec = |name: &str, node: &str| {
        PodSpec::new(name, node)
            .namespace("shop")
            .account(name)
            .port("echo", PORT)
            .annotation("config.linkerd.io/opaque-ports", "7000")
    };
    let deny = |spec: PodSpec| spec.annotation("config.linkerd.io/default-inbound-policy", "deny");
    let client = lab.pod(&spec("client", "node-a").meshed())?;
    let open = lab.pod(&spec("open", "node-a").meshed().label("app", "mixed"))?;
    // Refused by its rules on the same node and on the other, and by `defaultOutbound`.
    let refused: Vec<Pod> = [
        deny(spec("near", "node-a").meshed().label("app", "mixed")),
        spec("plain", "node-b").label("app", "mixed"),
    ]
    .iter()
    .map(|spec| lab.pod(spec))
    .collect::<Result<_>>()?;
    let mixed = lab.service(&ServiceSpec::new("shop", "mixed", "mixed").port("echo", 80, "7000"))?;
    let servers = [&open, &refused[0], &refused[1]]
        .map(|pod| pod.app(&["echo", &format!("[::]:{PORT}")]))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    lab.start_agents()?;
    let attempt =
        |to: SocketAddr| client.connect(&Attempt { milliseconds: 3000, ..Attempt::new(to, "one of them") });
    eventually("the open one", Duration::from_secs(20), || Ok(attempt((open.v4, PORT).into())?.answered()))?;
    for pod in &refused {
        let outcome = attempt((pod.v4, PORT).into())?;
        assert!(outcome.refused(), "control: {} refuses: {}", pod.name, outcome.summary());
    }
    let others = || servers[1..].iter().map(|server| server.stdout().lines().count()).sum::<usize>();
    let before = others();
    // Each turn would be the open one's only once in three.
    for turn in 0..12 {
        for to in [(std::net::IpAddr::from(mixed.v4), 80), (mixed.v6.into(), 80)] {
            let outcome = attempt(to.into())?;
            assert!(outcome.answered(), "turn {turn}: {}", outcome.summary());
        }
    }
    assert_eq!(others(), before, "one that refuses accepted somebody");
    lab.close()
}
