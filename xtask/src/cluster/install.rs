//! Heddle in the cluster, by the chart of this tree.

use super::dns;
use super::images::Images;
use super::network::PodNetwork;
use super::programs::Programs;
use super::state::State;
use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xtask::chart;
use xtask::lab::eventually;

/// What is another here than in a cluster of machines.
fn values(network: PodNetwork) -> Value {
    json!({
        "image": { "pullPolicy": "Never" },
        "agent": {
            // Two nodes share a kernel and so a hierarchy: each attaches to its own part of it.
            "hostCgroup": "/run/heddle-cgroup",
            "config": {
                "podNetworks": network.pod_networks(),
                "serviceNetworks": network.service_networks(),
                "kubeletCgroup": "/sys/fs/cgroup/kubelet",
            },
        },
    })
}

fn manifests(workspace: &Workspace, state: &State, programs: &Programs) -> Result<String> {
    // JSON is YAML.
    let file = state.folder.join("values.yaml");
    fs::write(&file, values(state.network).to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    chart::render(programs.helm(), &workspace.root, &["--values", &shown(&file)])
}

/// Makes keys, and puts CRDs, keys and manifests into the cluster. Returns when authority and agents are ready.
pub fn install(workspace: &Workspace, state: &State, programs: &Programs) -> Result<()> {
    let images = Images::of(workspace);
    images.load(state, programs)?;
    let gateway = shown(programs.gateway_api());
    state.check(programs, &["apply", "--server-side", "--filename", &gateway])?;
    dns::install(state, programs)?;
    let heddle = images.heddle();
    let keys = state.folder.join("keys");
    let (root, issuer) = (keys.join("root"), keys.join("issuer"));
    let crds = workspace.root.join("deploy/crds");
    state.check(
        programs,
        &["apply", "--server-side", "--force-conflicts", "--recursive", "--filename", &shown(&crds)],
    )?;
    // What these look at must be known before.
    state.check(programs, &["wait", "--for=condition=Established", "--timeout=25s", "crd", "--all"])?;
    let admission = workspace.root.join("deploy/admission");
    state.check(
        programs,
        &["apply", "--server-side", "--force-conflicts", "--filename", &shown(&admission)],
    )?;
    let file = state.folder.join("heddle.yaml");
    fs::write(&file, manifests(workspace, state, programs)?)?;
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
    // What `heddle install` put there is taken back.
    state.check(programs, &["apply", "--server-side", "--force-conflicts", "--filename", &shown(&file)])?;
    for what in ["deployment/heddle-ca", "deployment/heddle-controller", "daemonset/heddle"] {
        // The image's name is the same as before.
        if before {
            restart(state, programs, what)?;
        } else {
            wait(state, programs, what)?;
        }
    }
    Ok(())
}

/// Starts the pods of a workload of Heddle's anew. Returns when they are ready.
pub fn restart(state: &State, programs: &Programs, what: &str) -> Result<()> {
    state.check(programs, &["rollout", "restart", "--namespace=heddle-system", what])?;
    wait(state, programs, what)
}

fn wait(state: &State, programs: &Programs, what: &str) -> Result<()> {
    let words = ["rollout", "status", "--namespace=heddle-system", "--timeout=20s", what];
    eventually(&format!("{what} to be ready"), Duration::from_secs(180), || {
        Ok(state.kubectl_output(programs, &words)?.succeeded())
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
