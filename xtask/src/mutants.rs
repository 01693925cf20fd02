//! `cargo xtask mutants`: whether the tests would notice if what decides access were broken.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{command, workspace::Workspace};

/// How many random clusters a first look compares; what survives it is shown all of them.
const FEW: &str = "60";
/// What cargo-mutants ends with when tests noticed nothing of a mutant, or took too long over one.
const SURVIVORS: [i32; 2] = [2, 3];

/// Break the code that decides access in one place after the other, and ask the policy's tests
///
/// Takes `cargo install cargo-mutants`, and hours: about 2,000 builds. What no test notices at a first look is asked again
/// over a million decisions; what is listed in the end survived both. docs/mutants.md explains those that may.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this file of policy/src, as `verdict.rs`; may be given more than once
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<String>,
    /// How many at a time, each with a copy of the tree of its own (about 1 GB)
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: u32,
}

/// Runs it; the code says whether any survived.
///
/// # Errors
/// When cargo-mutants is missing, or the tests fail over the code as it is.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if command::output(command::cargo().args(["mutants", "--help"])).is_err() {
        bail!("cargo-mutants is missing: `cargo install --locked cargo-mutants`");
    }
    let mut first = mutants(workspace, arguments);
    first.env("HEDDLE_CLUSTERS", FEW);
    if !survived(&mut first)? {
        return Ok(ExitCode::SUCCESS);
    }
    println!("those that survived, over all random clusters");
    let mut again = mutants(workspace, arguments);
    again.arg("--iterate");
    Ok(if survived(&mut again)? { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn mutants(workspace: &Workspace, arguments: &Arguments) -> Command {
    let mut cargo = command::cargo();
    cargo.current_dir(&workspace.root).arg("mutants").arg("--output").arg(workspace.target.join("mutants"));
    cargo.args(["--jobs", &arguments.jobs.to_string(), "--no-shuffle"]);
    let every = ["**/*.rs".to_owned()];
    let files = if arguments.files.is_empty() { &every[..] } else { &arguments.files };
    for file in files {
        cargo.args(["--file", &format!("policy/src/{file}")]);
    }
    // Each copy builds in its own folder.
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_INCREMENTAL");
    cargo
}

/// Whether some mutants survived.
fn survived(cargo: &mut Command) -> Result<bool> {
    let status = cargo.status()?;
    match status.code() {
        Some(0) => Ok(false),
        Some(code) if SURVIVORS.contains(&code) => Ok(true),
        _ => bail!("`{}` failed ({status})", command::shown(cargo)),
    }
}
