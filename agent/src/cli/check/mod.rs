//! `heddle check`: whether this host can run an agent, whether a cluster's mesh is as it should be, and what no mesh can
//! hold.

mod cluster;
mod host;
mod limits;
mod mounts;
mod privilege;
mod trials;

use super::{Failure, render::print};
use limits::NOT_HELD;
use serde::Serialize;
use std::{fmt, path::Path, process::ExitCode};

/// What a look at one thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it; empty: nothing.
    remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As it should be.
    Ok,
    /// An agent runs, with less.
    Warning,
    /// An agent does not run.
    Missing,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "MISSING",
        })
    }
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Missing, found: found.into(), remedy: remedy.into() }
    }
}

/// Ends with 1 where an agent would not run.
pub(super) fn run(bpffs: &Path, json: bool) -> Result<ExitCode, Failure> {
    let mut findings = vec![
        host::kernel(),
        host::btf(),
        host::lockdown(),
        host::jit(),
        mounts::cgroup(),
        mounts::bpffs(bpffs),
        privilege::capabilities(),
        privilege::namespaces(),
        host::other_programs(),
    ];
    findings.extend(trials::features());
    if sound(&findings) {
        findings.extend(trials::rehearsal(bpffs));
    }
    let sound = sound(&findings);
    if json {
        let all = serde_json::json!({"canRun": sound, "findings": findings, "notHeld": NOT_HELD});
        print(&all.to_string())?;
    } else {
        show(&findings)?;
        print(if sound { "\nAn agent can run here." } else { "\nAn agent cannot run here yet." })?;
        print("\nWhat is not held, on any host:")?;
        for limit in NOT_HELD {
            print(&format!("- {limit}"))?;
        }
    }
    Ok(ExitCode::from(u8::from(!sound)))
}

/// `heddle check cluster`.
pub(super) fn of_cluster(kubeconfig: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    cluster::run(kubeconfig, json)
}

fn show(findings: &[Finding]) -> Result<(), Failure> {
    for finding in findings {
        print(&format!("{:<8} {:<16} {}", finding.outcome, finding.name, finding.found))?;
        if !finding.remedy.is_empty() {
            print(&format!("{:<25} do: {}", "", finding.remedy))?;
        }
    }
    Ok(())
}

fn sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.outcome != Outcome::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_say_what_the_header_does_not_do_and_who_owns_the_node() {
        for said in
            ["l5d-client-id", "privileged", "CAP_NET_RAW", "forged DNS answer", "SNI", "host's network"]
        {
            assert!(NOT_HELD.iter().any(|limit| limit.contains(said)), "{said}");
        }
    }

    #[test]
    fn the_check_runs_anywhere() {
        run(Path::new("/sys/fs/bpf"), true).unwrap();
        run(Path::new("/nowhere"), false).unwrap();
    }
}
