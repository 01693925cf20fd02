//! What the `heddle_judge` program is asked and answers, by `BPF_PROG_TEST_RUN`.

use crate::Address;

/// [`Question::direction`]: a connection out of a pod.
pub const OUTBOUND: u32 = 1;
/// [`Question::direction`]: a connection into a pod.
pub const INBOUND: u32 = 2;

/// A connection to judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Question {
    /// The client's address.
    pub source: Address,
    /// The address asked for.
    pub destination: Address,
    /// [`OUTBOUND`] or [`INBOUND`].
    pub direction: u32,
    /// The port asked for, in host byte order.
    pub port: u32,
    /// IP protocol.
    pub protocol: u32,
    /// Chooses among endpoints.
    pub random: u32,
}

/// The verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Answer {
    /// The generation that decided.
    pub generation: u64,
    /// Where it leads.
    pub destination: Address,
    /// [`crate::codes::Outcome`].
    pub outcome: u32,
    /// [`crate::codes::Reason`].
    pub reason: u32,
    /// The rule.
    pub rule: u32,
    /// The endpoint's port.
    pub port: u32,
}

crate::plain!(Question, Answer);
