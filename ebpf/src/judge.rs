//! What the `heddle_judge` program is asked and answers, by `BPF_PROG_TEST_RUN`.

use crate::Address;

/// [`Question::direction`]: a connection out of a pod.
pub const OUTBOUND: u32 = 1;
/// [`Question::direction`]: a connection into a pod.
pub const INBOUND: u32 = 2;
/// [`Question::direction`]: whether a listener of the agent's is in the slot of `listeners` that [`Question::port`] names.
/// No system call can tell: the answer's outcome is `Direct` if there is one.
pub const SLOT: u32 = 3;
/// [`Question::direction`]: a `direct` connection out of a pod that is live. Its answer leads where it was asked to.
pub const LIVE: u32 = 4;

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

impl Question {
    /// As the program reads it.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..16].copy_from_slice(&self.source.bytes);
        bytes[16..32].copy_from_slice(&self.destination.bytes);
        for (at, word) in [(32, self.direction), (36, self.port), (40, self.protocol), (44, self.random)] {
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

impl Answer {
    /// Reads what the program wrote; `None` if it is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            generation: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
            destination: Address { bytes: bytes.get(8..24)?.try_into().ok()? },
            outcome: word(24)?,
            reason: word(28)?,
            rule: word(32)?,
            port: word(36)?,
        })
    }
}

crate::plain!(Question, Answer);
