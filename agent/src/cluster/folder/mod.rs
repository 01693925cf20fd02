//! `--manifests DIR`: the cluster's resources from YAML and JSON files, followed as they change.
//!
//! The folder decides who may talk to whom, so it is trusted only as far as its owner is: the folder, every folder in
//! it and every file must belong to the agent's user and be writable by nobody else ([`Fault`]). What cannot be
//! trusted, read or parsed never takes rules away in silence: the file's last good content stays in force and
//! [`FolderStatus`] says which file is stale, since when and why. Only a file that is gone takes its rules with it.
//!
//! [`read`] opens and reads, [`scan`] lists, [`keep`] remembers what is in force, [`follow`] waits for changes.

mod fault;
mod follow;
mod keep;
mod read;
mod scan;
#[cfg(test)]
mod tests;

pub use fault::{Fault, Malformed};
pub use follow::{Following, Pace, follow, is_change};
pub use keep::{Alarm, Folder, FolderStatus, Refreshed, StaleFile};

/// Bounds on what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub total_bytes: u64,
    /// Files in all.
    pub files: usize,
    /// Entries of any kind in all, so that a folder full of other things ends the scan too.
    pub entries: usize,
    /// Folders below the folder, one in another.
    pub depth: usize,
}

impl Default for Limits {
    /// A ConfigMap is at most 1 MiB and a resource in etcd 1.5 MiB: 8 MiB is a bundle of many. 64 MiB of YAML is more
    /// than a cluster of 10,000 pods writes.
    fn default() -> Self {
        Self { file_bytes: 8 << 20, total_bytes: 64 << 20, files: 4096, entries: 65_536, depth: 8 }
    }
}
