//! What belongs to the agent is out of a pod's reach: its listeners, the connections meant for them, its door.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use loom::{A, B, Loom, PORT, SOON, echoed};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::lab::{Output, Pod, Running, apps::Attempt, eventually};

/// The ports on which somebody listens in a pod.
fn listening(pod: &Pod) -> Result<BTreeSet<u16>> {
    let told = pod.place().check(&["ss", "-Htln"])?;
    let port = |line: &str| line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok();
    Ok(told.lines().filter_map(port).collect())
}

/// The ports of the agent's listeners in a pod.
fn agents(pod: &Pod) -> Result<BTreeSet<u16>> {
    let ports: BTreeSet<u16> = listening(pod)?.into_iter().filter(|port| *port != PORT).collect();
    anyhow::ensure!(!ports.is_empty(), "the agent has listeners in the pod");
    Ok(ports)
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// A connection that must end at once: refused, or reset once the far agent has refused it.
fn ends(pod: &Pod, to: SocketAddr, text: &str) -> Result<()> {
    let outcome = pod.connect(&Attempt::new(to, text))?;
    let ended =
        outcome.closed || matches!(outcome.error.as_deref(), Some("ECONNREFUSED" | "ECONNRESET" | "EPIPE"));
    anyhow::ensure!(ended && outcome.received.is_empty(), "{} to {to}: {outcome:?}", pod.name);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_agents_listeners_cannot_be_dialed() -> Result<()> {
    let loom = Loom::new("dial")?;
    let server = format!("[::]:{PORT}");
    let _servers = [loom.near.app(&["echo", &server])?, loom.far.app(&["echo", &server])?];
    loom.lab.start_agents()?;
    // Whatever the agent decides about a connection that it accepted in the pod.
    let accepted = |pod: &Pod| {
        let label = format!("pod=\"{}\"", pod.name);
        loom.lab.agent(&pod.node)?.metric("heddle_agent_decisions_total", &[&label])
    };
    for pod in [&loom.near, &loom.far] {
        let (ports, before) = (agents(pod)?, accepted(pod)?);
        for &port in &ports {
            for address in addresses(pod) {
                let to = SocketAddr::new(address, port);
                // By its own pod: through the programs, and by a process that they do not see.
                let own = pod.connect(&Attempt::new(to, "own"))?;
                assert_eq!(own.error.as_deref(), Some("ECONNREFUSED"), "{} dialed {to}: {own:?}", pod.name);
                let unseen = pod.place().enter(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
                    Ok(socket.connect_timeout(&to.into(), Duration::from_secs(3)))
                })?;
                assert!(unseen.is_err(), "{} dialed {to} unseen", pod.name);
                // By another pod of its node or of another, by one in no mesh, and by the node itself.
                ends(&loom.client, to, "another")?;
                ends(&loom.plain, to, "unmeshed")?;
            }
        }
        assert_eq!(accepted(pod)?, before, "the agent of {} accepted something", pod.node);
        for address in addresses(pod) {
            echoed(&loom.client, &Attempt::new((address, PORT), "control: the application's port"))?;
        }
        assert_eq!(agents(pod)?, ports, "the listeners are where they were");
    }
    loom.lab.close()
}

/// A nested network namespace with the pod's address registers nothing that the look-up would let pass.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn only_the_pods_own_sockets_are_registered() -> Result<()> {
    let loom = Loom::new("tuples")?;
    let server = format!("[::]:{PORT}");
    let _servers = [loom.near.app(&["echo", &server])?, loom.far.app(&["stall", &server])?];
    loom.lab.start_agents()?;
    let nested = loom.client.place().nested("forger")?;
    let own = loom.client.v4;
    nested.shell(&format!(
        "ip link set lo up; ip link add out type veth peer name in; ip link set in up; ip addr add {own}/32 dev out; ip link set out up
        ip route add default dev out; ip neigh add {} lladdr 02:00:00:00:00:09 dev out",
        loom.near.v4
    ))?;
    let dump = |map: &str| {
        let map = format!("/sys/fs/bpf/heddle/v{}/maps/{map}", heddle_ebpf::SCHEMA);
        loom.lab.agent(A)?.place().check(&["bpftool", "-j", "map", "dump", "pinned", &map])
    };
    let registered =
        || -> Result<Vec<String>> { ["proxied", "direct_flows"].into_iter().map(dump).collect() };
    let nothing = registered()?;
    // It stays in SYN_SENT: its tuple would be there as long as it tries.
    for to in [loom.near.v4, loom.far.v4] {
        let target = format!("TCP:{to}:{PORT},bind={own}:5555,reuseaddr,connect-timeout=10");
        let _forger = nested.spawn(&["socat", "-u", "OPEN:/dev/null", &target])?;
        eventually("the forger's SYN", SOON, || {
            Ok(nested.check(&["ss", "-Htn", "state", "syn-sent"])?.contains(":5555"))
        })?;
        assert_eq!(registered()?, nothing, "a nested namespace registered a tuple");
    }
    // Control: the pod's own connections are in those maps.
    let mut line = loom.client.spawn(&["ncat", &loom.near.v4.to_string(), &PORT.to_string()])?;
    line.write("hello\n")?;
    line.wait_for("hello", SOON)?;
    assert_ne!(registered()?, nothing);
    loom.lab.close()
}

/// Starts socat servers of uid 0 that want what the agent listens on, each with its own way to take it.
fn grab(pod: &Pod, ports: &BTreeSet<u16>) -> Result<Vec<Running>> {
    let mut grabbers = Vec::new();
    for port in ports {
        for options in ["reuseaddr,reuseport", "reuseaddr"] {
            for (kind, address) in [("TCP4", pod.v4.to_string()), ("TCP6", format!("[{}]", pod.v6))] {
                let listen = format!("{kind}-LISTEN:{port},bind={address},fork,{options}");
                grabbers.push(pod.spawn(&["socat", "-u", &listen, "STDOUT"])?);
            }
        }
    }
    Ok(grabbers)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pods_root_takes_none_of_the_agents_connections() -> Result<()> {
    const CONNECTIONS: usize = 1000;
    let loom = Loom::new("grab")?;
    let _server = loom.far.app(&["once", &format!("[::]:{PORT}")])?;
    loom.lab.start_agents()?;
    let wanted = agents(&loom.far)?;
    let mut grabbers = grab(&loom.client, &agents(&loom.client)?)?;
    grabbers.extend(grab(&loom.far, &wanted)?);
    // Each of them has bound or failed to once the ports stay as they are.
    let mut last = Default::default();
    eventually("the grabbers to listen", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = (agents(&loom.client)?, agents(&loom.far)?);
        let settled = now == last;
        last = now;
        Ok(settled)
    })?;
    for address in addresses(&loom.far) {
        let attempt = Attempt::new((address, PORT), "?");
        echoed(&loom.client, &attempt)?;
    }
    let mut made = 0;
    while made < CONNECTIONS {
        let to = SocketAddr::new(addresses(&loom.far)[made % 2], PORT);
        let burst = xtask::lab::apps::burst(loom.client.place(), to, 4, Duration::from_millis(300))?;
        assert_eq!(burst.failed, 0, "{:?}", burst.last_error);
        made += usize::try_from(burst.succeeded)?;
    }
    let taken: Vec<String> = grabbers.iter().map(Running::stdout).filter(|text| !text.is_empty()).collect();
    assert!(taken.is_empty(), "of {made} connections some were taken: {taken:?}");
    println!("{made} connections, none of them taken by {} listeners of uid 0", grabbers.len());
    // Control: they listen, the agent has given way to them, and what is meant for them they get.
    eventually("what is meant for a grabber", SOON, || {
        for port in &wanted {
            let to = SocketAddr::from((loom.far.v4, *port));
            loom.client.connect(&Attempt { milliseconds: 300, ..Attempt::new(to, "<yours>") })?;
        }
        Ok(grabbers.iter().any(|grabber| grabber.stdout().contains("<yours>")))
    })?;
    loom.lab.close()
}

/// TPROXY in a pod's own network namespace: what it shows that pod is the pod's own. No connection that is meant for
/// the agent, and no byte of a client that the rules keep out.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn tproxy_in_a_pod_takes_nothing_from_the_agent() -> Result<()> {
    let loom = Loom::new("tproxy")?;
    let server = format!("[::]:{PORT}");
    let _servers = [loom.far.app(&["echo", &server])?, loom.near.app(&["echo", &server])?];
    loom.far.place().shell(
        "ip rule add fwmark 1 lookup 100; ip route add local default dev lo table 100
        nft add table ip t
        nft add chain ip t in '{ type filter hook prerouting priority mangle; }'
        nft add rule ip t in tcp dport != 9999 tproxy to :9999 meta mark set 1 accept",
    )?;
    let thief = loom.far.spawn(&[
        "socat",
        "-u",
        "TCP4-LISTEN:9999,bind=0.0.0.0,fork,reuseaddr,ip-transparent",
        "STDOUT",
    ])?;
    eventually("the thief to listen", SOON, || Ok(listening(&loom.far)?.contains(&9999)))?;
    let send = |from: &Pod, to: &Pod, text: &str| {
        from.connect(&Attempt { milliseconds: 1500, ..Attempt::new((to.v4, PORT), text) })
    };
    // Control: without the mesh the thief takes every connection.
    for (from, text) in [(&loom.client, "<off client>"), (&loom.plain, "<off plain>")] {
        send(from, &loom.far, text)?;
        thief.wait_for(text, SOON)?;
    }
    loom.lab.start_agents()?;
    let kept_out = send(&loom.plain, &loom.far, "<on plain>")?;
    assert!(kept_out.refused(), "{kept_out:?}");
    send(&loom.client, &loom.far, "<on client>")?;
    send(&loom.far, &loom.near, "<on own>")?;
    let stolen = thief.stdout();
    assert!(!stolen.contains("<on plain>"), "bytes of a client that the rules keep out: {stolen:?}");
    // A TLS handshake record: what is meant for the agent begins with one.
    assert!(!stolen.contains("\u{16}\u{3}"), "a connection that is meant for the agent: {stolen:?}");
    let shown = |text| if stolen.contains(text) { "shown" } else { "not shown" };
    // What cannot be held: root in a pod sees what is its own pod's, after it was judged.
    println!("let in by the rules: {}; the pod's own: {}", shown("<on client>"), shown("<on own>"));
    // The rest of the mesh does not notice.
    echoed(&loom.client, &Attempt::new((loom.near.v4, PORT), "others"))?;
    loom.lab.close()
}

/// The agent listens for nobody on the network, and its door answers no process of a pod's that has got hold of it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_door_is_shut_to_pods() -> Result<()> {
    let loom = Loom::new("door")?;
    loom.lab.start_agents()?;
    for node in [A, B] {
        let host = loom.lab.at(node)?.host();
        assert_eq!(host.check(&["ss", "-Htln"])?, "", "{node} listens on TCP");
        assert_eq!(host.check(&["ss", "-Huln"])?, "", "{node} listens on UDP");
    }
    let socket = loom.lab.agent(A)?.socket().display().to_string();
    // The lab's folder is in the pod's mount namespace: as if the socket had been mounted there.
    let ask = |wrap: &[&str], path: &str| -> Result<Output> {
        let url = format!("http://door{path}");
        let curl = ["curl", "-sS", "--max-time", "5", "-w", "\n%{http_code}", "--unix-socket", &socket, &url];
        loom.client.run(&[wrap, &curl].concat())
    };
    for path in ["/v1/status", "/v1/metrics"] {
        let control = ask(&[], path)?;
        assert!(control.stdout.ends_with("200"), "control: root of the host is answered: {control:?}");
        for wrap in [
            &["unshare", "--pid", "--fork"][..],
            &["unshare", "--user", "--map-root-user"][..],
            &["unshare", "--user", "--map-root-user", "--pid", "--fork"][..],
            &["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--"][..],
        ] {
            let output = ask(wrap, path)?;
            assert!(
                !output.stdout.contains("heddle_") && !output.stdout.contains("generation"),
                "{wrap:?}: {output:?}"
            );
            assert!(!output.stdout.ends_with("200"), "{wrap:?}: {output:?}");
        }
    }
    // Nor can it attach a namespace under another's name.
    let body = format!(r#"{{"namespace":"shop","name":"near","netns":"{}"}}"#, loom.client.netns.display());
    let curl = [
        "unshare",
        "--pid",
        "--fork",
        "curl",
        "-sS",
        "-w",
        "\n%{http_code}",
        "--unix-socket",
        &socket,
        "-d",
        &body,
        "-H",
        "content-type: application/json",
        "http://door/v1/pods",
    ];
    let output = loom.client.run(&curl)?;
    assert!(output.stdout.ends_with("403"), "{output:?}");
    let status = loom.lab.agent(A)?.status()?;
    let pods = status["pods"].as_array().context("no pods")?;
    assert_eq!(pods.len(), 2, "{status}");
    loom.lab.close()
}
