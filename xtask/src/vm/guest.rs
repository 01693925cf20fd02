//! What every virtual machine of this tree needs before one can be made.

use super::architecture::{Architecture, Emulator};
use super::initramfs::Programs;
use super::{cross, initramfs};
use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, ebpf, tools};
use anyhow::Result;
use std::path::PathBuf;

const PACKAGES: &[&str] = &["cpio", "busybox-static", "xz-utils", "binutils"];

/// The emulator, and this tree's own part of each machine's file system.
pub struct Guest {
    /// QEMU.
    pub emulator: Emulator,
    object: PathBuf,
    agent: PathBuf,
    xtask: PathBuf,
    programs: Programs,
}

impl Guest {
    /// Installs the emulator and what a machine's file system is made with, where they are missing.
    pub fn equip(architecture: Architecture) -> Result<Emulator> {
        let emulators = [architecture.package()];
        apt::install(&[xtask::lab::packages().as_slice(), PACKAGES, &emulators].concat())?;
        Emulator::find(architecture)
    }

    /// Installs what is missing, and builds the agent and the kernel programs, the agent with one of cargo's profiles.
    pub fn prepare(workspace: &Workspace, architecture: Architecture, profile: &str) -> Result<Self> {
        let emulator = Self::equip(architecture)?;
        let object = ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
        if architecture != Architecture::own()? {
            let cross::Crossed { agent, xtask, programs } = cross::build(workspace, architecture, profile)?;
            return Ok(Self { emulator, object, agent, xtask, programs: Programs::Whole(programs) });
        }
        tools::fetch(workspace)?;
        ebpf::cargo_build(workspace, profile, &["heddle", "xtask"])?;
        Ok(Self {
            emulator,
            object,
            agent: workspace.built(profile).join("heddle"),
            // Not the running program: that file may have been replaced since it was started.
            xtask: workspace.built(profile).join("xtask"),
            programs: Programs::Found(tools::path(workspace)?),
        })
    }

    /// The file system of a machine whose work is `script`.
    pub fn contents<'a>(&'a self, script: &'a str) -> initramfs::Contents<'a> {
        initramfs::Contents {
            binaries: vec![self.agent.clone(), self.xtask.clone()],
            others: Vec::new(),
            files: Vec::new(),
            // Tests know the agent by the path at which it was built.
            links: vec![(self.agent.clone(), PathBuf::from("/usr/local/bin/heddle"))],
            object: self.object.clone(),
            programs: &self.programs,
            gnu: self.emulator.architecture.gnu(),
            script,
        }
    }
}
