//! Heddle in the cluster, from the manifests of this tree.

use super::images::Images;
use super::programs::Programs;
use super::state::State;
use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xtask::lab::{POD_NETWORKS, SERVICE_NETWORKS, eventually};

/// What is another here than in a cluster of machines. Each must be in the manifests.
fn changes() -> [(&'static str, String); 4] {
    [
        ("podNetworks: [10.244.0.0/16]", format!("podNetworks: [{}]", POD_NETWORKS[0])),
        ("serviceNetworks: [10.96.0.0/12]", format!("serviceNetworks: [{}]", SERVICE_NETWORKS[0])),
        // Two nodes share a kernel and so a hierarchy: each attaches to its own part of it.
        ("hostPath: {path: /sys/fs/cgroup,", "hostPath: {path: /run/heddle-cgroup,".to_owned()),
        (
            "kubeletCgroup: /sys/fs/cgroup/system.slice/kubelet.service",
            "kubeletCgroup: /sys/fs/cgroup/kubelet".to_owned(),
        ),
    ]
}

fn manifests(workspace: &Workspace) -> Result<String> {
    let path = workspace.root.join("deploy/kubernetes/heddle.yaml");
    let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for (from, to) in changes() {
        ensure!(text.contains(from), "{} does not say {from:?}", path.display());
        text = text.replace(from, &to);
    }
    Ok(text)
}

/// Makes keys, and puts CRDs, keys and manifests into the cluster. Returns when authority and agents are ready.
pub fn install(workspace: &Workspace, state: &State, programs: &Programs) -> Result<()> {
    let images = Images::of(workspace);
    images.load(state, programs)?;
    let heddle = images.heddle();
    let keys = state.folder.join("keys");
    let (root, issuer) = (keys.join("root"), keys.join("issuer"));
    let crds = workspace.root.join("deploy/crds");
    state.check(programs, &["apply", "--server-side", "--recursive", "--filename", &shown(&crds)])?;
    // What these look at must be known before.
    state.check(programs, &["wait", "--for=condition=Established", "--timeout=25s", "crd", "--all"])?;
    let admission = workspace.root.join("deploy/admission");
    state.check(programs, &["apply", "--server-side", "--filename", &shown(&admission)])?;
    let file = state.folder.join("heddle.yaml");
    fs::write(&file, manifests(workspace)?)?;
    if !keys.exists() {
        command::output(Command::new(&heddle).args(["ca", "init", "--directory"]).arg(&root))?;
        command::output(
            Command::new(&heddle).args(["ca", "issuer", "--root"]).arg(&root).arg("--directory").arg(&issuer),
        )?;
        state.check(programs, &["create", "namespace", "heddle-system"])?;
        let files =
            ["tls.crt", "tls.key", "ca.crt"].map(|name| format!("--from-file={}", shown(&issuer.join(name))));
        let [certificate, key, anchors] = &files;
        let system = "--namespace=heddle-system";
        state.check(
            programs,
            &[
                "create",
                system,
                "secret",
                "generic",
                "heddle-issuer",
                "--type=kubernetes.io/tls",
                certificate,
                key,
                anchors,
            ],
        )?;
        state.check(programs, &["create", system, "configmap", "heddle-trust-roots", anchors])?;
    }
    let before = state
        .kubectl_output(programs, &["get", "--namespace=heddle-system", "daemonset", "heddle"])?
        .succeeded();
    state.check(programs, &["apply", "--server-side", "--filename", &shown(&file)])?;
    for what in ["deployment/heddle-ca", "daemonset/heddle"] {
        // The image's name is the same as before.
        if before {
            state.check(programs, &["rollout", "restart", "--namespace=heddle-system", what])?;
        }
        let words = ["rollout", "status", "--namespace=heddle-system", "--timeout=20s", what];
        eventually(&format!("{what} to be ready"), Duration::from_secs(180), || {
            Ok(state.kubectl_output(programs, &words)?.succeeded())
        })?;
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
