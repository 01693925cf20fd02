//! One identity on this node and what its connections are made with.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::sync::watch;

use crate::{
    authority::Issued,
    key::FreshKey,
    names::IdentityName,
    profile::{CertificateFacts, PeerIdentity},
    tls::{self, Client, TlsSettings},
    trust::Trust,
};

/// After which part of its life a certificate that the issuer renews by itself should have a successor: SPIRE's agents see
/// to it after half.
const SUCCEEDED: (u32, u32) = (2, 3);

/// There is no certificate to speak with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCertificate {
    /// None was obtained yet.
    #[error("{identity} has no certificate yet")]
    NotYet {
        /// Whose.
        identity: String,
    },
    /// The last one expired before it could be renewed.
    #[error("the certificate of {identity} has expired and could not be renewed")]
    Expired {
        /// Whose.
        identity: String,
    },
    /// It bears a SPIFFE name alone: nobody can ask for it.
    #[error("the certificate of {identity} bears no DNS name: it serves a client alone")]
    SpiffeAlone {
        /// Whose.
        identity: String,
    },
    /// The peer's name cannot be a server name.
    #[error("{peer} cannot be asked for by TLS")]
    Peer {
        /// The peer.
        peer: String,
    },
}

/// An identity that is held, with its current certificate.
#[derive(Debug)]
pub struct Workload {
    identity: IdentityName,
    current: ArcSwapOption<Current>,
    expires: watch::Sender<Option<SystemTime>>,
}

#[derive(Debug)]
struct Current {
    not_before: SystemTime,
    not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    /// `None`: nobody can ask for it.
    server: Option<Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
}

impl Workload {
    pub(super) fn new(identity: IdentityName) -> Self {
        Self { identity, current: ArcSwapOption::empty(), expires: watch::Sender::new(None) }
    }

    /// Who it is.
    pub fn identity(&self) -> &IdentityName {
        &self.identity
    }

    /// When its certificate expires; `None`: there is none yet.
    pub fn expires(&self) -> Option<SystemTime> {
        *self.expires.borrow()
    }

    /// Its certificate, then its intermediates; empty: there is none yet.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().as_ref().map(|current| current.chain.clone()).unwrap_or_default()
    }

    /// Waits until there is a certificate.
    pub async fn ready(&self) {
        // The sender lives in self: waiting cannot fail.
        let _ = self.expires.subscribe().wait_for(Option::is_some).await;
    }

    /// What a connection to this identity is accepted with. Ask anew for each: it changes when the certificate is renewed.
    ///
    /// # Errors
    /// There is no certificate, it has expired, or bears a SPIFFE name alone.
    pub fn server_config(&self, now: SystemTime) -> Result<Arc<ServerConfig>, NoCertificate> {
        let alone = || NoCertificate::SpiffeAlone { identity: self.identity.to_string() };
        self.valid(now)?.server.clone().ok_or_else(alone)
    }

    /// What a connection from this identity to `peer` is made with. Ask anew for each.
    ///
    /// # Errors
    /// There is no certificate, or it has expired.
    pub fn client(&self, peer: &IdentityName, now: SystemTime) -> Result<Client, NoCertificate> {
        let server_name =
            tls::server_name(peer).map_err(|_| NoCertificate::Peer { peer: peer.to_string() })?;
        self.valid(now).map(|current| Client { config: Arc::clone(&current.client), server_name })
    }

    fn valid(&self, now: SystemTime) -> Result<Arc<Current>, NoCertificate> {
        let identity = || self.identity.to_string();
        let current =
            self.current.load_full().ok_or_else(|| NoCertificate::NotYet { identity: identity() })?;
        if current.not_after <= now {
            return Err(NoCertificate::Expired { identity: identity() });
        }
        Ok(current)
    }

    /// Whether a certificate that was given is the one in force, and when that expires; `None`: it is another.
    ///
    /// # Errors
    /// It is, and it should have been followed by another by now.
    pub(super) fn keeps(&self, issued: &Issued, now: SystemTime) -> Option<Result<SystemTime, String>> {
        let current = self.current.load_full()?;
        if current.chain != issued.chain {
            return None;
        }
        let life = current.not_after.duration_since(current.not_before).unwrap_or_default();
        if now > current.not_before + life * SUCCEEDED.0 / SUCCEEDED.1 {
            return Some(Err("the issuer gives the one in use again, which is late in its life".to_owned()));
        }
        Some(Ok(current.not_after))
    }

    /// Puts a new certificate in force if peers would accept it now. Gives when it expires, or what is wrong with it.
    pub(super) fn adopt(
        &self,
        key: FreshKey,
        issued: Issued,
        trust: &Arc<Trust>,
        settings: &TlsSettings,
        now: SystemTime,
    ) -> Result<SystemTime, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let certified = key.certified(issued, &settings.provider).map_err(|error| text(&error))?;
        let borne = tls::verify_as_peers_do(trust, &certified.cert, &self.identity, now)?;
        let facts = CertificateFacts::of(&certified.cert).map_err(|error| text(&error))?;
        let not_after = facts.not_after;
        let chain = certified.cert.clone();
        let certified = Arc::new(certified);
        let server = match borne {
            PeerIdentity::SpiffeAlone(_) => None,
            PeerIdentity::Whole(_) => {
                let config = tls::server_config(&self.identity, Arc::clone(&certified), trust, settings);
                Some(Arc::new(config.map_err(|error| text(&error))?))
            }
        };
        let client = tls::client_config(certified, trust, settings).map_err(|error| text(&error))?;
        self.current.store(Some(Arc::new(Current {
            not_before: facts.not_before,
            not_after,
            chain,
            server,
            client: Arc::new(client),
        })));
        self.expires.send_replace(Some(not_after));
        Ok(not_after)
    }
}
