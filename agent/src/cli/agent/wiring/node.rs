//! A node's data plane: capture, proxy and observe at work together.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::{Duration, Instant, SystemTime},
};

use heddle_ebpf::flows::Event;
use heddle_identity::{Standings, Store, keep_renewed};
use heddle_policy::{Compiled, WorkloadInfo, problems::Problem};
use miette::miette;
use tokio::{
    sync::{RwLock, broadcast, watch},
    task::JoinSet,
};

use super::{
    super::{Failure, Node, Opened},
    chores::{believe_again, give_memory_back, give_way, judge_again, liveness, sweep, tell},
    credentials::PodCredentials,
    enforcer::KernelTables,
    flows::FlowKeeper,
    identities::KnownIdentities,
    listening::by_worker,
    names::KnownNames,
    open::{Issuing, Wired, kept_size},
    pods::{Entry, Pods},
    policy::SnapshotPolicy,
    readings::NodeReadings,
    recorder::Told,
    refusal::attach_error,
    shadow::Shadow,
    sockets::CapturedSockets,
    upkeep::{Repairs, look_after},
};
use crate::{
    capture::{Attachment, Capture, Heartbeat},
    cli::door::{
        AttachError, AttachErrorCode, AttachRequest, Attached, DetachRequest, Identities, PodName, PodStatus,
    },
    cluster::snapshot::{Enforcer, SnapshotReader},
    observe::{
        events::{Events, monotonic_epoch},
        flows::FlowBook,
        metrics::Metrics,
    },
    proxy::{
        Settings, Workers,
        environment::{Environment, PodId},
    },
};

/// How far behind a listener at the door may be.
const EVENTS: usize = 4096;
/// How long attaching waits for the pod's first certificate; without one its connections are refused, and told.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(2);
pub(in super::super) struct Running {
    pods: Arc<Pods>,
    capture: Arc<Capture>,
    store: Arc<Store>,
    rules: SnapshotReader<Compiled>,
    metrics: Arc<Metrics>,
    lines: broadcast::Sender<Arc<str>>,
    flows: Arc<FlowKeeper>,
    workers: Arc<RwLock<Option<Workers>>>,
    heartbeat: Mutex<Option<Heartbeat>>,
    repairs: Arc<Repairs>,
    identities: KnownIdentities,
    _tasks: JoinSet<()>,
}

impl Running {
    pub async fn start(wired: Wired, rules: SnapshotReader<Compiled>) -> Result<Self, Failure> {
        let Wired { capture, issuing, naming, node, heartbeat, flow_log, poll, .. } = wired;
        let Issuing { issuer, store, anchors } = issuing;
        let failed = |error: &dyn std::fmt::Display| miette!("the data plane cannot be started: {error}");
        let pods = Arc::new(Pods::default());
        let names = Arc::new(KnownNames { pods: Arc::clone(&pods), rules: rules.clone() });
        let events = Arc::new(Events::new(&node, Arc::clone(&names) as _, EVENTS));
        let readings = NodeReadings {
            pods: Arc::clone(&pods),
            capture: Arc::clone(&capture),
            counters: capture.counters().map_err(|error| failed(&error))?,
            store: Arc::clone(&store),
            rules: rules.clone(),
            anchors: anchors.as_ref().map(|(file, _)| file.clone()),
        };
        let bundle = readings.anchors.clone();
        let metrics = Arc::new(Metrics::new(Arc::new(readings), Arc::clone(&events)));
        let flows = Arc::new(FlowBook::new(&node, Arc::clone(&names) as _));
        let told = Arc::new(Told::new(
            Arc::clone(&pods),
            Arc::clone(&metrics),
            Arc::clone(&events),
            names,
            Arc::clone(&flows),
            Shadow::new(rules.clone(), naming.clone()),
        ));
        let keeper = Arc::new(FlowKeeper::new(
            Arc::clone(&told),
            capture.direct_counts().map_err(|error| failed(&error))?,
            flow_log,
            broadcast::Sender::new(EVENTS),
        ));
        let (changed, changes) = watch::channel(0_u64);
        let changed = Arc::new(changed);
        let environment = Environment {
            sockets: Arc::new(CapturedSockets {
                pods: Arc::clone(&pods),
                sockets: capture.sockets().map_err(|error| failed(&error))?,
            }),
            policy: Arc::new(SnapshotPolicy {
                pods: Arc::clone(&pods),
                rules: rules.clone(),
                naming: naming.clone(),
                turn: AtomicU32::new(0),
                changes,
            }),
            credentials: Arc::new(PodCredentials {
                pods: Arc::clone(&pods),
                naming,
                standings: Standings::new(Arc::clone(store.trust())),
            }),
            recorder: Arc::clone(&told) as _,
        };
        let settings =
            Settings { poll, ..Settings::default() }.within(descriptors(), capture.workers() as usize);
        let workers = Workers::start(capture.workers() as usize, &environment, &settings)
            .map_err(|error| failed(&error))?;
        let workers = Arc::new(RwLock::new(Some(workers)));

        let mut tasks = JoinSet::new();
        tasks.spawn(keep_renewed(Arc::clone(&store), issuer, SystemTime::now));
        if let Some((file, known)) = anchors {
            tasks.spawn(file.follow(Arc::clone(&store), known));
        }
        let lines = broadcast::Sender::new(EVENTS);
        tasks.spawn(tell(Arc::clone(&events), lines.clone(), flows));
        tasks.spawn(Arc::clone(&keeper).run());

        let running = Self {
            pods: Arc::clone(&pods),
            capture: Arc::clone(&capture),
            identities: KnownIdentities {
                pods: Arc::clone(&pods),
                store: Arc::clone(&store),
                anchors: bundle,
            },
            store,
            rules,
            metrics: Arc::clone(&metrics),
            lines,
            flows: keeper,
            workers: Arc::clone(&workers),
            heartbeat: Mutex::default(),
            repairs: Arc::default(),
            _tasks: JoinSet::new(),
        };
        running.follow_events(events).map_err(|error| failed(&error))?;
        running.adopt().await?;
        // Not before: the flows of a pod that is not known yet would be taken for those of one that is gone.
        tasks.spawn(believe_again(Arc::clone(&running.store), Arc::clone(&changed)));
        tasks.spawn(judge_again(Arc::clone(&capture), running.rules.clone(), changed, told));
        tasks.spawn(look_after(
            Arc::clone(&capture),
            Arc::clone(&running.repairs),
            Arc::clone(&workers),
            running.lines.clone(),
        ));
        tasks.spawn(running.identities.clone().warn());
        tasks.spawn(sweep(Arc::clone(&capture), pods, metrics, Arc::clone(&workers)));
        tasks.spawn(give_memory_back());
        let beating = Heartbeat::start(capture.kernel(), heartbeat / 5, liveness(workers))
            .map_err(|error| failed(&error))?;
        Ok(Self { heartbeat: Mutex::new(Some(beating)), _tasks: tasks, ..running })
    }

    /// The pods that an earlier agent captured: taken over if they are still who they were, let go if not.
    async fn adopt(&self) -> Result<(), Failure> {
        let capture = Arc::clone(&self.capture);
        let adopted = tokio::task::spawn_blocking(move || capture.adopt())
            .await
            .map_err(|error| miette!("taking over captured pods failed within the agent: {error}"))?
            .map_err(|error| miette!("captured pods cannot be taken over: {error}"))?;
        for attachment in adopted {
            let name = attachment.pod.name();
            let (namespace, pod) = name.split_once('/').unwrap_or(("", &name));
            let known = self.known(namespace, pod).filter(|info| info.digest == attachment.pod.row.uid);
            match known {
                Some(info) => match self.accept(&info, attachment).await {
                    Ok(_) => tracing::info!(pod = name, "taken over"),
                    Err(error) => {
                        tracing::error!(pod = name, %error, "cannot be taken over: it stays refused")
                    }
                },
                // Its rows stay, and with no row for it in the tables everything of it is refused.
                None => tracing::warn!(
                    pod = name,
                    "captured by an earlier agent, but not meshed on this node any more: refused"
                ),
            }
        }
        Ok(())
    }

    fn known(&self, namespace: &str, name: &str) -> Option<WorkloadInfo> {
        let snapshot = self.rules.load()?;
        snapshot.compiled.pod(namespace, name).filter(|info| info.local && info.meshed()).cloned()
    }

    /// Gives a captured pod its identity and its listeners to the workers.
    async fn accept(&self, info: &WorkloadInfo, attachment: Attachment) -> Result<Arc<Entry>, AttachError> {
        let Some(identity) = &info.identity else {
            return Err(AttachError::new(AttachErrorCode::NotMeshed, "the pod has no identity"));
        };
        let workload = self.store.hold(identity, SystemTime::now());
        if tokio::time::timeout(FIRST_CERTIFICATE, workload.ready()).await.is_err() {
            tracing::warn!(%identity, "no certificate yet: connections are refused until there is one");
        }
        let id = PodId(attachment.pod.namespace.cookie());
        let name: Arc<str> = attachment.pod.name().into();
        self.pods.insert(Entry { captured: attachment.pod, workload, name });
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
        self.pods.get(id).ok_or_else(|| AttachError::new(AttachErrorCode::Kernel, "the pod went away again"))
    }

    /// Tells what the kernel tells, and moves listeners out of applications' way.
    fn follow_events(&self, events: Arc<Events>) -> Result<(), crate::capture::CaptureError> {
        let capture = Arc::clone(&self.capture);
        let workers = Arc::clone(&self.workers);
        let runtime = tokio::runtime::Handle::current();
        let mut epoch = (Instant::now(), monotonic_epoch());
        self.capture.follow_events(move |bytes| {
            let Some(bytes) = bytes else { return true };
            if let Some((cookie, port)) = Event::wanted_port(bytes) {
                // An application waits in `bind()`.
                runtime.block_on(give_way(&capture, &workers, cookie, port));
                return true;
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
            true
        })
    }
}

/// How many descriptors this process may have: as many as it can be given.
fn descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            before.unwrap_or(u64::MAX)
        }
    }
}

impl Opened for Wired {
    type Node = Running;

    fn last_generation(&self) -> u64 {
        self.generation
    }

    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>> {
        Arc::new(KernelTables(Arc::clone(&self.capture)))
    }

    async fn start(self, rules: SnapshotReader<Compiled>) -> Result<Running, Failure> {
        Running::start(self, rules).await
    }
}

impl Node for Running {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        let PodName { namespace, name } = &request.pod;
        let Some(snapshot) = self.rules.load() else {
            return Err(
                AttachError::new(AttachErrorCode::NotReady, "no rules are in force yet").remedy("try again")
            );
        };
        let Some(info) = snapshot.compiled.pod(namespace, name) else {
            let message = format!("the cluster has no pod {}", request.pod);
            return Err(AttachError::new(AttachErrorCode::UnknownPod, message)
                .field("name")
                .remedy("apply the pod first; `heddle status` lists what the agent knows"));
        };
        if !info.local {
            let message = format!("pod {} runs on node {}", request.pod, info.node);
            return Err(AttachError::new(AttachErrorCode::NotOnThisNode, message)
                .remedy("attach it at that node's agent"));
        }
        request.pod.to_be_captured(info)?;
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
            netns: request.netns.clone(),
        };
        let capture = Arc::clone(&self.capture);
        let attachment = tokio::task::spawn_blocking(move || capture.attach(&wanted))
            .await
            .map_err(|error| AttachError::new(AttachErrorCode::Kernel, format!("attaching failed: {error}")))?
            .map_err(|refusal| attach_error(&refusal))?;
        let entry = match self.accept(info, attachment).await {
            Ok(entry) => entry,
            Err(error) => {
                let _ = self.detach(DetachRequest { pod: request.pod.clone(), netns: None }).await;
                return Err(error);
            }
        };
        tracing::info!(pod = %request.pod, netns = %request.netns.display(), "captured");
        Ok(Attached {
            namespace: namespace.clone(),
            name: name.clone(),
            addresses: entry.captured.addresses.clone(),
            identity: entry.workload.identity().dns().to_owned(),
            generation: self.capture.generation().unwrap_or(snapshot.generation),
        })
    }

    async fn detach(&self, request: DetachRequest) -> Result<(), AttachError> {
        let DetachRequest { pod, netns } = request;
        let entry = self.pods.named(&pod.namespace, &pod.name);
        // An older sandbox's end is not the new one's.
        if let (Some(netns), Some(entry)) = (&netns, &entry)
            && entry.captured.namespace.path() != netns
        {
            let message = format!("pod {pod} is captured in another namespace than {}", netns.display());
            return Err(AttachError::new(AttachErrorCode::UnknownPod, message).field("netns"));
        }
        let capture = Arc::clone(&self.capture);
        let gone = pod.clone();
        let detached = tokio::task::spawn_blocking(move || capture.detach(&gone.namespace, &gone.name)).await;
        if let Some(entry) = &entry {
            let id = PodId(entry.captured.namespace.cookie());
            self.pods.remove(id);
            self.metrics.forget_pod(&entry.name);
            if let Some(workers) = self.workers.read().await.as_ref() {
                workers.detach(id).await;
            }
        }
        match detached {
            Ok(true) => {
                tracing::info!(%pod, "no longer captured");
                Ok(())
            }
            Ok(false) => {
                Err(AttachError::new(AttachErrorCode::UnknownPod, format!("pod {pod} is not captured")))
            }
            Err(error) => {
                Err(AttachError::new(AttachErrorCode::Kernel, format!("detaching failed: {error}")))
            }
        }
    }

    fn pods(&self) -> Vec<PodStatus> {
        self.pods
            .all()
            .into_iter()
            .map(|entry| {
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
            })
            .collect()
    }

    fn problems(&self) -> Vec<Problem> {
        self.capture.kernel().kept_sizes().iter().map(kept_size).collect()
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
