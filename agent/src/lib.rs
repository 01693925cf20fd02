//! Heddle's agent.
pub mod capture;
pub mod observe;
