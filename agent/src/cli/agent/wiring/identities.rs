//! The certificates and anchors in force, as the door tells of them.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_identity::{CertificateFacts, Profile, Store, anchor_of, fingerprint, list_pem, pem};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{federation::Federation, pods::Pods, stale::Staleness};
use crate::cli::door::{AnchorStatus, CertificateStatus, Identities, IdentityStatus};

/// How often it is looked whether there is something to warn of.
const LOOK: Duration = Duration::from_secs(5);
/// How long before its end an anchor is warned of.
const ANCHOR_WARNING: Duration = Duration::from_secs(60 * 24 * 3600);

#[derive(Clone)]
pub(super) struct KnownIdentities {
    pub pods: Arc<Pods>,
    pub store: Arc<Store>,
    pub anchors: Option<Staleness>,
    pub federation: Option<Federation>,
}

impl KnownIdentities {
    /// Logs each warning when it appears, and that it is settled, for ever: nobody need ask for them.
    pub async fn warn(self) {
        let mut known = BTreeSet::new();
        loop {
            let now: BTreeSet<String> = self.read().warnings.into_iter().collect();
            for warning in now.difference(&known) {
                tracing::warn!(target: "heddle::identity", "{warning}");
            }
            for settled in known.difference(&now) {
                tracing::info!(target: "heddle::identity", "no longer so: {settled}");
            }
            known = now;
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn renew(&self) -> usize {
        self.store.renew_all(SystemTime::now());
        self.store.status().len()
    }

    pub fn read(&self) -> Identities {
        let now = SystemTime::now();
        let mut warnings = Vec::new();
        let trusted = self.store.trust().anchors();
        warn_of_ends(&trusted, self.store.trust().profile(), now, &mut warnings);
        let anchors = told(&trusted);
        let federated = self.store.trust().federated().into_iter();
        let federated = federated
            .map(|(domain, anchors)| {
                warn_of_ends(&anchors, Profile::Heddle, now, &mut warnings);
                (domain, told(&anchors))
            })
            .collect();
        let stale = self.anchors.as_ref().and_then(Staleness::get);
        if let Some(stale) = &stale {
            warnings.push(format!(
                "the trust bundle is not in force as it is since {}: {}",
                stale.since, stale.error
            ));
        }
        for stale in self.federation.as_ref().map(Federation::stale).unwrap_or_default() {
            warnings.push(format!(
                "another trust domain's bundle is not in force as it is since {}: {}",
                stale.since, stale.error
            ));
        }
        if let Some(since) = self.store.trust().overdue(now) {
            let since = OffsetDateTime::from(since);
            warnings.push(format!(
                "a revocation list should have been replaced on {since}; it stays in force: add its successor to the bundle"
            ));
        }
        for list in self.store.trust().withdrawn(now) {
            warnings.push(format!(
                "a revocation list of {} has left the bundle: the certificates that it revoked ({}) are believed again; put it \
                 back behind the anchors, or take no notice if that is meant (told until {})",
                list.issuer,
                list.revoked,
                OffsetDateTime::from(list.due)
            ));
        }
        let pods = self.pods.all();
        let identities =
            self.store
                .status()
                .into_iter()
                .map(|status| {
                    let facts = CertificateFacts::of(&status.chain).ok();
                    if facts.as_ref().is_some_and(|it| !it.names.iter().any(|name| name == status.identity.dns())) {
                        warnings.push(format!(
                            "{0} has a SPIFFE name alone: nobody can connect to it, and only rules that name it whole let it in; \
                             add the DNS name {0} to its entry",
                            status.identity
                        ));
                    }
                    let certificate = facts.map(|facts| CertificateStatus {
                        serial: facts.serial,
                        issued: facts.not_before.into(),
                        expires: facts.not_after.into(),
                        obtained: status.renewed.unwrap_or(facts.not_before).into(),
                        issuer: facts.issuer,
                        anchor: anchor_of(&status.chain, &trusted).map(fingerprint).unwrap_or_default(),
                        chain: pem(&status.chain),
                    });
                    match &certificate {
                        None => {
                            warnings.push(format!("{} has no certificate: {}", status.identity, status.error))
                        }
                        Some(certificate) if certificate.anchor.is_empty() => {
                            warnings.push(format!("{} rests on no anchor that is in force", status.identity));
                        }
                        Some(_) if status.failures > 0 => warnings
                            .push(format!("{} could not be renewed: {}", status.identity, status.error)),
                        Some(_) => {}
                    }
                    let of = |entry: &&Arc<super::pods::Entry>| entry.workload.identity() == &status.identity;
                    IdentityStatus {
                        identity: status.identity.dns().to_owned(),
                        pods: pods.iter().filter(of).map(|entry| entry.name.to_string()).collect(),
                        certificate,
                        failures: status.failures,
                        error: status.error,
                        next_renewal: status.due.into(),
                    }
                })
                .collect();
        Identities {
            identities,
            anchors,
            federated,
            revocation_lists: self.store.trust().lists().iter().map(list_pem).collect(),
            by_spire: self.store.trust().profile() == Profile::Spire,
            stale: stale.map(|stale| stale.error),
            warnings,
        }
    }
}

/// Warns of anchors that expire soon. SPIRE's live for days and are followed by others by themselves: there it is too late
/// when the last of them is in the last sixth of its life, in which its successor should sign already.
fn warn_of_ends(
    anchors: &[CertificateDer<'static>],
    profile: Profile,
    now: SystemTime,
    warnings: &mut Vec<String>,
) {
    let facts = anchors.iter().filter_map(|anchor| CertificateFacts::of(std::slice::from_ref(anchor)).ok());
    match profile {
        Profile::Heddle => {
            for facts in facts.filter(|facts| facts.not_after < now + ANCHOR_WARNING) {
                warnings.push(format!(
                    "the trust anchor {} expires within 60 days: add its successor to the bundle",
                    facts.subject
                ));
            }
        }
        Profile::Spire => {
            let Some(last) = facts.max_by_key(|facts| facts.not_after) else { return };
            let life = last.not_after.duration_since(last.not_before).unwrap_or_default();
            if last.not_after < now + life / 6 {
                warnings.push(format!(
                    "SPIRE's last trust anchor expires on {} and has no successor: look at SPIRE's server",
                    OffsetDateTime::from(last.not_after)
                ));
            }
        }
    }
}

/// Anchors as they are told of.
fn told(anchors: &[CertificateDer<'static>]) -> Vec<AnchorStatus> {
    let status = anchors.iter().filter_map(|anchor| {
        let facts = CertificateFacts::of(std::slice::from_ref(anchor)).ok()?;
        let expires = OffsetDateTime::from(facts.not_after);
        let pem = pem(std::slice::from_ref(anchor));
        Some(AnchorStatus { subject: facts.subject, fingerprint: fingerprint(anchor), pem, expires })
    });
    status.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(from: SystemTime, life: Duration) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        (params.not_before, params.not_after) = (from.into(), (from + life).into());
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn anchors_are_warned_of_in_time_and_spires_not_for_their_short_lives() {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let start = SystemTime::UNIX_EPOCH + day * 20_000;
        let warned = |anchors: &[CertificateDer<'static>], profile, now| {
            let mut warnings = Vec::new();
            warn_of_ends(anchors, profile, now, &mut warnings);
            warnings.len()
        };
        let (old, fresh) = (anchor(start, day * 90), anchor(start, day * 900));
        assert_eq!(warned(&[old.clone(), fresh.clone()], Profile::Heddle, start), 0);
        assert_eq!(warned(&[old, fresh], Profile::Heddle, start + day * 31), 1, "the one that ends");
        let (first, second) = (anchor(start, day), anchor(start + hour * 12, day));
        for (hours, alone, both) in [(0, 0, 0), (19, 0, 0), (21, 1, 0), (33, 1, 1)] {
            let now = start + hour * hours;
            assert_eq!(
                warned(std::slice::from_ref(&first), Profile::Spire, now),
                alone,
                "after {hours} h, alone"
            );
            assert_eq!(
                warned(&[first.clone(), second.clone()], Profile::Spire, now),
                both,
                "after {hours} h"
            );
        }
    }
}
