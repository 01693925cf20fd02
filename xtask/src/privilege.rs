//! Root: only what needs it runs as root, everything else as the caller.

use crate::command;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// Variables that a command run as root keeps; sudo would drop them.
const KEPT: [&str; 11] = [
    "PATH",
    "HEDDLE_BIN",
    "HEDDLE_XTASK",
    "HEDDLE_EARLIER",
    "CARGO_TARGET_DIR",
    "XDG_CACHE_HOME",
    "HOME",
    "CI",
    "TERM",
    "RUST_BACKTRACE",
    "RUST_LOG",
];

/// Whether the caller is uid 0.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command as root: as it is for root, through sudo for everybody else.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        return Ok(Command::new(program));
    }
    if command::find("sudo").is_none() {
        bail!(
            "`{}` needs root, and there is no sudo: call as root, or install sudo",
            program.to_string_lossy()
        );
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--", "env"]);
    for name in KEPT {
        if let Some(value) = env::var_os(name) {
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            sudo.arg(pair);
        }
    }
    sudo.arg(program);
    Ok(sudo)
}

/// Refuses `sudo cargo xtask …` in somebody's tree: it would leave files there that only root can change.
pub fn refuse_sudo_around_cargo(workspace: &Workspace) -> Result<()> {
    let owner = std::fs::metadata(&workspace.root)?.uid();
    if is_root() && owner != 0 && env::var_os("SUDO_UID").is_some() {
        bail!(
            "called through sudo, but {} belongs to uid {owner}: building as root leaves files there that you cannot \
             change. Call `cargo xtask …` without sudo, it asks for root where it needs it; \
             `sudo chown -R {owner} {}` mends what was built so far",
            workspace.root.display(),
            workspace.target.display()
        );
    }
    Ok(())
}

/// Gives the caller back whatever a command run as root left in the target folder.
pub fn take_back(workspace: &Workspace) -> Result<()> {
    if is_root() || !workspace.target.exists() {
        return Ok(());
    }
    let owner = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let found = command::output(
        Command::new("find").arg(&workspace.target).args(["-xdev", "-user", "root", "-print", "-quit"]),
    )?;
    if found.trim().is_empty() {
        return Ok(());
    }
    command::run(
        as_root("find")?
            .arg(&workspace.target)
            .args(["-xdev", "-user", "root", "-exec", "chown", "-h"])
            .args([owner.as_str(), "{}", "+"]),
    )
}
