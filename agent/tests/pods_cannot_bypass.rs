//! Nothing leaves a captured pod past the mesh, whatever its processes do as root: raw and packet sockets, sockets
//! that no hook saw, fragments, nested namespaces, spoofed marks, another interface.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;
#[path = "common/packets.rs"]
#[allow(dead_code)]
mod packets;
#[path = "common/uring.rs"]
mod uring;

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use loom::{A, Loom, PORT, SOON, echoed};
use packets::{
    ACK, FIN, PSH_ACK, SYN, TCP, UDP, datagram, frame, packet, packet_v4, segment, send_frame, send_packets,
};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::lab::{
    Place,
    apps::{self, Attempt},
    eventually,
};

/// Sends bytes that begin with the marker.
type Go = Box<dyn Fn(&str) -> Result<()>>;

/// A way to get bytes out of the client's pod to the meshed pod on the other node.
struct Way {
    name: &'static str,
    go: Go,
}

fn pair(loom: &Loom, v6: bool) -> (SocketAddr, SocketAddr) {
    let addresses: (IpAddr, IpAddr) = if v6 {
        (loom.client.v6.into(), loom.far.v6.into())
    } else {
        (loom.client.v4.into(), loom.far.v4.into())
    };
    (SocketAddr::new(addresses.0, 40_000), SocketAddr::new(addresses.1, PORT))
}

/// A raw socket of a protocol, for which the kernel makes the IP header.
fn send_raw(place: &Place, to: IpAddr, protocol: i32, body: &[u8]) -> Result<()> {
    place.enter(|| {
        let to = SocketAddr::new(to, 0);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.send_to(body, &to.into()).context("the kernel did not take the packet")?;
        Ok(())
    })
}

/// A connection of a process that is in the pod's network namespace and in none of its node's cgroups: no program
/// there sees it.
fn connect_unseen(place: &Place, to: SocketAddr, mark: u32, text: &str) -> Result<()> {
    place.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(mark)?;
        if socket.connect_timeout(&to.into(), Duration::from_millis(500)).is_ok() {
            TcpStream::from(socket).write_all(text.as_bytes())?;
        }
        Ok(())
    })
}

fn ways(loom: &Loom) -> Result<Vec<Way>> {
    let mut ways: Vec<Way> = Vec::new();
    let mut way = |name, go: Go| ways.push(Way { name, go });
    let (mac, gateway) = (loom.client.mac("eth0")?, loom.client.gateway_mac()?);
    for v6 in [false, true] {
        let (from, to) = pair(loom, v6);
        let name = |v4: &'static str, name6: &'static str| if v6 { name6 } else { v4 };
        let place = || loom.client.place().clone();
        let ip = move |protocol, body: &[u8]| packet(from.ip(), to.ip(), protocol, body);

        let here = place();
        way(
            name("raw tcp", "raw tcp v6"),
            Box::new(move |text| send_raw(&here, to.ip(), 6, &segment(from, to, PSH_ACK, text.as_bytes()))),
        );
        for (label, flags) in [
            (name("raw ip", "raw ip v6"), PSH_ACK),
            (name("syn with payload", "syn with payload v6"), SYN),
            (name("fin with payload", "fin with payload v6"), FIN | ACK),
            (name("rst with payload", "rst with payload v6"), 4),
            (name("syn-ack with payload", "syn-ack with payload v6"), SYN | ACK),
        ] {
            let here = place();
            way(
                label,
                Box::new(move |text| {
                    send_packets(&here, to.ip(), &[ip(TCP, &segment(from, to, flags, text.as_bytes()))])
                }),
            );
        }
        let here = place();
        way(
            name("packet socket", "packet socket v6"),
            Box::new(move |text| {
                let segment = segment(from, to, PSH_ACK, text.as_bytes());
                send_frame(&here, "eth0", &frame(mac, gateway, &ip(TCP, &segment)))
            }),
        );
        let here = place();
        way(
            name("udp", "udp v6"),
            Box::new(move |text| {
                send_packets(&here, to.ip(), &[ip(UDP, &datagram(from, to, text.as_bytes()))])
            }),
        );
        for (label, protocol) in
            [(name("sctp", "sctp v6"), 132), (name("unknown protocol", "unknown protocol v6"), 253)]
        {
            let here = place();
            way(label, Box::new(move |text| send_packets(&here, to.ip(), &[ip(protocol, text.as_bytes())])));
        }
        for (label, mark) in
            [(name("unseen", "unseen v6"), 0), (name("spoofed mark", "spoofed mark v6"), 0x6865)]
        {
            let here = place();
            way(label, Box::new(move |text| connect_unseen(&here, to, mark, text)));
        }
    }
    let (here, to) = (loom.client.place().clone(), loom.far.v4);
    let mapped = SocketAddr::new(to.to_ipv6_mapped().into(), PORT);
    way("unseen mapped", Box::new(move |text| connect_unseen(&here, mapped, 0, text)));

    // The first fragment bears the header, the second the rest; then one that begins within the header.
    let (from, to) = pair(loom, false);
    let (own, far) = (loom.client.v4, loom.far.v4);
    for (name, field) in [("first fragment", 0x2000), ("later fragment", 0x0003), ("tiny fragment", 0x2001)] {
        let here = loom.client.place().clone();
        way(
            name,
            Box::new(move |text| {
                let segment = segment(from, to, PSH_ACK, format!("{text}........").as_bytes());
                let whole = segment.len() / 8 * 8;
                send_packets(&here, far.into(), &[packet_v4(own, far, TCP, field, &segment[..whole])])
            }),
        );
    }
    for (name, offset) in [("v6 fragment", 0x0001u16), ("later v6 fragment", 0x0018)] {
        let (here, (from, to)) = (loom.client.place().clone(), pair(loom, true));
        way(
            name,
            Box::new(move |text| {
                let segment = segment(from, to, PSH_ACK, format!("{text}........").as_bytes());
                let mut body = vec![TCP, 0];
                body.extend(offset.to_be_bytes());
                body.extend([0, 0, 0, 5]);
                body.extend(&segment[..segment.len() / 8 * 8]);
                send_packets(&here, to.ip(), &[packet(from.ip(), to.ip(), 44, &body)])
            }),
        );
    }
    Ok(ways)
}

/// A network namespace behind the pod's, which forwards for it: it bears the pod's own address.
fn nest(loom: &Loom, name: &str) -> Result<Place> {
    let (pod, own) = (loom.client.place(), loom.client.v4);
    let nested = pod.nested(name)?;
    pod.shell(&format!(
        "ip link add inner type veth peer name eth0 netns {}
        ip link set inner address 02:00:00:00:00:01; ip addr add 10.99.0.1/24 dev inner; ip link set inner up
        cd /proc/sys/net/ipv4; echo 1 >ip_forward
        for who in all inner; do echo 0 >conf/$who/rp_filter; echo 1 >conf/$who/accept_local; done",
        nested.netns().display()
    ))?;
    nested.shell(&format!(
        "ip link set lo up; ip addr add {own}/32 dev eth0; ip link set eth0 up
        ip route add 10.99.0.1 dev eth0; ip route add default via 10.99.0.1 src {own}
        ip neigh add 10.99.0.1 lladdr 02:00:00:00:00:01 dev eth0"
    ))?;
    Ok(nested)
}

fn forward(loom: &Loom, nested: &Place, text: &str) -> Result<()> {
    let (from, to) = pair(loom, false);
    send_packets(
        nested,
        to.ip(),
        &[packet(from.ip(), to.ip(), TCP, &segment(from, to, PSH_ACK, text.as_bytes()))],
    )?;
    connect_unseen(nested, to, 0, text)
}

fn marker(round: &str, name: &str) -> String {
    format!("<{round} {name}>")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nothing_leaves_past_the_guard() -> Result<()> {
    let loom = Loom::new("bypass")?;
    let server = format!("[::]:{PORT}");
    let _echo = loom.far.app(&["echo", &server])?;
    let ways = ways(&loom)?;
    let to = SocketAddr::from((loom.far.v4, PORT));
    // Made before there is any capture: in the pod's cgroup and outside of it, connected and not.
    let mut old_line =
        loom.client.spawn(&["ncat", "--no-shutdown", &to.ip().to_string(), &to.port().to_string()])?;
    let mut old_unseen = loom.client.place().enter(|| Ok(TcpStream::connect(to)?))?;
    let young_unseen = loom.client.place().enter(|| Ok(Socket::new(Domain::IPV4, Type::STREAM, None)?))?;
    let late_text = marker("on", "socket made before");
    let mut late = loom.client.app(&["late", &to.to_string(), &late_text])?;

    let capture = loom.lab.capture(A)?;
    for way in &ways {
        (way.go)(&marker("off", way.name)).with_context(|| way.name)?;
    }
    old_line.write(&format!("{}\n", marker("off", "old line")))?;
    old_line.wait_for("old line", SOON)?;
    old_unseen.write_all(marker("off", "old unseen").as_bytes())?;
    let nested = nest(&loom, "nested-off")?;
    forward(&loom, &nested, &marker("off", "nested"))?;
    let traffic = capture.stop()?;
    let others = ["old line", "old unseen", "nested"];
    for name in ways.iter().map(|way| way.name).chain(others) {
        assert!(traffic.hits(marker("off", name).as_bytes()) > 0, "without the mesh {name:?} crosses");
    }

    // Nothing but the pod's own veth leads out of it when it is attached.
    loom.client.place().shell("ip link del inner")?;
    loom.lab.start_agents()?;
    let reasons = ["unmarked_socket", "fragment", "protocol", "plain_to_meshed"];
    let count =
        || reasons.iter().map(|reason| loom.refused(A, "guard_from_pod", reason)).collect::<Result<Vec<_>>>();
    let before = count()?;
    let capture = loom.lab.capture(A)?;
    for way in &ways {
        (way.go)(&marker("on", way.name)).with_context(|| way.name)?;
    }
    // Writes that the kernel takes and the guard does not.
    drop(old_line.write(&format!("{}\n", marker("on", "old line"))));
    drop(old_unseen.write_all(marker("on", "old unseen").as_bytes()));
    let young = young_unseen.connect_timeout(&to.into(), Duration::from_millis(500));
    assert!(young.is_err(), "a socket that no program saw was connected");
    let nested = nest(&loom, "nested-on")?;
    forward(&loom, &nested, &marker("on", "nested"))?;
    // Control: what goes by the mesh arrives, and so does what a socket made before the capture sends in its cgroup.
    let through = marker("on", "by the mesh");
    echoed(&loom.client, &Attempt::new(to, &through))?;
    late.write("go\n")?;
    late.wait_for(&late_text, SOON)?;
    let traffic = capture.stop()?;
    let names = ways.iter().map(|way| way.name).chain(others).chain(["by the mesh", "socket made before"]);
    let seen: Vec<&str> = names.filter(|name| traffic.hits(marker("on", name).as_bytes()) > 0).collect();
    assert!(seen.is_empty(), "crossed in the clear: {seen:?}");
    for (reason, (before, after)) in reasons.iter().zip(before.into_iter().zip(count()?)) {
        assert!(after > before, "nothing was counted as {reason}");
    }
    loom.lab.close()
}

/// What `ip` knows of an interface.
fn link(place: &Place, interface: &str) -> Result<serde_json::Value> {
    let text = place.check(&["ip", "-j", "-s", "link", "show", "dev", interface])?;
    Ok(serde_json::from_str::<serde_json::Value>(&text)?[0].take())
}

/// What the guard lets pass of a socket that it does not know: segments without payload, never a SYN, in bounded
/// numbers.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn bare_segments_pass_in_bounded_numbers() -> Result<()> {
    /// As many in a second as the agent allows a pod.
    const A_SECOND: f64 = 20_000.0;
    const SENT: usize = 100_000;
    let loom = Loom::new("bare")?;
    let (from, to) = pair(&loom, false);
    let bare = |flags| packet(from.ip(), to.ip(), TCP, &segment(from, to, flags, b""));
    let syn = || -> Result<usize> {
        let capture = loom.lab.capture(A)?;
        send_packets(loom.client.place(), to.ip(), &[bare(SYN)])?;
        Ok(capture.stop()?.packets_between(from.ip(), to.ip()))
    };
    assert!(syn()? > 0, "without the mesh a SYN crosses");
    loom.lab.start_agents()?;
    assert_eq!(syn()?, 0, "a SYN of a raw socket crossed");
    // Counted where they leave the node; a capture of so many loses some.
    let left = || -> Result<[f64; 2]> {
        let link = link(loom.lab.router(), loom.lab.at(A)?.router_interface())?;
        let count =
            |name: &str| link.pointer(&format!("/stats64/rx/{name}")).and_then(serde_json::Value::as_f64);
        Ok([count("packets").context("no count")?, count("bytes").context("no count")?])
    };
    let before = left()?;
    let began = Instant::now();
    send_packets(loom.client.place(), to.ip(), &vec![bare(ACK); SENT])?;
    let took = began.elapsed().as_secs_f64();
    let after = left()?;
    let (crossed, bytes) = (after[0] - before[0], after[1] - before[1]);
    let limited = loom.refused(A, "guard_from_pod", "rate_limited")?;
    println!(
        "{crossed} of {SENT} segments without payload crossed in {took:.2} s; {limited} were over the limit"
    );
    assert!(crossed > 0.0, "control: the first of them cross");
    let bound = A_SECOND * (took + 2.0);
    // Not shown then, and told so, wherever that is: less than this machine sends shows no limit.
    if SENT as f64 <= bound {
        println!(
            "not applicable: {SENT} of them take {took:.1} s on this machine: no more than are allowed in that time"
        );
        return loom.lab.close();
    }
    assert!(crossed <= bound, "{crossed} crossed in {took} s");
    // Neighbors look for each other in between.
    assert!((crossed + limited - SENT as f64).abs() < 50.0, "{crossed} crossed and {limited} were counted");
    assert!(bytes / crossed < 60.0, "{bytes} bytes: headers of Ethernet, IP and TCP are 54");
    loom.lab.close()
}

/// Handshakes out of the ordinary: they go by the mesh like every other.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn unusual_handshakes_go_by_the_mesh() -> Result<()> {
    let loom = Loom::new("handshakes")?;
    let server = format!("[::]:{PORT}");
    let _echoes = [loom.far.app(&["echo", &server])?, loom.near.app(&["echo", &server])?];
    for pod in [&loom.client, &loom.near, &loom.far] {
        // Cookies for every connection; Fast Open both ways, without a cookie and for every listener.
        pod.place().shell("cd /proc/sys/net/ipv4; echo 2 >tcp_syncookies; echo 1543 >tcp_fastopen")?;
    }
    let targets: [IpAddr; 4] =
        [loom.far.v4.into(), loom.far.v6.into(), loom.near.v4.into(), loom.near.v6.into()];
    let round = |round: &str| -> Result<usize> {
        let capture = loom.lab.capture(A)?;
        for target in targets {
            let to = SocketAddr::new(target, PORT);
            let text = marker(round, "fast open");
            let output = apps::fast_open(loom.client.place(), to, &text)?;
            assert!(output.stdout.contains(&text), "{round}: Fast Open to {to}: {output:?}");
            for _ in 0..5 {
                echoed(&loom.client, &Attempt::new(to, &text)).context("with syncookies")?;
            }
            if let IpAddr::V4(v4) = target {
                let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), PORT);
                echoed(&loom.client, &Attempt::new(mapped, &text)).context("mapped")?;
            }
        }
        Ok(capture.stop()?.hits(marker(round, "fast open").as_bytes()))
    };
    assert!(round("off")? > 0, "without the mesh the marker crosses");
    loom.lab.start_agents()?;
    assert_eq!(round("on")?, 0, "crossed in the clear");
    loom.lab.close()
}

/// io_uring makes connections without `connect(2)`: they are seen and judged all the same.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn io_uring_goes_by_the_mesh() -> Result<()> {
    let loom = Loom::new("io-uring")?;
    let _echo = loom.far.app(&["echo", &format!("[::]:{PORT}")])?;
    let ask = |to: Ipv4Addr, text: &str| uring::ask(loom.client.place(), (to, PORT).into(), text);
    let capture = loom.lab.capture(A)?;
    let text = marker("off", "io_uring");
    let output = ask(loom.far.v4, &text)?;
    if output.stdout.contains(uring::NONE) {
        println!("not applicable: this kernel gives out no io_uring");
        return loom.lab.close();
    }
    assert!(output.stdout.contains(&text), "{output:?}");
    assert!(capture.stop()?.hits(text.as_bytes()) > 0, "without the mesh it crosses");
    loom.lab.start_agents()?;
    let capture = loom.lab.capture(A)?;
    let text = marker("on", "io_uring");
    let output = ask(loom.far.v4, &text)?;
    assert!(output.stdout.contains(&text), "{output:?}");
    assert_eq!(capture.stop()?.hits(text.as_bytes()), 0, "crossed in the clear");
    // Nobody is known at this address of the pods' network.
    let output = ask(Ipv4Addr::new(10, 77, 2, 200), &text)?;
    assert!(output.stdout.contains("Connection refused"), "{output:?}");
    loom.lab.close()
}

/// Two ends that connect to each other pass by the look-up: what one side may not open, the other does not open for it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_simultaneous_open_needs_both_ends_to_be_allowed() -> Result<()> {
    let loom = Loom::new("simultaneous")?;
    // The kernel carries them alone: only there do the two ends meet.
    for pod in ["client", "near"] {
        let file = format!("pod-shop-{pod}.yaml");
        loom.lab.manifests().edit(&file, r#"opaque-ports: "7000""#, r#"opaque-ports: "6000-7000""#)?;
    }
    // Whoever calls the client is refused; the client may call near.
    loom.lab.manifests().edit(
        "pod-shop-client.yaml",
        "annotations:",
        "annotations:\n    config.linkerd.io/default-inbound-policy: deny",
    )?;
    // A reset would end an attempt before the other side has begun its own.
    for pod in [&loom.client, &loom.near] {
        pod.place().shell(
            "nft add table inet t; nft add chain inet t out '{ type filter hook output priority 0; }'
            nft add rule inet t out 'tcp flags & rst == rst drop'",
        )?;
    }
    let attempt =
        |from, to| Attempt { from: Some(from), enough: 4, milliseconds: 2500, ..Attempt::new(to, "ping") };
    // Ports of its own for each round: what is left of the first one's connection keeps its ports.
    let meet = |one: u16, other: u16| -> Result<_> {
        let a = SocketAddr::from((loom.client.v4, one));
        let b = SocketAddr::from((loom.near.v4, other));
        std::thread::scope(|scope| {
            let one = scope.spawn(|| loom.client.connect(&attempt(a, b)));
            let other = loom.near.connect(&attempt(b, a))?;
            Ok((one.join().expect("no panic")?, other))
        })
    };
    let (one, other) = meet(6001, 6002)?;
    assert!(
        one.received == "ping" && other.received == "ping",
        "without the mesh they meet: {one:?} {other:?}"
    );
    loom.lab.start_agents()?;
    let (one, other) = meet(6003, 6004)?;
    assert!(one.received.is_empty() && other.received.is_empty(), "{one:?} {other:?}");
    assert!(other.refused(), "near may not call the client: {other:?}");
    // The other control: it is the rule that kept them apart.
    loom.lab.manifests().edit(
        "pod-shop-client.yaml",
        "default-inbound-policy: deny",
        "default-inbound-policy: all-authenticated",
    )?;
    let mut ports = 6005..;
    eventually("both to be allowed to meet", SOON, || {
        let mut port = || ports.next().unwrap_or_default();
        let (one, other) = meet(port(), port())?;
        Ok(one.received == "ping" && other.received == "ping")
    })?;
    loom.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn another_interface_leads_nowhere() -> Result<()> {
    let loom = Loom::new("second")?;
    let client = &loom.client;
    // Out of the second interface, once from its own address, once from the pod's.
    let cross = |round: &str, v4: Ipv4Addr, host: &str| -> Result<[usize; 2]> {
        let mac = client.mac("eth1")?;
        let link = link(loom.lab.at(A)?.host(), host)?;
        let text = link["address"].as_str().unwrap_or_default();
        let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let gateway = <[u8; 6]>::try_from(bytes).expect("a MAC address");
        let capture = loom.lab.capture(A)?;
        let to = SocketAddr::from((loom.far.v4, PORT));
        for (name, from) in [("second", v4), ("own", client.v4)] {
            let segment = segment((from, 4000).into(), to, PSH_ACK, marker(round, name).as_bytes());
            send_frame(
                client.place(),
                "eth1",
                &frame(mac, gateway, &packet(from.into(), to.ip(), TCP, &segment)),
            )?;
        }
        let traffic = capture.stop()?;
        Ok(["second", "own"].map(|name| traffic.hits(marker(round, name).as_bytes())))
    };
    let (v4, _, host) = client.second_interface()?;
    assert!(cross("off", v4, &host)?.iter().all(|hits| *hits > 0), "without the mesh both cross");
    // There at the attach, with addresses that are not the pod's: it is not captured.
    loom.lab.agent(A)?.start(&loom.lab.heddle()?, &xtask::lab::Settings::default())?;
    let refusal = format!("{:#}", loom.lab.agent(A)?.attach(client).expect_err("must be refused"));
    assert!(refusal.contains("409") || refusal.contains("addresses"), "{refusal}");
    client.place().shell("ip link del eth1")?;
    loom.lab.start_agents()?;

    // Given to the pod later: guarded as soon as the agent hears of it, and what it cannot guard is told.
    let problems = || -> Result<String> {
        let status = loom.lab.agent(A)?.status()?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let found = pods.iter().find(|pod| pod["name"] == "client").context("the client is not captured")?;
        Ok(found["problems"].to_string())
    };
    assert_eq!(problems()?, "[]");
    let (v4, _, host) = client.second_interface()?;
    eventually("the second interface to be guarded", SOON, || {
        Ok(loom.lab.agent(A)?.log().contains("another interface"))
    })?;
    assert_eq!(cross("on", v4, &host)?, [0, 0], "crossed by the second interface");
    assert_eq!(problems()?, "[]", "it is guarded");
    let _echo = loom.far.app(&["echo", &format!("[::]:{PORT}")])?;
    echoed(client, &Attempt::new((loom.far.v4, PORT), "still by the mesh"))?;
    // The agent's successor finds it guarded.
    loom.lab.agent(A)?.kill()?;
    loom.lab.agent(A)?.start(&loom.lab.heddle()?, &xtask::lab::Settings::default())?;
    assert_eq!(cross("again", v4, &host)?, [0, 0]);
    let pod = client.place().netns().display().to_string();
    let host = loom.lab.at(A)?.host();
    host.shell(&format!(
        "ip link add link uplink name another type macvlan; ip link set another netns {pod}"
    ))?;
    eventually("a way out that no veth is to be told", SOON, || Ok(problems()?.contains("another")))?;
    client.place().shell("ip link del another; ip link del eth1")?;
    eventually("nothing to be missing", SOON, || Ok(problems()? == "[]"))?;
    loom.lab.close()
}
