//! Programs that the lab runs but that must not be installed: Debian's nginx package starts a server on the machine.

use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::{Result, bail};
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// PATH with the sbin folders, which not everybody has in it, and the unpacked programs at its end.
pub fn path(workspace: &Workspace) -> Result<OsString> {
    let own = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&own).chain(administrators).chain([folder(workspace).join("usr/sbin")]);
    Ok(env::join_paths(folders)?)
}

/// Fetches what is neither installed nor unpacked yet.
pub fn fetch(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace);
    if command::find("nginx").is_some() || folder.join("usr/sbin/nginx").is_file() {
        return Ok(());
    }
    if !apt::present() {
        bail!("nginx is missing and this machine has no apt: install it by your system's means");
    }
    apt::update_if_empty()?;
    eprintln!(
        "fetching nginx into {} (not installed, so that no server starts on this machine)",
        folder.display()
    );
    apt::unpack(&["nginx".to_owned()], &folder, &[])
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("programs")
}
