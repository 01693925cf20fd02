//! `cargo xtask bench policy|identity`: what a crate's own work costs, without a lab and as any user.

use std::process::ExitCode;

use anyhow::Result;

use crate::command;

/// Runs the benchmark of this name in its crate.
///
/// # Errors
/// When it cannot be built or fails.
pub fn run(name: &str) -> Result<ExitCode> {
    let mut cargo = command::cargo();
    cargo.args(["bench", "--package", &format!("heddle-{name}"), "--bench", name]);
    command::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
