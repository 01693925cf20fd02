//! `cargo xtask ebpf`: the kernel programs, from source to the object that the agent embeds.

use crate::toolchain::{self, Choice, Compiler};
use crate::workspace::Workspace;
use crate::{btf, command};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;

/// Build the kernel programs into target/bpf/heddle.o, which the agent embeds.
///
/// They are always optimized: the kernel's verifier takes no other. Nothing is done when nothing has changed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which compiler builds for the BPF target.
    #[arg(long, value_enum, default_value = "auto")]
    pub compiler: Choice,
}

/// Builds the object and returns its path.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<PathBuf> {
    let manifest = workspace.root.join("ebpf/programs/Cargo.toml");
    if !manifest.is_file() {
        bail!("{} is missing: the kernel programs belong there", manifest.display());
    }
    let compiler = Compiler::find(workspace, arguments.compiler)?;
    let linker = toolchain::linker(workspace, &compiler)?;
    eprintln!("kernel programs: {}", compiler.describe());
    let folder = workspace.target.join("bpf/build");
    command::run(
        compiler
            .cargo("build", &linker)
            .args(["--release", "--bin", "heddle", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&folder),
    )
    .with_context(|| format!("the kernel programs do not build with {}", compiler.describe()))?;

    let built = folder.join(toolchain::TARGET).join("release/heddle");
    let mut object = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    btf::mark_text(&mut object).with_context(|| format!("{} has no usable BTF", built.display()))?;
    let out = workspace.kernel_programs();
    // Left alone when it is the same, so that the agent is not built again for nothing.
    if fs::read(&out).ok().as_deref() != Some(object.as_slice()) {
        fs::write(&out, &object).with_context(|| format!("cannot write {}", out.display()))?;
    }
    eprintln!("kernel programs: {} ({} KiB)", out.display(), object.len() / 1024);
    Ok(out)
}

/// Build the kernel programs, then the agent that embeds them.
#[derive(clap::Args)]
pub struct Build {
    /// Optimized, as it is shipped.
    #[arg(long)]
    release: bool,
}

/// Builds both.
pub fn build(workspace: &Workspace, arguments: &Build) -> Result<()> {
    run(workspace, &Arguments { compiler: Choice::Auto })?;
    cargo_build(workspace, if arguments.release { "release" } else { "dev" }, &["heddle"])
}

/// Builds packages of the workspace; the agent's build needs the kernel programs to be there.
pub fn cargo_build(workspace: &Workspace, profile: &str, packages: &[&str]) -> Result<()> {
    let mut build = workspace.cargo();
    build.args(["build", "--profile", profile]);
    command::run(build.args(packages.iter().flat_map(|package| ["--package", package])))
}
