//! The data plane's certificates are those of the captured pods' identities.

use std::{sync::Arc, time::SystemTime};

use heddle_identity::{PeerIdentity, Standings, Trust};
use rustls::pki_types::CertificateDer;

use super::pods::Pods;
use crate::proxy::environment::{
    ClientCredentials, Credentials, PeerName, PodId, Proven, ServerCredentials, Standing,
};

pub(super) struct PodCredentials {
    pub pods: Arc<Pods>,
    pub trust: Arc<Trust>,
    pub standings: Standings,
}

/// What a chain that was verified rests on.
#[derive(Debug)]
struct Believed(Arc<heddle_identity::Standing>);

impl Standing for Believed {
    fn holds(&self) -> bool {
        self.0.holds()
    }

    fn may_begin(&self) -> bool {
        self.0.holds() && !self.0.is_expired(SystemTime::now())
    }
}

impl PodCredentials {
    /// A service account of this mesh is read once. One of another trust domain is read anew each time, for as long as
    /// that is trusted.
    fn spelled(&self, identity: &PeerIdentity) -> PeerName {
        match identity {
            PeerIdentity::Whole(name) if self.trust.naming().owns(name) => PeerName::from(name),
            PeerIdentity::Whole(name) => PeerName::new(name.dns()),
            PeerIdentity::SpiffeAlone(name) => PeerName::new(name.spiffe()),
        }
    }
}

impl Credentials for PodCredentials {
    fn client(&self, pod: PodId, expected: &PeerName) -> Option<ClientCredentials> {
        let entry = self.pods.get(pod)?;
        let peer = match expected.account() {
            Some(account) => account.clone(),
            None => self.trust.parse(expected.as_str()).ok()?,
        };
        match entry.workload.client(&peer, SystemTime::now()) {
            Ok(client) => Some(ClientCredentials {
                config: client.config,
                own: PeerName::from(entry.workload.identity()),
            }),
            Err(error) => {
                tracing::debug!(pod = %entry.name, %error, "no connection can be made");
                None
            }
        }
    }

    fn server(&self, pod: PodId) -> Option<ServerCredentials> {
        let entry = self.pods.get(pod)?;
        match entry.workload.server_config(SystemTime::now()) {
            Ok(config) => Some(ServerCredentials { config, own: PeerName::from(entry.workload.identity()) }),
            Err(error) => {
                tracing::debug!(pod = %entry.name, %error, "no connection can be accepted");
                None
            }
        }
    }

    fn peer_identity(&self, chain: &[CertificateDer<'_>]) -> Option<Proven> {
        match self.trust.peer_identity(chain) {
            Ok(identity) => Some(Proven {
                name: self.spelled(&identity),
                standing: Arc::new(Believed(self.standings.of(chain, SystemTime::now()))),
            }),
            Err(error) => {
                tracing::debug!(%error, "a peer's certificate bears no identity");
                None
            }
        }
    }
}
