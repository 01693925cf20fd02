//! `cargo xtask vm smoke`: the demo, or a command of one's own, on Debian's kernels.

use super::architecture::Architecture;
use super::guest::Guest;
use super::kernel::{self, Kernel, Version};
use super::{boot, initramfs};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
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
    /// Cargo's profile for the agent: `emulated` is optimized, which takes longer to build and less to run.
    #[arg(long, value_name = "NAME", default_value = "dev")]
    profile: String,
    /// More words for the kernel's command line, as in lockdown=confidentiality.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// What to run inside instead of the smoke, by a shell.
    #[arg(last = true, value_name = "COMMAND")]
    inside: Vec<String>,
}

/// What the smoke runs inside: the demo, on a kernel that has shown its BTF.
pub(super) const SMOKE: &str = include_str!("smoke.sh");

/// What a machine does from power-on to its result.
pub(super) struct Work {
    /// For a shell.
    pub script: String,
    /// More for the kernel's command line, where the script may read them.
    pub words: String,
    /// Memory, in MiB.
    pub memory: u32,
    /// What it may take.
    pub limit: Duration,
}

impl Work {
    /// Boots a machine of this kernel that does it. Its console is kept in `folder`, and each line given to `each`.
    pub fn run(
        &self,
        guest: &Guest,
        kernel: &Kernel,
        folder: &Path,
        each: &mut dyn FnMut(&str),
    ) -> Result<boot::End> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let image = initramfs::build(kernel, &guest.contents(&self.script), folder)?;
        let console = folder.join("console.log");
        eprintln!("booting {} (console: {})", kernel.release, console.display());
        let machine = boot::Machine {
            boot: boot::Boot {
                emulator: &guest.emulator,
                kernel: &kernel.image,
                initramfs: &image.file,
                memory: self.memory,
            },
            words: &self.words,
            marker: &image.marker,
            limit: self.limit,
            console: &console,
        };
        machine.run(each)
    }
}

/// Boots one kernel after the other.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let architecture = arguments.arch.map_or_else(Architecture::own, Ok)?;
    let guest = Guest::prepare(workspace, architecture, &arguments.profile)?;
    let work = Work {
        script: if arguments.inside.is_empty() { SMOKE.to_owned() } else { arguments.inside.join(" ") },
        words: arguments.append.clone(),
        memory: arguments.memory,
        limit: Duration::from_secs(arguments.limit),
    };
    let mut bad = Vec::new();
    for version in &arguments.kernel {
        let kernel = kernel::find(workspace, version, architecture)?;
        let folder = workspace.target.join("vm").join(&kernel.release);
        let end = work.run(&guest, &kernel, &folder, &mut |line| println!("    {line}"))?;
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
