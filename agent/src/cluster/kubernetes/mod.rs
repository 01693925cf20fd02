//! `--cluster`: the cluster's resources from the API server, watched, as the same snapshots as a folder's.
//!
//! Each kind is listed and then watched with bookmarks; a watch that breaks is taken up where it was or, where the API
//! server has forgotten that, listed anew. What cannot be watched never takes rules away: the last state stays in
//! force, and [`ClusterStatus`] says since when and why. Nothing is put in force before every kind is listed or known to be
//! absent, for a rule that denies may be among those that are still to come.
//!
//! [`kinds`] says what is watched, [`watch`] watches, [`watched`] knows of one kind what there is, [`trim`] keeps what is
//! needed, [`objects`] remembers what is in force and [`early`] what the API server does not know yet. [`whole`] is the
//! same resources for whoever looks at the whole cluster and puts nothing in force.

mod early;
mod kinds;
mod objects;
mod trim;
mod watch;
mod watched;
pub mod whole;

pub use early::Unfit;

use super::{manifests::SharedPublisher, rules::now, view::View};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use objects::{Objects, Wish};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{oneshot, watch as latest},
    task::JoinSet,
};
use watched::Standing;

/// Changes come in volleys, as when a Deployment is rolled out: they are put in force together after so long a quiet.
const QUIET: Duration = Duration::from_millis(20);
/// How long a change waits at most while others keep coming.
const AT_MOST: Duration = Duration::from_millis(200);
/// How often the thread looks at its clock when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// A client of the API server: by a kubeconfig, else as a pod of the cluster.
///
/// # Errors
/// Neither can be read.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, String> {
    let config = match kubeconfig {
        None => kube::Config::incluster().map_err(|error| error.to_string())?,
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                .await
                .map_err(|error| error.to_string())?
        }
    };
    Client::try_from(config).map_err(|error| error.to_string())
}

/// A client for a person: by this kubeconfig, else by `KUBECONFIG` or `~/.kube/config`, else as a pod of the cluster.
///
/// # Errors
/// None of them can be read.
pub async fn personal(kubeconfig: Option<&Path>) -> Result<Client, String> {
    match kubeconfig {
        Some(path) => client(Some(path)).await,
        None => {
            let config = kube::Config::infer().await.map_err(|error| error.to_string())?;
            Client::try_from(config).map_err(|error| error.to_string())
        }
    }
}

/// What is in force from the API server, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Every kind that is watched.
    pub kinds: Vec<KindStatus>,
}

/// How a kind stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindStatus {
    /// As kubectl names it.
    pub kind: String,
    /// Whether the API server serves it; absent: that is not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<bool>,
    /// How many are in force.
    pub objects: usize,
    /// Why it cannot be watched now: what was known last is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A pod's sandbox, as the container runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

enum Message {
    Told(watch::From),
    Admit(Sandbox, oneshot::Sender<Result<(), Unfit>>),
    Stop,
}

type Texts = Vec<(String, Arc<str>)>;

/// A cluster that is in force and watched.
pub struct FollowedCluster {
    client: Client,
    messages: Sender<Message>,
    status: latest::Receiver<ClusterStatus>,
    plain: latest::Receiver<BTreeSet<String>>,
    objects: Arc<Mutex<Objects>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _tasks: JoinSet<()>,
}

impl Drop for FollowedCluster {
    fn drop(&mut self) {
        // An error says that the thread has ended already.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that followed the cluster had panicked");
        }
    }
}

/// A cluster that is watched and of which nothing is in force: what is told meanwhile is kept.
pub struct WatchedCluster {
    client: Client,
    messages: Sender<Message>,
    received: Receiver<Message>,
    tasks: JoinSet<()>,
}

impl WatchedCluster {
    /// Begins to watch. To be called within a runtime.
    pub fn begin(client: Client) -> Self {
        let (messages, received) = channel();
        let tasks = watch::watch_all(&client, &messages, Message::Told);
        Self { client, messages, received, tasks }
    }
}

impl FollowedCluster {
    /// Puts a cluster's rules in force, on a thread of its own; returns when the first are.
    ///
    /// # Errors
    /// If no thread can be started.
    pub async fn start(
        watched: WatchedCluster,
        view: View,
        publisher: SharedPublisher,
    ) -> std::io::Result<Self> {
        let WatchedCluster { client, messages, received, tasks } = watched;
        let objects = Arc::new(Mutex::new(Objects::new(view)));
        let (told, status) = latest::channel(ClusterStatus::default());
        let (outside, plain) = latest::channel(BTreeSet::new());
        let (first, begun) = oneshot::channel();
        let own = Arc::clone(&objects);
        let thread = std::thread::Builder::new().name("heddle-cluster".into()).spawn(move || {
            Follower { objects: own, publisher, told, outside, first: Some(first), admitted: Vec::new() }
                .run(&received);
        })?;
        let followed = Self { client, messages, status, plain, objects, thread: Some(thread), _tasks: tasks };
        let waiting = tokio::spawn(complain(followed.status.clone()));
        // An error says that the thread is gone, which its panic has told.
        let _ = begun.await;
        waiting.abort();
        Ok(followed)
    }

    /// Which kinds are watched.
    pub fn status(&self) -> ClusterStatus {
        self.status.borrow().clone()
    }

    /// The namespaces that are outside the mesh, as they come and go.
    pub fn plain_namespaces(&self) -> latest::Receiver<BTreeSet<String>> {
        self.plain.clone()
    }

    /// The objects in force, as they are kept.
    pub fn texts(&self) -> Texts {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).texts()
    }

    /// Takes a sandbox's addresses for its pod's until the API server knows them; when it returns, the rules in force know
    /// them. A pod that is not known yet is waited for, at most so long: the kubelet may be quicker than the watch.
    ///
    /// # Errors
    /// The pod is not known, is another, or is another node's.
    pub async fn admit(&self, sandbox: &Sandbox, at_most: Duration) -> Result<(), Unfit> {
        let began = Instant::now();
        self.confirm(&sandbox.namespace, began, at_most).await?;
        loop {
            let (answer, answered) = oneshot::channel();
            if self.messages.send(Message::Admit(sandbox.clone(), answer)).is_err() {
                return Err(Unfit::Unknown);
            }
            match answered.await {
                // A pod of the same name may be about to be replaced in the watch.
                Ok(Err(Unfit::Unknown | Unfit::Another(_) | Unfit::Elsewhere(_)))
                    if began.elapsed() < at_most =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(answer) => return answer,
                Err(_) => return Err(Unfit::Unknown),
            }
        }
    }
}

impl FollowedCluster {
    /// Waits until the watch knows of a namespace what the API server says now. Pods and namespaces are watched apart: a
    /// pod may be seen before the annotation that puts it into the mesh.
    async fn confirm(&self, namespace: &str, began: Instant, at_most: Duration) -> Result<(), Unfit> {
        let asked = Api::<Namespace>::all(self.client.clone()).get(namespace).await;
        let said = asked.map_err(|error| Unfit::Unconfirmed(error.to_string()))?;
        let said = Wish::of(&said.metadata.annotations.unwrap_or_default());
        loop {
            let known = self.objects.lock().unwrap_or_else(PoisonError::into_inner).wish_of(namespace);
            if known.as_ref() == Some(&said) {
                return Ok(());
            }
            if began.elapsed() > at_most {
                return Err(Unfit::Unconfirmed(format!("the API server says {said:?}, the watch {known:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Says now and then what is waited for.
async fn complain(status: latest::Receiver<ClusterStatus>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        for kind in status.borrow().kinds.iter().filter(|kind| kind.served.is_none()) {
            let error = kind.error.as_deref().unwrap_or("it was not listed yet");
            tracing::warn!(kind = kind.kind, error, "no rules are in force: waiting for the API server");
        }
    }
}

struct Follower {
    objects: Arc<Mutex<Objects>>,
    publisher: SharedPublisher,
    told: latest::Sender<ClusterStatus>,
    outside: latest::Sender<BTreeSet<String>>,
    first: Option<oneshot::Sender<()>>,
    admitted: Vec<oneshot::Sender<Result<(), Unfit>>>,
}

impl Follower {
    fn run(mut self, received: &Receiver<Message>) {
        let mut since: Option<Instant> = None;
        loop {
            let wait = match since {
                Some(at) if at.elapsed() >= AT_MOST || !self.admitted.is_empty() => Duration::ZERO,
                Some(_) => QUIET,
                None => self.lock().rules().due(now()).unwrap_or(IDLE),
            };
            match received.recv_timeout(wait) {
                Ok(Message::Told((kind, told))) => {
                    self.lock().take(kind, told);
                    since.get_or_insert_with(Instant::now);
                    continue;
                }
                Ok(Message::Admit(pod, answer)) => {
                    let done = self.lock().admit(&pod.namespace, &pod.name, &pod.uid, &pod.addresses);
                    match done {
                        Ok(()) => self.admitted.push(answer),
                        // Nobody to tell: the caller has gone.
                        Err(unfit) => drop(answer.send(Err(unfit))),
                    }
                    since.get_or_insert_with(Instant::now);
                    continue;
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => since = None,
            }
            self.publish();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&mut self) {
        let compiled = {
            let mut objects = self.lock();
            let due = objects.changed() || objects.rules().expired(now());
            (objects.complete() && due).then(|| objects.compile(now()))
        };
        self.tell();
        if let Some((compiled, problems)) = compiled {
            // An error is in the publication and in the log already.
            let _ = self.publisher.lock().unwrap_or_else(PoisonError::into_inner).publish(compiled, problems);
            let plain = self.lock().plain_namespaces();
            self.outside.send_if_modified(|known| std::mem::replace(known, plain.clone()) != plain);
            if let Some(first) = self.first.take() {
                let _ = first.send(());
            }
        }
        for answer in self.admitted.drain(..) {
            let _ = answer.send(Ok(()));
        }
    }

    fn tell(&self) {
        let kinds = self.lock();
        let kinds = kinds.standings().map(|(kind, standing, objects, error)| KindStatus {
            kind,
            served: match standing {
                Standing::Unknown => None,
                Standing::Absent => Some(false),
                Standing::Watched => Some(true),
            },
            objects,
            error: error.cloned(),
        });
        let now = ClusterStatus { kinds: kinds.collect() };
        self.told.send_if_modified(|before| {
            for kind in &now.kinds {
                let known = before.kinds.iter().find(|it| it.kind == kind.kind);
                if let Some(error) = &kind.error
                    && known.is_none_or(|it| it.error.is_none())
                {
                    tracing::warn!(
                        kind = kind.kind,
                        error,
                        "cannot be watched; what is known of it stays in force"
                    );
                }
                if kind.served == Some(false) && known.is_none_or(|it| it.served != Some(false)) {
                    tracing::warn!(
                        kind = kind.kind,
                        "the API server does not serve this kind; it is looked for"
                    );
                }
            }
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}
