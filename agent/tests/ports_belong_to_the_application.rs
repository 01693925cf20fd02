//! A pod's ports are its applications': whichever they listen on, the mesh is not in the way, and where nobody
//! listens a client is told so.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use loom::{A, Loom, PORT, SOON, echoed};
use xtask::lab::{
    Pod, Running,
    apps::{self, Attempt},
    eventually,
};

fn open(name: &str) -> Result<Loom> {
    let mut loom = Loom::new(name)?;
    // Clients in no mesh as well: what is refused is refused because nobody listens.
    loom.lab.settings().set("defaultInboundPolicy", "all-unauthenticated");
    Ok(loom)
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// The local addresses and ports on which somebody listens in a pod, with the length of the queue: the agent's is
/// its own.
fn listening(pod: &Pod) -> Result<Vec<(u16, bool)>> {
    let told = pod.place().check(&["ss", "-Htln"])?;
    let socket = |line: &str| {
        let mut words = line.split_whitespace();
        let agents = words.nth(2)? == "4096";
        Some((words.next()?.rsplit_once(':')?.1.parse().ok()?, agents))
    };
    Ok(told.lines().filter_map(socket).collect())
}

/// The ports of the agent's listeners, where no application has a queue as long as theirs.
fn agents(pod: &Pod) -> Result<Vec<u16>> {
    let mut ports: Vec<u16> =
        listening(pod)?.into_iter().filter(|(_, agents)| *agents).map(|(port, _)| port).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// An echo server as any: no SO_REUSEADDR, no SO_REUSEPORT unless `options` say so. It is there when this returns.
fn serve(pod: &Pod, port: u16, options: &str) -> Result<Running> {
    let listen = format!("TCP6-LISTEN:{port},ipv6-v6only=0,fork{options}");
    // Where the machine has much more to do than processors, the agent may not have given way in the time that it is
    // waited for: the application fails as on a port that is taken, and starts the next time.
    for attempt in 1..=3 {
        let mut server = pod.spawn(&["socat", "-d", "-d", &listen, "EXEC:cat"])?;
        eventually("the server to listen or to end", SOON, || {
            Ok(!server.is_running() || server.stderr().contains("listening on"))
        })?;
        if server.is_running() {
            return Ok(server);
        }
        println!("port {port}, attempt {attempt}: {}", server.stderr());
        // As a supervisor waits.
        std::thread::sleep(Duration::from_millis(500));
    }
    anyhow::bail!("no application could have port {port}")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_application_listens_wherever_it_likes() -> Result<()> {
    let loom = open("ports")?;
    loom.lab.start_agents()?;
    let (near, clients) = (&loom.near, [&loom.client, &loom.plain, &loom.far]);
    let reachable = |port: u16, text: &str| -> Result<()> {
        for address in addresses(near) {
            for client in clients {
                echoed(client, &Attempt::new((address, port), text)).with_context(|| client.name.clone())?;
            }
        }
        Ok(())
    };
    let _usual = serve(near, 50051, "")?;
    reachable(50051, "gRPC's own")?;
    let before = agents(near)?;
    assert!(!before.is_empty() && !before.contains(&50051), "{before:?}");

    // The agent's own port: it gives way, and goes on serving.
    let taken = *before.first().context("no listener of the agent's")?;
    let _wanted = serve(near, taken, "")?;
    let after = agents(near)?;
    assert!(!after.contains(&taken) && after.len() == before.len(), "{before:?}, then {after:?}");
    reachable(taken, "the agent's own")?;
    reachable(50051, "still there")?;

    // Every port of a range, one after the other, the agent's new ones among them.
    let first = *after.first().context("no listener")?;
    let range = first - 2..first + 22;
    let servers = range.clone().map(|port| serve(near, port, "")).collect::<Result<Vec<_>>>()?;
    assert!(agents(near)?.iter().all(|port| !range.contains(port)), "{range:?}: {:?}", agents(near)?);
    for port in range.clone() {
        echoed(&loom.client, &Attempt::new((near.v4, port), "in the range"))?;
    }
    drop(servers);
    // A port that the agent gave away and the application gave back is nobody's.
    let refused = loom.plain.connect(&Attempt::new((near.v4, first), "hello"))?;
    assert_eq!(refused.error.as_deref(), Some("ECONNREFUSED"), "{refused:?}");
    reachable(50051, "still there")?;
    loom.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_application_restarts_on_its_port_under_traffic() -> Result<()> {
    const RESTARTS: usize = 5;
    let loom = open("restart")?;
    let server = format!("[::]:{PORT}");
    let start = || loom.near.app(&["once", &server]);
    let mut running = start()?;
    loom.lab.start_agents()?;
    // Carried by the kernel from the client's node, and by both agents from the other.
    let clients = [&loom.client, &loom.far, &loom.plain];
    let to = SocketAddr::from((loom.near.v4, PORT));
    std::thread::scope(|scope| -> Result<()> {
        let time = Duration::from_secs(3);
        let traffic = clients.map(|pod| scope.spawn(move || apps::burst(pod.place(), to, 2, time)));
        let began = Instant::now();
        for _ in 0..RESTARTS {
            std::thread::sleep(Duration::from_millis(400));
            running.end();
            // It says that it is ready, or that its port is taken.
            running = start().context("the application could not have its port back")?;
        }
        assert!(began.elapsed() < time * 10, "each restart waits for nothing");
        for (client, burst) in clients.into_iter().zip(traffic) {
            let burst = burst.join().expect("no panic")?;
            println!("{}: {burst:?}", client.name);
            assert!(burst.succeeded > 0, "{burst:?}");
        }
        Ok(())
    })?;
    for client in clients {
        for address in addresses(&loom.near) {
            echoed(client, &Attempt::new((address, PORT), "?"))?;
        }
    }
    loom.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_where_nobody_listens_is_refused() -> Result<()> {
    let loom = open("nobody")?;
    loom.lab.start_agents()?;
    let (near, far) = (&loom.near, &loom.far);
    for port in [PORT, 7999] {
        for target in [near, far] {
            for address in addresses(target) {
                let to = SocketAddr::new(address, port);
                // In no mesh: its SYN is answered by a reset.
                let plain = loom.plain.connect(&Attempt::new(to, "hello"))?;
                assert_eq!(plain.error.as_deref(), Some("ECONNREFUSED"), "{to}: {plain:?}");
                assert!(!plain.connected, "{to}: {plain:?}");
                // Meshed: refused too, by a reset where its own agent had accepted first.
                let meshed = loom.client.connect(&Attempt::new(to, "hello"))?;
                assert!(meshed.refused() && meshed.received.is_empty(), "{to}: {meshed:?}");
            }
        }
    }
    assert!(loom.refused(A, "lookup", "no_listener")? >= 4.0);
    // Control: somebody listens.
    let _servers =
        [near.app(&["echo", &format!("[::]:{PORT}")])?, far.app(&["echo", &format!("[::]:{PORT}")])?];
    for address in addresses(near).into_iter().chain(addresses(far)) {
        echoed(&loom.plain, &Attempt::new((address, PORT), "hello"))?;
        echoed(&loom.client, &Attempt::new((address, PORT), "hello"))?;
    }
    loom.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_is_open_as_long_as_one_listener_is() -> Result<()> {
    let loom = open("several")?;
    let near = &loom.near;
    // One before the capture, which no program saw begin, and one after.
    let early = serve(near, PORT, ",reuseaddr,reuseport")?;
    loom.lab.start_agents()?;
    let clients = [&loom.client, &loom.plain, &loom.far];
    let reachable = |what: &str| -> Result<()> {
        for client in clients {
            for address in addresses(near) {
                echoed(client, &Attempt::new((address, PORT), what)).with_context(|| client.name.clone())?;
            }
        }
        Ok(())
    };
    let closed = |what: &str| -> Result<()> {
        eventually(what, SOON, || {
            let outcome = loom.plain.connect(&Attempt::new((near.v4, PORT), "hello"))?;
            Ok(outcome.error.as_deref() == Some("ECONNREFUSED"))
        })
    };
    reachable("known from before the capture")?;
    let late = serve(near, PORT, ",reuseaddr,reuseport")?;
    reachable("two listeners")?;
    drop(early);
    reachable("the later one stays")?;
    let next = serve(near, PORT, ",reuseaddr,reuseport")?;
    drop(late);
    reachable("the third stays")?;
    drop(next);
    closed("the port to be closed with its last listener")?;

    // The same over the agent's restart: what it finds listening, and what closes while it is away.
    let [one, other] = [serve(near, PORT, ",reuseaddr,reuseport")?, serve(near, PORT, ",reuseport")?];
    loom.lab.agent(A)?.kill()?;
    drop(one);
    loom.lab.agent(A)?.start(&loom.lab.heddle()?, &loom_settings())?;
    reachable("one of two closed while the agent was away")?;
    drop(other);
    closed("the port to be closed after the restart")?;
    loom.lab.close()
}

/// As [`open`] sets them.
fn loom_settings() -> xtask::lab::Settings {
    let mut settings = xtask::lab::Settings::default();
    settings.set("defaultInboundPolicy", "all-unauthenticated");
    settings
}
