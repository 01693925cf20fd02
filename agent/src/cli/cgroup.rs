//! Whose a process is, by its cgroups.

/// The UIDs of the pods that `/proc/<pid>/cgroup` names, one for each hierarchy that names any.
pub(super) fn pod_uids(cgroups: &str) -> impl Iterator<Item = String> {
    cgroups.lines().filter_map(|line| pod_uid(line.splitn(3, ':').nth(2)?))
}

/// The one pod that it names; `None`: it names none, or several.
pub(super) fn only_pod_uid(cgroups: &str) -> Option<String> {
    let mut uids = pod_uids(cgroups);
    let first = uids.next()?;
    uids.all(|uid| uid == first).then_some(first)
}

/// The UID in the outermost of a path's directories that is a pod's, as the kubelet names them: `pod<UID>`, or
/// `…-pod<UID>.slice` with `_` for `-`. What a container makes below its own is not looked at.
fn pod_uid(path: &str) -> Option<String> {
    path.split('/').find_map(|directory| {
        let uid = match directory.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => directory.strip_prefix("pod")?.to_owned(),
        };
        let is_uid = uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        is_uid.then_some(uid)
    })
}
