//! Pods that run already come into the mesh, and go out of it, as they are annotated.
//!
//! In the order that keeps requests whole: a certificate, then capture, in which the agent takes TLS and, of those whom
//! its rules let in, plain text too; meanwhile the other agents switch to TLS; then plain text is refused, and what was
//! open before is ended. When each is, the snapshot says ([`Passage`]).

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use heddle_ebpf::Address;
use heddle_policy::{Compiled, Hop, Route, Standing, WorkloadInfo, resources::Passage};

use super::node::Running;
use crate::{
    capture::{CapturedPod, EarlyConnection},
    cli::{
        door::{DetachRequest, PodName},
        running_pods,
    },
    cluster::snapshot::Shared,
    proxy::environment::PodId,
};

/// How often it is looked while somebody is on the way.
const LOOK: Duration = Duration::from_millis(200);
/// How often else: a pod that could not be found may be there.
const IDLE: Duration = Duration::from_secs(5);

type Snapshot = Shared<Compiled>;

impl Running {
    /// Captures pods that run, and lets pods go, as the snapshot in force says. Does not end.
    pub(super) async fn follow_the_mesh(self: Arc<Self>) {
        let mut publications = self.rules.watch();
        // What was told of a pod already, by its digest.
        let mut told = HashMap::new();
        loop {
            publications.mark_unchanged();
            let mut pending = false;
            if let Some(snapshot) = self.rules.load() {
                self.let_go(&snapshot).await;
                pending |= self.take_in(&snapshot, &mut told).await;
                pending |= self.look_at_early(&snapshot).await;
            }
            let patience = if pending { LOOK } else { IDLE };
            // An error says that nothing is published any more.
            if let Ok(Err(_)) = tokio::time::timeout(patience, publications.changed()).await {
                return;
            }
        }
    }

    /// Lets those out that leave the mesh, and those go that are outside it by now.
    async fn let_go(&self, snapshot: &Snapshot) {
        self.let_go_unknown(snapshot).await;
        for entry in self.pods.all() {
            let Some((namespace, name)) = entry.name.split_once('/') else { continue };
            let Some(info) = snapshot.compiled.pod(namespace, name) else { continue };
            if info.digest != entry.captured.row.uid || !info.local {
                continue;
            }
            if info.standing != Standing::Plain {
                let (capture, out) = (Arc::clone(&self.capture), info.passage == Passage::Left);
                let pod = entry.captured.clone();
                match tokio::task::spawn_blocking(move || capture.let_out(&pod, out)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(pod = %entry.name, %error, "cannot be let out or in"),
                    Err(error) => tracing::warn!(pod = %entry.name, %error, "letting it out or in failed"),
                }
                continue;
            }
            tracing::info!(pod = %entry.name, "has left the mesh");
            let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
            // What is still carried is ended before the guard goes: it drops everything in the moment of its going, and
            // whoever does not hear of the end would wait for ever.
            if let Some(workers) = self.workers.read().await.as_ref() {
                workers.detach(PodId(entry.captured.namespace.cookie())).await;
            }
            if let Err(error) = self.release(DetachRequest { pod, netns: None }).await {
                tracing::warn!(pod = %entry.name, %error, "cannot be let go");
            }
        }
    }

    /// Lets those go that an earlier agent captured and that run outside the mesh now: they are refused for as long as they
    /// are captured.
    async fn let_go_unknown(&self, snapshot: &Snapshot) {
        for pod in self.capture.pods() {
            if self.pods.get(PodId(pod.namespace.cookie())).is_some() {
                continue;
            }
            let full = pod.name();
            let Some((namespace, name)) = full.split_once('/') else { continue };
            let Some(info) = snapshot.compiled.pod(namespace, name) else { continue };
            if info.digest != pod.row.uid || !info.local || info.standing != Standing::Plain {
                continue;
            }
            tracing::info!(pod = full, "has left the mesh while no agent was there to let it go");
            let request = DetachRequest {
                pod: PodName { namespace: namespace.to_owned(), name: name.to_owned() },
                netns: Some(pod.namespace.path().to_owned()),
            };
            if let Err(error) = self.release(request).await {
                tracing::warn!(pod = full, %error, "cannot be let go");
            }
        }
    }

    /// Captures those that are to be in the mesh and run outside it; whether any is left that is on its way.
    async fn take_in(&self, snapshot: &Snapshot, told: &mut HashMap<u64, String>) -> bool {
        let wanted: Vec<WorkloadInfo> = snapshot
            .compiled
            .pods()
            .filter(|info| info.local && info.meshed() && !info.passage.is_outwards())
            .filter(|info| {
                let captured = self.pods.named(&info.namespace, &info.name);
                captured.is_none_or(|entry| entry.captured.row.uid != info.digest)
            })
            .cloned()
            .collect();
        told.retain(|digest, _| wanted.iter().any(|info| info.digest == *digest));
        if wanted.is_empty() {
            return false;
        }
        let uids: HashSet<String> = wanted.iter().map(|info| info.uid.clone()).collect();
        let found = tokio::task::spawn_blocking(move || running_pods::find(&uids)).await;
        let found = match found.map_err(std::io::Error::from).flatten() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "the pods that run cannot be looked for: those outside the mesh are refused");
                return false;
            }
        };
        // A pod that the container runtime is about to start has no process yet: it comes by the door.
        let wanted: Vec<(WorkloadInfo, Vec<PathBuf>)> = wanted
            .into_iter()
            .filter_map(|info| Some((info.clone(), found.get(&info.uid).cloned()?)))
            .collect();
        // Of all at once, before the first is captured.
        let _held = self.certified(wanted.iter().filter_map(|(info, _)| info.identity.as_ref())).await;
        let mut left = false;
        for (info, namespaces) in wanted {
            let pod = PodName { namespace: info.namespace.clone(), name: info.name.clone() };
            let mut refused = "no file of its network namespace is mounted here".to_owned();
            let mut captured = false;
            for netns in namespaces {
                match self.take(&pod, netns, true, None).await {
                    Ok(_) => {
                        captured = true;
                        break;
                    }
                    Err(error) => refused = error.to_string(),
                }
            }
            if captured {
                told.remove(&info.digest);
            } else {
                // One that is on its way is tried again soon, one that stays as it is now and then.
                left |= info.passage != Passage::Over;
                if told.get(&info.digest) != Some(&refused) {
                    tracing::error!(%pod, error = refused, "runs outside the mesh and cannot be captured: it is refused");
                    told.insert(info.digest, refused);
                }
            }
        }
        left
    }

    /// Ends what pods had open before they were captured, as far as it may not go on; whether any pod settles.
    async fn look_at_early(&self, snapshot: &Snapshot) -> bool {
        let settling = self.capture.settling();
        let pending = !settling.is_empty();
        for pod in settling {
            let name = pod.name();
            let known =
                name.split_once('/').and_then(|(namespace, name)| snapshot.compiled.pod(namespace, name));
            let settles =
                known.is_some_and(|info| info.digest == pod.row.uid && info.passage != Passage::Over);
            let (capture, looked, compiled) = (Arc::clone(&self.capture), pod.clone(), Arc::clone(snapshot));
            let pods = Arc::clone(&self.pods);
            let ended = tokio::task::spawn_blocking(move || {
                if !settles {
                    return capture.settled(&looked);
                }
                let early = capture.early(&looked)?;
                let captured = |address: &Address| pods.captured(address);
                let forbidden: Vec<EarlyConnection> = early
                    .into_iter()
                    .filter(|it| !goes_on(&compiled.compiled, &looked, it, &captured))
                    .collect();
                Ok(capture.end_early(&looked, &forbidden))
            });
            match ended.await {
                Ok(Ok(ended)) => {
                    for ended in &ended {
                        self.told.revoked(ended);
                    }
                    if !settles {
                        tracing::info!(pod = name, ended = ended.len(), "has come into the mesh for good");
                    }
                }
                Ok(Err(error)) => tracing::error!(pod = name, %error, "what it had open cannot be looked at"),
                Err(error) => tracing::error!(pod = name, %error, "looking at what it had open failed"),
            }
        }
        pending
    }
}

/// Whether a connection from before a pod's capture may go on for as long as the pod settles.
fn goes_on(
    compiled: &Compiled,
    pod: &CapturedPod,
    early: &EarlyConnection,
    captured: &impl Fn(&Address) -> Option<u64>,
) -> bool {
    let own = if early.local.is_ipv4() { pod.row.v4 } else { pod.row.v6 };
    if early.serves {
        return compiled.authorize_in_passage(&own, early.local.port(), early.remote.ip()).allowed();
    }
    let route = compiled.outbound(&own, &Address::from(early.remote.ip()), early.remote.port(), captured, 0);
    match route {
        Route::Refuse(_) => false,
        Route::To { endpoints, .. } => {
            endpoints.first().is_some_and(|endpoint| !matches!(endpoint.hop, Hop::Refuse(_)))
        }
    }
}
