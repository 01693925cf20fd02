//! `cargo xtask`: every developer's command.
#![forbid(unsafe_code)]

mod apt;
mod btf;
mod command;
mod ebpf;
mod toolchain;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Every command of Heddle's developers. Start with `cargo xtask demo`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ebpf(ebpf::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let workspace = workspace::Workspace::find()?;
    match command {
        Command::Ebpf(arguments) => ebpf::run(&workspace, &arguments).map(|_| ExitCode::SUCCESS),
    }
}
