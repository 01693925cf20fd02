//! SPIRE's own programs, built once from its Go module and kept in the cache: the issuer that some tests run beside the
//! agents. Nothing is installed.

use anyhow::{Context, Result, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose agent and server.
pub const VERSION: &str = "v1.13.0";
const PROGRAMS: [&str; 2] = ["spire-agent", "spire-server"];

/// Where they are in the project's cache.
fn folder() -> Option<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("heddle/spire").join(VERSION))
}

fn whole(folder: &Path) -> bool {
    PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// The folder of both, where `cargo xtask spire` has put them. None, and that is told, where it has not.
pub fn installed() -> Option<PathBuf> {
    let found = folder().filter(|folder| whole(folder));
    if found.is_none() {
        println!("not applicable: SPIRE {VERSION} is not there; `cargo xtask spire` builds it");
    }
    found
}

/// Builds what is not there yet and gives the folder.
///
/// # Errors
/// There is no Go or no C compiler (the server's SQLite is in C), or the module cannot be had.
pub fn build() -> Result<PathBuf> {
    let folder =
        folder().context("neither HOME nor XDG_CACHE_HOME is set: set one, the programs are kept there")?;
    std::fs::create_dir_all(&folder)?;
    for program in PROGRAMS {
        if folder.join(program).is_file() {
            continue;
        }
        let module = format!("github.com/spiffe/spire/cmd/{program}@{VERSION}");
        eprintln!("building {module}, once: about 10 minutes of a core's time, 2 GB of Go modules");
        let built = folder.join("partial");
        let status = Command::new("go")
            .args(["install", "-trimpath", "-ldflags=-s -w", &module])
            .env("GOBIN", &built)
            .env("CGO_ENABLED", "1")
            .env("GOFLAGS", "")
            .current_dir("/")
            .status()
            .context("there is no go in PATH: install Go 1.24 or newer")?;
        ensure!(status.success(), "{module} could not be built");
        std::fs::rename(built.join(program), folder.join(program))?;
        std::fs::remove_dir(&built)?;
    }
    Ok(folder)
}
