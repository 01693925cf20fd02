//! What cannot be held, pod by pod.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, SecurityContext};

/// Whoever has one of these owns the node.
const OWNING: [&str; 5] = ["ALL", "SYS_ADMIN", "BPF", "SYS_PTRACE", "SYS_MODULE"];
/// Whoever has one of these can show itself bytes that were not judged.
const BLINDING: [&str; 2] = ["NET_ADMIN", "NET_RAW"];
/// Folders of the host by which a pod gets at the mesh, the runtime or other pods. Those of `required-pods.heddle.io`.
const PLACES: [&str; 11] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/etc/cni",
    "/opt/cni",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/containers",
];

/// What a pod is or has by which it cannot be held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NotHeld {
    /// It owns its node, and with it the mesh there.
    pub owns: Vec<String>,
    /// It can show itself what was not judged, has no identity, or cannot be seen. Matters for a pod of the mesh.
    pub escapes: Vec<String>,
}

/// What cannot be held of a pod.
pub(super) fn not_held(pod: &Pod) -> NotHeld {
    let mut found = NotHeld::default();
    let Some(spec) = &pod.spec else { return found };
    if spec.host_pid == Some(true) {
        found.owns.push("shares the host's pid namespace".to_owned());
    }
    if spec.host_ipc == Some(true) {
        found.owns.push("shares the host's ipc namespace".to_owned());
    }
    for (name, context) in contexts(spec) {
        if context.privileged == Some(true) {
            found.owns.push(format!("container {name} is privileged"));
        }
        let added = context.capabilities.iter().filter_map(|it| it.add.as_ref()).flatten();
        for capability in added {
            let plain = capability.to_uppercase();
            let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
            if OWNING.contains(&plain) {
                found.owns.push(format!("container {name} has CAP_{plain}"));
            } else if BLINDING.contains(&plain) {
                found.escapes.push(format!("container {name} has CAP_{plain}"));
            }
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(host) = volume.host_path.as_ref().filter(|it| gives_away(&it.path)) {
            found.owns.push(format!("mounts the host's {}", host.path));
        }
    }
    if spec.host_network == Some(true) {
        found.escapes.push("is on the host's network: no identity, judged by the node's address".to_owned());
    }
    if let Some(class) = spec.runtime_class_name.as_ref().filter(|it| invisible(it)) {
        found.escapes.push(format!("runs in runtime class {class}: its sockets are invisible to the node"));
    }
    found
}

fn contexts(spec: &PodSpec) -> impl Iterator<Item = (&str, &SecurityContext)> {
    fn of(it: &Container) -> (&str, Option<&SecurityContext>) {
        (&it.name, it.security_context.as_ref())
    }
    fn of_ephemeral(it: &EphemeralContainer) -> (&str, Option<&SecurityContext>) {
        (&it.name, it.security_context.as_ref())
    }
    let usual = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(of);
    let all = usual.chain(spec.ephemeral_containers.iter().flatten().map(of_ephemeral));
    all.filter_map(|(name, context)| Some((name, context?)))
}

fn gives_away(path: &str) -> bool {
    // `//sys` and `/sys/` are /sys.
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    PLACES.iter().any(|place| {
        let place: Vec<&str> = place.split('/').filter(|it| !it.is_empty()).collect();
        place.starts_with(&parts) || parts.starts_with(&place)
    })
}

fn invisible(class: &str) -> bool {
    ["kata", "gvisor", "runsc"].iter().any(|it| class.starts_with(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: serde_json::Value) -> NotHeld {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([]);
        }
        not_held(&serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    #[test]
    fn whoever_owns_the_node_is_named_with_what_it_has() {
        let with = |context| json!({"containers": [{"name": "c", "securityContext": context}]});
        for (spec, said) in [
            (json!({"hostPID": true}), "pid namespace"),
            (json!({"hostIPC": true}), "ipc namespace"),
            (with(json!({"privileged": true})), "privileged"),
            (with(json!({"capabilities": {"add": ["SYS_ADMIN"]}})), "CAP_SYS_ADMIN"),
            (with(json!({"capabilities": {"add": ["CAP_BPF"]}})), "CAP_BPF"),
            (
                json!({"initContainers": [{"name": "i", "securityContext": {"capabilities": {"add": ["all"]}}}]}),
                "CAP_ALL",
            ),
            (
                json!({"ephemeralContainers": [{"name": "e", "securityContext": {"privileged": true}}]}),
                "container e",
            ),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "host's /"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "//sys/fs"}}]}), "//sys/fs"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/var"}}]}), "/var"),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/run/containerd/containerd.sock"}}]}),
                "containerd",
            ),
        ] {
            let found = of(spec.clone());
            assert!(found.owns.iter().any(|it| it.contains(said)), "{spec}: {found:?}");
        }
        for (spec, said) in [
            (json!({"hostNetwork": true}), "host's network"),
            (json!({"runtimeClassName": "kata-qemu"}), "kata-qemu"),
            (with(json!({"capabilities": {"add": ["NET_RAW"]}})), "CAP_NET_RAW"),
        ] {
            let found = of(spec.clone());
            assert!(found.owns.is_empty() && found.escapes.iter().any(|it| it.contains(said)), "{found:?}");
        }
        let usual = json!({
            "containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "hostPath": {"path": "/srv/data"}}, {"name": "w", "hostPath": {"path": "/var/log"}}],
        });
        assert_eq!(of(usual), NotHeld::default(), "control");
    }
}
