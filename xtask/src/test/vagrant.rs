//! Whether Vagrant takes the Vagrantfile.

use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::Result;
use std::process::Command;

/// `vagrant validate`; where there is no Vagrant and no Debian package of it either, that is said instead.
pub fn validate(workspace: &Workspace) -> Result<()> {
    if command::find("vagrant").is_none() {
        if !apt::present() || !apt::offers("vagrant")? {
            println!("not applicable: this machine has no vagrant, and no package of it");
            return Ok(());
        }
        apt::install(&["vagrant"])?;
    }
    // Its own files, and what it keeps about the machines, are not for the user's folders.
    let folder = workspace.target.join("vagrant");
    let mut vagrant = Command::new("vagrant");
    vagrant.args(["validate", "--ignore-provider"]).current_dir(workspace.root.join("test-vms"));
    vagrant.env("VAGRANT_HOME", folder.join("home")).env("VAGRANT_DOTFILE_PATH", folder.join("machines"));
    command::run(&mut vagrant)
}
