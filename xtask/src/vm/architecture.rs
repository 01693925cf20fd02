//! The processors that machines are made with, and what differs between them outside of the machine.

use crate::command;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::PathBuf;

/// A processor architecture, by Debian's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Architecture {
    /// x86_64
    Amd64,
    /// aarch64
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub fn own() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("virtual machines are made for x86_64 and aarch64, this is {other}"),
        }
    }

    /// As Debian calls it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As GNU's programs for it are called.
    pub fn gnu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// The target for which Rust compiles.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The Debian package of its emulator.
    pub fn package(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86",
            Self::Arm64 => "qemu-system-arm",
        }
    }

    /// The board and the processor that are emulated: what costs an emulator most is left out. arm64's `max` authenticates
    /// each pointer; with AVX amd64's takes ten times as long for AES, and a fifth level of page tables is never needed.
    pub(super) fn board(self) -> [&'static str; 4] {
        match self {
            Self::Amd64 => ["-machine", "q35", "-cpu", "max,-avx,-avx2,-la57"],
            Self::Arm64 => ["-machine", "virt", "-cpu", "cortex-a72"],
        }
    }

    /// The console that a serial line is.
    pub(super) fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }
}

/// QEMU for an architecture.
pub struct Emulator {
    /// Whose machines it is.
    pub architecture: Architecture,
    /// Where it is.
    pub program: PathBuf,
}

impl Emulator {
    /// Finds it.
    pub fn find(architecture: Architecture) -> Result<Self> {
        let name = match architecture {
            Architecture::Amd64 => "qemu-system-x86_64",
            Architecture::Arm64 => "qemu-system-aarch64",
        };
        let program = command::find(name).with_context(|| {
            format!("`{name}` is not in PATH: install Debian's {}", architecture.package())
        })?;
        Ok(Self { architecture, program })
    }

    /// What may run its machines: KVM only where their processor is this machine's own.
    pub fn may_use_kvm(&self) -> bool {
        Architecture::own().is_ok_and(|own| own == self.architecture) && kvm_offered()
    }
}

/// Whether this machine has KVM. Some have the device without the processor's feature, and machines hang there.
pub fn kvm_offered() -> bool {
    fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
        && fs::read_to_string("/proc/cpuinfo")
            .is_ok_and(|text| text.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}
