//! Heddle's policy: which workload may talk to which, and why.
//!
//! Pure: no I/O and no clock of its own. [`verdict`] is the one decision about connections; it needs no standard
//! library and is compiled into the kernel programs as well as into the agent.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
pub mod names;
#[cfg(feature = "std")]
pub mod problems;
pub mod verdict;
