//! Where things are: the source tree, what cargo builds, and the project's cache.

use crate::command;
use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folders that every command works with.
pub struct Workspace {
    /// The source tree.
    pub root: PathBuf,
    /// Where cargo puts what it builds (`CARGO_TARGET_DIR`, else `target`).
    pub target: PathBuf,
    /// What is fetched once and outlives `cargo clean`: compilers, kernels.
    pub cache: PathBuf,
}

impl Workspace {
    /// Finds the folders from cargo's own variables. Fails where there is no home for the cache.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = manifest.parent().context("the xtask crate has no parent folder")?.to_owned();
        if !root.join("Cargo.toml").is_file() {
            bail!("{} is not the source tree: call `cargo xtask` from inside it", root.display());
        }
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => env::current_dir()?.join(folder),
            None => root.join("target"),
        };
        let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(folder), _) if Path::new(&folder).is_absolute() => PathBuf::from(folder),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            _ => {
                bail!("neither HOME nor XDG_CACHE_HOME is set: set one, compilers and kernels are kept there")
            }
        };
        Ok(Self { root, target, cache: cache.join("heddle") })
    }

    /// The cargo that called us, in the source tree.
    pub fn cargo(&self) -> Command {
        let mut cargo = command::cargo();
        cargo.current_dir(&self.root);
        cargo
    }

    /// The folder of what cargo builds with this profile.
    pub fn built(&self, profile: &str) -> PathBuf {
        self.target.join(if profile == "dev" { "debug" } else { profile })
    }

    /// Whether nothing was built here yet.
    pub fn is_first_run(&self) -> bool {
        !self.kernel_programs().is_file()
    }

    /// The built kernel programs, which the agent embeds.
    pub fn kernel_programs(&self) -> PathBuf {
        self.target.join("bpf").join("heddle.o")
    }
}
