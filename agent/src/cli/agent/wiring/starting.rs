//! How a node's data plane comes to be: first everything that needs nobody's leave, then what one agent alone may do.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64},
    },
    time::{Duration, Instant, SystemTime},
};

use heddle_identity::{RenewalSettings, Standings, Workload, keep_renewed};
use heddle_policy::Compiled;
use miette::miette;
use tokio::{
    net::UnixListener,
    sync::{RwLock, broadcast, watch},
    task::JoinSet,
};

use super::{
    super::{Failure, Fence, Opened, Ready},
    anchors::Anchors,
    chores::{believe_again, give_memory_back, judge_again, liveness, sweep, tell},
    credentials::PodCredentials,
    enforcer::KernelTables,
    flows::FlowKeeper,
    identities::KnownIdentities,
    issuer::Issuer,
    names::KnownNames,
    node::{EVENTS, Running},
    open::{Issuing, Wired},
    pods::Pods,
    policy::SnapshotPolicy,
    readings::NodeReadings,
    recorder::Told,
    shadow::Shadow,
    shares::Shares,
    sockets::CapturedSockets,
    upkeep::look_after,
};
use crate::{
    capture::Heartbeat,
    cli::workload_api,
    cluster::snapshot::{Enforcer, SnapshotReader},
    observe::{events::Events, flows::FlowBook, metrics::Metrics},
    proxy::{Settings, Workers, environment::Environment},
};

/// How long certificates are waited for before a node is taken over from an agent that has them.
const CERTIFICATES: Duration = Duration::from_secs(60);

/// How long it may take until every captured pod is known; one that is not by then has left the mesh.
const APPEARS: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A data plane that carries nothing yet.
pub(in super::super) struct Prepared {
    running: Running,
    tasks: JoinSet<()>,
    told: Arc<Told>,
    changed: Arc<watch::Sender<u64>>,
    heartbeat: Duration,
    /// How often it came too late.
    late: Arc<AtomicU64>,
    workloads: Option<Workloads>,
    /// The identities of the pods that another agent captured: their certificates are kept until they are accepted.
    held: Vec<Arc<Workload>>,
}

/// What pods are answered by that ask for certificates of their own.
struct Workloads {
    socket: workload_api::Beside,
    issuer: Arc<Issuer>,
    renewal: RenewalSettings,
    counts: Arc<workload_api::Counts>,
}

impl Workloads {
    /// Answers from now on, in the place of an agent before.
    fn serve(self, running: &Running, tasks: &mut JoinSet<()>) -> Result<(), Failure> {
        let listener = UnixListener::from_std(self.socket.put_in_place()?)
            .map_err(|error| miette!("workloads cannot be answered: {error}"))?;
        let parts = workload_api::Parts {
            pods: Arc::clone(&running.pods),
            issuer: self.issuer,
            trust: Arc::clone(running.store.trust()),
            renewal: self.renewal,
            counts: self.counts,
        };
        tasks.spawn(async move {
            if let Err(error) = workload_api::serve(listener, parts).await {
                tracing::error!(%error, "workloads are no longer answered");
            }
        });
        Ok(())
    }
}

impl Running {
    /// Makes everything ready that can be while another agent serves the node: workers, identities, followers.
    ///
    /// # Errors
    /// What failed, with its remedy.
    pub(super) fn prepare(wired: Wired, rules: SnapshotReader<Compiled>) -> Result<Prepared, Failure> {
        let Wired { capture, issuing, node, heartbeat, flow_log, poll, workload_api, .. } = wired;
        let Issuing { issuer, store, anchors, federation, renewal } = issuing;
        let trust = Arc::clone(store.trust());
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
            anchors: anchors.as_ref().map(Anchors::staleness),
            federation: federation.clone(),
            workloads: Arc::default(),
            late: Arc::default(),
        };
        let late = Arc::clone(&readings.late);
        let counts = Arc::clone(&readings.workloads);
        let bundle = readings.anchors.clone();
        let metrics = Arc::new(Metrics::new(Arc::new(readings), Arc::clone(&events)));
        let flows = Arc::new(FlowBook::new(&node, Arc::clone(&names) as _));
        let told = Arc::new(Told::new(
            Arc::clone(&pods),
            Arc::clone(&metrics),
            Arc::clone(&events),
            names,
            Arc::clone(&flows),
            Shadow::new(rules.clone(), Arc::clone(&trust)),
        ));
        let keeper = Arc::new(FlowKeeper::new(Arc::clone(&told), flow_log, broadcast::Sender::new(EVENTS)));
        let (changed, changes) = watch::channel(0_u64);
        let changed = Arc::new(changed);
        let environment = Environment {
            sockets: Arc::new(CapturedSockets {
                pods: Arc::clone(&pods),
                sockets: capture.sockets().map_err(|error| failed(&error))?,
                rules: rules.clone(),
                shares: Shares::new(Arc::clone(&metrics)),
            }),
            policy: Arc::new(SnapshotPolicy {
                pods: Arc::clone(&pods),
                rules: rules.clone(),
                trust: Arc::clone(&trust),
                turn: AtomicU32::new(0),
                changes,
            }),
            credentials: Arc::new(PodCredentials {
                pods: Arc::clone(&pods),
                trust: Arc::clone(&trust),
                standings: Standings::new(Arc::clone(&trust)),
            }),
            recorder: Arc::clone(&told) as _,
        };
        let settings =
            Settings { poll, ..Settings::default() }.within(descriptors(), capture.workers() as usize);
        let workers = Workers::start(capture.workers() as usize, &environment, &settings)
            .map_err(|error| failed(&error))?;
        let workers = Arc::new(RwLock::new(Some(workers)));

        let mut tasks = JoinSet::new();
        tasks.spawn(keep_renewed(Arc::clone(&store), Arc::clone(&issuer), SystemTime::now));
        if let Some(anchors) = anchors {
            tasks.spawn(anchors.follow(Arc::clone(&store)));
        }
        if let Some(federation) = federation.clone() {
            tasks.spawn(federation.follow(trust));
        }
        let lines = broadcast::Sender::new(EVENTS);
        tasks.spawn(tell(Arc::clone(&events), lines.clone(), flows));
        tasks.spawn(Arc::clone(&keeper).run());

        let running = Self {
            pods: Arc::clone(&pods),
            capture: Arc::clone(&capture),
            told: Arc::clone(&told),
            identities: KnownIdentities {
                pods: Arc::clone(&pods),
                store: Arc::clone(&store),
                anchors: bundle,
                federation,
            },
            store,
            rules,
            metrics,
            events,
            lines,
            flows: keeper,
            workers,
            before: Arc::default(),
            following: Mutex::default(),
            heartbeat: Mutex::default(),
            repairs: Arc::default(),
            _tasks: JoinSet::new(),
        };
        let socket = workload_api.as_deref().map(workload_api::listen).transpose()?;
        let workloads = socket.map(|socket| Workloads { socket, issuer, renewal, counts });
        Ok(Prepared { running, tasks, told, changed, heartbeat, late, workloads, held: Vec::new() })
    }
}

impl Opened for Wired {
    type Ready = Prepared;

    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>> {
        Arc::new(KernelTables(Arc::clone(&self.capture)))
    }

    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(KernelTables(Arc::clone(&self.capture)))
    }

    async fn prepare(self, rules: SnapshotReader<Compiled>) -> Result<Prepared, Failure> {
        Running::prepare(self, rules)
    }
}

impl Prepared {
    /// Begins to obtain a certificate for each pod that is captured: all at the same time.
    fn hold_all(&mut self) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| miette!("captured pods cannot be listed: {error}");
        let running = &self.running;
        for pod in running.capture.known().map_err(|error| failed(&error))? {
            let (namespace, name) = pod.name.split_once('/').unwrap_or(("", &pod.name));
            let known = running.known(namespace, name).filter(|info| info.digest == pod.uid);
            if let Some(identity) = known.and_then(|info| info.identity) {
                self.held.push(running.store.hold(&identity, SystemTime::now()));
            }
        }
        Ok(())
    }

    /// A pod that the agent before captured a moment ago may not have been told to this one yet.
    async fn all_known(&self) -> Result<(), Failure> {
        let running = &self.running;
        let captured = running.capture.known();
        let captured = captured.map_err(|error| miette!("captured pods cannot be listed: {error}"))?;
        let since = Instant::now();
        while since.elapsed() < APPEARS {
            let unknown = captured.iter().find(|pod| {
                let (namespace, name) = pod.name.split_once('/').unwrap_or(("", &pod.name));
                running.known(namespace, name).is_none_or(|info| info.digest != pod.uid)
            });
            let Some(pod) = unknown else { return Ok(()) };
            tracing::debug!(pod = pod.name, "is captured and not known yet");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Ready for Prepared {
    type Node = Running;

    async fn certificates(&mut self) -> Result<(), Failure> {
        self.hold_all()?;
        let running = &self.running;
        let all = async {
            for workload in &self.held {
                workload.ready().await;
            }
        };
        tokio::time::timeout(CERTIFICATES, all).await.map_err(|_| {
            let missing: Vec<String> = running
                .store
                .status()
                .into_iter()
                .filter(|status| status.chain.is_empty())
                .map(|status| format!("{}: {}", status.identity, status.error))
                .collect();
            miette!(
                help = "the agent that runs keeps the node; look at the authority and start this one again",
                "there is no certificate within {CERTIFICATES:?} for {}",
                missing.join("; ")
            )
        })
    }

    async fn listeners(&self) -> Result<(), Failure> {
        self.all_known().await?;
        let capture = Arc::clone(&self.running.capture);
        let failed = |error: &dyn std::fmt::Display| {
            miette!(
                help = "the agent that runs keeps the node",
                "this agent's listeners cannot be opened in the pods: {error}"
            )
        };
        let opened = tokio::task::spawn_blocking(move || capture.listen_beforehand()).await;
        opened.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    async fn start(mut self, succeeds: bool) -> Result<Running, Failure> {
        let failed = |error: &dyn std::fmt::Display| miette!("the data plane cannot be started: {error}");
        if self.held.is_empty() {
            self.hold_all()?;
        }
        let Self { running, mut tasks, told, changed, heartbeat, late, workloads, held } = self;
        let (capture, workers) = (Arc::clone(&running.capture), Arc::clone(&running.workers));
        let mut counts = capture.direct_counts().map_err(|error| failed(&error))?;
        if succeeds {
            counts = counts.from_now_on(Instant::now());
        }
        running.flows.count(Some(counts));
        running.follow_events().map_err(|error| failed(&error))?;
        running.adopt().await?;
        drop(held);
        // Not before: every pod that is captured is known.
        if let Some(workloads) = workloads {
            workloads.serve(&running, &mut tasks)?;
        }
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
        tasks.spawn(sweep(
            Arc::clone(&capture),
            Arc::clone(&running.pods),
            Arc::clone(&running.metrics),
            Arc::clone(&workers),
        ));
        tasks.spawn(give_memory_back());
        let beating = Heartbeat::start(capture.kernel(), heartbeat, late, liveness(workers, heartbeat))
            .map_err(|error| failed(&error))?;
        *running.heartbeat.lock().unwrap_or_else(PoisonError::into_inner) = Some(beating);
        Ok(Running { _tasks: tasks, ..running })
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
