//! An application cannot tell that there is a mesh: addresses, ends, resets, back-pressure and every way to connect are
//! as without one.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shop::{B, MARKER, OPAQUE, PATIENCE, SPARE, Shop, UNKNOWN, echoes};
use xtask::lab::{
    OUTSIDE, Pod, PodSpec, ServiceSpec,
    apps::{self, Attempt, Outcome, Talk},
};

/// One server of each way that a connection of the client's may be carried: by the kernel alone, by the agent of one
/// node, by the agents of two.
fn ways(shop: &Shop) -> [(&'static str, &Pod, SocketAddr); 5] {
    [
        ("direct", &shop.near, (shop.near.v4, SPARE[0]).into()),
        ("direct over IPv6", &shop.near, (shop.near.v6, SPARE[1]).into()),
        ("by one agent", &shop.near, (shop.near.v4, UNKNOWN).into()),
        ("by two agents", &shop.far, (shop.far.v4, SPARE[0]).into()),
        ("by two agents over IPv6", &shop.far, (shop.far.v6, SPARE[1]).into()),
    ]
}

/// A connection with both its ends in hand.
fn both(shop: &Shop, server: &Pod, to: SocketAddr) -> Result<(Talk, Talk)> {
    let mut server = server.attend(&format!("[::]:{}", to.port()))?;
    let client = shop.client.call(&Attempt::new(to, ""))?;
    ensure!(client.outcome.connected, "{to}: {:?}", client.outcome);
    server.accepted()?;
    Ok((client, server))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn both_applications_see_the_addresses_that_they_would_see() -> Result<()> {
    let mut shop = Shop::open("addresses")?;
    let service = |name: &str| ServiceSpec::new("shop", name, name).port("talk", 80, &SPARE[0].to_string());
    let (near, far) = (shop.lab.service(&service("near"))?, shop.lab.service(&service("far"))?);
    let (client4, client6) = (IpAddr::from(shop.client.v4), IpAddr::from(shop.client.v6));
    // On the way there, whom it reaches, who is seen to come.
    let mut ways: Vec<(&str, &Pod, SocketAddr, IpAddr)> = ways(&shop)
        .into_iter()
        .map(|(what, pod, to)| (what, pod, to, if to.is_ipv4() { client4 } else { client6 }))
        .collect();
    ways.extend([
        ("direct, mapped", &shop.near, (shop.near.v4.to_ipv6_mapped(), SPARE[0]).into(), client4),
        ("by two agents, mapped", &shop.far, (shop.far.v4.to_ipv6_mapped(), SPARE[0]).into(), client4),
        ("direct, by the Service", &shop.near, (near.v4, 80).into(), client4),
        ("direct, by the Service's IPv6", &shop.near, (near.v6, 80).into(), client6),
        ("by two agents, by the Service", &shop.far, (far.v4, 80).into(), client4),
        ("by two agents, by the Service's IPv6", &shop.far, (far.v6, 80).into(), client6),
        ("by two agents, by the Service mapped", &shop.far, (far.v4.to_ipv6_mapped(), 80).into(), client4),
    ]);
    // A listener of both families, and one of the connection's own.
    for dual in [true, false] {
        for (what, pod, to, own) in &ways {
            let what = format!("{what}, {} listener", if dual { "dual-stack" } else { "plain" });
            let port = if to.port() == 80 { SPARE[0] } else { to.port() };
            let any = if dual || own.is_ipv6() { "[::]" } else { "0.0.0.0" };
            let mut server = pod.attend(&format!("{any}:{port}"))?;
            // A Service that was written just now may not be known yet.
            let mut client = shop.client.call(&Attempt::new(*to, ""))?;
            let until = std::time::Instant::now() + PATIENCE;
            while !client.outcome.connected && std::time::Instant::now() < until {
                client = shop.client.call(&Attempt::new(*to, ""))?;
            }
            let (seen, outcome) = (server.accepted()?, &client.outcome);
            assert_eq!(outcome.peer, Some(*to), "{what}: the client's own peer is what it asked for");
            let local = outcome.local.expect("getsockname");
            assert_eq!(local.ip().to_canonical(), *own, "{what}: the client's own address");
            assert_eq!(seen.client, seen.peer, "{what}: accept and getpeername agree");
            assert_eq!(
                seen.client.ip().to_canonical(),
                *own,
                "{what}: the server sees the client's real address"
            );
            assert_eq!(seen.client.port(), local.port(), "{what}: and its real port");
            let form = |seen: IpAddr| matches!(seen, IpAddr::V6(_));
            assert_eq!(form(seen.client.ip()), any == "[::]", "{what}: {seen:?}, in the listener's own form");
            let at: IpAddr = if own.is_ipv4() { pod.v4.into() } else { pod.v6.into() };
            assert_eq!(seen.local.ip().to_canonical(), at, "{what}: the server's own address");
            assert_eq!(seen.local.port(), port, "{what}: the server's own port");
        }
    }
    for outside in OUTSIDE {
        let to: SocketAddr =
            if outside.is_ipv4() { (shop.far.v4, SPARE[1]).into() } else { (shop.far.v6, SPARE[1]).into() };
        let mut server = shop.far.attend(&format!("[::]:{}", SPARE[1]))?;
        let client = Talk::call(shop.lab.outside(), &Attempt::new(to, ""))?;
        let seen = server.accepted()?;
        assert_eq!(
            (seen.client.ip().to_canonical(), seen.peer),
            (outside, seen.client),
            "from outside the mesh"
        );
        assert_eq!(Some(seen.client.port()), client.outcome.local.map(|local| local.port()));
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_end_is_an_end_and_a_reset_is_a_reset() -> Result<()> {
    let shop = Shop::open("ends")?;
    for (what, pod, to) in ways(&shop) {
        // Either side may end its half while the other goes on speaking.
        for by_client in [true, false] {
            let (mut client, mut server) = both(&shop, pod, to)?;
            let (first, second) =
                if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
            let what = format!("{what}, the client ends first: {by_client}");
            assert_eq!(first.ask("send last words")?, "sent", "{what}");
            assert_eq!(first.ask("end")?, "ended", "{what}");
            assert_eq!(second.ask("finish")?, "end after 10", "{what}: words, then the end");
            assert_eq!(second.ask("send much later")?, "sent", "{what}");
            assert_eq!(first.ask("read 10")?, "much later", "{what}: the other half is still open");
            assert_eq!(second.ask("end")?, "ended", "{what}");
            assert_eq!(first.ask("finish")?, "end after 0", "{what}");
        }
        // A reset tells that something is missing: never an end in order.
        for by_client in [true, false] {
            let (mut client, mut server) = both(&shop, pod, to)?;
            assert_eq!((client.ask("send a")?, server.ask("read 1")?), ("sent".into(), "a".into()), "{what}");
            let (one, other) =
                if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
            assert_eq!(one.ask("reset")?, "closed", "{what}");
            assert_eq!(other.ask("finish")?, "ECONNRESET after 0", "{what}, by the client: {by_client}");
        }
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_reader_that_stalls_stops_its_sender_and_loses_nothing() -> Result<()> {
    // HEDDLE_STALL=600 for ten minutes of it: there is no bound on how long an application takes.
    let stall: u64 = std::env::var("HEDDLE_STALL").ok().map(|it| it.parse()).transpose()?.unwrap_or(1);
    let shop = Shop::open("stall")?;
    let mut stalled = Vec::new();
    for (what, pod, to) in ways(&shop) {
        let (mut client, mut server) = both(&shop, pod, to)?;
        let [up, down] = [&mut client, &mut server].map(|from| -> Result<u64> {
            let answer = from.ask("pour 1073741824 700")?;
            let poured = answer.strip_prefix("poured ").and_then(|rest| rest.strip_suffix(" TIMEOUT"));
            let poured = poured.with_context(|| format!("{what}: nothing stopped the sender: {answer}"))?;
            let poured = poured.parse()?;
            // What the kernel's buffers of all hops hold, and no gigabyte.
            ensure!(poured < 128 << 20, "{what}: {poured} bytes were taken that nobody reads");
            Ok(poured)
        });
        stalled.push((what, client, server, up?, down?));
    }
    std::thread::sleep(Duration::from_secs(stall));
    for (what, mut client, mut server, up, down) in stalled {
        for (poured, by_client) in [(up, true), (down, false)] {
            let (from, reader) =
                if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
            assert_eq!(reader.ask(&format!("check {poured}"))?, format!("checked {poured}"), "{what}");
            assert_eq!(from.ask("pour 100000 20000")?, "poured 100000", "{what}: it goes on");
            assert_eq!(reader.ask("check 100000")?, "checked 100000", "{what}");
        }
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn much_data_both_ways_at_once_arrives_whole() -> Result<()> {
    const BYTES: u64 = 24 << 20;
    let shop = Shop::open("bulk")?;
    for (what, pod, to) in ways(&shop) {
        let (mut client, mut server) = both(&shop, pod, to)?;
        client.tell(&format!("exchange {BYTES}"))?;
        assert_eq!(server.ask(&format!("exchange {BYTES}"))?, format!("exchanged {BYTES}"), "{what}");
        assert_eq!(client.answer(PATIENCE * 3)?, format!("exchanged {BYTES}"), "{what}");
        for end in [&mut client, &mut server] {
            assert_eq!(end.ask("end")?, "ended", "{what}");
        }
        for end in [&mut client, &mut server] {
            assert_eq!(end.ask("finish")?, "end after 0", "{what}: not a byte more");
        }
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    let mut shop = Shop::closed("greeting")?;
    let bare = shop.lab.pod(&PodSpec::new("bare", B))?;
    shop.lab.start_agents()?;
    let listen = format!("[::]:{}", SPARE[1]);
    let _servers = [&shop.near, &shop.far, &bare].map(|pod| pod.app(&["greet", &listen, "hello"]));
    let greeting = |place: &xtask::lab::Place, to: SocketAddr| -> Result<u64> {
        let mut best = u64::MAX;
        for _ in 0..8 {
            let heard = apps::connect(place, &Attempt { enough: 5, ..Attempt::new(to, "") })?;
            ensure!(heard.received == "hello", "{to}: {heard:?}");
            best = best.min(heard.first_byte_microseconds.unwrap_or(u64::MAX));
        }
        Ok(best)
    };
    let from_pod = greeting(shop.plain.place(), (bare.v4, SPARE[1]).into())?;
    let from_outside = greeting(shop.lab.outside(), (bare.v4, SPARE[1]).into())?;
    let client = shop.client.place();
    let cases = [
        ("a meshed client, direct", greeting(client, (shop.near.v4, SPARE[1]).into())?, from_pod),
        ("a meshed client on the other node", greeting(client, (shop.far.v4, SPARE[1]).into())?, from_pod),
        ("the same over IPv6", greeting(client, (shop.far.v6, SPARE[1]).into())?, from_pod),
        ("an unmeshed client", greeting(shop.lab.outside(), (shop.far.v4, SPARE[1]).into())?, from_outside),
    ];
    for (what, took, bare) in cases {
        println!("{what}: {took} us, bare {bare} us");
        assert!(took < bare + 50_000, "{what}: the first byte after {took} us, {bare} us without a mesh");
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_way_to_connect_works_and_is_judged() -> Result<()> {
    let shop = Shop::closed("connects")?;
    // Data in the first SYN of every connection, without a cookie to be had before; and whoever listens takes it, the
    // agent included.
    for pod in [&shop.client, &shop.stranger, &shop.near, &shop.far] {
        pod.place().check(&["sysctl", "-q", "-w", "net.ipv4.tcp_fastopen=1543"])?;
    }
    shop.lab.start_agents()?;
    let _servers = [&shop.near, &shop.far].map(echoes);
    let targets: Vec<SocketAddr> = [&shop.near, &shop.far]
        .into_iter()
        .flat_map(|pod| {
            [OPAQUE, UNKNOWN].into_iter().flat_map(|port| [(pod.v4, port).into(), (pod.v6, port).into()])
        })
        .collect();
    // Each port once: what was used a moment ago is in TIME_WAIT.
    let mut ports = 21_000..;
    for to in targets {
        for pod in [&shop.client, &shop.stranger] {
            let own: IpAddr = if to.is_ipv4() { pod.v4.into() } else { pod.v6.into() };
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let mut port = || ports.next().unwrap_or_default();
            let plain = || Attempt::new(to, MARKER);
            let attempts = [
                ("bound to its device", Attempt { device: Some("eth0".into()), ..plain() }),
                ("without blocking", Attempt { nonblocking: true, ..plain() }),
                ("over MPTCP", Attempt { mptcp: true, ..plain() }),
                ("with data in the SYN", Attempt { fast_open: true, ..plain() }),
                ("from its own address", Attempt { from: Some((own, 0).into()), ..plain() }),
                ("from a port of its choice", Attempt { from: Some((any, port()).into()), ..plain() }),
                (
                    "with all at once",
                    Attempt {
                        nonblocking: true,
                        device: Some("eth0".into()),
                        from: Some((own, port()).into()),
                        ..plain()
                    },
                ),
            ];
            for (what, attempt) in attempts {
                let outcome: Outcome = pod.connect(&attempt)?;
                let what = format!("{} to {to} {what}: {outcome:?}", pod.name);
                if pod.name == "stranger" {
                    assert!(outcome.refused(), "{what}");
                    continue;
                }
                assert_eq!(outcome.received, MARKER, "{what}");
                // The name of a multipath socket is asked of another socket than the one that `connect()` was seen on:
                // behind the agent it shows where the connection was turned to.
                if !attempt.mptcp || outcome.peer.map(|peer| peer.ip()) != Some(own) {
                    assert_eq!(outcome.peer, Some(to), "{what}");
                }
                assert_eq!(outcome.local.map(|local| local.ip()), Some(own), "{what}");
                if let Some(from) = attempt.from.filter(|from| from.port() != 0) {
                    assert_eq!(outcome.local.map(|local| local.port()), Some(from.port()), "{what}");
                }
                let said = outcome.second_connect.as_deref();
                assert!(!attempt.nonblocking || matches!(said, None | Some("EISCONN")), "{what}");
            }
        }
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_server_that_is_bound_to_a_device_is_reached() -> Result<()> {
    let shop = Shop::open("device")?;
    for (listen, families) in [("0.0.0.0", &[true][..]), ("[::]", &[true, false])] {
        let listen = format!("{listen}:{}", SPARE[0]);
        // The control: what is bound to another device is not there for anybody who comes by this one.
        for (device, there) in [("eth0", true), ("lo", false)] {
            let mut server = Talk::attend(shop.near.place(), &listen, device)?;
            for v4 in families {
                let to: SocketAddr =
                    if *v4 { (shop.near.v4, SPARE[0]).into() } else { (shop.near.v6, SPARE[0]).into() };
                let clients = [
                    ("of the same node", shop.client.place()),
                    ("of the other node", shop.buyer.place()),
                    ("from outside the mesh", shop.lab.outside()),
                ];
                for (who, place) in clients {
                    let what = format!("a client {who} to {to}, the server on {listen} of {device}");
                    let mut client =
                        Talk::call(place, &Attempt { milliseconds: 15_000, ..Attempt::new(to, MARKER) })?;
                    if !there {
                        let came = match &client.outcome.error {
                            Some(error) => error.clone(),
                            None => client.ask("finish")?,
                        };
                        let no = ["ECONNREFUSED", "ECONNRESET", "EPIPE"];
                        assert!(no.iter().any(|no| came.starts_with(no)), "{what}: {came}");
                        continue;
                    }
                    assert!(client.outcome.connected, "{what}: {:?}", client.outcome);
                    let seen = server.accepted()?;
                    let own = client.outcome.local.expect("getsockname").ip().to_canonical();
                    assert_eq!(seen.client.ip().to_canonical(), own, "{what}: the real client is seen");
                    assert_eq!(server.ask(&format!("read {}", MARKER.len()))?, MARKER, "{what}");
                    assert_eq!(server.ask("send answer")?, "sent", "{what}");
                    assert_eq!(client.ask("read 6")?, "answer", "{what}");
                    assert_eq!(server.ask("close")?, "closed", "{what}");
                }
            }
        }
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_listens_on_loopback_alone_stays_out_of_reach() -> Result<()> {
    let shop = Shop::open("loopback")?;
    let loopback = [
        shop.near.app(&["echo", &format!("127.0.0.1:{OPAQUE}")])?,
        shop.near.app(&["echo", &format!("[::1]:{OPAQUE}")])?,
    ];
    let pods: [SocketAddr; 2] = [(shop.near.v4, OPAQUE).into(), (shop.near.v6, OPAQUE).into()];
    for (to, loopback) in pods.into_iter().zip([IpAddr::from([127, 0, 0, 1]), "::1".parse()?]) {
        let inside = shop.near.connect(&Attempt::new((loopback, OPAQUE), MARKER))?;
        assert_eq!(inside.received, MARKER, "the control: it serves its own pod: {inside:?}");
        for place in [shop.client.place(), shop.buyer.place(), shop.near.place(), shop.lab.outside()] {
            let outcome = apps::connect(place, &Attempt::new(to, MARKER))?;
            assert!(outcome.refused(), "{to}: {outcome:?}");
        }
    }
    // The other control: the same server on the pod's addresses is reached by the same clients.
    drop(loopback);
    let _everywhere = shop.near.app(&["echo", &format!("[::]:{OPAQUE}")])?;
    for to in pods {
        for place in [shop.client.place(), shop.buyer.place(), shop.near.place(), shop.lab.outside()] {
            let outcome = apps::connect(place, &Attempt::new(to, MARKER))?;
            assert_eq!(outcome.received, MARKER, "{to}: {outcome:?}");
        }
    }
    shop.shut()
}
