//! What must be mounted.

use super::{super::mountinfo::cgroup2, Finding};
use std::path::Path;

/// The kernel's `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

pub(super) fn cgroup() -> Finding {
    let name = "cgroup v2";
    match cgroup2() {
        Ok(Some(path)) => Finding::ok(name, path.display().to_string()),
        Ok(None) => Finding::missing(
            name,
            "not mounted",
            "mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2 (it may stand beside v1)",
        ),
        Err(error) => Finding::missing(name, format!("/proc/self/mountinfo: {error}"), "mount /proc"),
    }
}

pub(super) fn bpffs(path: &Path) -> Finding {
    let name = "bpffs";
    let remedy = format!("mount -t bpf bpf {}", path.display());
    match rustix::fs::statfs(path) {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the kernel's magic has 32 bits"
        )]
        Ok(found) if found.f_type as u32 == BPF_FS_MAGIC => Finding::ok(name, path.display().to_string()),
        Ok(_) => Finding::missing(name, format!("{} is another file system", path.display()), remedy),
        Err(error) => {
            Finding::missing(name, format!("{}: {}", path.display(), std::io::Error::from(error)), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_is_not_bpffs() {
        use crate::cli::check::Outcome;
        assert_eq!(bpffs(Path::new("/proc")).outcome, Outcome::Missing);
        assert_eq!(bpffs(Path::new("/nowhere")).outcome, Outcome::Missing);
    }
}
