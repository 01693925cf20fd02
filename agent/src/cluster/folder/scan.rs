//! Listing what is in the folder, without reading any of it.

use super::{
    Fault, Limits,
    read::{Entry, Root, regular, resolve, within},
};
use rustix::fs::{Dir, FileType};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// What one look at the folder found.
#[derive(Default)]
pub(super) struct Scan {
    /// Files by their path within the folder.
    pub(super) files: BTreeMap<PathBuf, Result<Entry, Fault>>,
    /// Folders within it that could not be looked into: what they held before may still be there.
    pub(super) blind: BTreeMap<PathBuf, Fault>,
    seen: BTreeSet<(u64, u64)>,
    entries: usize,
    bytes: u64,
    taken: usize,
}

/// Lists the folder. Fails only where the folder itself cannot be listed.
pub(super) fn scan(root: &Root, limits: &Limits) -> Result<Scan, Fault> {
    let mut scan = Scan::default();
    let stat = rustix::fs::fstat(&root.fd).map_err(Fault::system("examine"))?;
    scan.seen.insert(id(&stat));
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let listed =
        rustix::fs::openat(&root.fd, ".", flags, rustix::fs::Mode::empty()).map_err(Fault::system("list"))?;
    let names = names(listed, limits, &mut scan)?;
    scan.folder(root, limits, Path::new(""), names, 0);
    Ok(scan)
}

#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
fn id(stat: &rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// The names in a folder, in order, without the hidden ones (editors' drafts, Kubernetes' `..data`).
fn names(fd: rustix::fd::OwnedFd, limits: &Limits, scan: &mut Scan) -> Result<Vec<OsString>, Fault> {
    let mut names = Vec::new();
    for entry in Dir::new(fd).map_err(Fault::system("list"))? {
        let name = entry.map_err(Fault::system("list"))?.file_name().to_bytes().to_vec();
        if name.starts_with(b".") {
            continue;
        }
        scan.entries += 1;
        if scan.entries > limits.entries {
            return Err(Fault::FolderTooLarge { what: "entries", limit: limits.entries as u64 });
        }
        names.push(OsString::from_vec(name));
    }
    names.sort();
    Ok(names)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
}

impl Scan {
    fn folder(&mut self, root: &Root, limits: &Limits, at: &Path, names: Vec<OsString>, depth: usize) {
        for name in names {
            let path = at.join(name);
            match resolve(root, &path) {
                Ok(entry) if entry.kind() == FileType::Directory => {
                    self.subfolder(root, limits, path, &entry, depth + 1);
                }
                Ok(entry) if is_manifest(&path) => {
                    let file = self.admit(entry, limits);
                    self.files.insert(path, file);
                }
                Ok(_) => {}
                Err(fault) if is_manifest(&path) => {
                    self.files.insert(path, Err(fault));
                }
                // It could be a folder, as far as can be told.
                Err(fault) => {
                    self.blind.insert(path, fault);
                }
            }
        }
    }

    fn subfolder(&mut self, root: &Root, limits: &Limits, path: PathBuf, entry: &Entry, depth: usize) {
        if !self.seen.insert(id(&entry.stat)) {
            return; // Reached before, by another link: its files count once.
        }
        let names = if depth > limits.depth {
            Err(Fault::FolderTooLarge { what: "folders one in another", limit: limits.depth as u64 })
        } else {
            entry.open_folder(root.uid).and_then(|fd| names(fd, limits, self))
        };
        match names {
            Ok(names) => self.folder(root, limits, &path, names, depth),
            Err(fault) => {
                self.blind.insert(path, fault);
            }
        }
    }

    fn admit(&mut self, entry: Entry, limits: &Limits) -> Result<Entry, Fault> {
        regular(entry.kind())?;
        within(&entry.stat, limits)?;
        if self.taken >= limits.files {
            return Err(Fault::FolderTooLarge { what: "files", limit: limits.files as u64 });
        }
        let bytes = self.bytes + u64::try_from(entry.stat.st_size).unwrap_or(0);
        if bytes > limits.total_bytes {
            return Err(Fault::FolderTooLarge { what: "bytes", limit: limits.total_bytes });
        }
        self.taken += 1;
        self.bytes = bytes;
        Ok(entry)
    }
}
