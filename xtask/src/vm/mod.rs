//! `cargo xtask vm`: this tree on other kernels, in QEMU.

mod architecture;
mod boot;
mod cross;
mod demo;
mod guest;
mod initramfs;
mod kept;
mod kernel;
mod lists;
mod modules;
mod other_kernel;
mod pair;
mod promises;
mod smoke;
mod table;

pub use other_kernel::show_on_another_kernel;

use crate::workspace::Workspace;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Run this tree on another kernel, in QEMU.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Smoke(smoke::Arguments),
    Test(promises::Arguments),
    Demo(demo::Arguments),
}

/// Runs the subcommand; the code says whether every kernel's result was good.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Smoke(arguments) => smoke::run(workspace, arguments),
        Command::Test(arguments) => promises::run(workspace, arguments),
        Command::Demo(arguments) => demo::run(workspace, arguments),
    }
}
