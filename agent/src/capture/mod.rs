//! The kernel's half of the agent: programs, maps, pins, the pods that are captured and the sockets made in them.
//!
//! Nothing here decides; it puts what [`heddle_policy`] compiled where the kernel programs read it, and hands what the
//! kernel sends to the rest of the agent.

mod clock;
mod conversations;
mod counters;
mod early;
mod error;
mod events;
mod flows;
mod heartbeat;
mod kernel;
mod links;
mod listeners;
mod maps;
mod namespace;
mod object;
mod pod;
mod pods;
mod programs;
mod release;
mod request;
mod rows;
mod seen;
mod sock_diag;
mod sockets;
mod syscalls;
mod tables;
pub mod trial;
mod walk;
mod ways;

pub use heddle_ebpf::attach::Direction as Listening;

pub use self::{
    counters::Counters,
    error::CaptureError,
    events::FollowedEvents,
    flows::EndedFlow,
    heartbeat::Heartbeat,
    kernel::{KeptSize, Kernel, KernelOptions, heartbeat_age},
    listeners::PodListener,
    namespace::Namespace,
    pod::CapturedPod,
    pods::{Capture, fence::KnownPod, running::EarlyConnection, upkeep::Repair},
    release::release_guards,
    request::{AttachRefusal, AttachRequest, Attachment},
    seen::{DirectCounts, DirectSeen},
    sockets::{OriginalDestination, PodSockets},
    syscalls::{give_memory_back, keep_little_memory, let_go_of_text, netns_cookie},
    tables::{Publication, TableRows},
};
