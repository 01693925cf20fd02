//! What runs where, as the authority itself sees it: never as an agent says.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use futures_util::StreamExt;
use heddle_policy::{Index, resources::Resource};
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, reflector, watcher},
};
use miette::miette;

use crate::{
    cli::Failure,
    cluster::{
        folder::{Folder, Following, Limits, Pace, follow},
        manifests::{self, Manifest},
    },
};

/// How long the last state is believed while the API server cannot be watched.
const BELIEVED: Duration = Duration::from_secs(30);

/// A pod's place and account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    node: String,
    namespace: String,
    account: String,
}

/// What is known cannot be told now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(String);

/// Knows which accounts have pods on which nodes.
pub trait Scheduled: Send + Sync {
    /// Whether a pod of this account that has not ended is scheduled on this node, with a network of its own.
    ///
    /// # Errors
    /// What runs is not known, or not known any more.
    fn runs(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Unknown>;
}

/// The pods of a folder of manifests.
pub struct FolderPods {
    pods: Arc<ArcSwapOption<HashSet<Running>>>,
    _following: Following,
}

impl FolderPods {
    /// Reads the folder and follows it.
    ///
    /// # Errors
    /// A folder that is missing or not safe.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let folder = Folder::open(path, Limits::default(), manifests::parse).map_err(|fault| {
            let path = path.display().to_string();
            miette!(help = fault.remedy(&path), "the manifests folder {path} is not taken: {fault}")
        })?;
        let pods = Arc::new(ArcSwapOption::from_pointee(running(&folder)));
        let kept = Arc::clone(&pods);
        let following = follow(folder, Pace::default(), move |folder, brought| {
            if brought.content {
                kept.store(Some(Arc::new(running(folder))));
            }
            // What runs where changes with the folder alone.
            None
        })
        .map_err(|error| miette!("cannot follow the manifests: {error}"))?;
        Ok(Self { pods, _following: following })
    }
}

/// Written in two places, the first is in force, as for the agents.
fn running(folder: &Folder<Manifest>) -> HashSet<Running> {
    let index = Index::of(folder.contents().map(|(_, manifest)| manifest.parsed.clone()));
    let pods = index.resources().filter_map(|resource| match resource {
        Resource::Pod(pod) if !pod.finished && !pod.host_network && !pod.node.is_empty() => Some(Running {
            node: pod.node.clone(),
            namespace: pod.meta.namespace.clone(),
            account: pod.service_account.clone(),
        }),
        _ => None,
    });
    pods.collect()
}

impl Scheduled for FolderPods {
    fn runs(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Unknown> {
        let pods = self.pods.load();
        let pods = pods.as_ref().ok_or_else(|| Unknown("the manifests were not read yet".to_owned()))?;
        Ok(pods.contains(&Running {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            account: account.to_owned(),
        }))
    }
}

/// The pods of a cluster, watched.
pub struct ClusterPods {
    pods: reflector::Store<core::Pod>,
    complete: Arc<AtomicBool>,
    /// Since when the API server cannot be watched.
    broken: Arc<Mutex<Option<Instant>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ClusterPods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ClusterPods {
    /// Begins to watch every pod.
    pub fn watch(client: Client) -> Self {
        let (pods, writer) = reflector::store();
        let (complete, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (listed, since) = (Arc::clone(&complete), Arc::clone(&broken));
        let events = watcher(Api::<core::Pod>::all(client), watcher::Config::default())
            .default_backoff()
            .modify(strip)
            .reflect(writer);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(event) => {
                        if matches!(event, watcher::Event::InitDone) {
                            listed.store(true, Ordering::Release);
                        }
                        *since = None;
                    }
                    Err(error) => {
                        since.get_or_insert_with(Instant::now);
                        tracing::warn!(%error, "pods cannot be watched; trying again");
                    }
                }
            }
        });
        Self { pods, complete, broken, task }
    }
}

/// What is not needed is not kept: a cluster has many pods.
fn strip(pod: &mut core::Pod) {
    pod.managed_fields_mut().clear();
    pod.annotations_mut().clear();
    pod.labels_mut().clear();
    if let Some(spec) = &mut pod.spec {
        let kept = core::PodSpec {
            node_name: spec.node_name.take(),
            service_account_name: spec.service_account_name.take(),
            host_network: spec.host_network,
            ..core::PodSpec::default()
        };
        *spec = kept;
    }
    if let Some(status) = &mut pod.status {
        *status = core::PodStatus { phase: status.phase.take(), ..core::PodStatus::default() };
    }
}

/// Whether a pod is one of `account` that has not ended, on `node`, with a network of its own.
fn is_of(pod: &core::Pod, node: &str, account: &str) -> bool {
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref() == Some(node)
        && spec.service_account_name.as_deref().unwrap_or("default") == account
        && spec.host_network != Some(true)
        && !matches!(ended, Some("Succeeded" | "Failed"))
}

impl Scheduled for ClusterPods {
    fn runs(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Unknown> {
        if !self.complete.load(Ordering::Acquire) {
            return Err(Unknown("the cluster's pods were not listed yet".to_owned()));
        }
        let broken = *self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.is_some_and(|since| since.elapsed() > BELIEVED) {
            return Err(Unknown("the cluster's pods cannot be watched: what runs is not known".to_owned()));
        }
        let pods = self.pods.state();
        Ok(pods.iter().any(|pod| pod.namespace().as_deref() == Some(namespace) && is_of(pod, node, account)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pod(name: &str, node: &str, more: &str, status: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: c, image: i}}]{more}}}\n\
             status: {{phase: {status}}}\n"
        )
    }

    #[test]
    fn what_runs_is_what_the_manifests_say_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.yaml");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        write(
            &(pod("web", "a", "", "Running")
                + &pod("over", "a", "", "Succeeded")
                + &pod("host", "a", ", hostNetwork: true", "Running")
                + &pod("later", "''", "", "Pending")),
        );
        let pods = FolderPods::open(dir.path()).unwrap();
        assert_eq!(pods.runs("a", "shop", "web"), Ok(true));
        for (node, namespace, account) in [
            ("b", "shop", "web"),
            ("a", "bank", "web"),
            ("a", "shop", "db"),
            ("a", "shop", "over"),
            ("a", "shop", "host"),
            ("", "shop", "later"),
        ] {
            assert_eq!(pods.runs(node, namespace, account), Ok(false), "{node} {namespace} {account}");
        }
        write(&pod("db", "a", "", "Pending"));
        let began = Instant::now();
        while pods.runs("a", "shop", "db") != Ok(true) {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(pods.runs("a", "shop", "web"), Ok(false), "gone");
    }
}
