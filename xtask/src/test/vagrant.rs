//! Whether Vagrant takes the Vagrantfile.

use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::Result;
use std::process::Command;

/// `vagrant validate`; where there is no Vagrant and no Debian package of it either, why it was not tried.
pub fn validate(workspace: &Workspace) -> Result<Option<String>> {
    if command::find("vagrant").is_none() {
        if !apt::present() || !apt::offers("vagrant")? {
            return Ok(Some("this machine has no vagrant, and no package of it".into()));
        }
        apt::install(&["vagrant"])?;
    }
    // Its own files, and what it keeps about the machines, are not for the user's folders.
    let folder = workspace.target.join("vagrant");
    let mut vagrant = Command::new("vagrant");
    vagrant.args(["validate", "--ignore-provider"]).current_dir(workspace.root.join("test-vms"));
    vagrant.env("VAGRANT_HOME", folder.join("home")).env("VAGRANT_DOTFILE_PATH", folder.join("machines"));
    command::run(&mut vagrant).map(|()| None)
}
