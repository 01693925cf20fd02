//! Networks as a longest-prefix-match trie holds them.
//!
//! The trie keeps both families in one 128-bit form, where `::/0` would hold every IPv4 address. To every reader an
//! IPv6 network holds no IPv4 address, so a network that covers the mapped block is cut by an entry for that block.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::RandomState;
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

/// Something that holds inside a network, and outside the exceptions.
pub(crate) struct Holding<'a, K> {
    /// What; several may have the same.
    pub(crate) what: K,
    pub(crate) cidr: IpNet,
    pub(crate) except: &'a [IpNet],
}

/// What holds in one network and outside every smaller one, each with how often.
pub(crate) type Held<K> = BTreeMap<K, u32>;

/// Goes through every network at which the answer can change, in their order, with what holds there: those of `all` and
/// `more`. A network is looked at when its own is entered and left, so that each costs as much as it is deep, and not as much as
/// there are others.
pub(crate) fn sweep<K: Ord + Copy>(
    all: &[Holding<'_, K>],
    more: impl IntoIterator<Item = IpNet>,
    mut at: impl FnMut(IpNet, &Held<K>),
) {
    let mut points: BTreeSet<IpNet> = more.into_iter().collect();
    let mut places: HashMap<IpNet, Place, RandomState> = HashMap::default();
    for (index, it) in all.iter().enumerate() {
        points.insert(it.cidr);
        places.entry(it.cidr).or_default().begin.push(index);
        for cut in it.except {
            points.insert(*cut);
            places.entry(*cut).or_default().cut.push(index);
        }
    }
    let mut sweep =
        Sweep { all, inside: vec![false; all.len()], cuts: vec![0; all.len()], held: Held::new() };
    let nothing = Place::default();
    // Each network lies before those that it holds.
    let mut around: Vec<(IpNet, &Place)> = Vec::new();
    for point in self::points(points) {
        while let Some((_, left)) = around.pop_if(|(network, _)| !network.contains(&point)) {
            sweep.leave(left);
        }
        let place = places.get(&point).unwrap_or(&nothing);
        sweep.enter(place);
        around.push((point, place));
        at(point, &sweep.held);
    }
}

/// What begins and what is cut out at a network.
#[derive(Default)]
struct Place {
    begin: Vec<usize>,
    cut: Vec<usize>,
}

struct Sweep<'a, K> {
    all: &'a [Holding<'a, K>],
    inside: Vec<bool>,
    /// In how many of its exceptions this is.
    cuts: Vec<u32>,
    held: Held<K>,
}

impl<K: Ord + Copy> Sweep<'_, K> {
    fn enter(&mut self, place: &Place) {
        for index in &place.begin {
            self.change(*index, |inside, _| *inside = true);
        }
        for index in &place.cut {
            self.change(*index, |_, cuts| *cuts += 1);
        }
    }

    fn leave(&mut self, place: &Place) {
        for index in &place.cut {
            self.change(*index, |_, cuts| *cuts -= 1);
        }
        for index in &place.begin {
            self.change(*index, |inside, _| *inside = false);
        }
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut bool, &mut u32)) {
        let (Some(inside), Some(cuts), Some(it)) =
            (self.inside.get_mut(index), self.cuts.get_mut(index), self.all.get(index))
        else {
            return;
        };
        let before = *inside && *cuts == 0;
        change(inside, cuts);
        match (before, *inside && *cuts == 0) {
            (false, true) => *self.held.entry(it.what).or_default() += 1,
            (true, false) => {
                if let std::collections::btree_map::Entry::Occupied(mut count) = self.held.entry(it.what) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
            _ => {}
        }
    }
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

    #[test]
    fn what_holds_is_followed_over_networks_as_asking_for_each_would_say() {
        use proptest::prelude::*;
        // Few bits, so that networks lie within each other and are the same often; some of them cover the block of IPv4.
        let network = || {
            (0..3u8, any::<u8>(), 0..=6u8).prop_map(|(sort, bits, length)| {
                let text = match sort {
                    0 => format!("{}.0.0.0/{length}", bits & 0xfc),
                    1 => format!("{:x}00::/{length}", bits & 0xfc),
                    _ => format!("::ffff:0:0/{}", 90 + length),
                };
                text.parse::<IpNet>().map_or_else(|_| unreachable!("{text}"), |net| net.trunc())
            })
        };
        let holding = (0..5u8, network(), prop::collection::vec(network(), 0..4));
        let world = (prop::collection::vec(holding, 0..12), prop::collection::vec(network(), 0..4));
        proptest!(ProptestConfig::with_cases(2_000), |(world in world)| {
            let (given, more) = world;
            let all: Vec<Holding<'_, u8>> =
                given.iter().map(|(what, cidr, except)| Holding { what: *what, cidr: *cidr, except }).collect();
            let mut seen = Vec::new();
            sweep(&all, more.iter().copied(), |point, held| {
                let mut expected = Held::new();
                for it in &all {
                    if it.cidr.contains(&point) && !it.except.iter().any(|cut| cut.contains(&point)) {
                        *expected.entry(it.what).or_default() += 1;
                    }
                }
                assert_eq!(*held, expected, "{point}: {given:?}");
                seen.push(point);
            });
            let given = given.iter().flat_map(|(_, cidr, except)| except.iter().chain([cidr]));
            let expected: Vec<IpNet> = points(given.chain(&more).copied()).into_iter().collect();
            prop_assert_eq!(seen, expected, "each once, in their order");
        });
    }
}
