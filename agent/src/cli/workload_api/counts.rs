//! What workloads were answered.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Answers since the agent started.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    issued: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// A certificate more.
    pub(super) fn issued(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).issued += 1;
    }

    /// A refusal more.
    pub(super) fn refused(&self, reason: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).refused.entry(reason).or_default() += 1;
    }

    /// Certificates, and refusals by their reason.
    pub fn read(&self) -> (u64, Vec<(&'static str, u64)>) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.issued, inner.refused.iter().map(|(reason, count)| (*reason, *count)).collect())
    }
}
