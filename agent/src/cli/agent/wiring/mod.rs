//! Where the rooms are wired together: the one place that names capture, proxy, observe and identity at once.

mod anchors;
mod chores;
mod credentials;
mod enforcer;
mod federation;
mod flows;
mod identities;
mod issuer;
mod joining;
mod listening;
mod names;
mod node;
mod open;
mod pods;
mod policy;
mod readings;
mod recorder;
mod refusal;
mod shadow;
mod shares;
mod sockets;
mod spire;
mod stale;
mod starting;
mod status;
mod twice;
mod upkeep;

pub(super) use self::open::{open, release};
