//! Which kernel modules go into the machine, and in which order they are loaded.

use crate::command;
use anyhow::{Context, Result};
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the lab, the agent and the privileged tests use. What a kernel has built in needs no file.
const WANTED: [&str; 29] = [
    "virtio_pci",
    "virtio_net",
    "veth",
    "bridge",
    "dummy",
    "macvlan",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "af_packet_diag",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "tls",
    "nf_conntrack",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_tproxy",
    "nft_socket",
    "nft_limit",
    "nft_log",
    "nft_reject",
    "nft_reject_inet",
];

/// The files of the wanted modules and of those they need, in loading order.
pub fn in_order(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    collect(&folder.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

/// A module's content without compression.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let mut command = Command::new("xz");
        let output = command.arg("-dc").arg(file).output().context("cannot run xz")?;
        if !output.status.success() {
            anyhow::bail!("`{}` failed", command::shown(&command));
        }
        return Ok(output.stdout);
    }
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A module's name from its file's: without `.ko` or `.ko.xz`, and with underscores, as the kernel compares them.
pub fn name_of(file: &Path) -> Option<String> {
    let (stem, rest) = file.file_name()?.to_str()?.split_once(".ko")?;
    matches!(rest, "" | ".xz").then(|| stem.replace('-', "_"))
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    // No file: built in, or unknown to this kernel, which whoever needs it then says.
    let Some(file) = files.get(name) else { return Ok(()) };
    if order.contains(file) {
        return Ok(());
    }
    for needed in needs(&read(file)?).with_context(|| format!("{} is no module", file.display()))? {
        add(&needed, files, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// What a module's `.modinfo` says that it depends on, softly or not.
fn needs(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("no section .modinfo")?;
    Ok(named(section.data()?))
}

fn named(modinfo: &[u8]) -> Vec<String> {
    let entries = modinfo.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    let depends = entries.filter_map(|entry| entry.strip_prefix("depends="));
    depends
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{name_of, named};
    use std::path::Path;

    #[test]
    fn names_are_told_from_files() {
        assert_eq!(name_of(Path::new("/k/nf-tables.ko.xz")).as_deref(), Some("nf_tables"));
        assert_eq!(name_of(Path::new("/k/veth.ko")).as_deref(), Some("veth"));
        assert_eq!(name_of(Path::new("/k/modules.dep")), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(named(b"license=GPL\0depends=nf_tables,nf-nat\0name=x\0"), ["nf_tables", "nf_nat"]);
        assert!(named(b"depends=\0name=veth\0").is_empty());
    }
}
