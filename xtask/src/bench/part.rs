//! The parts of the bench.

use clap::ValueEnum;

/// What may be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 64 B questions and answers
    Questions,
    /// One stream
    Stream,
    /// New connections
    Connections,
    /// The agents' memory
    Memory,
    /// The kernel programs' run time, by the kernel's own count: only where it is asked for, since counting costs
    Programs,
}
