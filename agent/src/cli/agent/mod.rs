//! `heddle agent`: a node's agent, put together from its rooms.
//!
//! The order matters. The lock is taken first, so that two agents never work on one node's pins. The rules are in force
//! in kernel and proxy before the pods that an earlier agent left are taken over, and the door opens last: whoever is
//! answered there is answered by an agent that is whole. At the end the door closes first; pins stay.

mod open_door;
mod release;
mod signals;
#[cfg(test)]
mod tests;
mod wiring;

pub use release::release;

use super::{
    Failure, cni,
    config::{Config, ConfigError, Flags, Resources},
    door::{Bounds, RunDirectory, SOCKET, Server},
    logging, mountinfo, process, render,
};
use crate::capture::keep_little_memory;
use crate::cluster::{
    folder::{Folder, Limits, Pace},
    kubernetes::{self, FollowedCluster},
    manifests::{self, FollowedManifests, SharedPublisher},
    resources::FollowedResources,
    snapshot::{Enforcer, Publisher, SnapshotReader},
};
use heddle_policy::{ClusterSettings, Compiled};
use miette::miette;
use std::{
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{broadcast, watch};

/// How often a kernel that is behind is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long connections may go on when the agent is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// A node's kernel side, opened: programs loaded or an earlier agent's pins adopted, nothing judged by this agent yet.
pub(crate) trait Opened: Sized {
    /// What it becomes once rules are in force.
    type Node: Node;

    /// The generation that was found in the kernel's tables; 0: none.
    fn last_generation(&self) -> u64;

    /// Who puts rules in force in the kernel.
    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>>;

    /// Starts the data plane, takes over the pods that were captured before, and begins the heartbeat.
    ///
    /// # Errors
    /// What failed, with its remedy.
    fn start(
        self,
        rules: SnapshotReader<Compiled>,
    ) -> impl Future<Output = Result<Self::Node, Failure>> + Send;
}

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
    RunDirectory::take(path).map_err(|error| miette!(help = error.remedy(), "{error}"))
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

/// Runs the agent until it is told to end.
///
/// # Errors
/// If it cannot start. Once it runs it goes on whatever happens.
pub(super) fn run(flags: &Flags) -> Result<ExitCode, Failure> {
    keep_little_memory();
    let config = with_cgroup(configuration(flags)?)?;
    logging::start(&config.log);
    process::keep_secrets()?;
    let directory = take(&config.run_directory)?;
    let source = Source::open(&config.resources)?;
    // The data plane has threads of its own; here are the door, renewals and the kernel's events.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("heddle-control")
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(serve(&config, &directory, source, wiring::open))?;
    directory.close();
    Ok(ExitCode::SUCCESS)
}

/// Where the resources come from, looked at before anything is opened.
enum Source {
    Folder(manifests::Manifests),
    Cluster(Option<PathBuf>),
}

impl Source {
    fn open(resources: &Resources) -> Result<Self, Failure> {
        match resources {
            Resources::Manifests(path) => {
                let folder = Folder::open(path, Limits::default(), manifests::parse).map_err(|fault| {
                    let path = path.display().to_string();
                    miette!(help = fault.remedy(&path), "the manifests folder {path} is not taken: {fault}")
                })?;
                Ok(Self::Folder(folder))
            }
            Resources::Cluster(server) => Ok(Self::Cluster(server.kubeconfig.clone())),
        }
    }

    /// Puts the first rules in force and follows their changes.
    async fn follow(
        self,
        config: &Config,
        settings: &ClusterSettings,
        publisher: SharedPublisher,
    ) -> Result<FollowedResources, Failure> {
        let (settings, node) = (settings.clone(), config.node.clone());
        match self {
            Self::Folder(folder) => {
                FollowedManifests::start(folder, Pace::default(), settings, node, publisher)
                    .map(FollowedResources::Folder)
                    .map_err(|error| miette!("cannot follow the manifests: {error}"))
            }
            Self::Cluster(kubeconfig) => {
                let client = kubernetes::client(kubeconfig.as_deref()).await.map_err(|error| {
                    miette!(
                        help = "run in a pod with a service account, or name a --kubeconfig",
                        "the API server cannot be asked: {error}"
                    )
                })?;
                FollowedCluster::start(client, settings, node, publisher)
                    .await
                    .map(FollowedResources::Cluster)
                    .map_err(|error| miette!("cannot follow the cluster: {error}"))
            }
        }
    }
}

async fn serve<O: Opened>(
    config: &Config,
    directory: &RunDirectory,
    source: Source,
    open: impl FnOnce(&Config) -> Result<O, Failure>,
) -> Result<(), Failure> {
    // From here on a signal ends the agent in order.
    let mut signals = signals::Signals::new().map_err(|error| miette!("cannot wait for signals: {error}"))?;
    let settings =
        config.cluster_settings().map_err(|error| miette!("identities cannot be named: {error}"))?;
    let opened = open(config)?;
    let publisher = Publisher::new(opened.enforcer(), opened.last_generation());
    let rules = publisher.reader();
    let publisher: SharedPublisher = Arc::new(Mutex::new(publisher));
    let retrying = tokio::spawn(retry(Arc::clone(&publisher)));
    let resources = Arc::new(source.follow(config, &settings, publisher).await?);
    let telling = tokio::spawn(cni::keep_told(Arc::clone(&resources), directory.path().to_owned()));
    let node = Arc::new(opened.start(rules.clone()).await?);

    let door = open_door::OpenDoor::new(config, &settings, Arc::clone(&node), rules, resources);
    let server = Server::new(door, Bounds::default()).map_err(|error| {
        miette!(help = "mount /proc", "the agent's own namespaces cannot be read: {error}")
    })?;
    let listener = directory.listen().map_err(|error| miette!(help = error.remedy(), "{error}"))?;
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(|error| miette!("cannot listen at the door: {error}"))?;
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(server.run(listener, stopped));
    // Not before the door is open: from here on pods wait for its word.
    if let Some(places) = &config.cni {
        let places = cni::Places {
            plugins: places.plugins.clone(),
            networks: places.networks.clone(),
            socket: directory.path().join(SOCKET),
            exempt: places.exempt.clone(),
        };
        places.keep().map_err(|error| miette!("the plugin cannot be kept installed: {error}"))?;
    }
    tracing::info!(node = config.node, run = %directory.path().display(), "the agent is ready");

    let signal = signals.next().await;
    tracing::info!(signal, "the agent ends; what is in force stays in force");
    stop.send_replace(true);
    if let Err(error) = serving.await {
        tracing::error!(%error, "the door had failed");
    }
    tokio::select! {
        () = node.drain(DRAIN) => {}
        signal = signals.next() => tracing::warn!(signal, "told again: not waiting for connections to end"),
    }
    retrying.abort();
    telling.abort();
    Ok(())
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
