//! Debian's lists of packages other than the machine's own: of another suite, or for another processor. They are kept in
//! the project's cache, and the machine's own stay as they are.

use super::architecture::Architecture;
use crate::apt;
use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's own keys, from its package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt's options for the suites that the machine itself has, and packages for `architecture`.
pub fn of_machine(workspace: &Workspace, architecture: Architecture) -> Result<Vec<String>> {
    if architecture == Architecture::own()? {
        apt::update_if_empty()?;
        return Ok(Vec::new());
    }
    let folder = folder(workspace, &format!("own-{}", architecture.debian()))?;
    updated(&folder, architecture, Vec::new(), "the machine's own suites")
}

/// apt's options for `suite` alone. The mirror and its key are those that the machine uses for Debian itself.
pub fn of_suite(workspace: &Workspace, suite: &str, architecture: Architecture) -> Result<Vec<String>> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SIGNED_BY)";
    let targets = command::output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let (address, key) = mirror(&targets).context("apt's sources name no mirror of Debian's main archive")?;
    let own = architecture == Architecture::own()?;
    let name = if own { suite.to_owned() } else { format!("{suite}-{}", architecture.debian()) };
    let folder = folder(workspace, &name)?;
    // apt of Debian 12 does not tell the key and repeats the question.
    let key = if key.starts_with("$(") && Path::new(KEYRING).is_file() { KEYRING } else { key };
    let signed = if key.starts_with('/') { format!("[signed-by={key}] ") } else { String::new() };
    let list = folder.join("sources.list");
    fs::write(&list, format!("deb {signed}{address} {suite} main\n"))
        .with_context(|| format!("cannot write {}", list.display()))?;
    let sources =
        vec![format!("Dir::Etc::sourcelist={}", list.display()), "Dir::Etc::sourceparts=-".to_owned()];
    updated(&folder, architecture, sources, suite)
}

fn folder(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let folder = workspace.cache.join("apt").join(name);
    for part in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(folder)
}

fn updated(
    folder: &Path,
    architecture: Architecture,
    sources: Vec<String>,
    what: &str,
) -> Result<Vec<String>> {
    let mut options = sources;
    options.extend([
        format!("Dir::State::lists={}", folder.join("lists").display()),
        format!("Dir::Cache={}", folder.display()),
        "APT::Sandbox::User=root".to_owned(),
    ]);
    if architecture != Architecture::own()? {
        // Nothing of it is installed here, and so everything that a package depends on is missing.
        let status = folder.join("status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        options.extend([
            format!("APT::Architecture={}", architecture.debian()),
            format!("APT::Architectures={}", architecture.debian()),
            format!("Dir::State::status={}", status.display()),
        ]);
    }
    let options: Vec<String> = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
    eprintln!("reading the list of packages of {what} for {}", architecture.debian());
    command::run(Command::new("apt-get").args(&options).args(["--quiet=2", "update"]))?;
    Ok(options)
}

fn mirror(targets: &str) -> Option<(&str, &str)> {
    targets.lines().find_map(|line| {
        let mut parts = line.split('|');
        let (origin, label, address, key) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        (origin == "Debian" && label == "Debian").then_some((address, key))
    })
}

#[cfg(test)]
mod tests {
    use super::mirror;

    #[test]
    fn the_mirror_is_the_machine_s_own() {
        let targets = "Node|Node|http://other/|\nDebian|Debian-Security|http://s/|/k\nDebian|Debian|http://m/debian/|/k.gpg\n";
        assert_eq!(mirror(targets), Some(("http://m/debian/", "/k.gpg")));
        assert_eq!(mirror("Ubuntu|Ubuntu|http://u/|\n"), None);
    }
}
