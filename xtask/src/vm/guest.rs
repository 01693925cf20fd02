//! What every virtual machine of this tree needs before one can be made.

use super::{boot, initramfs};
use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, ebpf, tools};
use anyhow::Result;
use std::env;
use std::path::PathBuf;

const PACKAGES: &[&str] = &["qemu-system-x86", "cpio", "busybox-static", "xz-utils", "binutils"];

/// The emulator, and this tree's own part of each machine's file system.
pub struct Guest {
    /// QEMU.
    pub emulator: PathBuf,
    object: PathBuf,
    agent: PathBuf,
    xtask: PathBuf,
    search: std::ffi::OsString,
}

impl Guest {
    /// Installs what is missing, and builds the agent and the kernel programs.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        apt::install(&[xtask::lab::packages().as_slice(), PACKAGES].concat())?;
        tools::fetch(workspace)?;
        let emulator = boot::emulator()?;
        let object = ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
        ebpf::cargo_build(workspace, false, &["heddle"])?;
        Ok(Self {
            emulator,
            object,
            agent: workspace.target.join("debug/heddle"),
            xtask: env::current_exe()?,
            search: tools::path(workspace)?,
        })
    }

    /// The file system of a machine whose work is `script`.
    pub fn contents<'a>(&self, script: &'a str) -> initramfs::Contents<'a> {
        initramfs::Contents {
            binaries: vec![self.agent.clone(), self.xtask.clone()],
            others: Vec::new(),
            files: Vec::new(),
            // Tests know the agent by the path at which it was built.
            links: vec![(self.agent.clone(), PathBuf::from("/usr/local/bin/heddle"))],
            object: self.object.clone(),
            search: self.search.clone(),
            script,
        }
    }
}
