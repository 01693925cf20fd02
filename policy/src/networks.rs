//! Networks as a longest-prefix-match trie holds them.
//!
//! The trie keeps both families in one 128-bit form, where `::/0` would hold every IPv4 address. To every reader an
//! IPv6 network holds no IPv4 address, so a network that covers the mapped block is cut by an entry for that block.

use std::collections::BTreeSet;

use heddle_ebpf::{Address, policy::NetworkKey};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Every network that an answer can change at: those given, and the IPv4 block where an IPv6 one covers it.
pub(crate) fn points(networks: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let mut points: BTreeSet<IpNet> = networks.into_iter().collect();
    let covers_v4 = |net: &IpNet| match net {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => mapped_block().is_some_and(|block| v6.contains(&block)),
    };
    if points.iter().any(covers_v4)
        && let Ok(all) = Ipv4Net::new(std::net::Ipv4Addr::UNSPECIFIED, 0)
    {
        points.insert(IpNet::V4(all));
    }
    points
}

fn mapped_block() -> Option<Ipv6Net> {
    Ipv6Net::new(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96).ok()
}

/// The key of a network in a set.
pub(crate) fn key(set: u32, net: &IpNet) -> NetworkKey {
    let bits = u32::from(net.prefix_len()) + if matches!(net, IpNet::V4(_)) { 96 } else { 0 };
    NetworkKey::new(set, Address::from(net.network()), bits)
}

/// Both whole families.
pub(crate) fn everything() -> impl Iterator<Item = IpNet> {
    let v4 = Ipv4Net::new(std::net::Ipv4Addr::UNSPECIFIED, 0).ok().map(IpNet::V4);
    let v6 = Ipv6Net::new(std::net::Ipv6Addr::UNSPECIFIED, 0).ok().map(IpNet::V6);
    [v4, v6].into_iter().flatten()
}

/// An address with only its first `bits` bits.
pub(crate) fn masked(address: &Address, bits: u32) -> Address {
    let value = u128::from_be_bytes(address.bytes);
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits.min(128)) };
    Address { bytes: (value & mask).to_be_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_never_holds_ipv4_addresses() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(points([net("::/0")]).contains(&net("0.0.0.0/0")));
        assert!(points([net("::/64")]).contains(&net("0.0.0.0/0")));
        assert_eq!(points([net("fd00::/8")]).len(), 1);
        assert_eq!(points([net("10.0.0.0/8")]).len(), 1);
    }

    #[test]
    fn keys_are_in_the_128_bit_form() {
        let key = key(7, &"10.0.0.0/8".parse().unwrap());
        assert_eq!((key.prefix_len, key.set), (32 + 96 + 8, 7u32.to_be()));
        assert_eq!(key.address.to_ip().to_string(), "10.0.0.0");
        let address = Address::from("10.1.2.3".parse::<std::net::IpAddr>().unwrap());
        assert_eq!(masked(&address, 104), key.address);
        assert_eq!(masked(&address, 128), address);
        assert_eq!(masked(&address, 0), Address::UNSPECIFIED);
    }
}
