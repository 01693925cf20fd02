//! Every developer's command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two nodes, two agents, real applications: what the mesh promises, shown
    Demo(xtask::demo::Options),
}

fn main() -> ExitCode {
    if let Some(code) = xtask::lab::apps::entry() {
        return code;
    }
    let result = match Arguments::parse().command {
        Command::Demo(options) => xtask::demo::run(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
