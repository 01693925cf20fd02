//! Values by address, in parts that generations share: a change copies one of them.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use heddle_ebpf::Address;

/// So many that a part of a hundred thousand addresses is copied in microseconds.
const PARTS: usize = 256;

type Part<V> = HashMap<Address, V, RandomState>;

/// Values by address.
#[derive(Clone, Debug)]
pub(crate) struct AddressMap<V> {
    parts: Vec<Arc<Part<V>>>,
    len: usize,
}

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self { parts: vec![Arc::default(); PARTS], len: 0 }
    }
}

/// Which part an address is in: neighbors are spread over all of them.
fn part_of(address: &Address) -> usize {
    let value = u128::from_be_bytes(address.bytes);
    let folded = (value as u64) ^ ((value >> 64) as u64);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

impl<V: Clone> AddressMap<V> {
    pub(crate) fn insert(&mut self, address: Address, value: V) {
        if let Some(part) = self.parts.get_mut(part_of(&address))
            && Arc::make_mut(part).insert(address, value).is_none()
        {
            self.len += 1;
        }
    }

    pub(crate) fn remove(&mut self, address: &Address) {
        if let Some(part) = self.parts.get_mut(part_of(address))
            && part.contains_key(address)
        {
            Arc::make_mut(part).remove(address);
            self.len -= 1;
        }
    }
}

impl<V> AddressMap<V> {
    pub(crate) fn get(&self, address: &Address) -> Option<&V> {
        self.parts.get(part_of(address))?.get(address)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Address, &V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }
}

impl<V: PartialEq> PartialEq for AddressMap<V> {
    fn eq(&self, other: &Self) -> bool {
        self.parts.iter().zip(&other.parts).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
    }
}

impl<V: Eq> Eq for AddressMap<V> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Address {
        Address::from(std::net::Ipv4Addr::from(0x0a00_0000 + number))
    }

    #[test]
    fn a_copy_keeps_what_it_had_and_shares_what_did_not_change() {
        let mut map = AddressMap::default();
        for number in 0..10_000 {
            map.insert(address(number), number);
        }
        let before = map.clone();
        map.insert(address(7), 70);
        map.insert(address(20_000), 1);
        map.remove(&address(8));
        map.remove(&address(30_000));
        assert_eq!((before.len(), map.len()), (10_000, 10_000));
        assert_eq!((before.get(&address(7)), map.get(&address(7))), (Some(&7), Some(&70)));
        assert_eq!((before.get(&address(8)), map.get(&address(8))), (Some(&8), None));
        assert_eq!((before.get(&address(20_000)), map.get(&address(20_000))), (None, Some(&1)));
        assert!(before != map && before == before.clone());
        let shared = before.parts.iter().zip(&map.parts).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert!(shared >= PARTS - 3, "{shared}");
        assert_eq!(map.iter().count(), 10_000);
    }

    #[test]
    fn neighbors_are_spread() {
        let mut counts = [0_u32; PARTS];
        for number in 0..100_000 {
            counts[part_of(&address(number))] += 1;
        }
        assert!(counts.iter().all(|count| (100..1_600).contains(count)), "{counts:?}");
    }
}
