//! Limits on the rate of requests: whose budget a request uses, and whether anything is left of it.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use crate::{
    clients::Match,
    resources::{ObjectName, RateLimit},
    settings::ClusterSettings,
};

/// The limits of one Server, compiled.
#[derive(Clone, Debug)]
pub struct RateLimits {
    /// The policy, as people read it.
    pub rule: Arc<str>,
    /// Requests each second of all clients together.
    pub total: Option<u32>,
    /// Of each identity; clients without one count as one.
    pub identity: Option<u32>,
    /// By DNS form: the override that names it first.
    overrides: HashMap<String, (u32, u32), RandomState>,
}

/// Whose budget a request uses, beside that of all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Budget<'a> {
    /// That of every client that an override names, by its number.
    Override(u32),
    /// An identity's own, by its name.
    Identity(&'a str),
    /// That of all clients without an identity.
    Unauthenticated,
}

impl RateLimits {
    pub(crate) fn new(policy: ObjectName, limit: &RateLimit, settings: &ClusterSettings) -> Self {
        let mut overrides = HashMap::default();
        for (number, it) in (0u32..).zip(&limit.overrides) {
            for account in &it.clients {
                if let Some(Match::Name(name)) = Match::account(account, &settings.naming) {
                    overrides.entry(name).or_insert((number, it.per_second));
                }
            }
        }
        let rule = format!("HTTPLocalRateLimitPolicy {policy}").into();
        Self { rule, total: limit.total, identity: limit.identity, overrides }
    }

    /// Whose budget a client with this DNS form (`None`: without an identity) uses, and the requests each second in it.
    /// `None`: only that of all.
    pub fn budget<'a>(&self, client: Option<&'a str>) -> Option<(Budget<'a>, u32)> {
        let Some(name) = client else {
            return Some((Budget::Unauthenticated, self.identity?));
        };
        match self.overrides.get(name) {
            Some((number, rate)) => Some((Budget::Override(*number), *rate)),
            None => Some((Budget::Identity(name), self.identity?)),
        }
    }
}

/// What is left of one budget: a second's worth at most. Time is an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// When the next request would find the budget whole again, in nanoseconds.
    full_at: u64,
}

impl Bucket {
    /// Takes one request out of the budget at `now` (nanoseconds of a clock that never runs backward), if one is left.
    pub fn take(&mut self, now: u64, per_second: u32) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let each = SECOND / u64::from(per_second.max(1));
        let next = self.full_at.max(now).saturating_add(each);
        let left = next.saturating_sub(now) <= SECOND;
        if left {
            self.full_at = next;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_holds_a_second_and_comes_back_at_its_rate() {
        let mut bucket = Bucket::default();
        let start = 5_000_000_000;
        let taken = (0..100).filter(|_| bucket.take(start, 10)).count();
        assert_eq!(taken, 10);
        assert!(!bucket.take(start + 99_000_000, 10));
        assert!(bucket.take(start + 100_000_000, 10));
        assert!(!bucket.take(start + 100_000_000, 10));
        let later = (0..100).filter(|_| bucket.take(start + 60_000_000_000, 10)).count();
        assert_eq!(later, 10, "no more than a second is saved");
    }
}
