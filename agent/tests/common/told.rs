//! What agents tell: waited for, never guessed at.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{collections::BTreeMap, time::Duration};

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

/// Why agents refused, and how often they told so: for a failure's report.
pub fn reasons(events: &[Events]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for event in events.iter().flat_map(Events::drain) {
        if field(&event, "outcome") == "refuse" {
            let told = [field(&event, "node"), field(&event, "hook"), field(&event, "reason")].join(" ");
            *counted.entry(told).or_default() += 1;
        }
    }
    counted
}
