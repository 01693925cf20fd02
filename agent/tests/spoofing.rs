//! A pod speaks for its own addresses alone, and nobody else speaks for them: IP, MAC, ARP, neighbor discovery.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;
#[path = "common/packets.rs"]
#[allow(dead_code)]
mod packets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use loom::{A, B, Loom, PORT, SOON, echoed, told};
use packets::{
    ACK, ICMPV6, TCP, UDP, advertisement, arp_reply, datagram, discovery, frame, packet, segment, send_frame,
    send_from_node, send_packets, unknown_option,
};
use xtask::lab::{Place, apps::Attempt, eventually};

const FALSE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A packet with its marker, and whether the guard lets it pass.
struct Shot {
    name: &'static str,
    frame: Vec<u8>,
    genuine: bool,
}

fn marker(round: &str, name: &str) -> String {
    format!("<{round} {name}>")
}

/// UDP from `from`, which the receiver need not expect.
fn udp(from: IpAddr, to: IpAddr, text: &str) -> Vec<u8> {
    let (from, to) = (SocketAddr::new(from, 4000), SocketAddr::new(to, 4001));
    packet(from.ip(), to.ip(), UDP, &datagram(from, to, text.as_bytes()))
}

/// A TCP segment with payload: the guard leaves it to the look-up, so that what it does to it, it does for its source.
fn tcp(from: IpAddr, to: IpAddr, text: &str) -> Vec<u8> {
    let (from, to) = (SocketAddr::new(from, 4000), SocketAddr::new(to, 4001));
    packet(from.ip(), to.ip(), TCP, &segment(from, to, ACK, text.as_bytes()))
}

/// What a process of uid 0 in the client's pod sends towards the unmeshed pod on the other node.
fn from_the_client(loom: &Loom, round: &str) -> Result<Vec<Shot>> {
    let (mac, gateway) = (loom.client.mac("eth0")?, loom.client.gateway_mac()?);
    let shot = |name, mac, from: IpAddr, genuine| {
        let to = if from.is_ipv4() { loom.plain.v4.into() } else { loom.plain.v6.into() };
        Shot { name, frame: frame(mac, gateway, &udp(from, to, &marker(round, name))), genuine }
    };
    Ok(vec![
        shot("own", mac, loom.client.v4.into(), true),
        shot("own v6", mac, loom.client.v6.into(), true),
        shot("neighbor", mac, loom.near.v4.into(), false),
        shot("neighbor v6", mac, loom.near.v6.into(), false),
        shot("other node's", mac, loom.far.v4.into(), false),
        shot("nobody's", mac, Ipv4Addr::new(10, 77, 1, 200).into(), false),
        shot("outside's", mac, Ipv4Addr::new(203, 0, 113, 99).into(), false),
        shot("nobody's v6", mac, "fd77:1::c8".parse()?, false),
        shot("mac", FALSE_MAC, loom.client.v4.into(), false),
        shot("mac v6", FALSE_MAC, loom.client.v6.into(), false),
    ])
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_sends_from_its_own_addresses_alone() -> Result<()> {
    let loom = Loom::new("spoof-out")?;
    let volley = |round: &str| -> Result<Vec<(Shot, usize)>> {
        let capture = loom.lab.capture(B)?;
        let shots = from_the_client(&loom, round)?;
        for shot in &shots {
            send_frame(loom.client.place(), "eth0", &shot.frame)?;
        }
        let traffic = capture.stop()?;
        let hits = |shot: &Shot| traffic.hits(marker(round, shot.name).as_bytes());
        Ok(shots
            .into_iter()
            .map(|shot| {
                let hits = hits(&shot);
                (shot, hits)
            })
            .collect())
    };
    for (shot, hits) in volley("off")? {
        assert!(hits > 0, "without the mesh {:?} crosses", shot.name);
    }
    loom.lab.start_agents()?;
    let events = loom.lab.agent(A)?.events()?;
    let before = loom.refused(A, "guard_from_pod", "spoofed")?;
    let mut spoofed = 0.0;
    for (shot, hits) in volley("on")? {
        assert_eq!(hits > 0, shot.genuine, "{:?} crossed {hits} times", shot.name);
        spoofed += f64::from(u8::from(!shot.genuine));
    }
    let counted = loom.refused(A, "guard_from_pod", "spoofed")? - before;
    assert!(counted >= spoofed, "{counted} of {spoofed} were counted");
    let event = told(&events, "guard_from_pod", "spoofed")?;
    assert!(event.to_string().contains("shop/client"), "{event}");
    loom.lab.close()
}

/// Where `place` believes that `address` is, behind `interface`.
fn believed(place: &Place, address: IpAddr, interface: &str) -> Result<String> {
    place.check(&["ip", "neigh", "show", &address.to_string(), "dev", interface])
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_announces_its_own_addresses_alone() -> Result<()> {
    let loom = Loom::new("spoof-arp")?;
    let (client, near) = (&loom.client, &loom.near);
    let host = loom.lab.at(A)?.host();
    let interface = &client.host_interface;
    host.shell(&format!("echo 0 >/proc/sys/net/ipv4/neigh/{interface}/locktime"))?;
    let (mac, gateway) = (client.mac("eth0")?, client.gateway_mac()?);
    // What the node knew, and what it believes after the pod's announcement.
    let announce = |address: IpAddr, claimed: [u8; 6]| -> Result<bool> {
        let text = claimed.map(|byte| format!("{byte:02x}")).join(":");
        let known = "02:00:00:00:00:11";
        let entry = address.to_string();
        host.check(&["ip", "neigh", "replace", &entry, "lladdr", known, "dev", interface, "nud", "stale"])?;
        assert!(believed(host, address, interface)?.contains(known));
        let frame = match address {
            IpAddr::V4(v4) => arp_reply(claimed, v4, gateway, v4, &[0; 18]),
            IpAddr::V6(v6) => {
                let to = loom.lab.at(A)?.v6;
                frame(
                    claimed,
                    gateway,
                    &packet(v6.into(), to.into(), ICMPV6, &advertisement(v6, to, v6, claimed, b"")),
                )
            }
        };
        send_frame(client.place(), "eth0", &frame)?;
        // An announcement is taken at once, or not at all.
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(believed(host, address, interface)?.contains(&text))
    };
    let others: [IpAddr; 3] = [near.v4.into(), near.v6.into(), Ipv4Addr::new(10, 77, 1, 201).into()];
    for address in others {
        assert!(
            announce(address, mac)?,
            "without the mesh the node believes that {address} is at the client"
        );
    }
    loom.lab.start_agents()?;
    let before = loom.refused(A, "guard_from_pod", "spoofed")?;
    for address in others {
        assert!(!announce(address, mac)?, "{address} was announced by the client, and believed");
    }
    for own in [IpAddr::from(client.v4), client.v6.into()] {
        assert!(!announce(own, FALSE_MAC)?, "{own} was announced at another MAC address, and believed");
        assert!(announce(own, mac)?, "control: the pod announces its own address {own}");
    }
    let counted = loom.refused(A, "guard_from_pod", "spoofed")? - before;
    assert!(counted >= 5.0, "{counted} of 5 were counted");
    // A router that is none, and one that sends its neighbors elsewhere.
    for (name, kind, body) in routers(client.v6) {
        let before = loom.refused(A, "guard_from_pod", "spoofed")?;
        let message = discovery(client.v6, ALL_NODES, kind, &body);
        send_frame(
            client.place(),
            "eth0",
            &frame(mac, gateway, &packet(client.v6.into(), ALL_NODES.into(), ICMPV6, &message)),
        )?;
        eventually(&format!("{name} to be dropped"), SOON, || {
            Ok(loom.refused(A, "guard_from_pod", "spoofed")? > before)
        })?;
    }
    loom.lab.close()
}

/// A router advertisement with a life of 1800 s, and a redirect of the node's address to `target`.
fn routers(target: Ipv6Addr) -> [(&'static str, u8, Vec<u8>); 2] {
    let redirect = [&[0; 4][..], &target.octets(), &target.octets()].concat();
    [("router advertisement", 134, vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]), ("redirect", 137, redirect)]
}

/// What reaches the client's pod, sent from outside of it: past the guard, where the pod's own interface is.
fn arrive(loom: &Loom, send: impl FnOnce() -> Result<()>, markers: &[String]) -> Result<Vec<usize>> {
    let capture = loom.lab.capture_at(loom.client.place(), "eth0")?;
    send()?;
    let traffic = capture.stop()?;
    Ok(markers.iter().map(|marker| traffic.hits(marker.as_bytes())).collect())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nobody_speaks_for_a_pod_from_elsewhere() -> Result<()> {
    let loom = Loom::new("spoof-in")?;
    let (client, near, plain) = (&loom.client, &loom.near, &loom.plain);
    let (host, other) = (loom.lab.at(A)?.host(), loom.lab.at(B)?.host());
    let (mac, gateway) = (client.mac("eth0")?, client.gateway_mac()?);
    let (v4, v6): (IpAddr, IpAddr) = (client.v4.into(), client.v6.into());
    let volley = |round: &str| -> Result<Vec<(&'static str, bool, usize)>> {
        let m = |name: &str| marker(round, name);
        let on_the_link =
            |name, packet: Vec<u8>| Shot { name, frame: frame(gateway, mac, &packet), genuine: false };
        let discover = |name, from: Ipv6Addr, kind, mut body: Vec<u8>| {
            body.extend(unknown_option(m(name).as_bytes()));
            on_the_link(name, packet(from.into(), v6, ICMPV6, &discovery(from, client.v6, kind, &body)))
        };
        let [(_, router, router_body), (_, redirect, redirect_body)] = routers(near.v6);
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
        let mut shots = vec![
            on_the_link("neighbor", tcp(near.v4.into(), v4, &m("neighbor"))),
            on_the_link("neighbor v6", tcp(near.v6.into(), v6, &m("neighbor v6"))),
            on_the_link("its own", tcp(v4, v4, &m("its own"))),
            on_the_link("its own v6", tcp(v6, v6, &m("its own v6"))),
            on_the_link("loopback", tcp(Ipv4Addr::new(127, 0, 0, 9).into(), v4, &m("loopback"))),
            discover("router", link_local, router, router_body),
            discover("redirect", link_local, redirect, redirect_body),
            Shot {
                name: "arp for its own",
                frame: arp_reply(FALSE_MAC, client.v4, mac, client.v4, m("arp for its own").as_bytes()),
                genuine: false,
            },
        ];
        let own = advertisement(link_local, client.v6, client.v6, FALSE_MAC, m("nd for its own").as_bytes());
        shots.push(on_the_link("nd for its own", packet(link_local.into(), v6, ICMPV6, &own)));
        let own = advertisement(near.v6, client.v6, near.v6, FALSE_MAC, m("nd from a neighbor").as_bytes());
        shots.push(on_the_link("nd from a neighbor", packet(near.v6.into(), v6, ICMPV6, &own)));
        shots.push(Shot { genuine: true, ..on_the_link("genuine", tcp(plain.v4.into(), v4, &m("genuine"))) });
        shots.push(Shot {
            genuine: true,
            ..on_the_link("genuine v6", tcp(plain.v6.into(), v6, &m("genuine v6")))
        });
        // The node is the pod's router: what it says of itself on the link passes.
        shots.push(Shot {
            name: "genuine arp",
            frame: arp_reply(
                gateway,
                Ipv4Addr::new(10, 77, 1, 1),
                mac,
                client.v4,
                m("genuine arp").as_bytes(),
            ),
            genuine: true,
        });
        let routed = [
            ("from node b", IpAddr::from(near.v4), v4, false),
            ("from node b v6", near.v6.into(), v6, false),
            ("genuine from node b", plain.v4.into(), v4, true),
            ("genuine from node b v6", plain.v6.into(), v6, true),
        ];
        let names: Vec<(&str, bool)> = shots
            .iter()
            .map(|shot| (shot.name, shot.genuine))
            .chain(routed.map(|(name, _, _, genuine)| (name, genuine)))
            .collect();
        let markers: Vec<String> = names.iter().map(|(name, _)| m(name)).collect();
        let hits = arrive(
            &loom,
            || {
                for shot in &shots {
                    send_from_node(host, &client.host_interface, &shot.frame)?;
                }
                for (name, from, to, _) in routed {
                    send_packets(other, to, &[tcp(from, to, &m(name))])?;
                }
                Ok(())
            },
            &markers,
        )?;
        Ok(names.into_iter().zip(hits).map(|((name, genuine), hits)| (name, genuine, hits)).collect())
    };
    for (name, _, hits) in volley("off")? {
        assert!(hits > 0, "without the mesh {name:?} arrives");
    }
    loom.lab.start_agents()?;
    let events = loom.lab.agent(A)?.events()?;
    let before = loom.refused(A, "guard_to_pod", "spoofed")?;
    let shots = volley("on")?;
    let wrong: Vec<_> = shots.iter().filter(|(_, genuine, hits)| *genuine != (*hits > 0)).collect();
    assert!(wrong.is_empty(), "what was genuine and how often it arrived: {wrong:?}");
    let spoofed = shots.iter().filter(|(_, genuine, _)| !genuine).count();
    let counted = loom.refused(A, "guard_to_pod", "spoofed")? - before;
    assert!(counted >= spoofed as f64, "{counted} of {spoofed} were counted");
    told(&events, "guard_to_pod", "spoofed")?;
    // The neighbor's own packets, which enter by its own veth, pass.
    let _server = near.app(&["echo", &format!("[::]:{PORT}")])?;
    for to in [IpAddr::from(near.v4), near.v6.into()] {
        echoed(client, &Attempt::new((to, PORT), "hello"))?;
    }
    loom.lab.close()
}

/// On a bridge a neighbor that is in no mesh reaches the pod without the node's network layer in between.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_neighbor_on_the_bridge_does_not_speak_for_a_pod() -> Result<()> {
    let mut loom = Loom::new("spoof-bridge")?;
    let intruder = loom.lab.pod(&xtask::lab::PodSpec::new("intruder", A))?;
    let (client, near) = (&loom.client, &loom.near);
    loom.lab.at(A)?.host().shell(&format!(
        "ip link add bridge type bridge; ip link set bridge up
        ip link set {} master bridge; ip link set {} master bridge",
        client.host_interface, intruder.host_interface
    ))?;
    let (to, mac) = (client.mac("eth0")?, intruder.mac("eth0")?);
    let (v4, v6): (IpAddr, IpAddr) = (client.v4.into(), client.v6.into());
    let names = [
        ("arp", false),
        ("nd", false),
        ("nd from it", false),
        ("ip", false),
        ("ip v6", false),
        ("own arp", true),
        ("own nd", true),
        ("own ip", true),
    ];
    let volley = |round: &str| -> Result<Vec<usize>> {
        let m = |name: &str| marker(round, name);
        let markers: Vec<String> = names.iter().map(|(name, _)| m(name)).collect();
        let nd = |from: Ipv6Addr, target, name: &str| {
            frame(
                mac,
                to,
                &packet(
                    from.into(),
                    v6,
                    ICMPV6,
                    &advertisement(from, client.v6, target, mac, m(name).as_bytes()),
                ),
            )
        };
        let frames = [
            arp_reply(mac, near.v4, to, client.v4, m("arp").as_bytes()),
            nd(intruder.v6, near.v6, "nd"),
            nd(near.v6, intruder.v6, "nd from it"),
            frame(mac, to, &tcp(near.v4.into(), v4, &m("ip"))),
            frame(mac, to, &tcp(near.v6.into(), v6, &m("ip v6"))),
            arp_reply(mac, intruder.v4, to, client.v4, m("own arp").as_bytes()),
            nd(intruder.v6, intruder.v6, "own nd"),
            frame(mac, to, &tcp(intruder.v4.into(), v4, &m("own ip"))),
        ];
        let send = || frames.iter().try_for_each(|frame| send_frame(intruder.place(), "eth0", frame));
        arrive(&loom, send, &markers)
    };
    assert!(volley("off")?.iter().all(|hits| *hits > 0), "without the mesh all arrive");
    loom.lab.start_agents()?;
    let before = loom.refused(A, "guard_to_pod", "spoofed")?;
    for ((name, genuine), hits) in names.into_iter().zip(volley("on")?) {
        assert_eq!(hits > 0, genuine, "{name:?} arrived {hits} times");
    }
    assert!(loom.refused(A, "guard_to_pod", "spoofed")? - before >= 5.0);
    loom.lab.close()
}

/// A bridge's port in hairpin mode gives a pod back what it sends to all of the bridge, and nobody has spoken for it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_a_bridge_gives_back_to_its_sender_is_no_spoofing() -> Result<()> {
    let mut loom = Loom::new("spoof-hairpin")?;
    let intruder = loom.lab.pod(&xtask::lab::PodSpec::new("intruder", A))?;
    let client = &loom.client;
    let host = loom.lab.at(A)?.host();
    host.shell(&format!(
        "ip link add bridge type bridge; ip link set bridge up
        for it in {} {}; do ip link set $it master bridge; done",
        client.host_interface, intruder.host_interface
    ))?;
    let (all, all_v6) = ([0xff; 6], [0x33, 0x33, 0, 0, 0, 1]);
    let announced = |from: &xtask::lab::Pod, round: &str| -> Result<Vec<Vec<u8>>> {
        let m = |name: &str| marker(round, name);
        let mac = from.mac("eth0")?;
        let nd = advertisement(client.v6, ALL_NODES, client.v6, mac, m("nd").as_bytes());
        let nd = packet(client.v6.into(), ALL_NODES.into(), ICMPV6, &nd);
        let arp = arp_reply(mac, client.v4, all, client.v4, m("arp").as_bytes());
        Ok(vec![arp, frame(mac, all_v6, &nd)])
    };
    // How often what `from` says of the client's addresses comes to the client's own interface. What it sends itself is
    // not seen there.
    let volley = |from: &xtask::lab::Pod, round: &str| -> Result<Vec<usize>> {
        let frames = announced(from, round)?;
        let send = || frames.iter().try_for_each(|frame| send_frame(from.place(), "eth0", frame));
        arrive(&loom, send, &["arp", "nd"].map(|name| marker(round, name)))
    };
    assert_eq!(volley(client, "no hairpin")?, [0, 0], "the control: nothing is given back");
    host.check(&["ip", "link", "set", &client.host_interface, "type", "bridge_slave", "hairpin", "on"])?;
    assert_eq!(volley(client, "off")?, [1, 1]);
    assert_eq!(volley(&intruder, "off, intruder")?, [1, 1]);
    loom.lab.start_agents()?;
    let before = loom.refused(A, "guard_to_pod", "spoofed")?;
    assert_eq!(volley(client, "on")?, [1, 1], "as without the mesh");
    assert!(loom.refused(A, "guard_to_pod", "spoofed")? <= before, "it is its own word");
    assert_eq!(volley(&intruder, "on, intruder")?, [0, 0]);
    assert!(loom.refused(A, "guard_to_pod", "spoofed")? - before >= 2.0, "the control: another's is not");
    loom.lab.close()
}
