//! One kernel other than the one that runs, as a part of `cargo xtask test`: from boot to promises.

use super::architecture::Architecture;
use super::guest::Guest;
use super::kernel::{self, Version};
use super::smoke::{SMOKE, Work};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::time::Duration;

/// The oldest that Heddle runs on; the other where that is what runs here.
const SERIES: [Version; 2] = [Version::new(6, 1), Version::new(6, 12)];
/// The demo's steps that are shown: what the wire carries, who is refused, what the kernel carries alone, rules that
/// change, and that nothing passes when the agent is killed. All limits of the demo are stretched.
const WORDS: &str = "heddle.steps=a,b,c,d,e heddle.slowness=20";
/// From power-on to the result: two minutes of two idle cores.
const LIMIT: Duration = Duration::from_secs(420);
/// How often it is tried: the agent's own limits are not stretched, and a machine that is busy otherwise misses them.
const TRIES: u32 = 2;

/// Installs and fetches what is missing, boots, and waits for the result: nothing, or why none can be had here. By itself:
/// beside compilers on every core an emulated handshake misses the agent's limits.
///
/// # Errors
/// When the result is not good: with the end of the console.
pub fn show_on_another_kernel(workspace: &Workspace) -> Result<Option<String>> {
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
        Err(error) => return Ok(Some(format!("{error:#}").replace('\n', " "))),
    };
    let guest = Guest::prepare(workspace, architecture, "dev")?;
    let work = Work { script: SMOKE.to_owned(), words: WORDS.to_owned(), memory: 2048, limit: LIMIT };
    // Another run of machines of this kernel keeps its own.
    let folder = workspace.target.join("vm/beside-tests");
    let console = folder.join("console.log");
    let mut end = work.run(&guest, &kernel, &folder, &mut |_| ())?;
    for again in 1..TRIES {
        if end.is_good() {
            break;
        }
        let kept = folder.join(format!("console.{again}.log"));
        fs::rename(&console, &kept).with_context(|| format!("cannot keep {}", console.display()))?;
        println!("{}: {end} (console: {}); once more", kernel.release, kept.display());
        end = work.run(&guest, &kernel, &folder, &mut |_| ())?;
    }
    if end.is_good() {
        println!("{}: {end}", kernel.release);
        return Ok(None);
    }
    let text = fs::read(&console).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(150)..).unwrap_or_default().join("\n");
    bail!("{last}\n{}: {end} (console: {})", kernel.release, console.display())
}
