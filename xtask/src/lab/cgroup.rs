//! Children of the machine's cgroup v2 tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A cgroup of the lab's. It is named by two paths where the host has no cgroup2 mount and the lab made its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cgroup {
    seen_from_host: PathBuf,
    seen_from_node: PathBuf,
}

impl Cgroup {
    pub(super) const fn new(seen_from_host: PathBuf, seen_from_node: PathBuf) -> Self {
        Self { seen_from_host, seen_from_node }
    }

    /// Its path for this process.
    pub fn path(&self) -> &Path {
        &self.seen_from_host
    }

    /// Its path inside the lab's mount namespaces.
    pub fn path_in_node(&self) -> &Path {
        &self.seen_from_node
    }

    /// Makes a child.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        let child = Self::new(self.seen_from_host.join(name), self.seen_from_node.join(name));
        fs::create_dir_all(child.path())
            .with_context(|| format!("cannot make cgroup {}", child.path().display()))?;
        Ok(child)
    }

    /// The ids of the processes in it and below it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut open = vec![self.seen_from_host.clone()];
        while let Some(directory) = open.pop() {
            let list = fs::read_to_string(directory.join("cgroup.procs"))
                .with_context(|| format!("cannot read {}", directory.display()))?;
            found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Kills every process in it and below it; they are gone when this returns.
    ///
    /// # Errors
    /// When the kernel refuses, or when a process is still there after two seconds.
    pub fn kill(&self) -> Result<()> {
        fs::write(self.seen_from_host.join("cgroup.kill"), "1")
            .with_context(|| format!("cannot kill cgroup {}", self.seen_from_host.display()))?;
        super::program::eventually("the cgroup's processes to end", std::time::Duration::from_secs(2), || {
            Ok(self.processes()?.is_empty())
        })
    }
}

/// Where the cgroup2 tree is mounted, as `/proc/self/mountinfo` says.
pub fn mount_point() -> Result<Option<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(parse_mount_point(&mountinfo))
}

fn parse_mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let writable = fields.next()?.split(',').any(|option| option == "rw");
        // A bind mount of one child is no place to make children of our own beside the others'.
        (after.split(' ').next()? == "cgroup2" && root == "/" && writable).then(|| PathBuf::from(mount_point))
    })
}

#[cfg(test)]
mod tests {
    use super::parse_mount_point;

    #[test]
    fn finds_the_unified_tree_beside_version_1() {
        let text = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount_point(text).unwrap().to_str(), Some("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn passes_over_read_only_and_partial_mounts() {
        let text = "41 31 0:38 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup2 rw\n\
                    42 31 0:38 /pod /mnt/pod rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount_point(text), None);
    }
}
