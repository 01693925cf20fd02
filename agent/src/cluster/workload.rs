//! Which workload a pod belongs to: what keeps its name when its pods are replaced.

use std::collections::BTreeMap;

/// The name of the Deployment, StatefulSet, DaemonSet or Job that made a pod, told from the pod's name by the labels that
/// Kubernetes' controllers put on it; the pod's own name where there are none.
pub fn workload_name<'a>(pod: &'a str, labels: &BTreeMap<String, String>) -> &'a str {
    if let Some(hash) = labels.get("pod-template-hash")
        && let Some((rest, _)) = pod.rsplit_once('-')
        && let Some(name) = rest.strip_suffix(hash.as_str()).and_then(|rest| rest.strip_suffix('-'))
    {
        return name;
    }
    let numbered = labels.contains_key("apps.kubernetes.io/pod-index")
        || labels.contains_key("statefulset.kubernetes.io/pod-name");
    let generated = labels.contains_key("controller-revision-hash") || labels.contains_key("job-name");
    match pod.rsplit_once('-') {
        Some((name, last))
            if !name.is_empty()
                && (numbered && last.bytes().all(|b| b.is_ascii_digit())
                    || generated && last.len() == 5 && last.bytes().all(|b| b.is_ascii_alphanumeric())) =>
        {
            name
        }
        _ => pod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_of_the_workload_whose_labels_it_bears() {
        let name = |pod, labels: &[(&str, &str)]| {
            workload_name(pod, &labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()).to_owned()
        };
        assert_eq!(name("web-7d9f-x2x4z", &[("pod-template-hash", "7d9f")]), "web");
        assert_eq!(name("web-1-7d9f-x2x4z", &[("pod-template-hash", "7d9f")]), "web-1");
        assert_eq!(name("web-7d9f-x2x4z", &[("pod-template-hash", "other")]), "web-7d9f-x2x4z");
        assert_eq!(name("db-0", &[("apps.kubernetes.io/pod-index", "0")]), "db");
        assert_eq!(name("log-x2x4z", &[("controller-revision-hash", "a")]), "log");
        assert_eq!(name("once-x2x4z", &[("job-name", "once")]), "once");
        assert_eq!(name("db-0", &[]), "db-0", "nothing says that it is numbered");
        assert_eq!(name("web", &[("pod-template-hash", "7d9f")]), "web");
    }
}
