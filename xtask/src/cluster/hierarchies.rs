//! What containers get of the machine on a host of cgroup v1 or of both: a folder of the cluster's own in every v1
//! hierarchy. Processes are not found by these (they live in the lab's v2 cgroup), so nothing depends on them.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// What a cluster's folders begin with.
const PREFIX: &str = "heddle-cluster-";

/// The mount points of the v1 hierarchies, each with whether it is of cpusets.
fn hierarchies() -> Result<Vec<(PathBuf, bool)>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(parse(&mountinfo))
}

fn parse(mountinfo: &str) -> Vec<(PathBuf, bool)> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = after.split(' ');
            let kind = fields.next()?;
            let options = fields.nth(1)?;
            (kind == "cgroup").then_some(())?;
            let path = before.split(' ').nth(4)?;
            Some((PathBuf::from(path), options.split(',').any(|option| option == "cpuset")))
        })
        .collect()
}

/// Makes `path` (such as `heddle-cluster-1a2b3c/node-a`) in every hierarchy.
pub fn make(path: &str) -> Result<()> {
    for (root, cpuset) in hierarchies()? {
        let mut folder = root;
        for part in path.split('/') {
            let above = folder.clone();
            folder.push(part);
            if folder.is_dir() {
                continue;
            }
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            // An empty set takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| cpuset) {
                fs::write(folder.join(file), fs::read_to_string(above.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Removes the folders of clusters that `alive` does not know.
pub fn sweep(alive: impl Fn(&str) -> bool) -> Result<()> {
    for (root, _) in hierarchies()? {
        for entry in fs::read_dir(&root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && !alive(&name) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_hierarchies_of_version_1_are_found_and_version_2_is_left_alone() {
        let text = "40 31 0:37 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
                    41 31 0:38 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                    42 31 0:39 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found: Vec<(String, bool)> =
            parse(text).into_iter().map(|(path, cpuset)| (path.display().to_string(), cpuset)).collect();
        assert_eq!(found, [("/sys/fs/cgroup/cpuset".into(), true), ("/sys/fs/cgroup/memory".into(), false)]);
    }
}
