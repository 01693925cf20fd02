//! One kernel other than the one that runs, as a part of `cargo xtask test`: booted while the tests are built.

use super::architecture::Architecture;
use super::boot::End;
use super::guest::Guest;
use super::kernel::{self, Version};
use super::smoke::{SMOKE, Work};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The oldest that Heddle runs on; the other where that is what runs here.
const SERIES: [Version; 2] = [Version::new(6, 1), Version::new(6, 12)];
/// The demo's steps that are shown: what the wire carries, who is refused, what the kernel carries alone, rules that
/// change, and that nothing passes when the agent is killed. And all limits are stretched: emulated, beside compilers on
/// every core.
const WORDS: &str = "heddle.steps=a,b,c,d,e heddle.slowness=20";
/// From power-on to the result: two minutes of two idle cores.
const LIMIT: Duration = Duration::from_secs(900);

/// A machine at its work, or why there is none.
pub enum OtherKernel {
    /// It boots and shows.
    Underway {
        /// As `uname -r` says.
        release: String,
        /// Where it is kept what the machine prints.
        console: PathBuf,
        /// The machine.
        machine: JoinHandle<Result<End>>,
    },
    /// What is missing.
    NotApplicable(String),
}

impl OtherKernel {
    /// Installs and fetches what is missing, and boots. The agent must have been built.
    ///
    /// # Errors
    /// When the machine's file system cannot be made. What cannot be had here is not an error.
    pub fn boot(workspace: &Workspace) -> Result<Self> {
        let running = fs::read_to_string("/proc/sys/kernel/osrelease").context("no /proc")?;
        let [usual, other] = SERIES;
        let series = if usual.names(running.trim()) { other } else { usual };
        let had = Architecture::own().and_then(|architecture| {
            Guest::equip(architecture)?;
            Ok((architecture, kernel::find(workspace, &series, architecture)?))
        });
        let (architecture, kernel) = match had {
            Ok(had) => had,
            // In a line: that is what the summary has room for.
            Err(error) => return Ok(Self::NotApplicable(format!("{error:#}").replace('\n', " "))),
        };
        let guest = Guest::prepare(workspace, architecture)?;
        let work = Work { script: SMOKE.to_owned(), words: WORDS.to_owned(), memory: 2048, limit: LIMIT };
        // Another run of machines of this kernel keeps its own.
        let folder = workspace.target.join("vm/beside-tests");
        let (release, console) = (kernel.release.clone(), folder.join("console.log"));
        let machine = thread::spawn(move || work.run(&guest, &kernel, &folder, &mut |_| ()));
        Ok(Self::Underway { release, console, machine })
    }

    /// Waits for the machine's result: nothing, or why there was none to be had.
    ///
    /// # Errors
    /// When it is not good: with the end of the console.
    pub fn result(self) -> Result<Option<String>> {
        let (release, console, machine) = match self {
            Self::NotApplicable(why) => return Ok(Some(why)),
            Self::Underway { release, console, machine } => (release, console, machine),
        };
        let end = machine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if end.is_good() {
            println!("{release}: {end}");
            return Ok(None);
        }
        let text =
            fs::read(&console).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(150)..).unwrap_or_default().join("\n");
        bail!("{last}\n{release}: {end} (console: {})", console.display())
    }
}
