//! Other trust domains whose identities are believed, each by its own anchors alone.
//!
//! A certificate is held against the anchors of the domain that its SPIFFE name claims (a client's) or that is expected
//! (a server's), and both its names must then be of that domain: no domain's anchors vouch for another's names. What could
//! blur that is refused: an anchor of two domains, and a domain whose names can be read as another's.

use std::{collections::BTreeMap, sync::Arc};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{Bundle, Trust, TrustError};
use crate::{
    names::{IdentityName, IdentityNaming, NameError},
    profile::{self, PeerIdentity, PeerNameError, Profile},
};

/// Why another trust domain's bundle cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FederationError {
    /// It is not named as a trust domain can be.
    #[error("{name:?} {problem}")]
    Name {
        /// How it is named.
        name: String,
        /// What is wrong with that.
        problem: NameError,
    },
    /// Its names could be read as another's.
    #[error(
        "its names cannot be told from those of {with}: it is that trust domain or ends as its identities do"
    )]
    Ambiguous {
        /// The other trust domain.
        with: String,
    },
    /// One of its anchors is another domain's too.
    #[error("an anchor in it is {with}'s: a trust domain is believed by anchors of its own alone")]
    Shared {
        /// The other trust domain.
        with: String,
    },
    /// Its anchors or lists cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Another trust domain in force.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) naming: IdentityNaming,
    pub(crate) bundle: Bundle,
}

/// By trust domain.
pub(super) type Domains = BTreeMap<String, Arc<Domain>>;

impl Trust {
    /// Believes another trust domain's identities by these anchors, in the place of those before. Its identity namespace is
    /// the own one's.
    ///
    /// # Errors
    /// What cannot be used; what was in force for that domain stays.
    pub fn federate(
        &self,
        trust_domain: &str,
        anchors: Vec<CertificateDer<'static>>,
        lists: &[CertificateRevocationListDer<'static>],
    ) -> Result<(), FederationError> {
        let naming = IdentityNaming::new(self.naming.identity_namespace(), trust_domain);
        let naming =
            naming.map_err(|problem| FederationError::Name { name: trust_domain.to_owned(), problem })?;
        let _alone = self.changing();
        let domains = self.domains.load_full();
        let others = domains.values().filter(|other| other.naming != naming);
        let known = others.map(|other| (&other.naming, &other.bundle));
        let own = self.current.load();
        for (other, bundle) in known.chain([(&self.naming, &**own)]) {
            let with = || other.trust_domain().to_owned();
            if !naming.is_apart_from(other) {
                return Err(FederationError::Ambiguous { with: with() });
            }
            if share_a_key(&anchors, &bundle.anchors) {
                return Err(FederationError::Shared { with: with() });
            }
        }
        let before = domains.get(trust_domain).map(|before| &before.bundle.lists);
        let bundle = Bundle::new(anchors, lists, &self.provider, before)?;
        let mut domains = Domains::clone(&domains);
        domains.insert(trust_domain.to_owned(), Arc::new(Domain { naming, bundle }));
        self.domains.store(Arc::new(domains));
        self.grow();
        Ok(())
    }

    /// Believes nobody of another trust domain any longer. Tells whether anybody was.
    pub fn separate(&self, trust_domain: &str) -> bool {
        let _alone = self.changing();
        let mut domains = Domains::clone(&self.domains.load_full());
        let known = domains.remove(trust_domain).is_some();
        if known {
            self.domains.store(Arc::new(domains));
            self.grow();
        }
        known
    }

    /// The other trust domains in force, each with its anchors.
    pub fn federated(&self) -> Vec<(String, Vec<CertificateDer<'static>>)> {
        let domains = self.domains.load();
        domains.iter().map(|(name, domain)| (name.clone(), domain.bundle.anchors.clone())).collect()
    }

    /// The identity of the own or another trust domain in force that this is a form of.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(&self, text: &str) -> Result<IdentityName, NameError> {
        self.naming.parse(text).or_else(|error| {
            let domains = self.domains.load();
            domains.values().find_map(|domain| domain.naming.parse(text).ok()).ok_or(error)
        })
    }

    /// The identity of a peer from the certificates of a *finished* handshake, the leaf first.
    ///
    /// # Errors
    /// No certificate, or one that does not bear exactly one identity of the trust domain that it is of.
    pub fn peer_identity(&self, certificates: &[CertificateDer<'_>]) -> Result<PeerIdentity, PeerNameError> {
        match certificates.first().and_then(|leaf| self.claimed(leaf)) {
            Some(domain) => profile::identity_by(Profile::Heddle, &domain.naming, certificates),
            None => profile::identity_by(self.profile, &self.naming, certificates),
        }
    }

    /// The other trust domain that a certificate claims to be of; `None`: the own, or nobody's that is in force. To choose
    /// by what it is judged, never to believe.
    pub(crate) fn claimed(&self, leaf: &CertificateDer<'_>) -> Option<Arc<Domain>> {
        let domains = self.domains.load();
        if domains.is_empty() {
            return None;
        }
        domains.get(&profile::claimed_domain(leaf)?).map(Arc::clone)
    }

    /// The other trust domain that a DNS form is of.
    pub(crate) fn domain_of(&self, dns: &str) -> Option<(IdentityName, Arc<Domain>)> {
        let domains = self.domains.load();
        domains.values().find_map(|domain| Some((domain.naming.parse_dns(dns).ok()?, Arc::clone(domain))))
    }

    /// The other trust domain that one of these anchors is in force for.
    pub(super) fn shared(&self, anchors: &[CertificateDer<'_>]) -> Option<String> {
        let domains = self.domains.load();
        let shared = domains.iter().find(|(_, domain)| share_a_key(anchors, &domain.bundle.anchors));
        shared.map(|(name, _)| name.clone())
    }
}

/// Whether an anchor of the one has the key of an anchor of the other.
fn share_a_key(one: &[CertificateDer<'_>], other: &[CertificateDer<'_>]) -> bool {
    let key = |der: &CertificateDer<'_>| Some(profile::parse(der).ok()?.public_key().raw.to_vec());
    let known: Vec<_> = other.iter().filter_map(key).collect();
    one.iter().filter_map(key).any(|key| known.contains(&key))
}

#[cfg(test)]
mod tests;
