//! What live connections rest on: whether a peer's certificate, believed once, would still be.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use rustls::{
    client::danger::ServerCertVerifier,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::ClientCertVerifier,
};

use super::verify;
use crate::{profile, trust::Trust};

/// A chain that was verified.
///
/// Time does not matter: a connection may outlive its peer's certificate, whose successor was never shown on it. An anchor
/// that is gone does, and so does a revocation.
#[derive(Debug)]
pub struct Standing {
    trust: Arc<Trust>,
    chain: Vec<CertificateDer<'static>>,
    /// When it was verified.
    at: UnixTime,
    /// When its certificate expires.
    not_after: SystemTime,
    /// The generation of the anchors by which it was last seen to hold; 0: it fell, for good.
    held: AtomicU64,
}

impl Standing {
    /// Whether it would be believed by the anchors in force.
    pub fn holds(&self) -> bool {
        let generation = self.trust.generation();
        let held = self.held.load(Ordering::Acquire);
        if held == generation || held == 0 {
            return held != 0;
        }
        let holds = self.verify();
        self.held.store(if holds { generation } else { 0 }, Ordering::Release);
        holds
    }

    /// Whether the certificate has expired: no connection would be made with it now.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }

    fn verify(&self) -> bool {
        let Some((leaf, intermediates)) = self.chain.split_first() else { return false };
        let clients = verify::Clients::new(Arc::clone(&self.trust));
        if clients.verify_client_cert(leaf, intermediates, self.at).is_ok() {
            return true;
        }
        // One that serves servers alone.
        let Ok(identity) = self.trust.peer_identity(&self.chain) else { return false };
        let Ok(name) = ServerName::try_from(identity.name().dns()) else { return false };
        let servers = verify::Servers::new(Arc::clone(&self.trust));
        servers.verify_server_cert(leaf, intermediates, &name, &[], self.at).is_ok()
    }
}

/// The chains that live connections rest on; connections to one peer share theirs.
#[derive(Debug)]
pub struct Standings {
    trust: Arc<Trust>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_leaf: HashMap<CertificateDer<'static>, Weak<Standing>>,
    /// When so many are known those that nobody needs are forgotten.
    sweep_at: usize,
}

impl Standings {
    /// Of the connections that are verified by `trust`.
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, known: Mutex::new(Known { by_leaf: HashMap::new(), sweep_at: 64 }) }
    }

    /// What a connection rests on whose handshake has verified `chain` just now.
    pub fn of(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Arc<Standing> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let leaf =
            chain.first().map_or_else(|| CertificateDer::from(Vec::new()), |leaf| leaf.clone().into_owned());
        if let Some(standing) = known.by_leaf.get(&leaf).and_then(Weak::upgrade)
            // The same certificate over another issuer's is another chain.
            && standing.chain == chain
            && standing.held.load(Ordering::Acquire) != 0
        {
            return standing;
        }
        let standing = Arc::new(Standing {
            trust: Arc::clone(&self.trust),
            // One without a date was never verified.
            not_after: profile::not_after(chain).unwrap_or(SystemTime::UNIX_EPOCH),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            at: UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
            // The anchors may have changed since the handshake verified it: looked at when it is first asked.
            held: AtomicU64::new(u64::MAX),
        });
        known.by_leaf.insert(leaf, Arc::downgrade(&standing));
        if known.by_leaf.len() >= known.sweep_at {
            known.by_leaf.retain(|_, standing| standing.strong_count() > 0);
            known.sweep_at = (known.by_leaf.len() * 2).max(64);
        }
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Mesh, connect, db, hours, start, web};

    fn chain(mesh: &Mesh) -> Vec<CertificateDer<'static>> {
        let (client, server) = (mesh.workload(&web()), mesh.workload(&db()));
        let config = client.client(&db(), start()).unwrap().config;
        let (_, server) = connect(config, &db(), server.server_config(start()).unwrap()).unwrap();
        server.peer_certificates().unwrap().to_vec()
    }

    #[test]
    fn a_peer_stands_as_long_as_its_anchor() {
        let (mesh, other) = (Mesh::new(), Mesh::new());
        let standings = Standings::new(Arc::clone(&mesh.trust));
        let standing = standings.of(&chain(&mesh), start());
        assert!(standing.holds());
        let both = vec![mesh.authority.anchors()[0].clone(), other.authority.anchors()[0].clone()];
        mesh.trust.reload(both.clone(), &[]).unwrap();
        assert!(standing.holds(), "its anchor is there still");
        mesh.trust.reload(vec![other.authority.anchors()[0].clone()], &[]).unwrap();
        assert!(!standing.holds());
        mesh.trust.reload(both, &[]).unwrap();
        assert!(!standing.holds(), "what fell stays fallen");
        assert!(standings.of(&chain(&mesh), start()).holds(), "a new connection is judged anew");
    }

    #[test]
    fn a_certificate_may_expire_under_a_connection() {
        let mesh = Mesh::new();
        let standing = Standings::new(Arc::clone(&mesh.trust)).of(&chain(&mesh), start());
        assert!(!standing.is_expired(start()));
        mesh.clock.set(start() + hours(1000.0));
        mesh.trust.reload(vec![mesh.authority.anchors()[0].clone()], &[]).unwrap();
        assert!(standing.holds());
        assert!(standing.is_expired(start() + hours(1000.0)), "but no other stream begins on it");
    }

    #[test]
    fn connections_of_one_peer_share_and_nobody_else_does() {
        let mesh = Mesh::new();
        let standings = Standings::new(Arc::clone(&mesh.trust));
        let one = chain(&mesh);
        let (first, second) = (standings.of(&one, start()), standings.of(&one, start()));
        assert!(Arc::ptr_eq(&first, &second));
        let other = Mesh::new();
        let stranger = standings.of(&chain(&other), start());
        assert!(!stranger.holds());
        drop((first, second, stranger));
        for _ in 0..200 {
            drop(standings.of(&[CertificateDer::from(rand_bytes())], start()));
        }
        assert!(standings.known.lock().unwrap().by_leaf.len() <= 64);
    }

    fn rand_bytes() -> Vec<u8> {
        let mut bytes = vec![0; 16];
        crate::provider().secure_random.fill(&mut bytes).unwrap();
        bytes
    }
}
