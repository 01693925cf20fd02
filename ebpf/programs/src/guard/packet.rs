//! Just enough of a packet to judge it. What cannot be read whole is refused.

use aya_ebpf::{helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use heddle_ebpf::{
    Address,
    codes::Reason,
    flows::{LAYER3_ARP, LAYER3_IPV4, LAYER3_IPV6, Packet},
};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// TCP's SYN and ACK and RST bits.
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Reads the packet over what `packet` held before.
#[inline(never)]
pub fn parse(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    // SAFETY: integers, for which zero is a value. An assignment would be a call that sets byte after byte.
    *packet = unsafe { core::mem::zeroed() };
    if unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).vlan_present) } != 0 {
        return Err(Reason::Protocol);
    }
    if plain_segment(ctx, packet) {
        return Ok(());
    }
    let ethernet: [u8; ETHERNET] = ctx.load(0).map_err(|_| Reason::Malformed)?;
    packet.mac = [ethernet[6], ethernet[7], ethernet[8], ethernet[9], ethernet[10], ethernet[11]];
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        0x0806 => {
            packet.layer3 = LAYER3_ARP;
            Ok(())
        }
        0x0800 => {
            packet.layer3 = LAYER3_IPV4;
            ipv4(ctx, packet)
        }
        0x86dd => {
            packet.layer3 = LAYER3_IPV6;
            ipv6(ctx, packet)
        }
        _ => Err(Reason::Protocol),
    }
}

/// Most packets: TCP over IPv4 without options or fragments, read at one go. `false`: it is none, and nothing was read.
#[inline(always)]
fn plain_segment(ctx: &TcContext, packet: &mut Packet) -> bool {
    /// Ethernet, IPv4 and TCP.
    const LENGTH: usize = ETHERNET + 20 + 20;
    // Behind two bytes, so that both headers lie on words.
    let mut words = [0u32; (LENGTH + 2) / 4];
    let to = unsafe { words.as_mut_ptr().cast::<u8>().add(2) };
    // SAFETY: the buffer holds that many bytes from there.
    if unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, to.cast(), LENGTH as u32) } != 0 {
        return false;
    }
    let network = |word: u32| u32::from_be(word);
    // Version 4, five words of header; no fragment, neither the first nor a later one.
    if network(words[3]) & 0xffff != 0x0800
        || network(words[4]) >> 24 != 0x45
        || network(words[5]) & 0x3fff != 0
        || network(words[6]) >> 16 & 0xff != u32::from(TCP)
    {
        return false;
    }
    let length = (network(words[12]) >> 28) * 4;
    if length < 20 {
        return false;
    }
    let (high, low) = (words[2].to_ne_bytes(), words[3].to_ne_bytes());
    packet.mac = [high[0], high[1], high[2], high[3], low[0], low[1]];
    packet.layer3 = LAYER3_IPV4;
    packet.protocol = TCP;
    packet.hops = (network(words[6]) >> 24) as u8;
    packet.flags = (network(words[12]) >> 16) as u8;
    packet.tuple.source = Address::from_v4(words[7]);
    packet.tuple.destination = Address::from_v4(words[8]);
    packet.tuple.source_port = (network(words[9]) >> 16) as u16;
    packet.tuple.destination_port = network(words[9]) as u16;
    packet.transport = ETHERNET as u32 + 20;
    packet.payload = ctx.len().saturating_sub(packet.transport + length);
    true
}

#[inline(always)]
fn ipv4(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let header: [u8; 20] = ctx.load(ETHERNET).map_err(|_| Reason::Malformed)?;
    let words = header[0] & 0x0f;
    if header[0] >> 4 != 4 || words < 5 {
        return Err(Reason::Malformed);
    }
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    packet.protocol = header[9];
    packet.hops = header[8];
    packet.tuple.source = Address::from_v4(word(12));
    packet.tuple.destination = Address::from_v4(word(16));
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    packet.transport = ETHERNET as u32 + u32::from(words) * 4;
    if fragment & 0x1fff != 0 {
        packet.fragment = 1;
        return fragment_of(packet);
    }
    if fragment & 0x2000 != 0 && packet.protocol == TCP {
        return Err(Reason::Fragment);
    }
    transport(ctx, packet)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let header: [u8; 40] = ctx.load(ETHERNET).map_err(|_| Reason::Malformed)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let words = |at: usize| {
        let word = |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        [word(at), word(at + 4), word(at + 8), word(at + 12)]
    };
    packet.protocol = header[6];
    packet.hops = header[7];
    packet.tuple.source = Address::from_v6(words(8));
    packet.tuple.destination = Address::from_v6(words(24));
    packet.transport = ETHERNET as u32 + 40;
    if packet.protocol == HOP_BY_HOP {
        // Multicast listener reports bear one of eight bytes; what else does is refused below.
        let option: [u8; 2] = ctx.load(packet.transport as usize).map_err(|_| Reason::Malformed)?;
        if option[0] != ICMPV6 || option[1] != 0 {
            return Err(Reason::Protocol);
        }
        packet.protocol = ICMPV6;
        packet.transport += 8;
    } else if packet.protocol == FRAGMENT {
        let fragment: [u8; 8] = ctx.load(packet.transport as usize).map_err(|_| Reason::Malformed)?;
        packet.protocol = fragment[0];
        packet.transport += 8;
        if packet.protocol == TCP {
            return Err(Reason::Fragment);
        }
        if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
            packet.fragment = 1;
            return fragment_of(packet);
        }
    }
    transport(ctx, packet)
}

/// A later fragment: only datagrams have them.
#[inline(always)]
fn fragment_of(packet: &Packet) -> Result<(), Reason> {
    if packet.protocol == UDP { Ok(()) } else { Err(Reason::Fragment) }
}

#[inline(always)]
fn transport(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let at = packet.transport as usize;
    let mut length = 8;
    match packet.protocol {
        TCP => {
            let header: [u8; 20] = ctx.load(at).map_err(|_| Reason::Malformed)?;
            packet.tuple.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.tuple.destination_port = u16::from_be_bytes([header[2], header[3]]);
            packet.flags = header[13];
            length = u32::from(header[12] >> 4) * 4;
            if length < 20 {
                return Err(Reason::Malformed);
            }
        }
        UDP => {
            let header: [u8; 8] = ctx.load(at).map_err(|_| Reason::Malformed)?;
            packet.tuple.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.tuple.destination_port = u16::from_be_bytes([header[2], header[3]]);
        }
        ICMP | ICMPV6 => {
            let header: [u8; 8] = ctx.load(at).map_err(|_| Reason::Malformed)?;
            packet.flags = header[0];
            packet.tuple.source_port = u16::from_be_bytes([header[4], header[5]]);
        }
        _ => return Ok(()),
    }
    // The packet's real length, not what its header says: bytes behind it count as payload.
    packet.payload = ctx.len().saturating_sub(packet.transport + length);
    Ok(())
}
