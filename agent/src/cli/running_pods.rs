//! Where the pods of this node run, as the kernel has it: by the cgroups of their processes.
//!
//! A name proves nothing, and neither does an address; whose a process is, says the cgroup that the kubelet put it in,
//! whose outermost pod directory no container can leave. What is read is read of one process: its folder in /proc is held
//! open, so that a process that ends meanwhile is no other. The namespace is then known by the file that the container
//! runtime has mounted it on, which is there for as long as the sandbox is; whoever captures it compares its addresses with the pod's.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd, linux::fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{cgroup::only_pod_uid, mountinfo::network_namespaces};

/// A namespace's device and inode.
type Id = (u64, u64);

fn id(path: &Path) -> Option<Id> {
    fs::metadata(path).ok().map(|it| (it.st_dev(), it.st_ino()))
}

/// The network namespaces of these pods' processes, by the pods' UIDs. A pod without any process is not among them.
///
/// # Errors
/// When `/proc` cannot be read. A process that ends meanwhile is none.
pub(super) fn find(uids: &HashSet<String>) -> io::Result<HashMap<String, Vec<PathBuf>>> {
    let mut found: HashMap<String, HashSet<Id>> = HashMap::new();
    let own = id(Path::new("/proc/self/ns/net"));
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(folder) = File::open(process.path()) else { continue };
        let held = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let Ok(cgroups) = fs::read_to_string(held.join("cgroup")) else { continue };
        let Some(uid) = only_pod_uid(&cgroups).filter(|uid| uids.contains(uid)) else { continue };
        let of = found.entry(uid).or_default();
        of.extend(id(&held.join("ns/net")).filter(|it| Some(*it) != own));
    }
    let mut named: HashMap<Id, PathBuf> = HashMap::new();
    for file in network_namespaces()? {
        if let Some(id) = id(&file) {
            named.insert(id, file);
        }
    }
    let by_uid = found
        .into_iter()
        .map(|(uid, ids)| (uid, ids.iter().filter_map(|id| named.get(id).cloned()).collect()));
    Ok(by_uid.collect())
}
