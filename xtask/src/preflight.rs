//! What a machine must be before anything is fetched or built: a table, each line with what was found and, where it
//! is wanting, what to do.

use crate::workspace::Workspace;
use crate::{apt, command, privilege};
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const OLDEST_KERNEL: (u32, u32) = (6, 1);
const GIB: u64 = 1 << 30;
/// With a margin over what a first run was seen to take.
const DISK: u64 = 6 * GIB;
/// What later ones may still write.
const DISK_LATER: u64 = GIB;
const MEMORY: u64 = 2 * GIB;

/// How a line of the table stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// As it should be.
    Good,
    /// Works, and is worth knowing.
    Note,
    /// Cannot work.
    Bad,
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    what: &'static str,
    found: String,
    state: State,
    remedy: &'static str,
}

impl Line {
    fn new(what: &'static str, state: State, found: impl Into<String>, remedy: &'static str) -> Self {
        Self { what, found: found.into(), state, remedy }
    }

    fn good_if(good: bool, what: &'static str, found: impl Into<String>, remedy: &'static str) -> Self {
        Self::new(what, if good { State::Good } else { State::Bad }, found, remedy)
    }
}

/// Looks at the machine, prints the table and fails where a line is bad.
pub fn run(workspace: &Workspace) -> Result<()> {
    let lines = look(workspace);
    let width = lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
    println!("Is this machine fit?");
    for line in &lines {
        let mark = match line.state {
            State::Good => "ok  ",
            State::Note => "note",
            State::Bad => "NO  ",
        };
        println!("  {mark}  {:width$}  {}", line.what, line.found);
        if line.state != State::Good && !line.remedy.is_empty() {
            println!("  {:4}  {:width$}  -> {}", "", "", line.remedy);
        }
    }
    let bad: Vec<&str> = lines.iter().filter(|line| line.state == State::Bad).map(|line| line.what).collect();
    if !bad.is_empty() {
        bail!("this machine is not fit yet ({}); nothing was fetched or changed", bad.join(", "));
    }
    Ok(())
}

fn look(workspace: &Workspace) -> Vec<Line> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    vec![
        rights(&status),
        kernel(&read("/proc/sys/kernel/osrelease")),
        Line::good_if(
            Path::new("/sys/kernel/btf/vmlinux").is_file(),
            "BTF",
            if Path::new("/sys/kernel/btf/vmlinux").is_file() { "/sys/kernel/btf/vmlinux" } else { "absent" },
            "take a distribution's kernel, or build with CONFIG_DEBUG_INFO_BTF=y",
        ),
        cgroup2(&read("/proc/self/mountinfo"), &read("/proc/filesystems")),
        bpffs(&read("/proc/self/mountinfo"), &read("/proc/filesystems")),
        capabilities(&status, privilege::is_root()),
        lockdown(&read("/sys/kernel/security/lockdown")),
        user_namespace(&read("/proc/self/uid_map")),
        container(),
        disk("disk, build", &workspace.target, workspace.is_first_run()),
        disk("disk, cache", &workspace.cache, workspace.is_first_run()),
        memory(&read("/proc/meminfo")),
        tools(),
    ]
}

fn rights(status: &str) -> Line {
    if privilege::is_root() {
        return Line::new("root", State::Good, "root", "");
    }
    if field(status, "NoNewPrivs") == Some("1") {
        return Line::new(
            "root",
            State::Bad,
            "no_new_privs is set, sudo cannot work",
            "call from an ordinary login, or as root",
        );
    }
    if command::find("sudo").is_none() {
        return Line::new("root", State::Bad, "neither root nor sudo", "call as root, or install sudo");
    }
    let quiet = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let found = if quiet { "sudo" } else { "sudo, which will ask for your password" };
    Line::new(
        "root",
        if quiet { State::Good } else { State::Note },
        found,
        "only the lab runs as root, builds do not",
    )
}

fn kernel(release: &str) -> Line {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    Line::good_if(
        version >= OLDEST_KERNEL,
        "kernel",
        release.trim(),
        "6.1 or newer is needed: Debian 12's or later",
    )
}

fn mounts<'a>(mountinfo: &'a str, kind: &str) -> Vec<&'a str> {
    mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, right)| right.split(' ').next() == Some(kind))
        .filter_map(|(left, _)| left.split(' ').nth(4))
        .collect()
}

fn supports(filesystems: &str, kind: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

fn cgroup2(mountinfo: &str, filesystems: &str) -> Line {
    match mounts(mountinfo, "cgroup2").first() {
        Some(&at @ "/sys/fs/cgroup") => Line::new("cgroup2", State::Good, at, ""),
        Some(at) => Line::new("cgroup2", State::Good, format!("{at} (beside version 1)"), ""),
        None if supports(filesystems, "cgroup2") => Line::new(
            "cgroup2",
            State::Note,
            "not mounted",
            "the lab mounts it in a mount namespace of its own",
        ),
        None => Line::new(
            "cgroup2",
            State::Bad,
            "unknown to this kernel",
            "a kernel with CONFIG_CGROUP_BPF=y is needed",
        ),
    }
}

fn bpffs(mountinfo: &str, filesystems: &str) -> Line {
    match mounts(mountinfo, "bpf").first() {
        Some(at) => Line::new("bpffs", State::Good, *at, ""),
        None if supports(filesystems, "bpf") => Line::new(
            "bpffs",
            State::Good,
            "not mounted; the lab mounts its own in namespaces of its own",
            "",
        ),
        None => Line::new(
            "bpffs",
            State::Bad,
            "unknown to this kernel",
            "a kernel with CONFIG_BPF_SYSCALL=y is needed",
        ),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// For root what it has, for others what sudo can give.
fn capabilities(status: &str, root: bool) -> Line {
    const NEEDED: [(u32, &str); 6] = [
        (12, "NET_ADMIN"),
        (13, "NET_RAW"),
        (19, "SYS_PTRACE"),
        (21, "SYS_ADMIN"),
        (38, "PERFMON"),
        (39, "BPF"),
    ];
    let set = field(status, if root { "CapEff" } else { "CapBnd" });
    let set = set.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let lacking: Vec<&str> =
        NEEDED.iter().filter(|(bit, _)| set >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let found = if lacking.is_empty() {
        "all needed ones".to_owned()
    } else {
        format!("lacking: {}", lacking.join(" "))
    };
    Line::good_if(lacking.is_empty(), "capabilities", found, "in a container: start it with --privileged")
}

fn lockdown(text: &str) -> Line {
    let mode = text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("none");
    Line::good_if(
        mode != "confidentiality",
        "lockdown",
        mode,
        "BPF may not read the kernel then: boot with lockdown=integrity, or without",
    )
}

fn user_namespace(uid_map: &str) -> Line {
    let whole = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    let found = if whole { "the first" } else { "a nested one" };
    Line::good_if(
        whole,
        "user namespace",
        found,
        "BPF needs the first: no rootless container, use the machine or a virtual one",
    )
}

/// The inode that the kernel gives its first pid namespace (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

fn container() -> Line {
    let signs = ["/run/.containerenv", "/.dockerenv", "/run/systemd/container"];
    let sign = signs.into_iter().find(|sign| Path::new(sign).exists());
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    container_by(sign, &namespace.to_string_lossy())
}

fn container_by(sign: Option<&str>, namespace: &str) -> Line {
    let remedy = "works where it is privileged";
    match sign {
        Some(sign) => Line::new("container", State::Note, format!("yes ({sign})"), remedy),
        None if namespace != FIRST_PID_NAMESPACE => {
            Line::new("container", State::Note, "it seems so (a pid namespace of its own)", remedy)
        }
        None => Line::new("container", State::Good, "no sign of one", ""),
    }
}

fn disk(what: &'static str, folder: &Path, first: bool) -> Line {
    let (needed, remedy) = if first {
        (DISK, "a first run needs 6 GiB: free some, or set CARGO_TARGET_DIR and XDG_CACHE_HOME")
    } else {
        (DISK_LATER, "1 GiB is needed: free some")
    };
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(space) => {
            let free = space.f_bavail * space.f_frsize;
            let found = format!("{} free in {}", gib(free), existing.display());
            Line::good_if(free >= needed, what, found, remedy)
        }
        Err(error) => Line::new(what, State::Note, format!("{}: {error}", existing.display()), remedy),
    }
}

fn memory(meminfo: &str) -> Line {
    let available =
        field(meminfo, "MemAvailable").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    let available = available.unwrap_or(0) * 1024;
    let found = format!("{} available", gib(available));
    Line::good_if(available >= MEMORY, "memory", found, "building needs 2 GiB: end something, or add swap")
}

fn tools() -> Line {
    let missing = apt::missing(&xtask::lab::packages());
    let found = if missing.is_empty() {
        "all here".to_owned()
    } else {
        format!("to be installed: {}", missing.join(" "))
    };
    let state = match (missing.is_empty(), apt::present()) {
        (true, _) => State::Good,
        (false, true) => State::Note,
        (false, false) => State::Bad,
    };
    Line::new(
        "programs",
        state,
        found,
        if apt::present() { "" } else { "no apt here: install these by your system's means" },
    )
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn kernels_older_than_6_1_are_not_fit() {
        assert_eq!(kernel("5.10.0-30-amd64\n").state, State::Bad);
        assert_eq!(kernel("6.0.9").state, State::Bad);
        assert_eq!(kernel("6.1.0-47-cloud-amd64\n").state, State::Good);
        assert_eq!(kernel("7.2-rc1").state, State::Good);
        assert_eq!(kernel("").state, State::Bad);
    }

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        assert_eq!(cgroup2(HYBRID, "").found, "/sys/fs/cgroup/unified (beside version 1)");
        assert_eq!(cgroup2("", "nodev\tcgroup2\n").state, State::Note);
        assert_eq!(cgroup2("", "nodev\tcgroup\n").state, State::Bad);
    }

    #[test]
    fn root_is_judged_by_what_it_has_and_others_by_what_sudo_can_give() {
        let status = "CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(capabilities(status, false).state, State::Good);
        let root = capabilities(status, true);
        assert_eq!(root.state, State::Bad);
        assert!(root.found.contains("BPF"));
    }

    #[test]
    fn confidential_lockdown_and_nested_user_namespaces_are_not_fit() {
        assert_eq!(lockdown("none integrity [confidentiality]\n").state, State::Bad);
        assert_eq!(lockdown("none [integrity] confidentiality\n").state, State::Good);
        assert_eq!(lockdown("").state, State::Good);
        assert_eq!(user_namespace("         0       1000          1\n").state, State::Bad);
        assert_eq!(user_namespace("         0          0 4294967295\n").state, State::Good);
    }

    #[test]
    fn containers_are_told_by_their_files_or_their_namespace() {
        assert_eq!(container_by(None, FIRST_PID_NAMESPACE).state, State::Good);
        assert_eq!(container_by(None, "pid:[4026533111]").state, State::Note);
        assert_eq!(container_by(Some("/.dockerenv"), FIRST_PID_NAMESPACE).state, State::Note);
    }

    #[test]
    fn little_memory_is_not_fit() {
        assert_eq!(memory("MemTotal: 4000000 kB\nMemAvailable:     900000 kB\n").state, State::Bad);
        assert_eq!(memory("MemAvailable:    3000000 kB\n").state, State::Good);
        assert_eq!(memory("").state, State::Bad);
    }
}
