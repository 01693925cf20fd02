//! Heddle's agent.
pub mod capture;
