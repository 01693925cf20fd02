//! The programs that labs, the demo, the bench and the tests run, and the Debian package of each.

use std::path::PathBuf;

const PACKAGES: [(&str, &str); 15] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("socat", "socat"),
    ("ncat", "ncat"),
    ("openssl", "openssl"),
    ("bpftool", "bpftool"),
    ("ping", "iputils-ping"),
    (NGINX.0, NGINX.1),
];
/// Never installed: Debian's package starts a server on the machine.
const NGINX: (&str, &str) = ("nginx", "nginx-light");

/// The Debian packages to install, each once.
pub fn packages() -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        PACKAGES.iter().filter(|entry| **entry != NGINX).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Which of these tools are not installed, each with its Debian package.
pub fn missing_tools<'a>(tools: &[&'a str]) -> Vec<(&'a str, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // A user's PATH that went through sudo may lack these.
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    tools
        .iter()
        .filter(|tool| !folders.iter().any(|folder| folder.join(tool).exists()))
        .map(|&tool| {
            (tool, PACKAGES.iter().find(|(name, _)| *name == tool).map_or("unknown", |(_, package)| package))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{missing_tools, packages};

    #[test]
    fn each_package_is_installed_once_and_a_server_never() {
        let packages = packages();
        let once: std::collections::BTreeSet<_> = packages.iter().collect();
        assert_eq!(once.len(), packages.len(), "{packages:?}");
        assert!(packages.contains(&"iproute2") && !packages.iter().any(|name| name.starts_with("nginx")));
    }

    #[test]
    fn what_is_missing_is_told_with_its_package() {
        assert_eq!(missing_tools(&["sh"]), []);
        assert_eq!(missing_tools(&["no-such-tool"]), [("no-such-tool", "unknown")]);
    }
}
