//! Packets as an intruder would make them: every field chosen, every checksum right.

#![allow(clippy::unwrap_used, reason = "a packet of a test that cannot be built fails the test")]

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::lab::Place;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// TCP's flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const PSH_ACK: u8 = 0x18;
pub const ACK: u8 = 0x10;

fn sum(words: impl Iterator<Item = u8>) -> u32 {
    words.enumerate().map(|(at, byte)| u32::from(byte) << (8 * (1 - at % 2))).sum()
}

fn folded(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The checksum of a transport header and its payload.
fn checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> [u8; 2] {
    let length = u32::try_from(bytes.len()).unwrap();
    let pseudo = sum(octets(from).into_iter().chain(octets(to))) + u32::from(protocol) + length;
    folded(pseudo + sum(bytes.iter().copied()))
}

/// A TCP segment.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    let sum = checksum(from.ip(), to.ip(), TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum);
    bytes
}

/// A UDP datagram.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut bytes =
        [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    bytes.extend(payload);
    let sum = checksum(from.ip(), to.ip(), UDP, &bytes);
    bytes[6..8].copy_from_slice(&sum);
    bytes
}

/// An ICMPv6 message of neighbor discovery.
pub fn discovery(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(body);
    let sum = checksum(from.into(), to.into(), ICMPV6, &bytes);
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

/// A neighbor advertisement that overrides what its receiver knows: `target` is at `mac`.
pub fn advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6], marker: &[u8]) -> Vec<u8> {
    // Solicited, override; the target's link-layer address; an option that nobody knows, with the marker.
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(target.octets());
    body.extend([2, 1]);
    body.extend(mac);
    body.extend(unknown_option(marker));
    discovery(from, to, 136, &body)
}

/// An option of neighbor discovery that carries `marker` and means nothing (RFC 4727).
pub fn unknown_option(marker: &[u8]) -> Vec<u8> {
    let units = (2 + marker.len()).div_ceil(8);
    let mut option = vec![253, u8::try_from(units).unwrap()];
    option.extend(marker);
    option.resize(units * 8, 0);
    option
}

/// A whole IP packet.
pub fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => packet_v4(from, to, protocol, 0, body),
        (IpAddr::V6(from), IpAddr::V6(to)) => packet_v6(from, to, protocol, body),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// An IPv4 packet, or a fragment of one: `fragment` is the field of flags and offset.
pub fn packet_v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + body.len()).unwrap().to_be_bytes());
    header.extend([0x77, 0x31]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = folded(sum(header.iter().copied()));
    header[10..12].copy_from_slice(&sum);
    [&header, body].concat()
}

fn packet_v6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(from.octets());
    header.extend(to.octets());
    [&header, body].concat()
}

/// An Ethernet frame around an IP packet.
pub fn frame(from: [u8; 6], to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&to[..], &from[..], &kind[..], packet].concat()
}

/// An ARP reply: `address` is at `mac`. `marker` stands in what fills the frame up.
pub fn arp_reply(mac: [u8; 6], address: Ipv4Addr, to: [u8; 6], asked_by: Ipv4Addr, marker: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &mac[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(to);
    frame.extend(asked_by.octets());
    frame.extend(marker);
    frame
}

/// Sends a frame out of an interface from a packet socket, past every hook inside its namespace.
pub fn send_frame(place: &Place, interface: &str, frame: &[u8]) -> Result<()> {
    // SOL_PACKET, PACKET_QDISC_BYPASS.
    send(place, &format!("INTERFACE:{interface},setsockopt=263:20:1"), frame)
}

/// Sends a frame out of one of the node's interfaces, as the node would: the hooks there see it. (Who is root on the
/// node can go past them.)
pub fn send_from_node(place: &Place, interface: &str, frame: &[u8]) -> Result<()> {
    match send(place, &format!("INTERFACE:{interface}"), frame) {
        // A hook dropped it; the capture tells whether the right one did.
        Err(error) if error.to_string().contains("No buffer space available") => Ok(()),
        result => result,
    }
}

fn send(place: &Place, out: &str, frame: &[u8]) -> Result<()> {
    let mut child = place
        .command(&["socat", "-u", "-b", "65535", "STDIN", out])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(frame)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "cannot send a frame: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Sends whole IP packets from a raw socket in `place`'s network namespace.
pub fn send_packets(place: &Place, to: IpAddr, packets: &[Vec<u8>]) -> Result<()> {
    place.enter(|| {
        // IPPROTO_RAW: the header is the sender's.
        let socket =
            Socket::new(Domain::for_address(SocketAddr::new(to, 0)), Type::RAW, Some(Protocol::from(255)))?;
        for packet in packets {
            socket
                .send_to(packet, &SocketAddr::new(to, 0).into())
                .context("the kernel did not take the packet")?;
        }
        Ok(())
    })
}
