//! `cargo xtask demo`, `bench` and `node`: looks, says, installs and builds as the caller, then becomes the same command as root.

use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, command, ebpf, preflight, privilege, tools};
use anyhow::{Context, Result, anyhow};
use std::env;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

/// A command that runs on the lab.
pub trait OnTheLab {
    /// Whether it is measured, and so built with optimization.
    const MEASURED: bool;

    /// Whether it only cleans up, for which nothing needs to be built.
    fn only_removes(&self) -> bool;

    /// The file that it writes for the caller.
    fn report(&self) -> Option<&Path>;

    /// Runs it, as root.
    fn run(&self) -> Result<ExitCode>;
}

impl OnTheLab for xtask::demo::Options {
    const MEASURED: bool = false;

    fn only_removes(&self) -> bool {
        self.remove
    }

    fn report(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    fn run(&self) -> Result<ExitCode> {
        xtask::demo::run(self)
    }
}

impl OnTheLab for xtask::bench::Options {
    const MEASURED: bool = true;

    fn only_removes(&self) -> bool {
        false
    }

    fn report(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    fn run(&self) -> Result<ExitCode> {
        xtask::bench::run(self)
    }
}

impl OnTheLab for xtask::machines::node::Options {
    const MEASURED: bool = false;

    fn only_removes(&self) -> bool {
        self.remove
    }

    fn report(&self) -> Option<&Path> {
        None
    }

    fn run(&self) -> Result<ExitCode> {
        xtask::machines::node::run(self)
    }
}

/// The command's own options, and whether everything is prepared.
#[derive(clap::Args)]
pub struct Arguments<O: clap::Args> {
    #[command(flatten)]
    options: O,
    /// Everything is installed and built, and this is root.
    #[arg(long, hide = true)]
    inner: bool,
}

/// Prepares and becomes the inner command, or is it.
pub fn run<O: clap::Args + OnTheLab>(arguments: &Arguments<O>) -> Result<ExitCode> {
    if arguments.inner {
        let code = arguments.options.run();
        if let Some(file) = arguments.options.report() {
            hand_over(file)?;
        }
        return code;
    }
    let workspace = &Workspace::find()?;
    privilege::refuse_sudo_around_cargo(workspace)?;
    let own = env::current_exe().context("cannot tell where this program is")?;
    let program = if arguments.options.only_removes() {
        own
    } else {
        prepare(workspace, O::MEASURED)?;
        if O::MEASURED { workspace.target.join("release/xtask") } else { own }
    };
    let mut inner = privilege::as_root("env")?;
    let mut path = std::ffi::OsString::from("PATH=");
    path.push(tools::path(workspace)?);
    inner.arg(path).arg(program).args(env::args_os().skip(1)).arg("--inner");
    // Replaced, so that Ctrl-C reaches the lab alone, which then cleans up.
    let error = inner.exec();
    Err(anyhow!(error).context(format!("cannot run `{}`", command::shown(&inner))))
}

fn prepare(workspace: &Workspace, measured: bool) -> Result<()> {
    preflight::run(workspace)?;
    announce(workspace);
    progress(1, "Debian packages");
    apt::install(&xtask::lab::packages())?;
    tools::fetch(workspace)?;
    progress(2, "kernel programs");
    ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
    progress(3, "the agent");
    ebpf::cargo_build(
        workspace,
        if measured { "release" } else { "dev" },
        if measured { &["heddle", "xtask"] } else { &["heddle"] },
    )?;
    progress(4, "the lab, as root");
    Ok(())
}

fn announce(workspace: &Workspace) {
    println!("\nWhat comes now");
    println!(
        "  1. missing Debian packages are installed with apt (those named above, and what building needs)"
    );
    println!(
        "  2. into {}: Debian's BPF compiler, bpf-linker and nginx, unpacked and never installed",
        workspace.cache.display()
    );
    println!("  3. into {}: the kernel programs and the agent", workspace.target.display());
    println!("  4. two nodes out of network namespaces, taken down at the end");
    if workspace.is_first_run() {
        println!(
            "A first run fetches about 350 MB, takes some ten minutes of a core's time and 4 GB of disk; later ones take \
             seconds."
        );
    }
    println!();
}

fn progress(step: u32, what: &str) {
    println!("[{step}/4] {what}");
}

/// Gives a report that root wrote to the user who asked for it.
fn hand_over(file: &Path) -> Result<()> {
    let id = |name: &str| env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(user), Some(group), true) = (id("SUDO_UID"), id("SUDO_GID"), file.is_file()) {
        chown(file, Some(user), Some(group))
            .with_context(|| format!("cannot give {} to its owner", file.display()))?;
    }
    Ok(())
}
