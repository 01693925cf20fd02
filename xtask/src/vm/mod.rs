//! `cargo xtask vm`: this tree on other kernels, in QEMU.

mod boot;
mod initramfs;
mod kernel;
mod modules;

use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, ebpf, tools};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use kernel::Version;
use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// Run this tree on another kernel, in QEMU.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Smoke(Smoke),
}

/// Boot Debian kernels with this tree's agent and programs, and run the smoke or a command of your own.
///
/// Fetches each kernel's Debian package into the cache (it is not installed), puts the agent, xtask and the programs of
/// the demo into an initramfs and boots that; works without KVM. The console is kept in target/vm/.
#[derive(clap::Args)]
struct Smoke {
    /// Kernel series, as in 6.1 or 6.12; may be repeated.
    #[arg(long, value_name = "VERSION", default_value = "6.1")]
    kernel: Vec<Version>,
    /// How many seconds each machine may take from power-on to its result.
    #[arg(long, value_name = "SECONDS", default_value = "900")]
    limit: u64,
    /// Memory of the machine.
    #[arg(long, value_name = "MIB", default_value = "2048")]
    memory: u32,
    /// What to run inside instead of the smoke, by a shell.
    #[arg(last = true, value_name = "COMMAND")]
    inside: Vec<String>,
}

/// What the smoke runs inside: the demo, on a kernel that has shown its BTF.
const SMOKE: &str = include_str!("smoke.sh");

/// Runs the subcommand; the code says whether every kernel's result was good.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let Command::Smoke(smoke) = &arguments.command;
    let emulation = ["qemu-system-x86", "cpio", "busybox-static", "xz-utils", "binutils"];
    apt::install(&[&xtask::lab::packages()[..], &emulation].concat())?;
    tools::fetch(workspace)?;
    let qemu = boot::emulator()?;
    let object = ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
    ebpf::cargo_build(workspace, false, &["heddle"])?;

    let script = if smoke.inside.is_empty() { SMOKE.to_owned() } else { smoke.inside.join(" ") };
    let mut results = Vec::new();
    for version in &smoke.kernel {
        let kernel = kernel::find(workspace, version)?;
        let folder = workspace.target.join("vm").join(&kernel.release);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let contents = initramfs::Contents {
            binaries: vec![workspace.target.join("debug/heddle"), env::current_exe()?],
            object: object.clone(),
            search: tools::path(workspace)?,
            script: &script,
        };
        let image = initramfs::build(&kernel, &contents, &folder)?;
        let console = folder.join("console.log");
        eprintln!("booting {} (console: {})", kernel.release, console.display());
        let machine = boot::Machine {
            emulator: &qemu,
            kernel: &kernel.image,
            initramfs: &image.file,
            marker: &image.marker,
            memory: smoke.memory,
            limit: Duration::from_secs(smoke.limit),
            console: &console,
        };
        let end = machine.run()?;
        println!("{}: {end}", kernel.release);
        results.push((kernel.release, end));
    }
    let bad: Vec<String> =
        results.iter().filter(|(_, end)| !end.is_good()).map(|(release, _)| release.clone()).collect();
    if !bad.is_empty() {
        bail!("not good on: {}", bad.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
