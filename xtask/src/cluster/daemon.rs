//! Programs that outlive the command that starts them; they end with the lab.

use super::programs::Programs;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use xtask::lab::{Place, eventually};

/// A program that was started, which a later command finds again.
#[derive(Clone, Serialize, Deserialize)]
pub struct Daemon {
    place: Place,
    log: PathBuf,
    words: Vec<String>,
}

impl Daemon {
    /// Starts a program that writes to `log`.
    pub fn start(place: &Place, programs: &Programs, log: &Path, words: &[&str]) -> Result<Self> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let daemon = Self { place: place.clone(), log: log.to_owned(), words };
        daemon.start_again(programs)?;
        Ok(daemon)
    }

    /// Starts it once more, as it was.
    pub fn start_again(&self, programs: &Programs) -> Result<()> {
        let out = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let out = out.with_context(|| format!("cannot write {}", self.log.display()))?;
        self.place
            .command(&self.words)
            .env("PATH", programs.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start {}", self.words.first().map_or("nothing", String::as_str))
            })?;
        Ok(())
    }

    /// Its process, while there is one. Known by its words, among which is a path of this cluster's.
    pub fn process(&self) -> Result<Option<Pid>> {
        for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
            let words = line.split(|byte| *byte == 0);
            if words.take(self.words.len()).eq(self.words.iter().map(String::as_bytes)) {
                return Ok(Pid::from_raw(pid));
            }
        }
        Ok(None)
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let name = || self.words.first().map_or("nothing", String::as_str);
        let process = self.process()?.with_context(|| format!("{} does not run", name()))?;
        kill_process(process, signal).with_context(|| format!("cannot signal {}", name()))
    }

    /// Kills it, and returns when it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        eventually("it to be gone", Duration::from_secs(30), || Ok(self.process()?.is_none()))
    }
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
