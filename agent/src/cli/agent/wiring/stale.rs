//! Why a trust bundle is not in force as it is.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use time::OffsetDateTime;

/// Why a bundle is not in force as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stale {
    pub since: OffsetDateTime,
    pub error: String,
}

/// Whether what is followed is in force as it is, and why not.
#[derive(Clone, Debug, Default)]
pub(super) struct Staleness(Arc<Mutex<Option<Stale>>>);

impl Staleness {
    /// Why it is not in force as it is now; `None`: it is.
    pub fn get(&self) -> Option<Stale> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells how putting `bundle` in force went.
    pub fn tell(&self, bundle: &str, outcome: Result<(), String>) {
        let mut stale = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => *stale = None,
            Err(error) if stale.as_ref().is_some_and(|known| known.error == error) => {}
            Err(error) => {
                tracing::error!(
                    bundle,
                    error,
                    "the trust bundle cannot be used; the last anchors and revocation lists stay in force"
                );
                let since = stale.as_ref().map_or_else(|| SystemTime::now().into(), |known| known.since);
                *stale = Some(Stale { since, error });
            }
        }
    }
}
