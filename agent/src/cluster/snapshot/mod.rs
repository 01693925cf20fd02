//! One immutable picture of the cluster after another, and the order in which each comes into force.
//!
//! Two enforcers hold the same rules: the kernel's tables and the proxy. A connection that the agent carries passes
//! both, so in the moment between two publications the stricter one decides. A flow that the kernel carries alone is
//! held by the tables only. So:
//!
//! - something **narrowed**: the kernel first, then the proxy, then whoever watches the generation ends the live
//!   connections that are no longer allowed;
//! - something only **widened**: the proxy first, so that it already knows what the kernel lets come to it;
//! - **both at once**, or it cannot be told: as if narrowed. The proxy then refuses for a moment what is newly
//!   allowed, which costs a retry; the other order would let the kernel pass for a moment what is newly forbidden.

mod publisher;
#[cfg(test)]
mod tests;

pub use publisher::{Publication, Publisher, SnapshotReader};

use heddle_policy::Problem;
use std::sync::Arc;
use time::OffsetDateTime;

/// The cluster as it was at one moment, compiled. `C` is the compiled policy.
#[derive(Debug)]
pub struct Snapshot<C> {
    /// Counts upward, from one agent on a node to its successor too. The kernel's tables bear the same number.
    pub generation: u64,
    /// When it was made.
    pub made: OffsetDateTime,
    /// What may talk to whom, in numbers.
    pub compiled: Arc<C>,
    /// What is wrong with the resources, those that could not be read included.
    pub problems: Vec<Problem>,
}

/// How one compiled policy's tables differ from those before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Whatever the earlier tables let pass, the later ones let pass as well.
    Widened,
    /// Something may have been taken away.
    Narrowed,
}

/// Compiled policy that can tell how it differs from an earlier one.
pub trait Compare {
    /// The way from `earlier` to `self`. [`Change::Narrowed`] where it cannot be told.
    fn change_since(&self, earlier: &Self) -> Change;
}

/// Why the kernel's tables do not hold a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A table has too few places.
    #[error("the kernel table `{table}` holds {capacity} entries, {needed} are needed")]
    Full {
        /// The map's name.
        table: String,
        /// Its places.
        capacity: u64,
        /// How many are needed.
        needed: u64,
    },
    /// The kernel refused.
    #[error("writing the kernel table `{table}` failed: {message}")]
    Kernel {
        /// The map's name.
        table: String,
        /// What the kernel said.
        message: String,
    },
}

impl PublishError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Full { table, needed, .. } => {
                let set = table.trim_end_matches("_0").trim_end_matches("_1");
                format!(
                    "set `capacity: {{{set}: {}}}` in the agent's configuration and restart it",
                    needed.next_power_of_two()
                )
            }
            Self::Kernel { .. } => {
                "`heddle check` says what the agent may do on this host; the agent tries again each second"
                    .into()
            }
        }
    }
}

/// Puts a snapshot in force in the kernel's tables. Capture implements it.
pub trait Enforcer<C>: Send + Sync {
    /// Writes the tables of `snapshot` whole and flips to them. On an error the tables of the generation before stay
    /// in force, or, where they cannot, everything is refused.
    ///
    /// # Errors
    /// If the tables do not fit or the kernel refuses.
    fn publish(&self, snapshot: &Snapshot<C>) -> Result<(), PublishError>;
}

/// Shared access to a snapshot.
pub type Shared<C> = Arc<Snapshot<C>>;

impl Compare for heddle_policy::Compiled {
    /// Tables widen for certain where nothing changed but classes of clients that are allowed in addition. Everything
    /// else, even an entry more, may take something away: a row for a port takes it out of the row for the rest, a
    /// pod's address is no longer one outside. Rules that only the proxy knows, about identities that no pod has, do
    /// not matter for the order: where they narrow, the proxy is the one to be told first.
    fn change_since(&self, earlier: &Self) -> Change {
        let (now, then) = (&self.tables, &earlier.tables);
        let rest = now.settings == then.settings
            && now.workloads == then.workloads
            && now.ports == then.ports
            && now.networks == then.networks
            && now.services == then.services
            && now.backends == then.backends;
        let kept = || then.allows.iter().all(|(key, allow)| now.allows.get(key) == Some(allow));
        if rest && kept() { Change::Widened } else { Change::Narrowed }
    }
}
