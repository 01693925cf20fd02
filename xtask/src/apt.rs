//! Debian's packages: installing what is missing, and unpacking what must not be installed.

use crate::command;
use crate::privilege::as_root;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether this machine has apt at all.
pub fn present() -> bool {
    command::find("apt-get").is_some() && command::find("dpkg").is_some()
}

/// Those of `packages` that are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

fn installed(package: &str) -> bool {
    command::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Whether apt knows a version of `package` that it could fetch; where it knows none, its lists of today are asked:
/// those of an image may be older than its sources.
pub fn offers(package: &str) -> Result<bool> {
    update_if_empty()?;
    if offered(package) {
        return Ok(true);
    }
    eprintln!("apt's lists name no {package}: fetching those of today");
    if let Err(error) = update() {
        // Another way than Debian's may serve the caller.
        eprintln!("{error:#}");
    }
    Ok(offered(package))
}

fn offered(package: &str) -> bool {
    command::output(Command::new("apt-cache").args(["policy", package])).is_ok_and(|policy| {
        policy
            .lines()
            .any(|line| line.trim_start().strip_prefix("Candidate: ").is_some_and(|v| v != "(none)"))
    })
}

/// Fetches apt's lists where there are none, as in a fresh image.
pub fn update_if_empty() -> Result<()> {
    // What is installed is a candidate without any list: only the lists tell.
    if holds_lists(Path::new("/var/lib/apt/lists")) {
        return Ok(());
    }
    eprintln!("apt has no package lists yet: fetching them");
    update()
}

fn holds_lists(folder: &Path) -> bool {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn update() -> Result<()> {
    command::run(as_root("apt-get")?.args(["update", "--quiet"]))
}

/// Lists of last year name files that the archive no longer has: what fails with them is tried once with today's.
fn with_today_s_lists(attempt: impl Fn() -> Result<()>) -> Result<()> {
    let Err(error) = attempt() else { return Ok(()) };
    eprintln!("{error:#}\nonce more, with apt's lists of today");
    update()?;
    attempt()
}

/// Installs those of `packages` that are missing, and says which.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    if !present() {
        bail!(
            "this machine has no apt; please install by its own means what Debian calls: {}",
            missing.join(" ")
        );
    }
    update_if_empty()?;
    eprintln!("installing Debian packages: {}", missing.join(" "));
    with_today_s_lists(|| {
        let mut install = as_root("env")?;
        install.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet=2"]);
        // dpkg's account of every step is for nobody; what goes wrong comes by stderr.
        command::run(install.arg("--no-install-recommends").args(&missing).stdout(Stdio::null()))
    })
    .with_context(|| format!("these Debian packages could not be installed: {}", missing.join(" ")))
}

/// The names that `package` depends on.
pub fn depends(package: &str) -> Result<Vec<String>> {
    let said = command::output(Command::new("apt-cache").args(["depends", package]))?;
    Ok(said.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
}

/// Fetches `packages` with `apt-get download` (and `options`, for another suite) and unpacks them into `folder`,
/// which appears only when all of it is there.
pub fn unpack(packages: &[String], folder: &Path, options: &[String]) -> Result<()> {
    let partial = fresh(folder)?;
    let fetched = partial.join("packages");
    fs::create_dir_all(&fetched).with_context(|| format!("cannot make {}", fetched.display()))?;
    let download = || {
        command::run(
            Command::new("apt-get")
                .args(options)
                // Root's downloads go through the user _apt, who cannot write into somebody's home.
                .args(["-o", "APT::Sandbox::User=root", "--quiet", "download"])
                .args(packages)
                .current_dir(&fetched),
        )
    };
    // Another suite has lists of its own.
    if options.is_empty() {
        with_today_s_lists(download)?
    } else {
        download()?
    }
    unpacked(&partial, &fetched, folder)
}

/// Fetches `packages` and everything that they depend on, with `options` by which nothing counts as installed, and
/// unpacks them into `folder`, which appears only when all of it is there. What their installation would do besides is
/// not done.
pub fn unpack_with_needed(packages: &[&str], folder: &Path, options: &[String]) -> Result<()> {
    let partial = fresh(folder)?;
    let fetched = partial.join("packages");
    fs::create_dir_all(fetched.join("partial"))
        .with_context(|| format!("cannot make {}", fetched.display()))?;
    command::run(
        Command::new("apt-get")
            .args(options)
            .args(["-o", &format!("Dir::Cache::archives={}", fetched.display())])
            .args(["--quiet=2", "--yes", "--no-install-recommends", "--download-only", "install"])
            .args(packages),
    )?;
    unpacked(&partial, &fetched, folder)
}

/// An empty folder beside `folder`, for what is not whole yet.
fn fresh(folder: &Path) -> Result<PathBuf> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot clear {}", partial.display()))?;
    }
    Ok(partial)
}

/// Unpacks the packages in `fetched` below `partial`, and has them be `folder`.
fn unpacked(partial: &Path, fetched: &Path, folder: &Path) -> Result<()> {
    let unpacked = partial.join("unpacked");
    for file in fs::read_dir(fetched)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            command::run(Command::new("dpkg").arg("-x").arg(file).arg(&unpacked))?;
        }
    }
    fs::create_dir_all(folder.parent().context("a folder without a parent")?)?;
    fs::rename(&unpacked, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::remove_dir_all(partial)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::holds_lists;

    #[test]
    fn a_fresh_image_has_folders_and_no_lists() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!holds_lists(&folder.path().join("nowhere")));
        for name in ["partial", "auxfiles"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("lock"), "").unwrap();
        assert!(!holds_lists(folder.path()));
        std::fs::write(
            folder.path().join("deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages.lz4"),
            "",
        )
        .unwrap();
        assert!(holds_lists(folder.path()));
    }
}
