//! etcd, the API server, the controllers and the scheduler, in the lab's router: every node reaches them as its gateway.

use super::certificates::Authority;
use super::daemon::{Daemon, until_ready};
use super::network::PodNetwork;
use super::programs::Programs;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use xtask::lab::Place;

/// The router's address on the first node's link.
pub const ADDRESS: &str = "10.79.1.1";
/// Where the API server is, for everybody in the cluster.
pub const SERVER: &str = "https://10.79.1.1:6443";
/// The cluster's DNS Service.
pub const DNS: &str = "10.78.0.10";

/// What [`start_api`] starts.
pub const ETCD: &str = "etcd";
/// What [`start_api`] starts.
pub const API: &str = "kube-apiserver";

/// Starts etcd and the API server, and waits until it is ready.
pub fn start_api(
    place: &Place,
    programs: &Programs,
    authority: &Authority,
    folder: &Path,
    network: PodNetwork,
) -> Result<BTreeMap<String, Daemon>> {
    let logs = folder.join("log");
    std::fs::create_dir_all(&logs)?;
    let data = folder.join("etcd").display().to_string();
    let etcd = Daemon::start(
        place,
        programs,
        &logs.join("etcd.log"),
        &[
            &programs.etcd(),
            "--data-dir",
            &data,
            "--unsafe-no-fsync",
            "--listen-client-urls",
            "http://127.0.0.1:2379",
            "--advertise-client-urls",
            "http://127.0.0.1:2379",
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        ],
    )?;
    authority.server(
        "apiserver",
        &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "127.0.0.1",
            ADDRESS,
            "10.78.0.1",
        ],
    )?;
    authority.user("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), SERVER)?;
    let networks = format!("--service-cluster-ip-range={}", network.service_networks().join(","));
    let file = |flag: &str, name: &str| format!("--{flag}={}", authority.path(name));
    let api = Daemon::start(
        place,
        programs,
        &logs.join("kube-apiserver.log"),
        &[
            &programs.kubernetes("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--advertise-address={ADDRESS}"),
            "--secure-port=6443",
            &networks,
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            &file("client-ca-file", "ca.crt"),
            &file("tls-cert-file", "apiserver.crt"),
            &file("tls-private-key-file", "apiserver.key"),
            &file("kubelet-certificate-authority", "ca.crt"),
            &file("kubelet-client-certificate", "kubelet-client.crt"),
            &file("kubelet-client-key", "kubelet-client.key"),
            &file("service-account-key-file", "accounts.pub"),
            &file("service-account-signing-key-file", "accounts.key"),
        ],
    )?;
    let admin = authority.user("admin", "heddle-admin", Some("system:masters"), SERVER)?;
    until_ready("the API server", Duration::from_secs(60), &logs, || {
        let ready =
            place.run(&[&programs.kubernetes("kubectl"), "--kubeconfig", &admin, "get", "--raw", "/readyz"]);
        Ok(ready?.succeeded())
    })?;
    Ok([(ETCD.to_owned(), etcd), (API.to_owned(), api)].into())
}

/// Starts the controllers and the scheduler.
pub fn start_controllers(
    place: &Place,
    programs: &Programs,
    authority: &Authority,
    folder: &Path,
) -> Result<()> {
    let logs = folder.join("log");
    let controllers = authority.user("controllers", "system:kube-controller-manager", None, SERVER)?;
    Daemon::start(
        place,
        programs,
        &logs.join("kube-controller-manager.log"),
        &[
            &programs.kubernetes("kube-controller-manager"),
            &format!("--kubeconfig={controllers}"),
            "--leader-elect=false",
            "--use-service-account-credentials",
            &format!("--root-ca-file={}", authority.path("ca.crt")),
            &format!("--service-account-private-key-file={}", authority.path("accounts.key")),
            // Pods of a node that is gone are replaced while one waits.
            "--node-monitor-grace-period=20s",
        ],
    )?;
    let scheduler = authority.user("scheduler", "system:kube-scheduler", None, SERVER)?;
    Daemon::start(
        place,
        programs,
        &logs.join("kube-scheduler.log"),
        &[
            &programs.kubernetes("kube-scheduler"),
            &format!("--kubeconfig={scheduler}"),
            "--leader-elect=false",
        ],
    )
    .map(drop)
}
