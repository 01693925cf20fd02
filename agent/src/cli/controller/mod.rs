//! `heddle controller`: tells on each object what its rule lacks.
//!
//! Of several replicas one is elected ([`election`]). It reads what the agents read, finds what `heddle policy check
//! --cluster` finds, and writes [`events`] and [`conditions`], nothing else. Nothing of the mesh depends on it.

mod conditions;
mod election;
mod events;
mod metrics;

use super::{
    Failure,
    config::{Config, Log, LogFormat, federated_in},
    logging, policy,
};
use crate::cluster::kubernetes::{
    self,
    whole::{self, Look},
};
use conditions::Conditions;
use election::Election;
use events::Told;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use heddle_policy::{ClusterSettings, Problem, Severity};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, Client, api::PostParams};
use metrics::Metrics;
use miette::miette;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::signal::unix::{SignalKind, signal};

pub(super) const ABOUT: &str = "Tells on each object of the cluster what its rule lacks: an Event on it, and the condition Accepted on AccessRules and \
ClusterAccessRules. It finds what `heddle policy check --cluster` prints. Several may run; the one that holds a Lease tells.

It writes nothing but these and the Lease, and no traffic depends on it.";

/// What stands is looked at again: rules expire, and what could not be written is due again.
const AGAIN: Duration = Duration::from_secs(60);
// Worked out when it is compiled: a zero would not compile.
/// So many writes at once, and so many a second in the long run: a cluster full of faults is told of little by little.
const BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
const PER_SECOND: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// The arguments.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Flags {
    /// The agents' configuration: networks, default policies and the names of identities are taken from it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The folder of other trust domains' bundles, as the agents' [default: there is none]
    #[arg(long, value_name = "FOLDER")]
    federation: Option<PathBuf>,
    /// How to reach Kubernetes [default: as a pod of the cluster does]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The Lease by which one of the replicas is elected
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "heddle-system/heddle-controller")]
    lease: String,
    /// This replica's name, which no other has
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    instance: String,
    /// Where metrics are served (GET /metrics) and whether the replica is ready (GET /ready) [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// What is logged
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG", default_value = "info")]
    log_filter: String,
}

/// Runs until it is told to end.
///
/// # Errors
/// If it cannot start. Once it runs it goes on whatever happens.
pub(super) fn run(flags: &Flags) -> Result<ExitCode, Failure> {
    let _logging = logging::start(&Log { format: LogFormat::Text, filter: flags.log_filter.clone() });
    super::process::keep_to_the_module()?;
    let (namespace, name) = flags.lease.split_once('/').ok_or_else(|| {
        miette!(help = "write it like heddle-system/heddle-controller", "--lease {} names none", flags.lease)
    })?;
    settings(flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(async {
        let client = kubernetes::client(flags.kubeconfig.as_deref()).await.map_err(|error| {
            miette!(
                help = "run in a pod with a service account, or name a --kubeconfig",
                "Kubernetes cannot be reached: {error}"
            )
        })?;
        let metrics = Arc::new(Metrics::new());
        if let Some(admin) = flags.admin {
            metrics::serve(admin, Arc::clone(&metrics)).await?;
        }
        let election = Election::new(client.clone(), namespace, name, &flags.instance);
        elect(election, &client, flags, &metrics).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn settings(flags: &Flags) -> Result<ClusterSettings, Failure> {
    let mut settings = Config::shared(&flags.config, None).map_err(|error| {
        let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        miette!(help = "`heddle agent --help` lists the fields", "{}", problems.join("\n"))
    })?;
    settings.federated.extend(flags.federation.as_deref().map(federated_in).unwrap_or_default());
    Ok(settings)
}

async fn elect(
    mut election: Election,
    client: &Client,
    flags: &Flags,
    metrics: &Arc<Metrics>,
) -> Result<(), Failure> {
    let signals = |kind| signal(kind).map_err(|error| miette!("cannot wait for signals: {error}"));
    let (mut terminate, mut interrupt) =
        (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let mut telling: Option<tokio::task::JoinHandle<()>> = None;
    let mut look = tokio::time::interval(election::EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        // One that hangs is none: whether the time is over is looked at all the same.
        let stepped = tokio::time::timeout(election::EVERY, election.step()).await;
        metrics.ready.set(i64::from(matches!(stepped, Ok(Ok(())))));
        match stepped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = flags.lease, "the Lease cannot be looked at"),
            Err(_) => tracing::warn!(lease = flags.lease, "the API server does not answer"),
        }
        let elected = election.elected();
        metrics.elected.set(i64::from(elected));
        match (&telling, elected) {
            (None, true) => {
                tracing::info!(instance = flags.instance, "elected: rules are looked at");
                telling = Some(tokio::spawn(tell(client.clone(), flags.clone(), Arc::clone(metrics))));
            }
            (Some(task), false) => {
                tracing::info!(instance = flags.instance, "no longer elected");
                task.abort();
                telling = None;
                metrics.forget();
            }
            // It could not watch; once more.
            (Some(task), true) if task.is_finished() => telling = None,
            _ => {}
        }
    }
    if let Some(task) = telling {
        task.abort();
    }
    if let Ok(Err(error)) = tokio::time::timeout(election::EVERY, election.resign()).await {
        tracing::info!(%error, "the Lease is not given back: another waits for its end");
    }
    Ok(())
}

/// Until it is aborted.
async fn tell(client: Client, flags: Flags, metrics: Arc<Metrics>) {
    let mut following = match whole::follow(&client) {
        Ok(following) => following,
        Err(error) => {
            tracing::error!(%error, "the cluster cannot be watched");
            return;
        }
    };
    let mut teller = Teller {
        client,
        instance: flags.instance.clone(),
        rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
        told: Told::default(),
        conditions: Conditions::default(),
        metrics,
    };
    loop {
        let again = teller.told.next().unwrap_or(AGAIN);
        let changed = tokio::time::timeout(again, following.looks.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            tracing::error!("the cluster is no longer watched");
            return;
        }
        let Some(look) = following.looks.borrow_and_update().clone() else { continue };
        let settings = match settings(&flags) {
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be read: nothing is told meanwhile");
                continue;
            }
        };
        let judged = Arc::clone(&look);
        let problems = tokio::task::spawn_blocking(move || policy::problems(&judged, settings)).await;
        match problems {
            Ok(problems) => teller.tell(&look, &problems).await,
            Err(error) => tracing::error!(%error, "the rules cannot be looked at"),
        }
    }
}

struct Teller {
    client: Client,
    instance: String,
    rate: DefaultDirectRateLimiter,
    told: Told,
    conditions: Conditions,
    metrics: Arc<Metrics>,
}

impl Teller {
    async fn tell(&mut self, look: &Look, problems: &[Problem]) {
        for severity in [Severity::Error, Severity::Warning, Severity::Note] {
            let count = problems.iter().filter(|it| it.severity == severity).count();
            self.metrics.problems(severity.as_str(), count);
        }
        let mut by_file: BTreeMap<&str, Vec<&Problem>> = BTreeMap::new();
        for problem in problems {
            by_file.entry(&problem.file).or_default().push(problem);
        }
        let of = |file: &str| by_file.get(file).cloned().unwrap_or_default();
        let rules = look.iter().map(|(file, object)| (object, of(file)));
        for (object, said) in self.conditions.due(rules) {
            if self.rate.check().is_err() {
                self.metrics.written("condition", "deferred");
                continue;
            }
            match conditions::write(&self.client, object, &said).await {
                Ok(written) => {
                    self.metrics.written("condition", if written { "written" } else { "unchanged" });
                    self.conditions.told(object, said);
                }
                Err(error) => {
                    self.metrics.written("condition", "failed");
                    tracing::warn!(%error, kind = object.kind, name = object.name, "no condition is written");
                }
            }
        }
        let wrong =
            look.iter().flat_map(|(file, object)| of(file).into_iter().map(move |problem| (object, problem)));
        let due = self.told.due(wrong, &self.instance, seconds());
        for due in due {
            // What is not told now is due again.
            if self.rate.check().is_err() {
                self.metrics.written("event", "deferred");
                continue;
            }
            let api: Api<Event> = Api::namespaced(self.client.clone(), &due.namespace);
            match api.create(&PostParams::default(), &due.event).await {
                Ok(_) => {
                    self.metrics.written("event", "written");
                    self.told.told(&due);
                }
                // Told already, by whoever was elected before.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    self.metrics.written("event", "unchanged");
                    self.told.told(&due);
                }
                Err(error) => {
                    self.metrics.written("event", "failed");
                    tracing::warn!(%error, namespace = due.namespace, "no Event is written");
                }
            }
        }
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
