//! What the tests of this crate share: a mesh of one authority at a fixed time, and handshakes over memory.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

use crate::{
    Authority, AuthoritySettings, IdentityName, IdentityNaming, Profile, RenewalSettings, Store, TlsSettings,
    Trust, Workload, authority, tls,
};

/// 2026-01-01, to the second: certificates know no fractions.
pub(crate) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub(crate) fn hours(hours: f64) -> Duration {
    Duration::from_secs_f64(hours * 3600.0)
}

#[derive(Debug)]
pub(crate) struct StoppedClock(Mutex<SystemTime>);

impl StoppedClock {
    pub(crate) fn set(&self, now: SystemTime) {
        *self.0.lock().unwrap() = now;
    }
}

impl TimeProvider for StoppedClock {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.lock().unwrap().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

pub(crate) fn naming() -> IdentityNaming {
    IdentityNaming::new("linkerd", "cluster.local").unwrap()
}

pub(crate) fn web() -> IdentityName {
    naming().name("shop", "web").unwrap()
}

pub(crate) fn db() -> IdentityName {
    naming().name("shop", "db").unwrap()
}

pub(crate) fn settings_at(now: SystemTime) -> TlsSettings {
    TlsSettings { time: Arc::new(StoppedClock(Mutex::new(now))), ..TlsSettings::default() }
}

pub(crate) struct Mesh {
    pub(crate) authority: Authority,
    pub(crate) trust: Arc<Trust>,
    pub(crate) store: Store,
    pub(crate) tls: TlsSettings,
    pub(crate) clock: Arc<StoppedClock>,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::with(RenewalSettings { random: || 0.0, ..RenewalSettings::default() })
    }

    pub(crate) fn with(renewal: RenewalSettings) -> Self {
        let authority = Authority::in_memory(naming(), AuthoritySettings::default(), start()).unwrap();
        let clock = Arc::new(StoppedClock(Mutex::new(start())));
        let time: Arc<dyn TimeProvider> = Arc::<StoppedClock>::clone(&clock);
        let tls = TlsSettings { time, ..TlsSettings::default() };
        let anchors = vec![authority.anchors()[0].clone()];
        let trust = Arc::new(Trust::new(naming(), anchors, Arc::clone(&tls.provider)).unwrap());
        let store = Store::new(Arc::clone(&trust), tls.clone(), renewal);
        Self { authority, trust, store, tls, clock }
    }

    /// One whose certificates SPIRE makes.
    pub(crate) fn of_spire() -> Self {
        let mesh = Self::new();
        let trust = Trust::new(naming(), mesh.authority.anchors().to_vec(), Arc::clone(&mesh.tls.provider));
        let trust = Arc::new(trust.unwrap().with_profile(Profile::Spire));
        let renewal = RenewalSettings { random: || 0.0, ..RenewalSettings::default() };
        let store = Store::new(Arc::clone(&trust), mesh.tls.clone(), renewal);
        Self { trust, store, ..mesh }
    }

    /// Renews whatever is due, with the authority at hand.
    pub(crate) fn renew(&self, now: SystemTime) -> usize {
        let due = self.store.due(now, 100);
        let count = due.len();
        for renewal in due {
            let issued = self.authority.issue(renewal.request(), now);
            self.store.complete(renewal, issued, now).unwrap();
        }
        count
    }

    pub(crate) fn workload(&self, identity: &IdentityName) -> Arc<Workload> {
        let workload = self.store.hold(identity, start());
        self.renew(start());
        assert!(workload.expires().is_some());
        workload
    }

    /// A certificate of the right authority for `identity`, but for what `change` does to it.
    pub(crate) fn forge(
        &self,
        identity: &IdentityName,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        let (leaf, key) = self.forge_with_key(identity, change);
        self.certified(vec![leaf], &key)
    }

    /// The same, with its key.
    pub(crate) fn forge_with_key(
        &self,
        identity: &IdentityName,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, KeyPair) {
        let day = hours(24.0);
        let mut params = authority::leaf_params(identity, start(), start() + day).unwrap();
        change(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        (self.authority.sign_anything(&params, &key), key)
    }

    pub(crate) fn certified(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        Arc::new(CertifiedKey::from_der(chain, der.into(), &self.tls.provider).unwrap())
    }

    pub(crate) fn server(&self, identity: &IdentityName, key: Arc<CertifiedKey>) -> ServerConfig {
        tls::server_config(identity, key, &self.trust, &self.tls).unwrap()
    }

    pub(crate) fn client(&self, key: Arc<CertifiedKey>) -> ClientConfig {
        tls::client_config(key, &self.trust, &self.tls).unwrap()
    }
}

/// Which side gave up, and why.
#[derive(Debug)]
pub(crate) enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

pub(crate) fn connect(
    client: impl Into<Arc<ClientConfig>>,
    name: &IdentityName,
    server: impl Into<Arc<ServerConfig>>,
) -> Result<(ClientConnection, ServerConnection), Failed> {
    let name = ServerName::try_from(name.dns().to_owned()).unwrap();
    let client = ClientConnection::new(client.into(), name).unwrap();
    handshake(client, ServerConnection::new(server.into()).unwrap())
}

/// Carries bytes both ways until both sides are done or one has given up.
pub(crate) fn handshake(
    mut client: ClientConnection,
    mut server: ServerConnection,
) -> Result<(ClientConnection, ServerConnection), Failed> {
    for _ in 0..20 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Failed::Server)?;
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Failed::Client)?;
        }
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            return Ok((client, server));
        }
    }
    panic!("the handshake does not end");
}
