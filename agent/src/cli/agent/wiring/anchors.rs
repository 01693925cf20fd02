//! The bundle of trust anchors and revocation lists, followed as it changes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use heddle_identity::{
    Store, TrustError, anchors_from_pem,
    files::{self, Readers},
    lists_from_pem,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{spire::SpireBundles, stale::Staleness, twice::Twice};

/// How often it is looked whether there are other anchors.
const LOOK: Duration = Duration::from_secs(1);
/// A hundred roots, and lists of some 20,000 certificates.
const BUNDLE_BYTES: usize = 1024 * 1024;

/// What is followed for the own anchors.
pub(super) enum Anchors {
    /// A file, with its content in force.
    File(AnchorsFile, Vec<u8>),
    /// What SPIRE's agent has.
    Spire(SpireBundles),
}

impl Anchors {
    pub fn staleness(&self) -> Staleness {
        match self {
            Self::File(file, _) => file.stale.clone(),
            Self::Spire(bundles) => bundles.staleness(),
        }
    }

    /// Puts other anchors in force when there are some, for ever.
    pub async fn follow(self, store: Arc<Store>) {
        match self {
            Self::File(file, known) => file.follow(store, known).await,
            Self::Spire(bundles) => bundles.follow(store).await,
        }
    }
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
    stale: Staleness,
}

impl AnchorsFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, stale: Staleness::default() }
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

    /// Puts other anchors in force when there are some, for ever. What cannot be used leaves the last in force.
    pub async fn follow(self, store: Arc<Store>, mut known: Vec<u8>) {
        let mut looks = Twice::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let reading = self.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || reading.read()).await else { continue };
            let outcome = match looks.found(read) {
                None => continue,
                Some(Ok(read)) if read.bytes == known => Ok(()),
                Some(Ok(Bundle { bytes, anchors, lists })) => {
                    let (count, revoking) = (anchors.len(), lists.len());
                    store.reload_trust(anchors.clone(), lists).map_err(|error| error.to_string()).map(|()| {
                        tracing::info!(bundle = %self.path.display(), count, revoking, "another trust bundle is in force");
                        known.clone_from(bytes);
                    })
                }
                Some(Err(error)) => Err(error.clone()),
            };
            self.stale.tell(&self.path.display().to_string(), outcome);
        }
    }
}
