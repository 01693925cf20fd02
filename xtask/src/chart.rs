//! Heddle's Helm chart, and the plain manifests that are made from it.

use anyhow::{Context, Result, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The helm that the manifests of the tree are rendered with: another may write them otherwise.
pub const VERSION: &str = "v3.18.6";

/// Where helm is, of the folder of Kubernetes' programs in the cache.
pub fn helm(kubernetes: &Path) -> PathBuf {
    kubernetes.join(format!("helm-{VERSION}")).join("helm")
}

/// helm, where `cargo xtask cluster` has put it. None, and that is told, where it has not.
pub fn installed() -> Option<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    let helm = helm(&cache.join("heddle/kubernetes"));
    if !helm.exists() {
        eprintln!("not applicable: there is no {}; `cargo xtask cluster up` builds it", helm.display());
        return None;
    }
    Some(helm)
}

/// The chart of a tree.
pub fn folder(root: &Path) -> PathBuf {
    root.join("deploy/helm/heddle")
}

/// Runs helm and returns what it printed.
///
/// # Errors
/// With what it said.
pub fn run(helm: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(helm)
        .args(words)
        // Nothing of a person's own: no plugins, no repositories, no cluster.
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .with_context(|| format!("cannot run {}", helm.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "helm {}: {}{}",
        words.join(" "),
        said,
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The chart's manifests, in namespace `heddle-system`, which is among them.
///
/// # Errors
/// The chart or the values are not sound; helm says why.
pub fn render(helm: &Path, root: &Path, more: &[&str]) -> Result<String> {
    render_in(helm, root, "heddle-system", more)
}

/// The same in another namespace.
///
/// # Errors
/// As [`render`].
pub fn render_in(helm: &Path, root: &Path, namespace: &str, more: &[&str]) -> Result<String> {
    let chart = folder(root).display().to_string();
    let mut words = vec!["template", "heddle", &chart, "--namespace", namespace];
    // A helm that asks no cluster takes its own word for the version.
    words.extend(["--kube-version", "1.34.0", "--set", "createNamespace=true"]);
    words.extend(more);
    run(helm, &words)
}
