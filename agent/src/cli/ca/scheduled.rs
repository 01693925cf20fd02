//! What runs where, as the authority itself sees it: never as an agent says.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
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
/// How soon pods are listed anew when their watch broke, and how late where that goes on: well within [`BELIEVED`].
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(10);
/// A watch that went on for so long is no sign that the next will not.
const LASTED: Duration = Duration::from_secs(60);

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
    known: Arc<Mutex<Known>>,
    believed: Duration,
    task: tokio::task::JoinHandle<()>,
}

/// How far the pods are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// They were never listed.
    NotYet,
    /// They were listed, and are watched since.
    Watched,
    /// The watch broke then, and they were not listed to their end since.
    Broken(Instant),
}

impl Drop for ClusterPods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ClusterPods {
    /// Begins to watch every pod.
    pub fn watch(client: Client) -> Self {
        Self::believing(client, BELIEVED)
    }

    fn believing(client: Client, believed: Duration) -> Self {
        let (pods, writer) = reflector::store();
        let known = Arc::new(Mutex::new(Known::NotYet));
        let task = tokio::spawn(follow_pods(Api::all(client), writer, Arc::clone(&known)));
        Self { pods, known, believed, task }
    }
}

/// Lists and watches for ever. A watch that broke is never gone on with: whether it does is not told where no pod changes,
/// and a list that begins says nothing yet.
async fn follow_pods(
    api: Api<core::Pod>,
    mut store: reflector::store::Writer<core::Pod>,
    known: Arc<Mutex<Known>>,
) {
    let know = |what| *known.lock().unwrap_or_else(PoisonError::into_inner) = what;
    let mut pause = AGAIN;
    loop {
        let begun = Instant::now();
        let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).modify(strip));
        let error = loop {
            match events.next().await {
                Some(Ok(event)) => {
                    store.apply_watcher_event(&event);
                    if matches!(event, watcher::Event::InitDone) {
                        know(Known::Watched);
                    }
                }
                Some(Err(error)) => break error.to_string(),
                None => break "it ended".to_owned(),
            }
        };
        tracing::warn!(error, "pods cannot be watched; listing them anew");
        {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if *known == Known::Watched {
                *known = Known::Broken(Instant::now());
            }
        }
        // A list of all pods is no small thing to ask again and again.
        pause = if begun.elapsed() > LASTED { AGAIN } else { (pause * 2).min(AGAIN_AT_MOST) };
        tokio::time::sleep(pause).await;
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
        match *self.known.lock().unwrap_or_else(PoisonError::into_inner) {
            Known::NotYet => return Err(Unknown("the cluster's pods were not listed yet".to_owned())),
            Known::Broken(since) if since.elapsed() > self.believed => {
                let why = "the cluster's pods cannot be watched: what runs is not known";
                return Err(Unknown(why.to_owned()));
            }
            Known::Watched | Known::Broken(_) => {}
        }
        let pods = self.pods.state();
        Ok(pods.iter().any(|pod| pod.namespace().as_deref() == Some(namespace) && is_of(pod, node, account)))
    }
}

#[cfg(test)]
mod tests;
