//! `cargo xtask bench policy`: what compiling the rules and deciding by them costs.

use std::process::ExitCode;

use anyhow::Result;

use crate::command;

/// Runs the benchmark of the policy crate.
///
/// # Errors
/// When it cannot be built or fails.
pub fn run() -> Result<ExitCode> {
    let mut cargo = command::cargo();
    cargo.args(["bench", "--package", "heddle-policy", "--bench", "policy"]);
    command::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
