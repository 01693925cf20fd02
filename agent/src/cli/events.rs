//! `heddle events`.

use super::{
    Failure,
    client::{Client, run},
    render::{plain, print},
};
use http_body_util::BodyExt;
use miette::miette;
use serde_json::Value;
use std::{path::Path, process::ExitCode};

/// A line that is longer is no event.
const LINE: usize = 1 << 20;

pub(super) fn follow(socket: &Path, json: bool) -> Result<ExitCode, Failure> {
    run(async {
        let mut body = Client::new(socket).follow("/v1/events").await?;
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ended(&error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim();
                if !line.is_empty() {
                    print(&if json { line.to_owned() } else { readable(line) })?;
                }
            }
            if pending.len() > LINE {
                return Err(ended("a line has no end"));
            }
        }
        Err(ended("it ended the stream"))
    })
}

fn ended(why: &str) -> Failure {
    miette!(help = "`heddle status` says whether it still runs", "the agent tells no more events: {why}")
}

/// `2026-11-22T02:00:00Z refuse unauthorized shop/web: the sentence`.
fn readable(line: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return plain(line) };
    if let Some(lost) = event.get("lost").and_then(Value::as_u64) {
        return format!("… {lost} events came faster than they were read and are lost");
    }
    let text = |field: &str| plain(event.get(field).and_then(Value::as_str).unwrap_or("-"));
    let mut out = format!(
        "{} {} {} {}: {}",
        text("time"),
        text("outcome"),
        text("reason"),
        text("pod"),
        text("sentence")
    );
    if let (Some(command), Some(pid)) = (event.get("command").and_then(Value::as_str), event.get("pid")) {
        out += &format!(" [{} {pid}]", plain(command));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_one_line_and_cannot_play_with_the_terminal() {
        let event =
            r#"{"time":"2026-11-22T02:00:00Z","outcome":"refuse","reason":"unauthorized","pod":"shop/web",
            "sentence":"no rule allows it","command":"cu\u001b[2Jrl","pid":7}"#
                .replace('\n', "");
        assert_eq!(
            readable(&event),
            "2026-11-22T02:00:00Z refuse unauthorized shop/web: no rule allows it [cu\u{fffd}[2Jrl 7]"
        );
        assert!(readable(r#"{"lost":3}"#).starts_with("… 3 events"));
        assert_eq!(readable("not json"), "not json");
    }
}
