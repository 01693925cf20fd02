//! The compiler for the kernel programs. Two serve: Debian's, which brings `core` for the BPF target and is unpacked
//! into the project's cache, and a nightly with the component rust-src.

use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that the programs are built for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The newest that Rust 1.95 compiles and that links with LLVM 22.
const BPF_LINKER: &str = "0.13.0";
/// The part of Debian's compiler that holds the standard library.
const STANDARD: &str = "libstd-rust-web-dev";
/// The part of Debian's compiler that holds `core` for BPF.
const DEBIAN_CORE: &str = "libstd-rust-web-dev-bpf";

/// Which compiler to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    /// Debian's if it is here or apt offers it, else a nightly.
    Auto,
    /// Debian's, unpacked into the cache.
    Debian,
    /// A nightly with rust-src.
    Nightly,
}

/// A compiler that can build the kernel programs.
#[derive(Debug)]
pub enum Compiler {
    /// Unpacked in this folder.
    Debian(PathBuf),
    /// Run by rustup, or being the default.
    Nightly {
        /// Whether `rustup run nightly` is needed.
        rustup: bool,
    },
}

impl Compiler {
    /// Finds the compiler, fetching Debian's where that is what serves.
    pub fn find(workspace: &Workspace, choice: Choice) -> Result<Self> {
        let debian = workspace.cache.join("debian-rust");
        if choice != Choice::Nightly {
            if !debian.join("usr/bin/rustc").is_file() && apt::present() && apt::offers(DEBIAN_CORE)? {
                fetch_debian(&debian)?;
            }
            if debian.join("usr/bin/rustc").is_file() {
                let compiler = Self::Debian(debian);
                if compiler.version().is_err() {
                    // Its one library that not every machine has; what links with it needs it installed, too.
                    apt::install(&[&llvm_package()?])?;
                }
                return Ok(compiler);
            }
        }
        if choice != Choice::Debian {
            for rustup in [true, false] {
                let nightly = Self::Nightly { rustup };
                if nightly.has_source() {
                    return Ok(nightly);
                }
            }
        }
        bail!(
            "no compiler for the kernel programs. Either way serves:\n  \
             1. Debian 12 or newer, whose security archive has the packages rustc-web and {DEBIAN_CORE} \
             (looked for with apt; see that `apt-cache policy {DEBIAN_CORE}` names a candidate; nothing of it is installed)\n  \
             2. a nightly with its source: `rustup toolchain install nightly --component rust-src`"
        )
    }

    /// What was chosen, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Debian(folder) => format!("Debian's compiler in {}", folder.display()),
            Self::Nightly { .. } => "a nightly with rust-src (-Z build-std=core)".to_owned(),
        }
    }

    /// A subcommand of cargo's for the BPF target with this compiler and `linker`.
    pub fn cargo(&self, subcommand: &str, linker: &Path) -> Command {
        let mut build = match self {
            Self::Debian(folder) => {
                let mut cargo = command::cargo();
                cargo
                    .env("RUSTC", folder.join("usr/bin/rustc"))
                    // Debian counts its BPF target as one for nightlies.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LD_LIBRARY_PATH", libraries(folder))
                    .arg(subcommand);
                cargo
            }
            Self::Nightly { rustup } => {
                let mut cargo = nightly(*rustup, "cargo");
                cargo.args([subcommand, "-Z", "build-std=core"]);
                cargo
            }
        };
        for inherited in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET"]
        {
            build.env_remove(inherited);
        }
        build
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env(
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
                "-C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order -C debuginfo=2",
            )
            .args(["--target", TARGET]);
        build
    }

    /// The major version of LLVM whose bitcode this compiler writes: the linker must read it.
    fn llvm(&self) -> Result<u32> {
        let said = self.version()?;
        llvm_major(&said).with_context(|| format!("`rustc -vV` names no LLVM version: {said}"))
    }

    /// What `rustc -vV` says; an error where it does not run.
    fn version(&self) -> Result<String> {
        let mut rustc = match self {
            Self::Debian(folder) => {
                let mut rustc = Command::new(folder.join("usr/bin/rustc"));
                rustc.env("LD_LIBRARY_PATH", libraries(folder));
                rustc
            }
            Self::Nightly { rustup } => nightly(*rustup, "rustc"),
        };
        command::output(rustc.arg("-vV"))
    }

    fn has_source(&self) -> bool {
        let Self::Nightly { rustup } = self else { return true };
        let Ok(version) = command::output(nightly(*rustup, "rustc").arg("-V")) else { return false };
        let Ok(sysroot) = command::output(nightly(*rustup, "rustc").args(["--print", "sysroot"])) else {
            return false;
        };
        version.contains("nightly")
            && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
    }
}

fn nightly(rustup: bool, program: &str) -> Command {
    let mut command = if rustup {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", program]);
        command
    } else {
        Command::new(program)
    };
    // Cargo sets these for us; they would pin the nested call to the calling toolchain.
    for inherited in ["RUSTUP_TOOLCHAIN", "RUSTC", "CARGO", "RUSTC_WRAPPER"] {
        command.env_remove(inherited);
    }
    command
}

fn llvm_major(version: &str) -> Option<u32> {
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Where the multiarch libraries of an unpacked Debian compiler are, whatever the architecture.
pub fn libraries(folder: &Path) -> PathBuf {
    folder.join("usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH))
}

fn fetch_debian(folder: &Path) -> Result<()> {
    let packages =
        ["rustc-web", STANDARD, DEBIAN_CORE].map(str::to_owned).into_iter().chain([library_package()?]);
    let packages: Vec<String> = packages.collect();
    eprintln!("fetching Debian's compiler into {} (370 MB unpacked, not installed)", folder.display());
    apt::unpack(&packages, folder, &[])
}

/// The package of the compiler itself, as a library.
fn library_package() -> Result<String> {
    named(&apt::depends(STANDARD)?, "libstd-rust-web-")
        .with_context(|| format!("apt knows no library package that {STANDARD} depends on"))
}

/// The package of the LLVM that the compiler is linked with.
fn llvm_package() -> Result<String> {
    let library = library_package()?;
    named(&apt::depends(&library)?, "libllvm")
        .with_context(|| format!("apt knows no LLVM package that {library} depends on"))
}

/// Clippy over the kernel programs, for their own target and with the compiler that builds them; warnings are errors.
pub fn clippy(workspace: &Workspace) -> Result<()> {
    let compiler = Compiler::find(workspace, Choice::Auto)?;
    let mut check = compiler.cargo("check", &linker(workspace, &compiler)?);
    match &compiler {
        Compiler::Debian(_) => {
            let folder = workspace.cache.join("debian-clippy");
            let driver = folder.join("usr/bin/clippy-driver");
            if !driver.is_file() {
                apt::unpack(&["rust-web-clippy".to_owned()], &folder, &[])?;
            }
            // What cargo-clippy does, without its rustup.
            check.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings");
        }
        Compiler::Nightly { rustup } => {
            let driver = command::output(nightly(*rustup, "rustc").args(["--print", "sysroot"]))?;
            let driver = Path::new(driver.trim()).join("bin/clippy-driver");
            if !driver.is_file() {
                bail!("the nightly has no clippy: `rustup component add clippy --toolchain nightly`");
            }
            check.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings");
        }
    }
    check
        .args(["--quiet", "--release", "--manifest-path"])
        .arg(workspace.root.join("ebpf/programs/Cargo.toml"));
    command::run(check.arg("--target-dir").arg(workspace.target.join("bpf/check")))
}

fn named(packages: &[String], prefix: &str) -> Option<String> {
    packages.iter().find(|package| package.starts_with(prefix)).cloned()
}

/// The linker that reads this compiler's bitcode; built into the cache on the first call (about a minute).
pub fn linker(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    let folder = workspace.cache.join("bpf-linker");
    let linker = folder.join("bin/bpf-linker");
    let llvm = compiler.llvm()?;
    let feature = format!("llvm-{llvm}");
    let built_with = folder.join(".crates2.json");
    let fits = std::fs::read_to_string(built_with).is_ok_and(|text| {
        text.contains(&format!("\"bpf-linker {BPF_LINKER} ")) && text.contains(&format!("\"{feature}\""))
    });
    if fits && command::output(Command::new(&linker).arg("--version")).is_ok() {
        return Ok(linker);
    }
    apt::install(&[&format!("{feature}-dev"), "libzstd-dev", "zlib1g-dev"])?;
    eprintln!("building bpf-linker {BPF_LINKER} for LLVM {llvm} into {} (about a minute)", folder.display());
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin"))].into_iter().chain(env::split_paths(&path)),
    )?;
    let mut install = command::cargo();
    for inherited in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
        install.env_remove(inherited);
    }
    command::run(
        install
            .env("PATH", path)
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--quiet"])
            .args(["--no-default-features", "--features", &feature, "--root"])
            .arg(&folder),
    )?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn the_llvm_version_is_read_from_what_rustc_says() {
        let said = "rustc 1.96.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(said), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
