//! What agents tell: waited for, never guessed at.
#![allow(dead_code, reason = "each test uses its own share")]

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::lab::Events;

/// Long enough for a slow machine; a test that passes never waits so long.
pub const SOON: Duration = Duration::from_secs(20);

/// The text of an event's field.
pub fn field<'a>(event: &'a Value, name: &str) -> &'a str {
    event.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The next event with this reason.
pub fn told(events: &Events, reason: &str) -> Result<Value> {
    events
        .next(SOON, |event| field(event, "reason") == reason)
        .with_context(|| format!("nobody told of {reason}"))
}
