//! What is mounted where.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf};

/// Where the root of the cgroup v2 hierarchy is mounted: at `/sys/fs/cgroup`, or beside v1 controllers elsewhere.
///
/// # Errors
/// If `/proc` cannot be read.
pub(super) fn cgroup2() -> std::io::Result<Option<PathBuf>> {
    Ok(find_cgroup2(&fs::read("/proc/self/mountinfo")?))
}

/// A mount whose root is not the hierarchy's own would miss every pod outside it, so the whole one goes first.
fn find_cgroup2(mountinfo: &[u8]) -> Option<PathBuf> {
    let mut part = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        if fields.get(dash + 1) != Some(&&b"cgroup2"[..]) {
            continue;
        }
        let (Some(root), Some(at)) = (fields.get(3), fields.get(4)) else { continue };
        let at = PathBuf::from(OsString::from_vec(unescape(at)));
        if *root == b"/" {
            return Some(at);
        }
        part.get_or_insert(at);
    }
    part
}

/// The files of network namespaces that are mounted somewhere, wherever the container runtime keeps them.
///
/// # Errors
/// If `/proc` cannot be read.
pub(super) fn network_namespaces() -> std::io::Result<Vec<PathBuf>> {
    Ok(find_network_namespaces(&fs::read("/proc/self/mountinfo")?))
}

fn find_network_namespaces(mountinfo: &[u8]) -> Vec<PathBuf> {
    let named = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let of_a_network = fields.get(3)?.starts_with(b"net:[") && *fields.get(dash + 1)? == b"nsfs";
        let place = fields.get(4)?;
        of_a_network.then(|| PathBuf::from(OsString::from_vec(unescape(place))))
    });
    let mut found: Vec<PathBuf> = named.collect();
    found.sort();
    found.dedup();
    found
}

/// mountinfo writes blanks and the like as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchys_root_is_found_wherever_it_is_mounted() {
        let hybrid = b"24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu\n\
            31 24 0:27 /kubepods /part rw shared:9 - cgroup2 cgroup2 rw\n\
            32 24 0:27 / /sys/fs/cgroup/uni\\040fied rw,nosuid shared:10 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/uni fied".into()));
        let part = b"31 24 0:27 /kubepods /part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(part), Some("/part".into()));
        assert_eq!(find_cgroup2(b"garbage\n\n - cgroup2\n"), None);
        let namespaces = b"40 25 0:4 net:[4026532241] /run/netns/cni-1 rw shared:20 - nsfs nsfs rw\n\
            41 25 0:4 net:[4026532241] /run/netns/cni-1 rw - nsfs nsfs rw\n\
            42 25 0:4 mnt:[4026532242] /run/docker/mnt rw - nsfs nsfs rw\n";
        assert_eq!(find_network_namespaces(namespaces), [PathBuf::from("/run/netns/cni-1")]);
        assert!(find_network_namespaces(hybrid).is_empty());
        assert!(find_network_namespaces(b"- nsfs x net:[1]\n").is_empty());
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
    }
}
