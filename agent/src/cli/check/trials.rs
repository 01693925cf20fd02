//! What the kernel offers, by trying it.

use super::Finding;
use crate::{capture::trial, cli::mountinfo::cgroup2};
use std::path::Path;

/// What to do about anything that a kernel lacks.
const NEWER: &str = "boot a kernel of 6.1 or newer that has it (Debian 12's has), as root";

/// One line for all that is there, and one for each thing that is not.
pub(super) fn features() -> Vec<Finding> {
    let trials = trial::features();
    let lacking: Vec<Finding> = trials.iter().filter_map(|trial| missing("feature", trial, NEWER)).collect();
    if lacking.is_empty() {
        let found = format!(
            "{} program types, helpers, map types and the wait for programs, each tried",
            trials.len()
        );
        return vec![Finding::ok("features", found)];
    }
    lacking
}

/// Loads and attaches for trial. Only where every feature is there: else the errors would be the verifier's.
pub(super) fn rehearsal(bpffs: &Path) -> Vec<Finding> {
    let Ok(Some(cgroup)) = cgroup2() else {
        return Vec::new();
    };
    let remedy = "see what is said above; else tell Heddle's developers, with this text and `uname -r`";
    trial::rehearsal(bpffs, &cgroup)
        .iter()
        .map(|trial| {
            missing("rehearsal", trial, remedy)
                .unwrap_or_else(|| Finding::ok("rehearsal", format!("{} ({})", trial.what, trial.purpose)))
        })
        .collect()
}

fn missing(name: &'static str, trial: &trial::Trial, remedy: &str) -> Option<Finding> {
    let why = trial.lacking.as_ref()?;
    Some(Finding::missing(name, format!("{}, for {}: {why}", trial.what, trial.purpose), remedy))
}
