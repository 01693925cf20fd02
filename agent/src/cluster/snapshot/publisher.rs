use super::{Change, Compare, Enforcer, PublishError, Shared, Snapshot};
use arc_swap::ArcSwapOption;
use heddle_policy::Problem;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use time::{OffsetDateTime, serde::rfc3339};
use tokio::sync::watch;

/// How many snapshots are remembered, so that an event of an earlier generation can still name its rule.
const REMEMBERED: usize = 8;

/// What is in force where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Publication {
    /// The generation that the proxy judges by; 0: none yet.
    pub proxy_generation: u64,
    /// The generation that this agent put in force in the kernel last; 0: none yet.
    pub kernel_generation: u64,
    /// Since when the proxy's is in force.
    #[serde(with = "rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Why the kernel's is not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_error: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

struct State<C> {
    current: ArcSwapOption<Snapshot<C>>,
    recent: Mutex<VecDeque<Shared<C>>>,
    publication: watch::Sender<Publication>,
}

/// Reads the snapshot in force, without a lock. One for each reader is cheap: cloning counts a reference.
pub struct SnapshotReader<C>(Arc<State<C>>);

impl<C> Clone for SnapshotReader<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> SnapshotReader<C> {
    /// The snapshot that the proxy judges by; `None` before the first: refuse everything.
    pub fn load(&self) -> Option<Shared<C>> {
        self.0.current.load_full()
    }

    /// The same without counting a reference, for a decision that keeps nothing.
    pub fn peek(&self) -> arc_swap::Guard<Option<Shared<C>>> {
        self.0.current.load()
    }

    /// A snapshot of late, to name the rule that an event's generation meant.
    pub fn generation(&self, generation: u64) -> Option<Shared<C>> {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().rev().find(|snapshot| snapshot.generation == generation).cloned()
    }

    /// Tells when other rules are in force, after kernel *and* proxy hold them: then live connections are judged again.
    pub fn watch(&self) -> watch::Receiver<Publication> {
        self.0.publication.subscribe()
    }

    /// What is in force where.
    pub fn publication(&self) -> Publication {
        self.0.publication.borrow().clone()
    }
}

/// Puts one snapshot after another in force, in the order that the module describes. There is one of it.
pub struct Publisher<C> {
    state: Arc<State<C>>,
    kernel: Arc<dyn Enforcer<C>>,
    next: u64,
    behind: bool,
    /// Whether this agent writes the kernel's tables; before, the proxy alone is told.
    begun: bool,
}

impl<C: Compare> Publisher<C> {
    /// Starts after `last`, the generation that was found in the kernel's tables (0: none).
    pub fn new(kernel: Arc<dyn Enforcer<C>>, last: u64) -> Self {
        Self { next: last + 1, begun: true, ..Self::waiting(kernel) }
    }

    /// Leaves the kernel's tables alone until [`Self::begin`]: another agent writes them.
    pub fn waiting(kernel: Arc<dyn Enforcer<C>>) -> Self {
        let publication = watch::Sender::new(Publication::default());
        let state = State { current: ArcSwapOption::empty(), recent: Mutex::default(), publication };
        Self { state: Arc::new(state), kernel, next: 1, behind: true, begun: false }
    }

    /// A reader of what is published.
    pub fn reader(&self) -> SnapshotReader<C> {
        SnapshotReader(Arc::clone(&self.state))
    }

    /// Puts what the proxy judges by in force in the kernel too, as a generation after `last`, the one that was found in
    /// its tables: no number means two things.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn begin(&mut self, last: u64) -> Result<(), PublishError> {
        self.begun = true;
        self.next = self.next.max(last + 1);
        let Some(before) = self.state.current.load_full() else { return Ok(()) };
        let Snapshot { made, compiled, problems, .. } = &*before;
        let snapshot = self.number(*made, Arc::clone(compiled), problems.clone());
        let outcome = self.kernel.publish(&snapshot);
        self.state.current.store(Some(Arc::clone(&snapshot)));
        self.tell(&snapshot, &outcome, true);
        outcome
    }

    fn number(&mut self, made: OffsetDateTime, compiled: Arc<C>, problems: Vec<Problem>) -> Shared<C> {
        let snapshot = Arc::new(Snapshot { generation: self.next, made, compiled, problems });
        self.next += 1;
        self.remember(Arc::clone(&snapshot));
        snapshot
    }

    /// Puts `compiled` in force; `problems` are told beside it.
    ///
    /// # Errors
    /// If the kernel's tables do not hold it. The proxy judges by it all the same: whatever passes the proxy must be
    /// allowed by both, so that narrowing is never held up by a table that is full. [`Self::retry`] tries again.
    pub fn publish(&mut self, compiled: C, problems: Vec<Problem>) -> Result<Shared<C>, PublishError> {
        let (made, compiled) = (OffsetDateTime::now_utc(), Arc::new(compiled));
        if !self.begun {
            // The number is not remembered: the agent that writes the tables uses it too.
            let snapshot = Arc::new(Snapshot { generation: self.next, made, compiled, problems });
            self.state.current.store(Some(Arc::clone(&snapshot)));
            return Ok(snapshot);
        }
        let before = self.state.current.load_full();
        // With the kernel behind, or holding what another agent left there, it is not known what the change is.
        let change = match &before {
            Some(before) if !self.behind => compiled.change_since(&before.compiled),
            _ => Change::Narrowed,
        };
        let snapshot = self.number(made, compiled, problems);
        let outcome = if change == Change::Widened {
            self.state.current.store(Some(Arc::clone(&snapshot)));
            self.kernel.publish(&snapshot)
        } else {
            let outcome = self.kernel.publish(&snapshot);
            self.state.current.store(Some(Arc::clone(&snapshot)));
            outcome
        };
        self.tell(&snapshot, &outcome, true);
        outcome.map(|()| snapshot)
    }

    /// Whether the kernel's tables are behind the proxy: call [`Self::retry`] in a while.
    pub fn behind(&self) -> bool {
        self.begun && self.behind && self.state.current.load().is_some()
    }

    /// Puts the snapshot in force into the kernel's tables again, after it failed or after the tables were lost.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn retry(&mut self) -> Result<(), PublishError> {
        let Some(snapshot) = self.state.current.load_full() else { return Ok(()) };
        let outcome = self.kernel.publish(&snapshot);
        self.tell(&snapshot, &outcome, false);
        outcome
    }

    fn remember(&self, snapshot: Shared<C>) {
        let mut recent = self.state.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_back(snapshot);
        if recent.len() > REMEMBERED {
            recent.pop_front();
        }
    }

    fn tell(&mut self, snapshot: &Snapshot<C>, outcome: &Result<(), PublishError>, flipped: bool) {
        self.behind = outcome.is_err();
        self.state.publication.send_if_modified(|told| {
            let before = told.clone();
            told.proxy_generation = snapshot.generation;
            if flipped {
                told.since = Some(OffsetDateTime::now_utc());
            }
            match outcome {
                Ok(()) => {
                    told.kernel_generation = snapshot.generation;
                    (told.kernel_error, told.remedy) = (None, None);
                }
                Err(error) => {
                    (told.kernel_error, told.remedy) = (Some(error.to_string()), Some(error.remedy()));
                }
            }
            *told != before
        });
        match outcome {
            Ok(()) => tracing::info!(generation = snapshot.generation, "rules are in force"),
            Err(error) => tracing::error!(
                generation = snapshot.generation, %error, remedy = error.remedy(),
                "the kernel's tables do not hold the rules; the proxy judges by them"
            ),
        }
    }
}
