//! The kernel.

use super::Finding;
use std::{fs, io::ErrorKind};

/// sk_lookup, sched_cls and cgroup hooks with what they call are all there from here on, and it is tested.
const OLDEST: (u32, u32) = (6, 1);
/// With it the door tells a caller from another process that got its id.
const PEER_PIDFD: (u32, u32) = (6, 5);
/// tcx, by which the guard stands beside other programs.
const TCX: (u32, u32) = (6, 6);

pub(super) fn kernel() -> Finding {
    let name = "kernel";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version(&release) {
        None => Finding::warning(
            name,
            format!("{release}: its version is not understood"),
            "see that it is 6.1 or newer",
        ),
        Some(found) if found < OLDEST => Finding::missing(
            name,
            format!("{release} is older than 6.1"),
            "boot a newer kernel (Debian 12's will do)",
        ),
        Some(found) if found < PEER_PIDFD => Finding::ok(
            name,
            format!(
                "{release} (the guard uses clsact, tcx comes with 6.6; the door knows callers by process id alone, SO_PEERPIDFD comes with 6.5)"
            ),
        ),
        Some(found) if found < TCX => {
            Finding::ok(name, format!("{release} (the guard uses clsact; tcx comes with 6.6)"))
        }

        Some(_) => Finding::ok(name, release),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn btf() -> Finding {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    match fs::File::open(BTF) {
        Ok(_) => Finding::ok("BTF", BTF),
        Err(error) => Finding::missing(
            "BTF",
            format!("{BTF}: {error}"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF (Debian's, Ubuntu's and Fedora's have it), and mount sysfs",
        ),
    }
}

pub(super) fn lockdown() -> Finding {
    let name = "lockdown";
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) => match modes.split(['[', ']']).nth(1) {
            Some("confidentiality") => Finding::warning(
                name,
                "confidentiality: programs may not read the kernel's memory, which ours do not",
                "where a trial below fails: boot with lockdown=integrity, or with Secure Boot off",
            ),
            Some(mode) => Finding::ok(name, mode.to_owned()),
            None => Finding::warning(
                name,
                format!("not understood: {}", modes.trim()),
                "see whether the trials below pass",
            ),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::ok(name, "the kernel has none, or securityfs is not mounted")
        }
        Err(error) => Finding::warning(name, format!("cannot be read: {error}"), "run this as root"),
    }
}

pub(super) fn jit() -> Finding {
    let name = "BPF JIT";
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => {
            Finding::warning(name, "off: programs are interpreted", "sysctl net.core.bpf_jit_enable=1")
        }
        Ok(_) => Finding::ok(name, "on"),
        // Seen only in the first network namespace.
        Err(error) => Finding::ok(name, format!("not told here ({error})")),
    }
}

/// Cilium's own socket hooks at the root of the cgroups choose a Service's endpoint before ours see the address asked for.
pub(super) fn other_programs() -> Finding {
    let name = "other programs";
    let mut others = Vec::new();
    for program in aya::programs::loaded_programs() {
        match program {
            Ok(program) => {
                if let Some(program) = program.name_as_str().filter(|program| program.starts_with("cil_sock"))
                {
                    others.push(program.to_owned());
                }
            }
            Err(error) => {
                return Finding::warning(name, format!("cannot be listed: {error}"), "run this as root");
            }
        }
    }
    if others.is_empty() {
        return Finding::ok(name, "no other socket load balancer");
    }
    others.sort();
    others.dedup();
    let found =
        format!("Cilium's socket load balancer ({}) rewrites Services' addresses first", others.join(", "));
    Finding::warning(name, found, "in Cilium, set socketLB.hostNamespaceOnly=true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    #[test]
    fn versions_of_every_spelling() {
        for (release, expected) in [
            ("6.1.0-26-cloud-amd64", Some((6, 1))),
            ("6.18.44-fc", Some((6, 18))),
            ("7.2-rc1", Some((7, 2))),
            ("5.10", Some((5, 10))),
            ("linux", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("5.10.0") < Some(OLDEST) && version("6.1.9") >= Some(OLDEST));
    }

    #[test]
    fn this_host_is_told_as_it_is() {
        let expected = version(&rustix::system::uname().release().to_string_lossy()).unwrap() >= OLDEST;
        assert_eq!(kernel().outcome == Outcome::Ok, expected);
    }
}
