//! The trust anchors: whose certificates are believed. They may be replaced at any time; the next handshake uses the new ones.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use tokio::sync::watch;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    names::IdentityNaming,
    profile::{self, Profile},
    revocation::{ListError, Lists, Withdrawn},
};

mod federation;

pub(crate) use federation::Domain;
pub use federation::FederationError;

/// Why a set of anchors cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error("there is no trust anchor: name at least one root certificate")]
    Empty,
    /// One is no root certificate.
    #[error("trust anchor {index} cannot be used: {problem}")]
    Anchor {
        /// Its place in the list, from 1.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// One is another trust domain's.
    #[error("a trust anchor is in force for the trust domain {0}: it cannot vouch for both")]
    Shared(String),
    /// A revocation list is none, or not one that may be used.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Reads a bundle of anchors: certificates in PEM, one after the other.
///
/// # Errors
/// None, or one that cannot be read. Whether each is a root is for [`Trust`] to judge.
pub fn anchors_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let mut anchors = Vec::new();
    for (place, anchor) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let wrong = |error: rustls::pki_types::pem::Error| TrustError::Anchor {
            index: place + 1,
            problem: error.to_string(),
        };
        anchors.push(anchor.map_err(wrong)?);
    }
    if anchors.is_empty() { Err(TrustError::Empty) } else { Ok(anchors) }
}

/// Reads anchors in DER, one after the other.
///
/// # Errors
/// As [`anchors_from_pem`].
pub fn anchors_from_der(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let mut anchors = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|_| TrustError::Anchor { index: anchors.len() + 1, problem: "not X.509".to_owned() })?;
        let (anchor, rest) = der.split_at(der.len() - rest.len());
        anchors.push(CertificateDer::from(anchor.to_vec()));
        der = rest;
    }
    if anchors.is_empty() { Err(TrustError::Empty) } else { Ok(anchors) }
}

/// The anchors in force, for the identities of the own trust domain, and those of others for theirs.
pub struct Trust {
    naming: IdentityNaming,
    profile: Profile,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Bundle>,
    domains: ArcSwap<federation::Domains>,
    generation: watch::Sender<u64>,
    /// Grows with the own bundle alone.
    own_generation: AtomicU64,
    /// Whoever changes something is alone: what was compared stays as it was.
    changing: Mutex<()>,
}

/// One set of anchors, with the verifiers made of it.
pub(crate) struct Bundle {
    anchors: Vec<CertificateDer<'static>>,
    /// Verifies servers.
    pub(crate) servers: Arc<WebPkiServerVerifier>,
    /// Verifies clients.
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    /// What is believed no longer although both would.
    pub(crate) lists: Lists,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("naming", &self.naming)
            .field("anchors", &self.current.load().anchors.len())
            .field("federated", &self.domains.load().len())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("anchors", &self.anchors.len()).finish_non_exhaustive()
    }
}

impl Trust {
    /// # Errors
    /// No anchor, or one that is no root certificate: without trust there is nothing to start with.
    pub fn new(
        naming: IdentityNaming,
        anchors: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        let bundle = Bundle::new(anchors, &[], &provider, None)?;
        Ok(Self {
            naming,
            profile: Profile::default(),
            provider,
            current: ArcSwap::from_pointee(bundle),
            domains: ArcSwap::default(),
            generation: watch::Sender::new(1),
            own_generation: AtomicU64::new(1),
            changing: Mutex::default(),
        })
    }

    /// The same, where the own trust domain's certificates are made by somebody else than Heddle. Those of other trust
    /// domains are believed in Heddle's profile alone.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Puts other anchors and revocation lists in force. Handshakes from now on use them; connections that stand are for their owner to end
    /// (see [`Self::generation`]).
    ///
    /// # Errors
    /// As [`Self::new`], an anchor of another trust domain's, or a list that cannot be used; the anchors and lists in force
    /// stay.
    pub fn reload(
        &self,
        anchors: Vec<CertificateDer<'static>>,
        lists: &[CertificateRevocationListDer<'static>],
    ) -> Result<(), TrustError> {
        let _alone = self.changing();
        if let Some(domain) = self.shared(&anchors) {
            return Err(TrustError::Shared(domain));
        }
        let before = self.current.load();
        let bundle = Bundle::new(anchors, lists, &self.provider, Some(&before.lists))?;
        self.current.store(Arc::new(bundle));
        self.own_generation.fetch_add(1, Ordering::Release);
        self.grow();
        Ok(())
    }

    /// Grows with each change: a connection that was made under another generation may rest on an anchor that is gone.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// The same, for what rests on the own anchors alone.
    pub(crate) fn own_generation(&self) -> u64 {
        self.own_generation.load(Ordering::Acquire)
    }

    fn grow(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Nothing panics under this lock, and there is nothing in it.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when other anchors are in force.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The anchors in force.
    pub fn anchors(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().anchors.clone()
    }

    /// The revocation lists in force.
    pub fn lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.current.load().lists.ders()
    }

    /// Since when a revocation list should have been replaced by its successor; it stays in force.
    pub fn overdue(&self, now: SystemTime) -> Option<SystemTime> {
        self.current.load().lists.overdue(now)
    }

    /// Revocation lists that were in force, the own or another trust domain's, and are in the bundle no longer although their
    /// issuer may still be trusted, until their successors were due.
    pub fn withdrawn(&self, now: SystemTime) -> Vec<Withdrawn> {
        let (own, domains) = (self.current.load(), self.domains.load());
        let others = domains.values().flat_map(|domain| domain.bundle.lists.withdrawn());
        own.lists.withdrawn().iter().chain(others).filter(|it| now < it.due).cloned().collect()
    }

    /// Whose identities are believed.
    pub fn naming(&self) -> &IdentityNaming {
        &self.naming
    }

    /// Who makes the own trust domain's certificates.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    pub(crate) fn bundle(&self) -> arc_swap::Guard<Arc<Bundle>> {
        self.current.load()
    }
}

impl Bundle {
    fn new(
        mut anchors: Vec<CertificateDer<'static>>,
        lists: &[CertificateRevocationListDer<'static>],
        provider: &Arc<CryptoProvider>,
        before: Option<&Lists>,
    ) -> Result<Self, TrustError> {
        anchors.dedup();
        let mut roots = RootCertStore::empty();
        for (place, anchor) in anchors.iter().enumerate() {
            let wrong = |problem: String| TrustError::Anchor { index: place + 1, problem };
            let certificate = profile::parse(anchor).map_err(|error| wrong(error.to_string()))?;
            profile::check_authority(&certificate).map_err(|problem| wrong(problem.to_owned()))?;
            roots.add(anchor.clone()).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty);
        }
        let roots = Arc::new(roots);
        let unusable = |error: rustls::client::VerifierBuilderError| TrustError::Anchor {
            index: 1,
            problem: error.to_string(),
        };
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(unusable)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .build()
            .map_err(unusable)?;
        let lists = Lists::new(lists, &anchors, provider.signature_verification_algorithms, before)?;
        Ok(Self { anchors, servers, clients, lists })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mesh;

    #[test]
    fn anchors_in_der_stand_one_after_the_other() {
        let (one, other) = (Mesh::new(), Mesh::new());
        let both = [one.trust.anchors(), other.trust.anchors()].concat();
        let bytes: Vec<u8> = both.iter().flat_map(|anchor| anchor.to_vec()).collect();
        assert_eq!(anchors_from_der(&bytes).unwrap(), both);
        for wrong in [&bytes[..0], &bytes[..bytes.len() - 1], &bytes[1..], b"no certificate"] {
            anchors_from_der(wrong).unwrap_err();
        }
    }
}
