//! `cargo xtask`: every developer's command.
#![forbid(unsafe_code)]

mod apt;
mod btf;
mod circles;
mod command;
mod ebpf;
mod preflight;
mod privilege;
mod test;
mod toolchain;
mod tools;
mod vm;
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
    /// Two nodes, two agents, real applications: what the mesh promises, shown.
    Demo(xtask::demo::Options),
    /// What the mesh costs, beside a bare connection.
    Bench(xtask::bench::Options),
    Test(test::Arguments),
    Ebpf(ebpf::Arguments),
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = xtask::lab::apps::entry() {
        return code;
    }
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
    match &command {
        Command::Demo(options) => return xtask::demo::run(options),
        Command::Bench(options) => return xtask::bench::run(options),
        _ => {}
    }
    let workspace = workspace::Workspace::find()?;
    match command {
        Command::Demo(_) | Command::Bench(_) => Ok(ExitCode::SUCCESS),
        Command::Test(arguments) => test::run(&workspace, &arguments),
        Command::Vm(arguments) => vm::run(&workspace, &arguments),
        Command::Ebpf(arguments) => ebpf::run(&workspace, &arguments).map(|_| ExitCode::SUCCESS),
    }
}
