//! This tree for another processor: the agent and xtask as static binaries, and Debian's programs beside them.

use super::architecture::Architecture;
use super::lists;
use crate::toolchain::{Choice, Compiler};
use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;

/// What the lab and its agents call; busybox has the rest.
const PROGRAMS: [&str; 19] = [
    "bpftool",
    "busybox-static",
    "coreutils",
    "curl",
    "dash",
    "findutils",
    "grep",
    "iproute2",
    "iputils-ping",
    "mount",
    "ncat",
    "nftables",
    "nginx",
    "openssl",
    "procps",
    "sed",
    "socat",
    "tcpdump",
    "util-linux",
];

/// The tree's part of a machine of another architecture.
pub struct Crossed {
    /// The agent.
    pub agent: PathBuf,
    /// This program.
    pub xtask: PathBuf,
    /// Debian's programs with all that they need, as a file system.
    pub programs: PathBuf,
}

/// Fetches what is missing, and builds.
pub fn build(workspace: &Workspace, architecture: Architecture, profile: &str) -> Result<Crossed> {
    let Compiler::Debian(compiler) = Compiler::find(workspace, Choice::Auto)? else {
        bail!(
            "only Debian's compiler is known to build for {}: this machine has another",
            architecture.debian()
        );
    };
    let (name, gnu) = (architecture.debian(), architecture.gnu());
    apt::install(&[&format!("gcc-{}", gnu.replace('_', "-")), &format!("libc6-dev-{name}-cross")])?;
    let options = lists::of_machine(workspace, architecture)?;
    // The standard library of the same version as the compiler, which is of the same archive.
    let sysroot = workspace.cache.join(format!("debian-rust-{name}"));
    if !sysroot.is_dir() {
        eprintln!("fetching Rust's standard library for {name} into {} (not installed)", sysroot.display());
        apt::unpack(&["libstd-rust-web-dev".to_owned()], &sysroot, &options)?;
    }
    let programs = workspace.cache.join(format!("programs-{name}"));
    // Others than these may have been wanted when it was fetched.
    let (wanted, list) = (PROGRAMS.join("\n"), programs.with_extension("list"));
    if !programs.is_dir() || fs::read_to_string(&list).ok().as_ref() != Some(&wanted) {
        if programs.is_dir() {
            fs::remove_dir_all(&programs).with_context(|| format!("cannot clear {}", programs.display()))?;
        }
        eprintln!("fetching Debian's programs for {name} into {} (not installed)", programs.display());
        apt::unpack_with_needed(&PROGRAMS, &programs, &options)?;
        fs::write(&list, wanted).with_context(|| format!("cannot write {}", list.display()))?;
    }

    let target = workspace.target.join(name);
    let triple = architecture.triple();
    let variable = triple.replace('-', "_");
    let mut build = workspace.cargo();
    for inherited in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
        build.env_remove(inherited);
    }
    build
        .args([
            "build",
            "--package",
            "heddle",
            "--package",
            "xtask",
            "--profile",
            profile,
            "--target",
            triple,
            "--target-dir",
        ])
        .arg(&target)
        .env("RUSTC", compiler.join("usr/bin/rustc"))
        .env("LD_LIBRARY_PATH", crate::toolchain::libraries(&compiler))
        .env("HEDDLE_BPF", workspace.kernel_programs())
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), format!("{gnu}-gcc"))
        .env(
            format!("CARGO_TARGET_{}_RUSTFLAGS", variable.to_uppercase()),
            format!("-C target-feature=+crt-static --sysroot {}", sysroot.join("usr").display()),
        )
        .env(format!("CC_{variable}"), format!("{gnu}-gcc"))
        .env(format!("AR_{variable}"), format!("{gnu}-ar"));
    command::run(&mut build)?;
    let built = target.join(triple).join(if profile == "dev" { "debug" } else { profile });
    Ok(Crossed { agent: built.join("heddle"), xtask: built.join("xtask"), programs })
}
