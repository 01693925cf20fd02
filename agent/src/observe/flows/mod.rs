//! Flows as they happen, kept for those who write rules: who reached whom, by which rule, and what `audit` alone let pass.
//!
//! Connections that are alike are one record with a count. [`book`] holds those of one interval, bounded in number;
//! [`file`] writes them, bounded in size; [`record`] is their form. What does not fit is counted and the count is written.

pub mod book;
pub mod file;
#[cfg(test)]
mod hostile;
pub mod record;

pub use book::{FlowBook, SeenFlow};
pub use file::FlowFile;
