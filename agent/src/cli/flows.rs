//! `heddle flows`: who reaches whom, as it happens.

use super::{
    Failure,
    client::{Client, run},
    render::print,
};
use crate::observe::flows::{
    FlowFile,
    record::{FlowLine, LeftOut, VERSION},
};
use http_body_util::BodyExt;
use miette::miette;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A line that is longer is no record.
const LINE: usize = 1 << 20;

pub(super) const ABOUT: &str = "Follows the flows of this node's pods: each second, one JSON object a line for connections that are alike, with who reached \
whom, how often, by which rule, and whether `audit` alone let it pass. Nothing is left out in silence: what did not fit is counted in a \
line of its own. The form is in docs/policy.md; `heddle policy diff`, `suggest` and this command's file speak it.

  heddle flows
  heddle flows --output flows.jsonl        # until it is interrupted
  heddle policy suggest --observed flows.jsonl ./manifests";

/// Follows the flows until it is interrupted.
pub(super) fn follow(socket: &Path, output: Option<&PathBuf>, megabytes: u64) -> Result<ExitCode, Failure> {
    let mut file = match output {
        None => None,
        Some(path) => Some(FlowFile::open(path, megabytes << 20).map_err(|error| {
            miette!(help = "name a file in a folder that you can write to", "{}: {error}", path.display())
        })?),
    };
    run(async {
        let mut body = Client::new(socket).follow("/v1/flows").await?;
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ended(&error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim();
                if line.is_empty() {
                    continue;
                }
                match &mut file {
                    None => print(line)?,
                    Some(file) => write(file, line)?,
                }
            }
            if pending.len() > LINE {
                return Err(ended("a line has no end"));
            }
        }
        Err(ended("it ended the stream"))
    })
}

fn write(file: &mut FlowFile, line: &str) -> Result<(), Failure> {
    let line = FlowLine::parse(line).map_err(|error| {
        miette!(help = "are agent and command of one version?", "the agent's line {error}")
    })?;
    let missing = |left_out, why: &str| LeftOut {
        version: VERSION,
        node: String::new(),
        time: time::OffsetDateTime::now_utc(),
        left_out,
        why: why.into(),
    };
    file.write(&[line], missing).map_err(|error| miette!("the flows cannot be written: {error}"))
}

fn ended(why: &str) -> Failure {
    miette!(help = "`heddle status` says whether it still runs", "the agent tells no more flows: {why}")
}
