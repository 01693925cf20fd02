//! Flows as they are recorded.

pub mod record;
