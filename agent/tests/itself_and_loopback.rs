//! A pod speaks with itself as without a mesh: by loopback, by its own address, by a Service that leads back to it.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use loom::{A, Loom, PORT, echoed};
use xtask::lab::{
    Pod, ServiceSpec,
    apps::{self, Attempt},
};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connections that the agent carried or refused, and packets that the guard refused, of a pod.
fn noticed(loom: &Loom, pod: &Pod) -> Result<f64> {
    let agent = loom.lab.agent(&pod.node)?;
    let label = format!("pod=\"{}\"", pod.name);
    let kernel = agent.metric("heddle_kernel_decisions_total", &[&label, "outcome=\"proxy\""])?
        + agent.metric("heddle_kernel_decisions_total", &[&label, "outcome=\"refuse\""])?;
    Ok(kernel + agent.metric("heddle_agent_decisions_total", &[&label])?)
}

/// Connects and compares what both ends see with what they see without a mesh.
fn to_itself(pod: &Pod, to: SocketAddr) -> Result<()> {
    let outcome =
        echoed(pod, &Attempt::new(to, "to myself")).with_context(|| format!("{} to {to}", pod.name))?;
    anyhow::ensure!(outcome.peer == Some(to), "the peer is what was asked for: {outcome:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_reaches_itself_unmeshed() -> Result<()> {
    let mut loom = Loom::new("itself")?;
    // No rule lets anybody in: what passes here passes because it is the pod itself.
    loom.lab.settings().set("defaultInboundPolicy", "deny");
    let service = loom.lab.service(&ServiceSpec::new("shop", "near", "near").port("echo", 80, "echo"))?;
    let near = &loom.near;
    let server = near.app(&["echo", &format!("[::]:{PORT}")])?;
    let mapped = near.v4.to_ipv6_mapped().into();
    let own: [IpAddr; 3] = [near.v4.into(), near.v6.into(), mapped];
    let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for address in own.into_iter().chain(LOOPBACK) {
        to_itself(near, (address, PORT).into())?;
    }
    loom.lab.start_agents()?;
    let before = noticed(&loom, near)?;
    for address in own.into_iter().chain(LOOPBACK) {
        to_itself(near, (address, PORT).into())?;
        // More than a packet, and from a source that the application chose.
        let text = "x".repeat(50_000);
        echoed(near, &Attempt::new((address, PORT), &text))?;
    }
    // `connect()` to the unspecified address is the kernel's way to say loopback.
    for address in unspecified {
        echoed(near, &Attempt::new((address, PORT), "to nobody in particular"))?;
    }
    // From loopback to its own address, and the other way round, as far as Linux lets it.
    let from = |from: IpAddr| Some(SocketAddr::new(from, 0));
    echoed(near, &Attempt { from: from(LOOPBACK[0]), ..Attempt::new((near.v4, PORT), "from loopback") })?;
    echoed(
        near,
        &Attempt { from: from(near.v4.into()), ..Attempt::new((LOOPBACK[0], PORT), "to loopback") },
    )?;
    for address in [IpAddr::from(service.v4), service.v6.into()] {
        to_itself(near, (address, 80).into())?;
    }
    assert_eq!(noticed(&loom, near)?, before, "the agent or a refusal was in the way");
    // The server saw the pod itself, never the agent.
    let told = server.stdout();
    let peers: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("from ")).collect();
    assert!(peers.iter().all(|peer| !peer.contains("127.0.1.")), "{told}");
    // UDP as well, which never leaves the pod.
    let _udp = near.app(&["udp-echo", &format!("[::]:{PORT}")])?;
    for address in own.into_iter().chain(LOOPBACK).take(2).chain(LOOPBACK) {
        echoed(near, &Attempt { udp: true, ..Attempt::new((address, PORT), "datagram") })?;
    }
    // Control: the same port is closed to everybody else.
    let refused = loom.client.connect(&Attempt::new((near.v4, PORT), "hello"))?;
    assert!(refused.refused(), "{refused:?}");
    // A port where nobody listens is refused at once by whatever name.
    for address in own.into_iter().chain(LOOPBACK) {
        let outcome = near.connect(&Attempt::new((address, 7999), ""))?;
        assert_eq!(outcome.error.as_deref(), Some("ECONNREFUSED"), "{address}: {outcome:?}");
        assert!(!outcome.connected, "{outcome:?}");
    }
    loom.lab.close()
}

/// The agent gone, a pod still speaks with itself.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_reaches_itself_without_an_agent() -> Result<()> {
    let loom = Loom::new("itself-alone")?;
    let near = &loom.near;
    let _server = near.app(&["echo", &format!("[::]:{PORT}")])?;
    loom.lab.start_agents()?;
    loom.lab.agent(A)?.kill()?;
    for address in [IpAddr::from(near.v4), near.v6.into()].into_iter().chain(LOOPBACK) {
        to_itself(near, (address, PORT).into())?;
    }
    let refused = loom.client.connect(&Attempt::new((loom.far.v4, PORT), "hello"))?;
    assert!(refused.refused(), "control: without its agent the client reaches nobody else: {refused:?}");
    loom.lab.close()
}

/// Two pods with the same connection by loopback, port by port, do not see each other.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_same_loopback_tuples_in_two_pods_stay_apart() -> Result<()> {
    let loom = Loom::new("tuples-twice")?;
    loom.lab.start_agents()?;
    let pods = [&loom.client, &loom.near];
    let greet = |pod: &Pod| pod.app(&["greet", &format!("[::]:{PORT}"), &pod.name]);
    let _servers = [greet(pods[0])?, greet(pods[1])?];
    for address in LOOPBACK {
        let own = SocketAddr::new(address, 5000);
        // Both at once, then each again: what the one registered must not serve the other.
        std::thread::scope(|scope| -> Result<()> {
            let both = pods.map(|pod| {
                scope.spawn(move || {
                    let enough = pod.name.len();
                    pod.connect(&Attempt { from: Some(own), enough, ..Attempt::new((address, PORT), "") })
                })
            });
            for (pod, one) in pods.into_iter().zip(both) {
                let outcome = one.join().expect("no panic")?;
                assert_eq!(outcome.received, pod.name, "{outcome:?}");
                assert_eq!(outcome.local, Some(own), "the very same tuple in both");
            }
            Ok(())
        })?;
    }
    loom.lab.close()
}

/// The node's own address is not the pod: it is a plain destination, and judged as one.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_nodes_address_is_a_plain_destination() -> Result<()> {
    let mut loom = Loom::new("node-address")?;
    let node = loom.lab.at(A)?;
    let addresses: [IpAddr; 2] = [node.v4.into(), node.v6.into()];
    let _server = apps::start(node.host(), &["echo", &format!("[::]:{PORT}")])?;
    loom.lab.start_agents()?;
    for address in addresses {
        echoed(&loom.client, &Attempt::new((address, PORT), "to the node"))?;
    }
    loom.lab.agent(A)?.terminate()?;
    loom.lab.settings().set("defaultOutbound", "deny");
    loom.lab.start_agent(A)?;
    for address in addresses {
        let outcome = loom.client.connect(&Attempt::new((address, PORT), "to the node"))?;
        assert_eq!(outcome.error.as_deref(), Some("ECONNREFUSED"), "{outcome:?}");
    }
    assert!(loom.refused(A, "connect", "outbound_denied")? >= 2.0);
    loom.lab.close()
}
