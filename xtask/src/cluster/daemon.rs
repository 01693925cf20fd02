//! Programs that outlive the command that starts them; they end with the lab.

use super::programs::Programs;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use xtask::lab::{Place, eventually};

/// Starts a program that writes to `log`, and gives its process id.
pub fn daemon(place: &Place, programs: &Programs, log: &Path, program: &[&str]) -> Result<u32> {
    let out = fs::OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let child = place
        .command(program)
        .env("PATH", programs.path())
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.first().unwrap_or(&"nothing")))?;
    // `nsenter` and `sh` become the program.
    Ok(child.id())
}

/// Waits for a part of the cluster; where it does not come, says where the logs are.
pub fn until_ready(
    what: &str,
    limit: Duration,
    logs: &Path,
    condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    eventually(&format!("{what} to be ready"), limit, condition)
        .with_context(|| format!("its log is in {}", logs.display()))
}
