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

/// The module's source, in Go's cache. Not by `go install`: that asks which versions there are, and a proxy that is told what
/// it may serve may not say.
fn source() -> Result<PathBuf> {
    let got = Command::new("go")
        .args(["mod", "download", "-json", &format!("github.com/spiffe/spire@{VERSION}")])
        .current_dir("/")
        .output()
        .context("there is no go in PATH: install Go 1.24 or newer")?;
    let told: serde_json::Value = serde_json::from_slice(&got.stdout).unwrap_or_default();
    let folder = told["Dir"].as_str().with_context(|| {
        let why = told["Error"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&got.stderr).into_owned(), str::to_owned);
        format!("SPIRE {VERSION} cannot be had: {why}")
    })?;
    Ok(folder.into())
}

/// Builds what is not there yet and gives the folder.
///
/// # Errors
/// There is no Go or no C compiler (the server's SQLite is in C), or the module cannot be had.
pub fn build() -> Result<PathBuf> {
    let folder =
        folder().context("neither HOME nor XDG_CACHE_HOME is set: set one, the programs are kept there")?;
    std::fs::create_dir_all(&folder)?;
    let source = source()?;
    for program in PROGRAMS {
        if folder.join(program).is_file() {
            continue;
        }
        eprintln!(
            "building {program} {VERSION}, once: about 10 minutes of a core's time, 2 GB of Go modules"
        );
        let built = folder.join("partial");
        let status = Command::new("go")
            .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(&built)
            .arg(format!("./cmd/{program}"))
            .env("CGO_ENABLED", "1")
            .env("GOFLAGS", "-mod=readonly")
            .current_dir(&source)
            .status()?;
        ensure!(status.success(), "{program} {VERSION} could not be built");
        std::fs::rename(&built, folder.join(program))?;
    }
    Ok(folder)
}
