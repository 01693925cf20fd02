//! The cluster's names: CoreDNS behind Service `kube-system/kube-dns`.

use super::control_plane::DNS;
use super::images::COREDNS;
use super::programs::Programs;
use super::state::State;
use anyhow::Result;
use serde_json::json;
use std::fs;
use std::time::Duration;
use xtask::lab::eventually;

const COREFILE: &str = ".:5353 {
    errors
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods disabled
        ttl 5
    }
    cache 5
}
";

/// Puts it there, and returns when it answers.
pub fn install(state: &State, programs: &Programs) -> Result<()> {
    let named = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let labels = json!({"k8s-app": "kube-dns"});
    let subject = json!({"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"});
    let ports = |of: &str| -> Vec<_> {
        ["UDP", "TCP"]
            .map(|it| {
                let name = format!("dns-{}", it.to_lowercase());
                match of {
                    "Service" => json!({"name": name, "protocol": it, "port": 53, "targetPort": 5353}),
                    _ => json!({"name": name, "protocol": it, "containerPort": 5353}),
                }
            })
            .to_vec()
    };
    let all = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named("coredns")},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": [
            {"apiGroups": [""], "resources": ["namespaces", "services", "pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "coredns"},
            "roleRef": role, "subjects": [subject]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named("coredns"), "data": {"Corefile": COREFILE}},
        {"apiVersion": "v1", "kind": "Service", "metadata": named("kube-dns"),
            "spec": {"selector": labels, "clusterIP": DNS, "ipFamilyPolicy": "PreferDualStack", "ports": ports("Service")}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": named("coredns"), "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "coredns", "dnsPolicy": "Default", "priorityClassName": "system-cluster-critical",
                "containers": [{
                    "name": "coredns", "image": COREDNS, "imagePullPolicy": "Never", "args": ["-conf", "/etc/coredns/Corefile"],
                    "ports": ports("Pod"),
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                    "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
                }],
                "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
            }},
        }},
    ]});
    let file = state.folder.join("coredns.json");
    fs::write(&file, all.to_string())?;
    state.check(programs, &["apply", "--server-side", "--filename", &file.display().to_string()])?;
    let words = ["rollout", "status", "--namespace=kube-system", "--timeout=20s", "deployment/coredns"];
    eventually("CoreDNS to be ready", Duration::from_secs(120), || {
        Ok(state.kubectl_output(programs, &words)?.succeeded())
    })
}
