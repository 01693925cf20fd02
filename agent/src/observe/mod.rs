//! What is told: refusals as they happen, metrics, and the audit log.
//!
//! This room imports no other of the agent's. What it cannot know, such as names of pods or the kernel's counters, it
//! asks through narrow traits ([`record::Names`], [`metrics::Readings`]) that `cli` implements.
//! Inside it imports run one way: `metrics -> events -> audit -> record`.

pub mod audit;
pub mod events;
pub mod flows;
pub mod metrics;
pub mod record;
