//! The keys that were certified of late: none is certified twice. Also what else is to be known again without being kept.
//!
//! An agent makes a fresh key for each certificate. A key that comes back is a copied request, or an agent that does
//! not do what it should. Replicas share nothing, so that each remembers what it issued itself.

use std::{
    collections::{HashSet, VecDeque},
    time::SystemTime,
};

/// A digest of what was entered.
type Digest = [u8; 32];

/// A set of public keys, each until a time of its own, of a bounded size.
#[derive(Debug)]
pub struct KeyLedger {
    known: HashSet<Digest>,
    /// In the order of their coming, which is nearly that of their going.
    order: VecDeque<(SystemTime, Digest)>,
    most: usize,
}

impl KeyLedger {
    /// Remembers `most` keys; the oldest are forgotten first.
    pub fn new(most: usize) -> Self {
        Self { known: HashSet::new(), order: VecDeque::new(), most: most.max(1) }
    }

    /// Enters the key of a request until `until`. False: it is in there already.
    pub fn enter(&mut self, public_key: &[u8], until: SystemTime, now: SystemTime) -> bool {
        while let Some((end, digest)) = self.order.front()
            && (*end <= now || self.order.len() >= self.most)
        {
            self.known.remove(digest);
            self.order.pop_front();
        }
        let digest = digest(public_key);
        if !self.known.insert(digest) {
            return false;
        }
        self.order.push_back((until, digest));
        true
    }

    /// Whether it was entered and not forgotten since; its time may be over by as long as nothing was entered.
    pub fn knows(&self, entered: &[u8]) -> bool {
        self.known.contains(&digest(entered))
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hours, start};

    #[test]
    fn a_key_comes_once_until_its_certificate_is_over() {
        let mut ledger = KeyLedger::new(100);
        let end = start() + hours(24.0);
        assert!(ledger.enter(b"one", end, start()));
        assert!(!ledger.enter(b"one", end, start() + hours(1.0)));
        assert!(ledger.enter(b"two", end + hours(1.0), start() + hours(1.0)));
        assert!(ledger.enter(b"one", end + hours(24.0), end), "its certificate has expired");
        assert!(!ledger.enter(b"two", end, end));
        assert!(ledger.knows(b"two") && !ledger.knows(b"three"));
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut ledger = KeyLedger::new(3);
        let end = start() + hours(1.0);
        for key in 0..1000_u32 {
            assert!(ledger.enter(&key.to_be_bytes(), end, start()));
        }
        assert_eq!((ledger.known.len(), ledger.order.len()), (3, 3));
        assert!(!ledger.enter(&999_u32.to_be_bytes(), end, start()));
    }
}
