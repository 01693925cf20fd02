//! From one agent of a node to the next, without a connection lost.
//!
//! The next one makes everything ready while the other serves, then asks it to step back. That one writes nothing more
//! ([`crate::capture::Capture::fence`]) and lets go of the lock; the next one takes the lock, puts its rules, programs and
//! listeners in force, and says that it has. From then on new connections are its own, and the other keeps what it has
//! until it ends or the time for that is over.
//!
//! ```text
//! successor                      predecessor
//!   hello ------------------------>           same protocol, kernel maps and node? one at a time
//!         <------------------------ agreed
//!   (rules, certificates)                     serves
//!   switch ----------------------->           writes nothing more, lets go of the lock, goes on carrying
//!         <------------------------ fenced
//!   (lock, rules, programs, listeners, heartbeat, door)
//!   taken ------------------------>           its heartbeat ends, its connections go on
//!         <------------------------ draining
//!   close POD -------------------->           an application wants a port of its listeners'
//!         <------------------------ closed POD
//!         <------------------------ settled   its listeners are closed
//! ```
//!
//! Whoever holds the lock writes. A process that dies lets go of it; one that hangs while the other waits for it is killed
//! first, so that it cannot go on later.

mod line;
mod predecessor;
mod successor;
#[cfg(test)]
mod tests;

pub(super) use predecessor::{Phase, Predecessor};
pub(super) use successor::{Claim, claim};

use rustix::{
    fd::AsFd,
    process::{Signal, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Changes when the conversation does.
const PROTOCOL: u32 = 1;
/// How long the lock may take to be free when its holder let go or died.
const LOCK: Duration = Duration::from_secs(5);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// What a successor says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Asked {
    Hello { protocol: u32, schema: u32, node: String, version: String },
    Switch,
    Taken,
    Close(u64),
}

/// What the agent before it answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Answered {
    Agreed { version: String },
    Refused { error: String, remedy: String },
    Fenced,
    Draining,
    Closed(u64),
    Settled,
}

/// Ends a process that hangs where the other waits for it.
fn kill(process: &impl AsFd) {
    if let Err(error) = pidfd_send_signal(process, Signal::KILL) {
        tracing::warn!(%error, "the other agent hangs and cannot be killed: is it gone?");
    }
}
