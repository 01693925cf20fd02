//! A certificate for each identity on the node, with a fresh key for each, renewed long before it expires.
//!
//! The store is a state machine without a clock: time is an argument. [`keep_renewed`] drives it.
//!
//! An identity is held as long as somebody has its [`Workload`]; keys are in memory alone. A renewal that fails never
//! takes a certificate away: the old one is used until it expires, and then there is none, and connections are refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

mod keep;
mod workload;

pub use keep::{Issue, keep_renewed};
pub use workload::{NoCertificate, Workload};

use crate::{
    authority::{CertificateRequest, IssueError, Issued},
    key::FreshKey,
    names::IdentityName,
    tls::TlsSettings,
    trust::{Trust, TrustError},
};

/// How long a renewal that was begun is waited for before it is begun again.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How far a clock may be set back before what was decided by it is decided anew.
const SET_BACK: Duration = Duration::from_secs(60);

/// When certificates are renewed.
#[derive(Clone, Copy, Debug)]
pub struct RenewalSettings {
    /// After which part of its lifetime a certificate is renewed. Half by default, and not the usual 70 %: an authority may then be away
    /// for 49 % of a lifetime, whenever that begins, and no handshake notices.
    pub renew_after: f64,
    /// How much earlier it may be, as a part of the time until then: the certificates of a node are not all renewed at once.
    pub jitter: f64,
    /// How long after a first failure it is tried again; doubled with each failure.
    pub first_retry: Duration,
    /// The longest time between two tries.
    pub longest_retry: Duration,
    /// The same while there is no certificate that could be used: somebody waits.
    pub longest_retry_without: Duration,
    /// Gives numbers from 0 up to 1.
    pub random: fn() -> f64,
}

impl Default for RenewalSettings {
    fn default() -> Self {
        Self {
            renew_after: 0.5,
            jitter: 0.05,
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(300),
            longest_retry_without: Duration::from_secs(5),
            random: random_fraction,
        }
    }
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// None was issued.
    #[error(transparent)]
    NotIssued(#[from] IssueError),
    /// What was issued cannot be used.
    #[error("the certificate that was issued for {identity} cannot be used: {problem}")]
    Unusable {
        /// For whom.
        identity: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A renewal under way: a fresh key and the request for its certificate.
#[derive(Debug)]
pub struct Renewal {
    workload: Arc<Workload>,
    key: FreshKey,
    request: CertificateRequest,
}

impl Renewal {
    /// What to ask the authority for.
    pub fn request(&self) -> &CertificateRequest {
        &self.request
    }
}

/// How an identity's certificate is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: IdentityName,
    /// When it expires; `None`: there is none yet.
    pub not_after: Option<SystemTime>,
    /// How many renewals have failed since the last that did not.
    pub failures: u32,
    /// Why the last one failed; empty: it did not.
    pub error: String,
    /// When the certificate was obtained.
    pub renewed: Option<SystemTime>,
    /// When the next is asked for.
    pub due: SystemTime,
    /// The certificate, then its intermediates; empty: there is none yet.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The certificates of this node.
#[derive(Debug)]
pub struct Store {
    trust: Arc<Trust>,
    tls: TlsSettings,
    settings: RenewalSettings,
    slots: Mutex<Slots>,
    changed: tokio::sync::Notify,
    renewals: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug)]
struct Slots {
    by_identity: HashMap<IdentityName, Slot>,
    /// The generation of the anchors under which the certificates were obtained.
    trust_generation: u64,
}

#[derive(Debug)]
struct Slot {
    workload: Weak<Workload>,
    due: SystemTime,
    /// When it was decided when it is due.
    decided: SystemTime,
    failures: u32,
    error: String,
    renewed: Option<SystemTime>,
}

impl Store {
    /// A store without certificates.
    pub fn new(trust: Arc<Trust>, tls: TlsSettings, settings: RenewalSettings) -> Self {
        let slots = Slots { by_identity: HashMap::new(), trust_generation: trust.own_generation() };
        Self {
            trust,
            tls,
            settings,
            slots: Mutex::new(slots),
            changed: tokio::sync::Notify::new(),
            renewals: tokio::sync::watch::Sender::new(0),
        }
    }

    /// The anchors that peers are held against.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Holds `identity` as long as what is returned, or a copy of it, lives. Its first certificate is due at once.
    pub fn hold(&self, identity: &IdentityName, now: SystemTime) -> Arc<Workload> {
        let mut slots = self.slots();
        let held = slots.by_identity.get(identity).and_then(|slot| slot.workload.upgrade());
        if let Some(workload) = held {
            return workload;
        }
        let workload = Arc::new(Workload::new(identity.clone()));
        let slot = Slot {
            workload: Arc::downgrade(&workload),
            due: now,
            decided: now,
            failures: 0,
            error: String::new(),
            renewed: None,
        };
        slots.by_identity.insert(identity.clone(), slot);
        drop(slots);
        self.changed.notify_one();
        workload
    }

    /// Puts other anchors and revocation lists in force and renews every certificate.
    ///
    /// # Errors
    /// As [`Trust::reload`]; then nothing changes.
    pub fn reload_trust(
        &self,
        anchors: Vec<CertificateDer<'static>>,
        lists: &[CertificateRevocationListDer<'static>],
    ) -> Result<(), TrustError> {
        self.trust.reload(anchors, lists)?;
        self.changed.notify_one();
        Ok(())
    }

    /// Has every certificate renewed now.
    pub fn renew_all(&self, now: SystemTime) {
        self.slots().by_identity.values_mut().for_each(|slot| slot.due = now);
        self.changed.notify_one();
    }

    /// Has the certificate of one identity renewed now.
    pub fn renew(&self, identity: &IdentityName, now: SystemTime) {
        if let Some(slot) = self.slots().by_identity.get_mut(identity) {
            slot.due = now;
        }
        self.changed.notify_one();
    }

    /// Whose certificates are held.
    pub fn held(&self) -> Vec<IdentityName> {
        let slots = self.slots();
        let held = slots.by_identity.iter().filter(|(_, slot)| slot.workload.strong_count() > 0);
        held.map(|(identity, _)| identity.clone()).collect()
    }

    /// Tells when another certificate is in force.
    pub fn renewals(&self) -> tokio::sync::watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// The renewals to begin now, at most `most`. One whose outcome is not told within half a minute is due again.
    pub fn due(&self, now: SystemTime, most: usize) -> Vec<Renewal> {
        let generation = self.trust.own_generation();
        let mut slots = self.slots();
        slots.by_identity.retain(|_, slot| slot.workload.strong_count() > 0);
        if slots.trust_generation != generation {
            slots.trust_generation = generation;
            slots.by_identity.values_mut().for_each(|slot| slot.due = now);
        }
        // A clock that was set back: what it said before is no time to wait for.
        slots
            .by_identity
            .values_mut()
            .filter(|slot| is_set_back(slot.decided, now))
            .for_each(|slot| slot.due = now);
        let mut due: Vec<_> = slots.by_identity.values_mut().filter(|slot| slot.due <= now).collect();
        due.sort_by_key(|slot| slot.due);
        let mut renewals = Vec::new();
        for slot in due.into_iter().take(most) {
            let Some(workload) = slot.workload.upgrade() else { continue };
            slot.due = now + ATTEMPT;
            slot.decided = now;
            match FreshKey::with_request(workload.identity()) {
                Ok((key, request)) => renewals.push(Renewal { workload, key, request }),
                Err(error) => {
                    tracing::error!(identity = %workload.identity(), %error, "no key could be made");
                    slot.failures += 1;
                }
            }
        }
        renewals
    }

    /// When something is due next; `None`: nothing is held.
    pub fn next_due(&self) -> Option<SystemTime> {
        self.slots().by_identity.values().map(|slot| slot.due).min()
    }

    /// Tells the outcome of a renewal. A certificate that can be used replaces the old one for connections from now on.
    ///
    /// # Errors
    /// No certificate, or one that cannot be used: the old one stays, and the renewal is due again a little later.
    pub fn complete(
        &self,
        renewal: Renewal,
        outcome: Result<Issued, IssueError>,
        now: SystemTime,
    ) -> Result<(), RenewalError> {
        let Renewal { workload, key, .. } = renewal;
        let adopted = outcome.map_err(RenewalError::from).and_then(|issued| {
            // Whoever makes keys renews by itself, and gives what it has until then.
            let kept = issued.key.as_ref().and_then(|_| workload.keeps(&issued, now));
            let another = kept.is_none();
            let adopted = kept.unwrap_or_else(|| workload.adopt(key, issued, &self.trust, &self.tls, now));
            adopted.map(|not_after| (not_after, another)).map_err(|problem| RenewalError::Unusable {
                identity: workload.identity().to_string(),
                problem,
            })
        });
        let mut slots = self.slots();
        let slot = slots
            .by_identity
            .get_mut(workload.identity())
            .filter(|slot| std::ptr::eq(slot.workload.as_ptr(), Arc::as_ptr(&workload)));
        let Some(slot) = slot else { return adopted.map(|_| ()) };
        slot.decided = now;
        match adopted {
            Ok((not_after, another)) => {
                slot.failures = 0;
                slot.error.clear();
                if another {
                    slot.renewed = Some(now);
                    self.renewals.send_modify(|renewals| *renewals += 1);
                }
                slot.due = self.settings.after_success(now, not_after);
                Ok(())
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.error = error.to_string();
                let usable = workload.expires().is_some_and(|end| end > now);
                let pause = self.settings.after_failures(slot.failures, usable);
                // What expires before the next try is tried for once more in time.
                slot.due = match workload.expires().filter(|end| *end > now) {
                    Some(end) => (now + pause).min(end - end.duration_since(now).unwrap_or_default() / 4),
                    None => now + pause,
                };
                Err(error)
            }
        }
    }

    /// Every identity that is held.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let mut status: Vec<_> = self
            .slots()
            .by_identity
            .iter()
            .filter_map(|(identity, slot)| {
                let workload = slot.workload.upgrade()?;
                Some(CertificateStatus {
                    identity: identity.clone(),
                    not_after: workload.expires(),
                    failures: slot.failures,
                    error: slot.error.clone(),
                    renewed: slot.renewed,
                    due: slot.due,
                    chain: workload.chain(),
                })
            })
            .collect();
        status.sort_by(|a, b| a.identity.cmp(&b.identity));
        status
    }

    /// Nothing panics under this lock, so that a poisoned one still holds whole values.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RenewalSettings {
    /// When a certificate that was obtained at `now` is renewed.
    pub fn after_success(&self, now: SystemTime, not_after: SystemTime) -> SystemTime {
        let left = not_after.duration_since(now).unwrap_or_default();
        let part = self.renew_after.clamp(0.0, 0.95) * (1.0 - self.jitter.clamp(0.0, 0.5) * (self.random)());
        now + left.mul_f64(part.clamp(0.0, 0.95))
    }

    /// How long is waited after so many failures, while there is a certificate that is `usable` or none.
    pub fn after_failures(&self, failures: u32, usable: bool) -> Duration {
        let longest = if usable { self.longest_retry } else { self.longest_retry_without };
        let doubled = self.first_retry.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(longest).mul_f64(0.5 + 0.5 * (self.random)().clamp(0.0, 1.0))
    }
}

/// Whether what was decided at `then` is not to be waited for: the clock was set back since.
pub fn is_set_back(then: SystemTime, now: SystemTime) -> bool {
    now + SET_BACK < then
}

fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter: nothing that depends on it is secret.
    let filled = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    if filled.is_err() {
        return 0.5;
    }
    f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests;
