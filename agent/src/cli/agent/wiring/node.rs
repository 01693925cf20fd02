//! A node's data plane: capture, proxy and observe at work together.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use heddle_ebpf::flows::Event;
use heddle_identity::{IdentityName, Store, Workload};
use heddle_policy::{Compiled, WorkloadInfo, problems::Problem};
use miette::miette;
use tokio::{
    sync::{RwLock, broadcast},
    task::JoinSet,
};

use super::{
    super::{Before, Failure, Node},
    chores::give_way,
    flows::FlowKeeper,
    identities::KnownIdentities,
    listening::by_worker,
    open::{kept_size, left_over_pod},
    pods::{Entry, Pods},
    recorder::Told,
    refusal::attach_error,
    upkeep::Repairs,
};
use crate::{
    capture::{AttachRefusal, Attachment, Capture, CaptureError, FollowedEvents, Heartbeat},
    cli::door::{
        AttachError, AttachErrorCode, AttachRequest, Attached, DetachRequest, Identities, PodName, PodStatus,
    },
    cluster::snapshot::SnapshotReader,
    observe::{
        events::{Events, monotonic_epoch},
        metrics::Metrics,
    },
    proxy::{Workers, environment::PodId},
};

/// How far behind a listener at the door may be.
pub(super) const EVENTS: usize = 4096;
/// How long attaching waits for the pod's first certificate; without one its connections are refused, and told.
pub(super) const FIRST_CERTIFICATE: Duration = Duration::from_secs(2);
/// How long, after another agent took over, the listeners go on accepting: a connection that was being opened then is in
/// their hands, and its last segment may have been lost and sent again, after one second and after three.
const SETTLE: Duration = Duration::from_secs(5);
/// So long without a sign of life nobody has the node.
const FORSAKEN: Duration = Duration::from_secs(15);
/// How often it is looked whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(50);

pub(in super::super) struct Running {
    pub(super) pods: Arc<Pods>,
    pub(super) capture: Arc<Capture>,
    pub(super) store: Arc<Store>,
    pub(super) rules: SnapshotReader<Compiled>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Arc<Events>,
    pub(super) lines: broadcast::Sender<Arc<str>>,
    pub(super) flows: Arc<FlowKeeper>,
    pub(super) workers: Arc<RwLock<Option<Workers>>>,
    /// The agent that this one succeeded, as long as its listeners are open.
    pub(super) before: Arc<Mutex<Option<Before>>>,
    pub(super) following: Mutex<Option<FollowedEvents>>,
    pub(super) heartbeat: Mutex<Option<Heartbeat>>,
    pub(super) repairs: Arc<Repairs>,
    pub(super) identities: KnownIdentities,
    pub(super) told: Arc<Told>,
    pub(super) _tasks: JoinSet<()>,
}

impl Running {
    /// The pods that an earlier agent captured: taken over if they are still who they were, let go if not.
    pub(super) async fn adopt(&self) -> Result<(), Failure> {
        let capture = Arc::clone(&self.capture);
        let adopted = tokio::task::spawn_blocking(move || capture.adopt())
            .await
            .map_err(|error| miette!("taking over captured pods failed within the agent: {error}"))?
            .map_err(|error| miette!("captured pods cannot be taken over: {error}"))?;
        let adopted: Vec<_> = adopted
            .into_iter()
            .map(|attachment| {
                let name = attachment.pod.name();
                let (namespace, pod) = name.split_once('/').unwrap_or(("", &name));
                let known = self.known(namespace, pod).filter(|info| info.digest == attachment.pod.row.uid);
                (attachment, name, known)
            })
            .collect();
        // For all at once: behind this the heartbeat begins, and the probes of pods without a certificate are answered too.
        let known = adopted.iter().filter_map(|(.., known)| known.as_ref()?.identity.as_ref());
        let _held = self.certified(known).await;
        for (attachment, name, known) in adopted {
            match known {
                Some(info) => match self.accept(&info, attachment, None).await {
                    Ok(_) => tracing::info!(pod = name, "taken over"),
                    Err(error) => {
                        tracing::error!(pod = name, %error, "cannot be taken over: it stays refused")
                    }
                },
                // Its rows stay, and with no row for it in the tables everything of it is refused, until it is let go
                // because it runs outside the mesh now.
                None => tracing::warn!(
                    pod = name,
                    "captured by an earlier agent, but not meshed on this node any more: refused"
                ),
            }
        }
        Ok(())
    }

    pub(super) fn known(&self, namespace: &str, name: &str) -> Option<WorkloadInfo> {
        let snapshot = self.rules.load()?;
        snapshot.compiled.pod(namespace, name).filter(|info| info.local && info.meshed()).cloned()
    }

    /// Has identities' certificates issued and holds them; waits for them no longer than [`FIRST_CERTIFICATE`] in all. Whose
    /// has not come by then is refused until it does.
    pub(super) async fn certified(
        &self,
        identities: impl Iterator<Item = &IdentityName>,
    ) -> Vec<Arc<Workload>> {
        let held: Vec<_> = identities.map(|identity| self.store.hold(identity, SystemTime::now())).collect();
        let all = async {
            for workload in &held {
                workload.ready().await;
            }
        };
        if tokio::time::timeout(FIRST_CERTIFICATE, all).await.is_err() {
            tracing::warn!("certificates are missing: connections of their pods are refused until they come");
        }
        held
    }

    /// Gives a captured pod its identity and its listeners to the workers.
    async fn accept(
        &self,
        info: &WorkloadInfo,
        attachment: Attachment,
        started: Option<Instant>,
    ) -> Result<Arc<Entry>, AttachError> {
        let Some(identity) = &info.identity else {
            return Err(AttachError::new(AttachErrorCode::NotMeshed, "the pod has no identity"));
        };
        let workload = self.store.hold(identity, SystemTime::now());
        let id = PodId(attachment.pod.namespace.cookie());
        let name: Arc<str> = attachment.pod.name().into();
        self.pods.insert(Entry { captured: attachment.pod, workload, name, started });
        if !attachment.listeners.is_empty() {
            let workers = self.workers.read().await;
            let Some(workers) = workers.as_ref() else {
                return Err(AttachError::new(AttachErrorCode::NotReady, "the agent is ending"));
            };
            let listeners = by_worker(id, attachment.listeners, workers.count());
            workers
                .attach(listeners)
                .await
                .map_err(|error| AttachError::new(AttachErrorCode::Kernel, error.to_string()))?;
        }
        // It may have been let go of meanwhile; what is known here and not captured would never be forgotten.
        if self.capture.pod(id.0).is_none() {
            self.forget(id).await;
        }
        self.pods.get(id).ok_or_else(|| AttachError::new(AttachErrorCode::Kernel, "the pod went away again"))
    }

    /// Forgets a pod that is captured no longer.
    async fn forget(&self, id: PodId) {
        if let Some(entry) = self.pods.get(id) {
            self.metrics.forget_pod(&entry.name);
        }
        self.pods.remove(id);
        if let Some(workers) = self.workers.read().await.as_ref() {
            workers.detach(id).await;
        }
    }

    /// Tells what the kernel tells, and moves listeners out of applications' way.
    pub(super) fn follow_events(&self) -> Result<(), CaptureError> {
        let (capture, workers) = (Arc::clone(&self.capture), Arc::clone(&self.workers));
        let (events, before) = (Arc::clone(&self.events), Arc::clone(&self.before));
        let runtime = tokio::runtime::Handle::current();
        let mut epoch = (Instant::now(), monotonic_epoch());
        let following = self.capture.follow_events(move |bytes| {
            if let Some((cookie, port)) = Event::wanted_port(bytes) {
                // An application waits in `bind()`.
                runtime.block_on(give_way(&capture, &workers, &before, cookie, port));
                return;
            }
            if let Some((cookie, tuple)) = Event::unregistered(bytes) {
                // An application waits in `connect()`.
                capture.end_unregistered(cookie, &tuple);
            }
            // The wall clock may be set while the agent runs.
            if epoch.0.elapsed() > Duration::from_secs(1) {
                epoch = (Instant::now(), monotonic_epoch());
            }
            if let Err(error) = events.kernel(bytes, epoch.1) {
                tracing::warn!(%error, "the kernel told something that is no event");
            }
        })?;
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = Some(following);
        Ok(())
    }
}

impl Running {
    /// Captures a pod in a network namespace, be it about to start or `running`. `started`: it starts now, and the API
    /// server does not tell its address yet.
    pub(super) async fn take(
        &self,
        pod: &PodName,
        netns: PathBuf,
        running: bool,
        started: Option<Instant>,
    ) -> Result<Attached, AttachError> {
        let PodName { namespace, name } = pod;
        let Some(snapshot) = self.rules.load() else {
            return Err(
                AttachError::new(AttachErrorCode::NotReady, "no rules are in force yet").remedy("try again")
            );
        };
        let Some(info) = snapshot.compiled.pod(namespace, name) else {
            let message = format!("the cluster has no pod {}", pod);
            return Err(AttachError::new(AttachErrorCode::UnknownPod, message)
                .field("name")
                .remedy("apply the pod first; `heddle status` lists what the agent knows"));
        };
        if !info.local {
            let message = format!("pod {} runs on node {}", pod, info.node);
            return Err(AttachError::new(AttachErrorCode::NotOnThisNode, message)
                .remedy("attach it at that node's agent"));
        }
        pod.to_be_captured(info)?;
        let ports = snapshot
            .compiled
            .tables
            .workloads
            .get(&info.addresses.first().map_or(heddle_ebpf::Address::UNSPECIFIED, |ip| (*ip).into()))
            .map(|row| row.policy)
            .into_iter()
            .flat_map(|policy| {
                snapshot
                    .compiled
                    .tables
                    .ports
                    .keys()
                    .filter(move |key| key.policy == policy)
                    .map(|key| key.port)
            })
            .collect();
        let wanted = crate::capture::AttachRequest {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: info.digest,
            addresses: info.addresses.clone(),
            ports,
            netns: netns.clone(),
            running,
        };
        let capture = Arc::clone(&self.capture);
        let attachment = tokio::task::spawn_blocking(move || capture.attach(&wanted))
            .await
            .map_err(|error| AttachError::new(AttachErrorCode::Kernel, format!("attaching failed: {error}")))?
            .map_err(|refusal| attach_error(&refusal))?;
        let _held = self.certified(info.identity.iter()).await;
        let fresh = attachment.fresh;
        let entry = match self.accept(info, attachment, started).await {
            Ok(entry) => entry,
            Err(error) => {
                // One that an earlier agent captured stays refused.
                if fresh {
                    let _ = self.release(DetachRequest { pod: pod.clone(), netns: Some(netns) }).await;
                }
                return Err(error);
            }
        };
        tracing::info!(%pod, netns = %netns.display(), running, "captured");
        Ok(Attached {
            namespace: namespace.clone(),
            name: name.clone(),
            addresses: entry.captured.addresses.clone(),
            identity: entry.workload.identity().dns().to_owned(),
            generation: self.capture.generation().unwrap_or(snapshot.generation),
        })
    }

    /// Ends a pod's capture.
    pub(super) async fn release(&self, request: DetachRequest) -> Result<(), AttachError> {
        let DetachRequest { pod, netns } = request;
        let (capture, gone) = (Arc::clone(&self.capture), pod.clone());
        let detach = move || capture.detach(&gone.namespace, &gone.name, netns.as_deref());
        match tokio::task::spawn_blocking(detach).await {
            Ok(Ok(Some(captured))) => {
                self.forget(PodId(captured)).await;
                tracing::info!(%pod, "no longer captured");
                Ok(())
            }
            Ok(Err(AttachRefusal::OtherNamespace { path, .. })) => {
                let message = format!("pod {pod} is captured in another namespace, {}", path.display());
                Err(AttachError::new(AttachErrorCode::UnknownPod, message).field("netns"))
            }
            Ok(Err(refusal)) => Err(attach_error(&refusal)),
            Ok(Ok(None)) => {
                Err(AttachError::new(AttachErrorCode::UnknownPod, format!("pod {pod} is not captured")))
            }
            Err(error) => {
                Err(AttachError::new(AttachErrorCode::Kernel, format!("detaching failed: {error}")))
            }
        }
    }
}

impl Running {
    /// A captured pod, as the kernel has it.
    fn seen(&self, entry: &Entry) -> PodStatus {
        let (namespace, name) = entry.name.split_once('/').unwrap_or(("", &entry.name));
        let problems = self.capture.verify(&entry.captured);
        PodStatus {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            netns: entry.captured.namespace.path().display().to_string(),
            addresses: entry.captured.addresses.clone(),
            identity: entry.workload.identity().dns().to_owned(),
            in_force: problems.is_empty(),
            problems,
            repairs: self.repairs.of(entry.captured.namespace.cookie()),
        }
    }
}

impl Node for Running {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        // The addresses come from the container runtime where the API server does not tell them yet.
        let started = request.sandbox.is_some().then(Instant::now);
        self.take(&request.pod, request.netns, false, started).await
    }

    async fn detach(&self, request: DetachRequest) -> Result<(), AttachError> {
        self.release(request).await
    }

    async fn follow_the_mesh(self: Arc<Self>) {
        Self::follow_the_mesh(self).await;
    }

    fn pod(&self, pod: &PodName) -> Option<PodStatus> {
        self.pods.named(&pod.namespace, &pod.name).map(|entry| self.seen(&entry))
    }

    fn pods(&self) -> Vec<PodStatus> {
        self.pods.all().iter().map(|entry| self.seen(entry)).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let left_over = self.capture.left_over();
        self.capture
            .kernel()
            .kept_sizes()
            .iter()
            .map(kept_size)
            .chain(left_over.iter().map(left_over_pod))
            .collect()
    }

    fn events(&self) -> broadcast::Receiver<Arc<str>> {
        self.lines.subscribe()
    }

    fn metrics(&self) -> String {
        self.metrics.encode().unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be written");
            String::new()
        })
    }

    fn flows(&self) -> broadcast::Receiver<Arc<str>> {
        self.flows.follow()
    }

    fn identities(&self) -> Identities {
        self.identities.read()
    }

    fn renew_identities(&self) -> usize {
        self.identities.renew()
    }

    async fn suspend(&self) -> Result<(), Failure> {
        let (capture, flows) = (Arc::clone(&self.capture), Arc::clone(&self.flows));
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        let suspended = tokio::task::spawn_blocking(move || {
            drop(following);
            capture.fence();
            flows.write();
            flows.count(None);
        });
        suspended.await.map_err(|error| miette!("stepping back failed within the agent: {error}"))
    }

    async fn resume(&self) -> Result<u64, Failure> {
        let failed = |error: &dyn std::fmt::Display| miette!("the node cannot be taken up again: {error}");
        self.capture.unfence().map_err(|error| failed(&error))?;
        let counts = self.capture.direct_counts().map_err(|error| failed(&error))?;
        self.flows.count(Some(counts.from_now_on(Instant::now())));
        self.follow_events().map_err(|error| failed(&error))?;
        self.capture.generation().map_err(|error| failed(&error))
    }

    async fn settle(&self, at_most: Duration) {
        if let Some(beating) = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take() {
            beating.leave();
        }
        if let Some(workers) = self.workers.read().await.as_ref() {
            workers.begin_drain(SETTLE.min(at_most), at_most);
        }
        tokio::time::sleep(SETTLE.min(at_most)).await;
        let flows = Arc::clone(&self.flows);
        if let Err(error) = tokio::task::spawn_blocking(move || flows.cease()).await {
            tracing::error!(%error, "writing flows failed within the agent");
        }
    }

    async fn close_listeners(&self, pod: u64) {
        if let Some(workers) = self.workers.read().await.as_ref() {
            workers.close(PodId(pod)).await;
        }
    }

    async fn drained(&self) {
        loop {
            if self.workers.read().await.as_ref().is_none_or(Workers::ended) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn forsaken(&self) {
        // Between the end of one agent and the first sign of the next lie an agent's start and its first rules.
        while self.capture.kernel().heartbeat_age().is_some_and(|age| age < FORSAKEN) {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn succeeds(&self, before: Option<Before>) {
        let settled = before.is_none();
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = before;
        if settled {
            self.capture.forget_others_ports();
        }
    }

    async fn drain(&self, at_most: Duration) {
        // Without a heartbeat the kernel refuses new connections at once, before any listener closes.
        drop(self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(workers) = self.workers.write().await.take() {
            workers.drain(at_most).await;
        }
        // What was seen until now is written before the agent goes.
        let flows = Arc::clone(&self.flows);
        if let Err(error) = tokio::task::spawn_blocking(move || flows.write()).await {
            tracing::error!(%error, "writing flows failed within the agent");
        }
    }
}
