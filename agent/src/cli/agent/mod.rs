//! `heddle agent`: a node's agent, put together from its rooms.
//!
//! The order matters. The lock is taken first, so that two agents never work on one node's pins. The rules are in force
//! in kernel and proxy before the pods that an earlier agent left are taken over, and the door opens last: whoever is
//! answered there is answered by an agent that is whole. At the end the door closes first; pins stay. An agent that
//! succeeds another ([`succession`]) takes the lock, and writes, only when everything else is ready.

mod open_door;
mod outlive;
mod release;
mod scrape;
mod signals;
mod succession;
mod supervise;
#[cfg(test)]
mod tests;
mod wiring;

pub use release::release;

use super::{
    Failure, cni,
    config::{Config, ConfigError, Flags, Resources},
    door::{Bounds, RunDirectory, RunDirectoryError, SOCKET, SUCCESSION, Server, caller::Own},
    logging, mountinfo, process, render, workload_api,
};
use crate::capture::keep_little_memory;
use crate::cluster::{
    folder::{Folder, FolderStatus, Limits, Pace},
    kubernetes::{self, FollowedCluster, WatchedCluster},
    manifests::{self, FollowedManifests, SharedPublisher},
    resources::FollowedResources,
    snapshot::{Enforcer, Publisher, SnapshotReader},
    view::View,
};
use heddle_policy::{ClusterSettings, Compiled};
use miette::miette;
use std::{
    future::Future,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use succession::{Claim, Phase, Predecessor};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How often a kernel that is behind is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long connections may go on when the agent is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// A node's kernel side, opened: programs loaded or an earlier agent's pins adopted, nothing judged by this agent yet.
pub(crate) trait Opened: Sized {
    /// What it becomes beside the rules.
    type Ready: Ready;

    /// Who puts rules in force in the kernel.
    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>>;

    /// What keeps this agent from writing what the kernel programs read.
    fn fence(&self) -> Arc<dyn Fence>;

    /// Makes the data plane ready. Nothing is written, nothing carried.
    ///
    /// # Errors
    /// What failed, with its remedy.
    fn prepare(
        self,
        rules: SnapshotReader<Compiled>,
    ) -> impl Future<Output = Result<Self::Ready, Failure>> + Send;
}

/// What keeps an agent from writing what the kernel programs read, until it alone may.
pub(crate) trait Fence: Send + Sync {
    /// From here on this agent writes. Gives the generation that is in the kernel's tables; 0: none.
    ///
    /// # Errors
    /// What the kernel refuses, with its remedy.
    fn lift(&self) -> Result<u64, Failure>;
}

/// A node's data plane that carries nothing yet.
pub(crate) trait Ready: Send {
    /// What it becomes.
    type Node: Node;

    /// Obtains a certificate for each pod that is captured here.
    ///
    /// # Errors
    /// Which is missing, and why.
    fn certificates(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Opens the listeners in each pod that is captured here. Nothing leads there yet.
    ///
    /// # Errors
    /// If a pod has no room for them.
    fn listeners(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Takes over the pods that were captured before, from a living agent where it `succeeds` one, and begins the
    /// heartbeat.
    ///
    /// # Errors
    /// What failed, with its remedy.
    fn start(self, succeeds: bool) -> impl Future<Output = Result<Self::Node, Failure>> + Send;
}

/// Asks the agent before this one to close its listeners in a pod, whose number this is, and is told when it has.
pub(crate) type Before = mpsc::UnboundedSender<(u64, oneshot::Sender<()>)>;

/// A node's data plane: capture, proxy and observe, wired.
pub(crate) trait Node: Send + Sync + 'static {
    /// As [`super::door::Door::attach`].
    fn attach(
        &self,
        request: super::door::AttachRequest,
    ) -> impl Future<Output = Result<super::door::Attached, super::door::AttachError>> + Send;
    /// As [`super::door::Door::detach`].
    fn detach(
        &self,
        request: super::door::DetachRequest,
    ) -> impl Future<Output = Result<(), super::door::AttachError>> + Send;
    /// Captures pods that run already, and lets pods go, as the rules in force say. Does not end.
    fn follow_the_mesh(self: Arc<Self>) -> impl Future<Output = ()> + Send;
    /// A captured pod, as the kernel has it.
    fn pod(&self, pod: &super::door::PodName) -> Option<super::door::PodStatus>;
    /// The pods that are captured, as the kernel has them.
    fn pods(&self) -> Vec<super::door::PodStatus>;
    /// What is wrong with the node itself, or worth knowing about it.
    fn problems(&self) -> Vec<heddle_policy::problems::Problem>;
    /// As [`super::door::Door::events`].
    fn events(&self) -> broadcast::Receiver<Arc<str>>;
    /// As [`super::door::Door::metrics`].
    fn metrics(&self) -> String;
    /// As [`super::door::Door::flows`].
    fn flows(&self) -> broadcast::Receiver<Arc<str>>;
    /// As [`super::door::Door::identities`].
    fn identities(&self) -> super::door::Identities;
    /// As [`super::door::Door::renew_identities`].
    fn renew_identities(&self) -> usize;
    /// Takes no new connection and waits until the others have ended, at most so long. Pins stay.
    fn drain(&self, at_most: Duration) -> impl Future<Output = ()> + Send;
    /// Writes nothing more: another agent is about to. What is carried goes on, and so does the heartbeat.
    ///
    /// # Errors
    /// If something may still be written: nobody else may be let in then.
    fn suspend(&self) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Writes again; gives the generation that is in the kernel's tables.
    ///
    /// # Errors
    /// What the kernel refuses.
    fn resume(&self) -> impl Future<Output = Result<u64, Failure>> + Send;
    /// Another agent has taken over: gives no sign of life more, carries what it has for `at_most`, and closes the listeners
    /// when nothing can come there any more, which it returns after.
    fn settle(&self, at_most: Duration) -> impl Future<Output = ()> + Send;
    /// Closes the listeners in a pod at once: an application wants their port.
    fn close_listeners(&self, pod: u64) -> impl Future<Output = ()> + Send;
    /// Waits until nothing is carried any more.
    fn drained(&self) -> impl Future<Output = ()> + Send;
    /// Waits until no agent has given a sign of life for a while.
    fn forsaken(&self) -> impl Future<Output = ()> + Send;
    /// This agent succeeds another, which is asked here to close listeners; none: its listeners are closed.
    fn succeeds(&self, before: Option<Before>);
}

fn refused(error: &ConfigError) -> Failure {
    for problem in &error.problems {
        eprintln!("{:?}", render::problem(problem, error.text.as_deref()));
    }
    miette!(
        help = "`heddle agent --help` lists the fields, --print-config shows them as they would hold",
        "the configuration is not taken; found wrong: {}",
        error.problems.len()
    )
}

fn configuration(flags: &Flags) -> Result<Config, Failure> {
    Config::load(flags).map_err(|error| refused(&error))
}

/// `--print-config`.
///
/// # Errors
/// If the configuration is wrong.
pub(super) fn print_config(flags: &Flags) -> Result<ExitCode, Failure> {
    let yaml = configuration(flags)?
        .to_yaml()
        .map_err(|error| miette!("cannot write the configuration: {error}"))?;
    render::print(yaml.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn take(path: &Path) -> Result<RunDirectory, Failure> {
    RunDirectory::take(path).map_err(|error| at_the_door(&error))
}

fn at_the_door(error: &RunDirectoryError) -> Failure {
    miette!(help = error.remedy(), "{error}")
}

/// With the root of the cgroup v2 hierarchy where no cgroup is named: a socket belongs to the cgroup that it was made
/// in, for good, so that only there every pod's sockets are seen.
fn with_cgroup(mut config: Config) -> Result<Config, Failure> {
    if config.cgroup.is_none() {
        let found = mountinfo::cgroup2()
            .map_err(|error| miette!(help = "mount /proc", "/proc/self/mountinfo: {error}"))?;
        let missing = || miette!(help = "`heddle check` says how to mount it", "cgroup v2 is not mounted");
        config.cgroup = Some(found.ok_or_else(missing)?);
    }
    Ok(config)
}

/// Who starts the agent anew.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(super) struct Supervision {
    /// Run the agent as a child, and start it anew at once when a signal has killed it: five times within a minute, then end
    /// as it did
    #[arg(long)]
    supervise: bool,
    #[arg(long, hide = true, conflicts_with = "supervise")]
    supervised_by: Option<u32>,
    #[arg(long, hide = true, requires = "supervised_by")]
    restarted: bool,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// If it cannot start. Once it runs it goes on whatever happens.
pub(super) fn run(flags: &Flags, supervision: &Supervision) -> Result<ExitCode, Failure> {
    keep_little_memory();
    if supervision.supervise {
        return supervise::run(&configuration(flags)?.log);
    }
    if let Some(supervisor) = supervision.supervised_by {
        supervise::end_with(supervisor)?;
    }
    let config = with_cgroup(configuration(flags)?)?;
    let _logging = logging::start(&config.log);
    process::keep_secrets()?;
    process::keep_to_the_module()?;
    // The data plane has threads of its own; here are the door, renewals and the kernel's events.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("heddle-control")
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(async {
        let claim = succession::claim(&config, supervision.restarted).await?;
        let source = Source::open(&config.resources).await?;
        serve(&config, claim, source, supervision.supervised_by.is_some(), wiring::open).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a folder of which something cannot be read: an agent that starts has no last good content to keep, and without
/// a file that refuses, others would be let in.
fn whole(status: &FolderStatus) -> Result<(), Failure> {
    let files = status.stale.iter().map(|it| (&it.file, &it.error, &it.remedy));
    let folders = status.alarms.iter().map(|it| (&it.folder, &it.error, &it.remedy));
    let unread: Vec<_> = files.chain(folders).collect();
    let Some((file, error, remedy)) = unread.first() else { return Ok(()) };
    let more = match unread.len() {
        1 => String::new(),
        count => format!(" ({count} such in all: `heddle policy check {}` names them)", status.folder),
    };
    Err(miette!(
        help = format!(
            "{remedy}; nothing is in force yet that could be kept instead, and what the file refuses would be let in"
        ),
        "{file} is not taken: {error}{more}"
    ))
}

/// Where the resources come from, looked at before anything is opened.
enum Source {
    Folder(manifests::Manifests),
    Cluster(WatchedCluster),
}

impl Source {
    /// A folder is read; an API server begins to answer while the kernel programs are loaded.
    async fn open(resources: &Resources) -> Result<Self, Failure> {
        match resources {
            Resources::Manifests(path) => {
                let folder = Folder::open(path, Limits::default(), manifests::parse).map_err(|fault| {
                    let path = path.display().to_string();
                    miette!(help = fault.remedy(&path), "the manifests folder {path} is not taken: {fault}")
                })?;
                whole(&folder.status())?;
                Ok(Self::Folder(folder))
            }
            Resources::Cluster(server) => {
                let client = kubernetes::client(server.kubeconfig.as_deref()).await.map_err(|error| {
                    miette!(
                        help = "run in a pod with a service account, or name a --kubeconfig",
                        "the API server cannot be asked: {error}"
                    )
                })?;
                Ok(Self::Cluster(WatchedCluster::begin(client)))
            }
        }
    }

    /// Puts the first rules in force and follows their changes.
    async fn follow(
        self,
        config: &Config,
        settings: &ClusterSettings,
        publisher: SharedPublisher,
    ) -> Result<FollowedResources, Failure> {
        let join_step = Duration::from_secs(config.join_step_seconds);
        let (node, capacity) = (config.node.clone(), config.table_capacity());
        let view = View { settings: settings.clone(), node, capacity, join_step };
        match self {
            Self::Folder(folder) => FollowedManifests::start(folder, Pace::default(), view, publisher)
                .map(FollowedResources::Folder)
                .map_err(|error| miette!("cannot follow the manifests: {error}")),
            Self::Cluster(watched) => FollowedCluster::start(watched, view, publisher)
                .await
                .map(FollowedResources::Cluster)
                .map_err(|error| miette!("cannot follow the cluster: {error}")),
        }
    }
}

/// Everything up to where the node is taken.
struct Prepared<R> {
    ready: R,
    fence: Arc<dyn Fence>,
    publisher: SharedPublisher,
    rules: SnapshotReader<Compiled>,
    resources: Arc<FollowedResources>,
}

async fn prepare<O: Opened>(
    config: &Config,
    settings: &ClusterSettings,
    alone: bool,
    source: Source,
    open: impl FnOnce(&Config) -> Result<O, Failure>,
) -> Result<Prepared<O::Ready>, Failure> {
    let opened = open(config)?;
    let (enforcer, fence) = (opened.enforcer(), opened.fence());
    let publisher =
        if alone { Publisher::new(enforcer, fence.lift()?) } else { Publisher::waiting(enforcer) };
    let rules = publisher.reader();
    let publisher: SharedPublisher = Arc::new(Mutex::new(publisher));
    let resources = Arc::new(source.follow(config, settings, Arc::clone(&publisher)).await?);
    let mut ready = opened.prepare(rules.clone()).await?;
    if !alone {
        ready.certificates().await?;
    }
    Ok(Prepared { ready, fence, publisher, rules, resources })
}

async fn serve<O: Opened>(
    config: &Config,
    claim: Claim,
    source: Source,
    supervised: bool,
    open: impl FnOnce(&Config) -> Result<O, Failure>,
) -> Result<(), Failure> {
    // From here on a signal ends the agent in order.
    let mut signals = signals::Signals::new().map_err(|error| miette!("cannot wait for signals: {error}"))?;
    let settings =
        config.cluster_settings().map_err(|error| miette!("identities cannot be named: {error}"))?;
    let alone = matches!(claim, Claim::Alone(_));
    let prepared = tokio::select! {
        prepared = prepare(config, &settings, alone, source, open) => prepared?,
        signal = signals.next() => {
            tracing::info!(signal, "the agent ends before it served");
            return Ok(());
        }
    };
    let Prepared { ready, fence, publisher, rules, resources } = prepared;
    let (directory, taking) = match claim {
        Claim::Alone(directory) => (Arc::new(directory), None),
        Claim::Successor(successor) => {
            let taking = successor.switch().await?;
            ready.listeners().await?;
            let last = fence.lift()?;
            // An error is in the publication and in the log already.
            drop(publisher.lock().unwrap_or_else(PoisonError::into_inner).begin(last));
            (Arc::clone(&taking.directory), Some(taking))
        }
    };
    let node = Arc::new(ready.start(taking.is_some()).await?);
    let retrying = tokio::spawn(retry(Arc::clone(&publisher)));

    let door = open_door::OpenDoor::new(config, &settings, Arc::clone(&node), rules, Arc::clone(&resources));
    let unreadable = |error: std::io::Error| {
        miette!(help = "mount /proc", "the agent's own namespaces cannot be read: {error}")
    };
    let server = Server::new(door, Bounds::default()).map_err(unreadable)?;
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(server.run(listen(&directory, SOCKET)?, stopped));
    if let Some(taking) = taking {
        taking.taken(Arc::clone(&node)).await;
    }
    let joining = config.find_pods.then(|| tokio::spawn(Arc::clone(&node).follow_the_mesh()));
    let telling = tokio::spawn(cni::keep_told(resources, directory.path().to_owned(), config.linkerd_inject));
    // Not before the door is open: from here on pods wait for its word.
    let others = Arc::new(AtomicBool::new(false));
    if let Some(places) = &config.cni {
        let places = cni::Places {
            plugins: places.plugins.clone(),
            networks: places.networks.clone(),
            socket: directory.path().join(SOCKET),
            exempt: places.exempt.clone(),
        };
        let kept = places.keep(Arc::clone(&others));
        kept.map_err(|error| miette!("the plugin cannot be kept installed: {error}"))?;
    }
    let drain = config.hand_over.map_or(DRAIN, |settings| settings.drain());
    let (it, name) = (Arc::clone(&node), config.node.clone());
    let predecessor = Predecessor::new(it, Arc::clone(&publisher), Arc::clone(&directory), name, drain);
    let (phase, ceasing) = (predecessor.phase(), Arc::clone(&others));
    let scraped = config.metrics_address.map(|at| tokio::spawn(scrape::at(at, Arc::clone(&node))));
    let tasks = [Some(&telling), Some(&retrying), joining.as_ref(), scraped.as_ref()];
    let tasks: Vec<_> = tasks.into_iter().flatten().map(tokio::task::JoinHandle::abort_handle).collect();
    tokio::spawn(async move {
        // Nothing of what another agent keeps is touched from then on.
        reached(phase, Phase::Succeeded).await;
        ceasing.store(true, Ordering::Release);
        tasks.iter().for_each(tokio::task::AbortHandle::abort);
    });
    let listener = config.hand_over.is_some().then(|| listen(&directory, SUCCESSION)).transpose()?;
    let own = Own::read().map_err(unreadable)?;
    let mut offering = Box::pin(async {
        match listener {
            Some(listener) => Arc::clone(&predecessor).offer(listener, own).await,
            None => std::future::pending().await,
        }
    });
    tracing::info!(node = config.node, run = %directory.path().display(), "the agent is ready");

    let mut told = false;
    let succeeded = loop {
        tokio::select! {
            () = &mut offering => break true,
            // While another takes over it is waited for; where it does not, this agent ends as it was told.
            () = reached(predecessor.phase(), Phase::Serving), if told => break false,
            signal = signals.next() => {
                tracing::info!(signal, "the agent ends; what is in force stays in force");
                if std::mem::replace(&mut told, true) {
                    break *predecessor.phase().borrow() == Phase::Succeeded;
                }
            }
        }
    };
    others.store(true, Ordering::Release);
    retrying.abort();
    telling.abort();
    for task in [joining, scraped].into_iter().flatten() {
        task.abort();
    }
    if succeeded {
        return outlive::outlive(&*node, &mut signals, told, supervised).await;
    }
    drop(offering);
    stop.send_replace(true);
    if let Err(error) = serving.await {
        tracing::error!(%error, "the door had failed");
    }
    tokio::select! {
        () = node.drain(DRAIN) => {}
        signal = signals.next() => tracing::warn!(signal, "told again: not waiting for connections to end"),
    }
    // While the lock is held: the next agent's socket may be in its place afterwards.
    if let Some(folder) = &config.workload_api
        && let Err(error) = workload_api::withdraw(folder)
    {
        tracing::warn!(%error, folder = %folder.display(), "the workloads' socket stays behind");
    }
    directory.close();
    Ok(())
}

/// Waits until an agent is so far.
async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    if phase.wait_for(|phase| *phase == wanted).await.is_err() {
        // Whoever could come so far is gone.
        std::future::pending().await
    }
}

fn listen(directory: &RunDirectory, socket: &str) -> Result<tokio::net::UnixListener, Failure> {
    let listener = directory.listen(socket).map_err(|error| at_the_door(&error))?;
    tokio::net::UnixListener::from_std(listener)
        .map_err(|error| miette!("cannot listen at {socket}: {error}"))
}

/// Tries again what the kernel could not take.
async fn retry(publisher: SharedPublisher) {
    loop {
        tokio::time::sleep(RETRY).await;
        let publisher = Arc::clone(&publisher);
        let tried = tokio::task::spawn_blocking(move || {
            let mut publisher = publisher.lock().unwrap_or_else(PoisonError::into_inner);
            // An error is in the publication and in the log already.
            if publisher.behind() { publisher.retry().is_ok() } else { true }
        });
        if let Err(error) = tried.await {
            tracing::error!(%error, "putting the rules in force again failed within the agent");
        }
    }
}
