//! Records of refusals that somebody could have without end: the first of a kind at once, the rest by their number.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often one address's refusals for one reason are recorded.
const EVERY: Duration = Duration::from_secs(60);
/// Addresses and reasons that are told apart at a time: the rest are recorded as of one.
const TOLD_APART: usize = 4096;

/// An address, none for the rest of them, and a reason.
pub type Whose = (Option<IpAddr>, &'static str);

#[derive(Debug)]
struct Since {
    recorded: Instant,
    untold: u64,
}

/// What was recorded lately, and how often it was not.
#[derive(Debug, Default)]
pub struct Repeated(Mutex<HashMap<Whose, Since>>);

impl Repeated {
    /// One more refusal of this address for this reason. How many its record is to speak of; `None`: none is written now.
    pub fn tell(&self, address: IpAddr, reason: &'static str, now: Instant) -> Option<u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whose = (Some(address), reason);
        if known.len() >= TOLD_APART && !known.contains_key(&whose) {
            whose.0 = None;
        }
        if let Some(since) = known.get_mut(&whose) {
            since.untold += 1;
            return None;
        }
        known.insert(whose, Since { recorded: now, untold: 0 });
        Some(1)
    }

    /// What is to be recorded now of what was not, with its number; who has been quiet is forgotten.
    pub fn due(&self, now: Instant) -> Vec<(Whose, u64)> {
        let mut due = Vec::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|whose, since| {
            if now.saturating_duration_since(since.recorded) < EVERY {
                return true;
            }
            let untold = std::mem::replace(&mut *since, Since { recorded: now, untold: 0 }).untold;
            if untold > 0 {
                due.push((*whose, untold));
            }
            untold > 0
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn the_first_is_recorded_and_the_rest_by_their_number() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.tell(address(1), "busy", start), Some(1));
        for _ in 0..1000 {
            assert_eq!(repeated.tell(address(1), "busy", start), None);
        }
        assert_eq!(repeated.tell(address(1), "rate", start), Some(1), "another reason is another");
        assert_eq!(repeated.tell(address(2), "busy", start), Some(1), "another address is another");
        assert_eq!(repeated.due(start + EVERY / 2), []);
        assert_eq!(repeated.due(start + EVERY), [((Some(address(1)), "busy"), 1000)]);
        assert_eq!(repeated.tell(address(2), "busy", start + EVERY), Some(1), "who was quiet was forgotten");
        assert_eq!(repeated.tell(address(1), "busy", start + EVERY), None, "who was not is still counted");
        assert_eq!(repeated.due(start + 2 * EVERY), [((Some(address(1)), "busy"), 1)]);
    }

    #[test]
    fn addresses_without_end_take_no_memory_without_end() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        let written = (0..100_000).filter(|n| repeated.tell(address(*n), "busy", start).is_some()).count();
        assert_eq!(written, TOLD_APART + 1);
        assert_eq!(repeated.due(start + EVERY), [((None, "busy"), 100_000 - TOLD_APART as u64 - 1)]);
    }
}
