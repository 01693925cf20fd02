//! The bundle of trust anchors and revocation lists, followed as it changes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use heddle_identity::{
    Store, TrustError, anchors_from_pem,
    files::{self, Readers},
    lists_from_pem,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;

/// How often it is looked whether there are other anchors.
const LOOK: Duration = Duration::from_secs(1);
/// A hundred roots, and lists of some 20,000 certificates.
const BUNDLE_BYTES: usize = 1024 * 1024;

/// Why the bundle on disk is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stale {
    pub since: OffsetDateTime,
    pub error: String,
}

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    /// The file as it is, to know it by.
    pub bytes: Vec<u8>,
    pub anchors: Vec<CertificateDer<'static>>,
    pub lists: Vec<CertificateRevocationListDer<'static>>,
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

    /// What the file holds.
    pub fn read(&self) -> Result<Bundle, String> {
        let bytes =
            files::read(&self.path, Readers::Anybody, BUNDLE_BYTES).map_err(|error| error.to_string())?;
        let within = |error: TrustError| format!("{}: {error}", self.path.display());
        let anchors = anchors_from_pem(&bytes).map_err(within)?;
        let lists = lists_from_pem(&bytes).map_err(|error| within(error.into()))?;
        Ok(Bundle { bytes: bytes.to_vec(), anchors, lists })
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
                Ok(read) if read.bytes == known => Ok(()),
                Ok(Bundle { bytes, anchors, lists }) => {
                    let (count, revoking) = (anchors.len(), lists.len());
                    store.reload_trust(anchors, &lists).map_err(|error| error.to_string()).map(|()| {
                        tracing::info!(bundle = %self.path.display(), count, revoking, "another trust bundle is in force");
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
                tracing::error!(bundle = %self.path.display(), error, "the trust bundle cannot be used; the last anchors and revocation lists stay in force");
                let since = stale.as_ref().map_or_else(|| SystemTime::now().into(), |known| known.since);
                *stale = Some(Stale { since, error });
            }
        }
    }
}
