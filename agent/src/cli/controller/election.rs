//! One of several replicas, by a Lease of the API server's.
//!
//! No clocks are compared: whoever wants the Lease waits until it has seen nothing of its holder for the Lease's whole
//! duration, by its own clock. The holder stops well before that when it cannot renew. Every write is bound to the version that was
//! read, so that of two who write at once one fails.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use std::time::{Duration, Instant};

/// For how long a holder that is not heard of keeps the Lease.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long takes itself for none.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the Lease is looked at.
pub(super) const EVERY: Duration = Duration::from_secs(3);

/// What is to be done with the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// It is another's.
    Wait,
    /// It is ours already.
    Renew,
    /// Nobody's, or its holder is gone.
    Take,
}

/// A replica's part in the election.
pub(super) struct Election {
    api: Api<Lease>,
    name: String,
    own: String,
    /// The Lease's last version that was seen, and when it was first.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Election {
    /// For the Lease `name` in `namespace`; `own` is told as its holder.
    pub(super) fn new(client: Client, namespace: &str, name: &str, own: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), own: own.to_owned(), seen: None, renewed: None }
    }

    /// Whether this replica is the one.
    pub(super) fn elected(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < DEADLINE)
    }

    /// Takes or renews the Lease if it can be.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub(super) async fn step(&mut self) -> Result<(), kube::Error> {
        // Counted from before the request: the others see it later.
        let asked = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(LeaseSpec::default()) };
            return self.write(lease, true, asked).await;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, asked));
        }
        let quiet = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        match next(lease.spec.as_ref(), &self.own, quiet) {
            Move::Wait => {
                self.renewed = None;
                Ok(())
            }
            Move::Renew => self.write(lease, false, asked).await,
            Move::Take => {
                let spec = lease.spec.get_or_insert_default();
                spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
                spec.acquire_time = Some(MicroTime(Timestamp::now()));
                self.write(lease, false, asked).await
            }
        }
    }

    async fn write(&mut self, mut lease: Lease, new: bool, asked: Instant) -> Result<(), kube::Error> {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.own.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        spec.acquire_time.get_or_insert_with(|| MicroTime(Timestamp::now()));
        let written = if new {
            self.api.create(&PostParams::default(), &lease).await
        } else {
            self.api.replace(&self.name, &PostParams::default(), &lease).await
        };
        match written {
            Ok(_) => {
                self.renewed = Some(asked);
                Ok(())
            }
            // Another was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, so that nobody has to wait for its end.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub(super) async fn resign(mut self) -> Result<(), kube::Error> {
        if !self.elected() {
            return Ok(());
        }
        self.renewed = None;
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|it| it.holder_identity.as_ref() == Some(&self.own))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }
}

/// What to do with a Lease that has not changed for so long.
fn next(lease: Option<&LeaseSpec>, own: &str, quiet: Duration) -> Move {
    let holder = lease.and_then(|it| it.holder_identity.as_deref()).unwrap_or_default();
    if holder == own {
        return Move::Renew;
    }
    if holder.is_empty() || quiet >= DURATION { Move::Take } else { Move::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: Option<&str>) -> LeaseSpec {
        // What its own clock says is never looked at: it may be years off.
        let renew_time = Some(MicroTime(Timestamp::from_second(1).unwrap()));
        LeaseSpec { holder_identity: holder.map(str::to_owned), renew_time, ..LeaseSpec::default() }
    }

    #[test]
    fn a_lease_is_taken_from_nobody_or_from_one_that_was_not_heard_of_for_its_duration() {
        let short = DURATION.checked_sub(Duration::from_secs(1)).unwrap();
        for (holder, quiet, expected) in [
            (Some("a"), Duration::ZERO, Move::Renew),
            (Some("a"), DURATION * 2, Move::Renew),
            (Some("b"), short, Move::Wait),
            (Some("b"), DURATION, Move::Take),
            (Some(""), Duration::ZERO, Move::Take),
            (None, Duration::ZERO, Move::Take),
        ] {
            assert_eq!(next(Some(&held(holder)), "a", quiet), expected, "{holder:?} {quiet:?}");
        }
        assert_eq!(next(None, "a", Duration::ZERO), Move::Take);
        assert!(DEADLINE + EVERY < DURATION, "a holder stops before another may begin");
    }
}
