//! What a replica answered.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What was answered since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub(super) issued: AtomicU64,
    pub(super) refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counts {
    /// A certificate more.
    pub fn issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// A refusal more.
    pub fn refused(&self, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }
}
