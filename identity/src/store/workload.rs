//! One identity on this node and what its connections are made with.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, UnixTime},
};
use tokio::sync::watch;

use crate::{
    authority::Issued,
    key::FreshKey,
    names::IdentityName,
    profile,
    tls::{self, Client, TlsSettings},
    trust::Trust,
};

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
    not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
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
    /// There is no certificate, or it has expired.
    pub fn server_config(&self, now: SystemTime) -> Result<Arc<ServerConfig>, NoCertificate> {
        self.valid(now).map(|current| Arc::clone(&current.server))
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
        let (leaf, intermediates) = certified.cert.split_first().ok_or("it is empty")?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|error| text(&error))?;
        let at = UnixTime::since_unix_epoch(since_epoch);
        let name = tls::server_name(&self.identity).map_err(|error| text(&error))?;
        tls::verify_as_peers_do(trust, leaf, intermediates, &name, at)?;
        let not_after = profile::not_after(&certified.cert).map_err(|error| text(&error))?;
        let chain = certified.cert.clone();
        let certified = Arc::new(certified);
        let server = tls::server_config(&self.identity, Arc::clone(&certified), trust, settings)
            .map_err(|error| text(&error))?;
        let client = tls::client_config(certified, trust, settings).map_err(|error| text(&error))?;
        self.current.store(Some(Arc::new(Current {
            not_after,
            chain,
            server: Arc::new(server),
            client: Arc::new(client),
        })));
        self.expires.send_replace(Some(not_after));
        Ok(not_after)
    }
}
