//! The thin shell around the store: a clock, an authority, and as many renewals at once as are good for it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::task::JoinSet;

use super::{Renewal, Store};
use crate::authority::{Authority, CertificateRequest, IssueError, Issued};

/// How many renewals are under way at once.
const AT_ONCE: usize = 32;
/// How long an authority is waited for: less than the store waits for an outcome.
const PATIENCE: Duration = Duration::from_secs(20);
/// The clock is looked at again after this time at the latest: it may have been set, or the machine have slept.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Whoever issues certificates.
pub trait Issue: Send + Sync + 'static {
    /// Issues a certificate.
    fn issue(
        &self,
        request: CertificateRequest,
        now: SystemTime,
    ) -> impl Future<Output = Result<Issued, IssueError>> + Send;
}

impl Issue for Authority {
    async fn issue(&self, request: CertificateRequest, now: SystemTime) -> Result<Issued, IssueError> {
        Self::issue(self, &request, now)
    }
}

/// Keeps every certificate of `store` renewed, for ever: drop the future to stop.
pub async fn keep_renewed<I: Issue>(store: Arc<Store>, authority: Arc<I>, clock: fn() -> SystemTime) {
    let mut under_way = JoinSet::new();
    loop {
        for renewal in store.due(clock(), AT_ONCE.saturating_sub(under_way.len())) {
            under_way.spawn(renew(Arc::clone(&store), Arc::clone(&authority), renewal, clock));
        }
        let sleep = match store.next_due() {
            Some(due) => due.duration_since(clock()).unwrap_or_default().min(LONGEST_SLEEP),
            None => LONGEST_SLEEP,
        };
        // With every place taken, an end is what to wait for, not the time at which the next is due.
        let full = under_way.len() >= AT_ONCE;
        tokio::select! {
            () = store.changed.notified(), if !full => {}
            Some(_) = under_way.join_next(), if !under_way.is_empty() => {}
            () = tokio::time::sleep(sleep.max(Duration::from_millis(1))), if !full => {}
        }
    }
}

async fn renew<I: Issue>(store: Arc<Store>, authority: Arc<I>, renewal: Renewal, clock: fn() -> SystemTime) {
    let identity = renewal.request().identity.clone();
    let asked = authority.issue(renewal.request().clone(), clock());
    let outcome = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(outcome) => outcome,
        Err(_) => Err(IssueError::Away(format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    match store.complete(renewal, outcome, clock()) {
        Ok(()) => tracing::info!(%identity, "certificate renewed"),
        Err(error) => {
            tracing::warn!(%identity, %error, "certificate not renewed; the old one stays in use while it is valid")
        }
    }
}
