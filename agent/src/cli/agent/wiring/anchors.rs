//! The bundle of trust anchors, followed as it changes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use heddle_identity::{
    Store, anchors_from_pem,
    files::{self, Readers},
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

/// How often it is looked whether there are other anchors.
const LOOK: Duration = Duration::from_secs(1);
/// A hundred roots.
const BUNDLE_BYTES: usize = 256 * 1024;

/// Why the bundle on disk is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stale {
    pub since: OffsetDateTime,
    pub error: String,
}

/// A file with the anchors.
#[derive(Clone, Debug)]
pub(super) struct AnchorsFile {
    path: PathBuf,
    stale: Arc<Mutex<Option<Stale>>>,
}

impl AnchorsFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, stale: Arc::default() }
    }

    /// The file's anchors, and its bytes to know them by.
    pub fn read(&self) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), String> {
        let bytes =
            files::read(&self.path, Readers::Anybody, BUNDLE_BYTES).map_err(|error| error.to_string())?;
        let anchors =
            anchors_from_pem(&bytes).map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok((bytes.to_vec(), anchors))
    }

    /// Why it is not in force as it is now; `None`: it is.
    pub fn stale(&self) -> Option<Stale> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other anchors in force when there are some, for ever. What cannot be used leaves the last in force.
    pub async fn follow(self, store: Arc<Store>, mut known: Vec<u8>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let reading = self.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || reading.read()).await else { continue };
            let outcome = match read {
                Ok((bytes, _)) if bytes == known => Ok(()),
                Ok((bytes, anchors)) => {
                    let count = anchors.len();
                    store.reload_trust(anchors).map_err(|error| error.to_string()).map(|()| {
                        tracing::info!(bundle = %self.path.display(), count, "other trust anchors are in force");
                        known = bytes;
                    })
                }
                Err(error) => Err(error),
            };
            self.tell(outcome);
        }
    }

    fn tell(&self, outcome: Result<(), String>) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => *stale = None,
            Err(error) if stale.as_ref().is_some_and(|known| known.error == error) => {}
            Err(error) => {
                tracing::error!(bundle = %self.path.display(), error, "the trust bundle cannot be used; the last anchors stay in force");
                let since = stale.as_ref().map_or_else(|| SystemTime::now().into(), |known| known.since);
                *stale = Some(Stale { since, error });
            }
        }
    }
}
