//! Debian's kernels: found by series in the machine's own lists or in another suite's, fetched, never installed.

use super::architecture::Architecture;
use super::lists;
use crate::apt;
use crate::command;
use crate::workspace::Workspace;
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// Suites that are asked in turn when the machine's own lists lack a series: newer ones, then older ones.
const SUITES: [&str; 5] = ["bookworm", "trixie", "forky", "sid", "bullseye"];

/// A kernel series: major and minor number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version(u32, u32);

impl Version {
    /// From its two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self(major, minor)
    }

    /// Whether a kernel with this release, as `uname -r` says it, is of the series.
    pub fn names(self, release: &str) -> bool {
        let mut numbers = release.split(|it: char| !it.is_ascii_digit());
        numbers.next() == Some(&*self.0.to_string()) && numbers.next() == Some(&*self.1.to_string())
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is no kernel series: give major and minor number, as in 6.1");
        let (major, minor) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self(major.parse().map_err(|_| wrong())?, minor.parse().map_err(|_| wrong())?))
    }
}

/// An unpacked kernel.
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// What QEMU boots.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// Finds the newest kernel of the series, in the cache's folder after the first time.
pub fn find(workspace: &Workspace, version: &Version, architecture: Architecture) -> Result<Kernel> {
    if !apt::present() {
        bail!("kernels are fetched with apt, which this machine lacks");
    }
    let kernels = workspace.cache.join("kernels");
    let own = lists::of_machine(workspace, architecture)?;
    if let Some(offer) = offered(version, architecture, &own)? {
        return fetched(&kernels, &offer, &own);
    }
    for suite in SUITES {
        let options = lists::of_suite(workspace, suite, architecture)?;
        match offered(version, architecture, &options)? {
            Some(offer) => return fetched(&kernels, &offer, &options),
            None => eprintln!("no kernel {}.{} in {suite}", version.0, version.1),
        }
    }
    bail!(
        "no Debian suite that was asked has a cloud kernel {}.{}: {}",
        version.0,
        version.1,
        SUITES.join(", ")
    )
}

fn fetched(kernels: &Path, offer: &Offer, options: &[String]) -> Result<Kernel> {
    let folder = kernels.join(format!("linux-image-{}", offer.release));
    if !folder.is_dir() {
        eprintln!("fetching {} into {} (not installed)", offer.packages.join(", "), folder.display());
        apt::unpack(&offer.packages, &folder, options)?;
    }
    opened(&folder)
}

/// Older packages have `boot/vmlinuz-X` and `lib/modules/X`, newer ones `usr/lib/modules/X/vmlinuz`.
fn opened(folder: &Path) -> Result<Kernel> {
    for under in ["lib/modules", "usr/lib/modules"] {
        let Ok(entries) = fs::read_dir(folder.join(under)) else { continue };
        for entry in entries {
            let modules = entry?.path();
            let Some(release) = modules.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            let images = [folder.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|image| image.is_file()) {
                return Ok(Kernel { release, image, modules });
            }
        }
    }
    Err(anyhow!("{} holds no kernel: remove the folder, so that it is fetched again", folder.display()))
}

/// A kernel that apt offers.
#[derive(PartialEq, Eq, Debug)]
struct Offer {
    release: String,
    /// One that holds it all, or from 7.x on the kernel, its modules, and one that names them both.
    packages: Vec<String>,
}

/// The newest of the series that apt offers.
fn offered(version: &Version, architecture: Architecture, options: &[String]) -> Result<Option<Offer>> {
    let pattern = format!(
        "^linux-(image|binary|modules)-{}\\.{}[.+~-][^ ]*cloud-{}$",
        version.0,
        version.1,
        architecture.debian()
    );
    let mut search = Command::new("apt-cache");
    let names = command::output(search.args(options).args(["search", "--names-only", &pattern]))?;
    Ok(newest(names.lines().filter_map(|line| line.split(' ').next())))
}

/// Of packages' names all that are of the newest release.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<Offer> {
    let mut releases: BTreeMap<(Vec<u64>, &str), Vec<String>> = BTreeMap::new();
    for name in names {
        let Some((_, release)) = name.strip_prefix("linux-").and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        releases.entry((numbers(release), release)).or_default().push(name.to_owned());
    }
    let ((_, release), packages) = releases.pop_last()?;
    Some(Offer { release: release.to_owned(), packages })
}

/// The numbers in a name, for comparing `6.1.0-9` with `6.1.0-56`.
pub(super) fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Offer, Version, newest};

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!("6.12".parse(), Ok(Version(6, 12)));
        for wrong in ["6", "6.x", "", "6.1.2", "v6.1"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_release_is_of_one_series() {
        for release in ["6.1.0-56-cloud-amd64", "6.1"] {
            assert!(Version(6, 1).names(release), "{release}");
        }
        for release in ["6.12.117+deb12-cloud-amd64", "6.18.44", "5.1.0", "6", ""] {
            assert!(!Version(6, 1).names(release), "{release}");
        }
    }

    #[test]
    fn the_newest_of_a_series_is_taken_with_all_that_belongs_to_it() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-48-cloud-amd64",
        ];
        let offer = |release: &str, packages: &[&str]| {
            let packages = packages.iter().map(|&name| name.to_owned()).collect();
            Some(Offer { release: release.to_owned(), packages })
        };
        assert_eq!(newest(names.into_iter()), offer("6.1.0-56-cloud-amd64", &names[1..2]));
        let parts = [
            "linux-binary-7.2.12+deb14-cloud-amd64",
            "linux-image-7.2.9+deb14-cloud-amd64",
            "linux-image-7.2.12+deb14-cloud-amd64",
            "linux-modules-7.2.12+deb14-cloud-amd64",
        ];
        let own = [parts[0], parts[2], parts[3]];
        assert_eq!(newest(parts.into_iter()), offer("7.2.12+deb14-cloud-amd64", &own));
        assert_eq!(newest([].into_iter()), None);
    }
}
