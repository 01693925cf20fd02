//! Two machines, a node on each: what the one that directs them asks, and the one of the two that answers.
//!
//! What passes between them is a line of JSON for each question and each answer, over a serial line.

mod actor;
pub mod node;
mod scene;

pub use actor::act;
pub use scene::{CLIENT, MARKER, ORDERS, PLAIN, WEB};

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a machine is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Tells the kernel's release.
    Who,
    /// Tells the text of the authority that its agent made.
    Authority,
    /// Has its agent use this authority.
    Trust(String),
    /// Starts the agent, and brings the meshed pods into its care.
    Start,
    /// Fetches the page of a pod, in another pod of this machine, by curl.
    Fetch {
        /// The pod that asks.
        from: String,
        /// Whom it asks.
        to: IpAddr,
    },
    /// Begins a capture of the link between the machines.
    Listen,
    /// Ends it and tells what it saw.
    Heard,
    /// Fetches in a pod again and again, until [`Ask::Calm`].
    Press {
        /// The pod that asks.
        from: String,
        /// Whom it asks.
        to: IpAddr,
    },
    /// Ends that.
    Calm,
    /// Tells why the agent refused what the last fetch asked for, as a sentence.
    Why,
    /// Asks the node's CNI plugin to add this pod, as a container runtime does before it starts one, and tells its answer.
    Add(String),
    /// Runs a shell script where the link is, and tells what it printed.
    Shell(String),
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    /// It is done, and this is what it said.
    Done(String),
    /// What curl brought.
    Page {
        /// The HTTP status; 0: none came.
        status: u16,
        /// Whether it was whole.
        whole: bool,
        /// In a line.
        summary: String,
    },
    /// What the link carried.
    Heard {
        /// How often the marker, which every page carries.
        hits: usize,
        /// In how many packets.
        packets: usize,
        /// Of connections between pods: whether every byte belongs to TLS records.
        all_tls: bool,
        /// Encrypted records of TLS 1.3 among them.
        encrypted: usize,
    },
    /// It could not be done.
    Failed(String),
}
