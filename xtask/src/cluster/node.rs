//! A node's own programs: containerd, kubelet and kube-proxy, in a node of the lab.

use super::certificates::Authority;
use super::control_plane::{DNS, SERVER};
use super::daemon::{Daemon, until_ready};
use super::hierarchies;
use super::network::PodNetwork;
use super::programs::Programs;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use xtask::lab::{Lab, Node};

const FOLDERS: &str = include_str!("node.sh");
/// The image of the process that holds a pod's namespaces.
pub const PAUSE: &str = "heddle.local/pause:1";

/// A node's programs, in the order in which they are started.
pub const PARTS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// Starts what makes a node of the lab one of the cluster. Gives [`PARTS`], by their names.
pub fn start(
    lab: &Lab,
    node: &Node,
    programs: &Programs,
    authority: &Authority,
    network: PodNetwork,
) -> Result<BTreeMap<String, Daemon>> {
    let own = node.directory();
    let words = [
        lab.directory().display().to_string(),
        own.display().to_string(),
        programs.plugins().display().to_string(),
        node.cgroup().path_in_node().display().to_string(),
    ];
    let mut script = vec!["sh", "-c", FOLDERS, "node"];
    script.extend(words.iter().map(String::as_str));
    node.host().check(&script)?;
    let cgroups = format!("{}/{}", lab.id(), node.name);
    hierarchies::make(&cgroups)?;

    fs::write(
        own.join("fs/etc/cni/net.d/10-pods.conflist"),
        serde_json::to_string_pretty(&network.configuration(node))?,
    )?;

    let logs = own.join("log");
    fs::create_dir_all(&logs)?;
    let containerd = own.join("containerd.toml");
    fs::write(&containerd, containerd_config(own, programs))?;
    let config = containerd.display().to_string();
    let runtime = Daemon::start(
        node.host(),
        programs,
        &logs.join("containerd.log"),
        &[&programs.containerd(), "--config", &config, "--log-level", "info"],
    )?;
    until_ready("containerd", Duration::from_secs(30), &logs, || {
        Ok(node.host().run(&[&programs.ctr(), "version"])?.succeeded())
    })?;

    let addresses = network.node_addresses(node);
    let names: Vec<&str> = [&node.name].into_iter().chain(&addresses).map(String::as_str).collect();
    authority.server(&node.name, &names)?;
    let kubelet = authority.user(
        &format!("kubelet-{}", node.name),
        &format!("system:node:{}", node.name),
        Some("system:nodes"),
        SERVER,
    )?;
    let config = own.join("kubelet.json");
    fs::write(&config, serde_json::to_string_pretty(&kubelet_config(&node.name, &cgroups, authority))?)?;
    let kubelet = Daemon::start(
        &node.kubelet()?,
        programs,
        &logs.join("kubelet.log"),
        &[
            &programs.kubernetes("kubelet"),
            &format!("--config={}", config.display()),
            &format!("--kubeconfig={kubelet}"),
            &format!("--hostname-override={}", node.name),
            &format!("--node-ip={}", addresses.join(",")),
        ],
    )?;

    let proxy = authority.user("kube-proxy", "system:kube-proxy", None, SERVER)?;
    let config = own.join("kube-proxy.json");
    let settings = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": proxy },
        "hostnameOverride": node.name,
        "clusterCIDR": network.pod_networks().join(","),
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "oomScoreAdj": 0,
    });
    fs::write(&config, serde_json::to_string_pretty(&settings)?)?;
    let proxy = Daemon::start(
        node.host(),
        programs,
        &logs.join("kube-proxy.log"),
        &[&programs.kubernetes("kube-proxy"), &format!("--config={}", config.display())],
    )?;
    let all = PARTS.iter().zip([runtime, kubelet, proxy]);
    Ok(all.map(|(part, daemon)| (format!("{}/{part}", node.name), daemon)).collect())
}

fn containerd_config(own: &Path, programs: &Programs) -> String {
    // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE runc would die of what the kubelet asks for.
    format!(
        r#"version = 2
root = "{0}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{1}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#,
        own.display(),
        programs.runc(),
    )
}

fn kubelet_config(node: &str, cgroups: &str, authority: &Authority) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": authority.path("ca.crt") } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": authority.path(&format!("{node}.crt")),
        "tlsPrivateKeyFile": authority.path(&format!("{node}.key")),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroups}"),
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "resolvConf": "/dev/null",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%" },
        // What was imported cannot be pulled again, however full the machine's disk is.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // What is small here and there is much of: a pod's changes are seen at once.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "registerNode": true,
    })
}
