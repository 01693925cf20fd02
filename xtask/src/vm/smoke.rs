//! `cargo xtask vm smoke`: the demo, or a command of one's own, on Debian's kernels.

use super::architecture::Architecture;
use super::guest::Guest;
use super::kernel::{self, Version};
use super::{boot, initramfs};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// Boot Debian kernels with this tree's agent and programs, and run the smoke or a command of your own.
///
/// Fetches each kernel's Debian package into the cache (it is not installed), puts the agent, xtask and the programs of
/// the demo into an initramfs and boots that; works without KVM. The console is kept in target/vm/.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernel series, as in 6.1 or 6.12; may be repeated.
    #[arg(long, value_name = "VERSION", default_value = "6.1")]
    kernel: Vec<Version>,
    /// The machines' processor; without it this machine's own. Another one's agent is cross-compiled, by Debian's compilers.
    #[arg(long, value_name = "ARCHITECTURE")]
    arch: Option<Architecture>,
    /// How many seconds each machine may take from power-on to its result.
    #[arg(long, value_name = "SECONDS", default_value = "900")]
    limit: u64,
    /// Memory of the machine.
    #[arg(long, value_name = "MIB", default_value = "2048")]
    memory: u32,
    /// More words for the kernel's command line, as in lockdown=confidentiality.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// What to run inside instead of the smoke, by a shell.
    #[arg(last = true, value_name = "COMMAND")]
    inside: Vec<String>,
}

/// What the smoke runs inside: the demo, on a kernel that has shown its BTF.
const SMOKE: &str = include_str!("smoke.sh");

/// Boots one kernel after the other.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let architecture = arguments.arch.map_or_else(Architecture::own, Ok)?;
    let guest = Guest::prepare(workspace, architecture)?;
    let script = if arguments.inside.is_empty() { SMOKE.to_owned() } else { arguments.inside.join(" ") };
    let mut bad = Vec::new();
    for version in &arguments.kernel {
        let kernel = kernel::find(workspace, version, architecture)?;
        let folder = workspace.target.join("vm").join(&kernel.release);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let image = initramfs::build(&kernel, &guest.contents(&script), &folder)?;
        let console = folder.join("console.log");
        eprintln!("booting {} (console: {})", kernel.release, console.display());
        let machine = boot::Machine {
            boot: boot::Boot {
                emulator: &guest.emulator,
                kernel: &kernel.image,
                initramfs: &image.file,
                memory: arguments.memory,
            },
            words: &arguments.append,
            marker: &image.marker,
            limit: Duration::from_secs(arguments.limit),
            console: &console,
        };
        let end = machine.run(&mut |line| println!("    {line}"))?;
        println!("{}: {end}", kernel.release);
        if !end.is_good() {
            bad.push(kernel.release);
        }
    }
    if !bad.is_empty() {
        bail!("not good on: {}", bad.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
