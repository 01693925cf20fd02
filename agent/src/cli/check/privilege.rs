//! What the agent may do.

use super::Finding;
use std::{fs, os::linux::fs::MetadataExt};

const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_PTRACE: (u32, &str) = (19, "CAP_SYS_PTRACE");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
/// Entering pods' namespaces and loading programs takes SYS_ADMIN, attaching to interfaces NET_ADMIN, and seeing in
/// whose namespaces a caller at the door lives SYS_PTRACE.
const NEEDED: [(u32, &str); 3] = [NET_ADMIN, SYS_PTRACE, SYS_ADMIN];
/// The kernel's numbers of the first pid and user namespaces (`PROC_PID_INIT_INO`, `PROC_USER_INIT_INO`).
const FIRST: [(&str, u64); 2] = [("pid", 0xefff_fffc), ("user", 0xefff_fffd)];

pub(super) fn capabilities() -> Finding {
    let name = "capabilities";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        None => Finding::missing(name, "cannot be read from /proc/self/status", "mount /proc"),
        Some(held) => {
            let lacking: Vec<_> =
                NEEDED.iter().filter(|(bit, _)| held >> bit & 1 == 0).map(|(_, name)| *name).collect();
            if lacking.is_empty() {
                Finding::ok(name, NEEDED.map(|(_, name)| name).join(", "))
            } else {
                let remedy = "run as root; in a container add BPF, PERFMON, NET_ADMIN, SYS_ADMIN, SYS_NICE and SYS_PTRACE, as deploy/kubernetes/heddle.yaml does";
                Finding::missing(name, format!("without {}", lacking.join(", ")), remedy)
            }
        }
    }
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// The door lets in who shares the agent's pid and user namespaces: these should be the host's.
pub(super) fn namespaces() -> Finding {
    let name = "namespaces";
    let mut other = Vec::new();
    for (kind, first) in FIRST {
        match fs::metadata(format!("/proc/self/ns/{kind}")) {
            Ok(meta) if meta.st_ino() == first => {}
            Ok(_) => other.push(kind),
            Err(error) => return Finding::warning(name, format!("cannot be read: {error}"), "mount /proc"),
        }
    }
    if other.is_empty() {
        return Finding::ok(name, "the host's pid and user namespaces");
    }
    let found = format!("in a {} namespace of its own: a container", other.join(" and a "));
    Finding::warning(
        name,
        found,
        "give the agent hostPID: true and no user namespace, or call its door from inside the same container",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(effective("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("CapEff:\tnone\n"), None);
    }
}
