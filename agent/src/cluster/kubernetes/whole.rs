//! The resources of the whole cluster, for whoever looks at rules and puts none in force.

use super::{
    kinds::KINDS,
    trim::trim,
    watch::{From, watch_all},
    watched::{Change, Standing, Watched},
};
use kube::Client;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch as latest, task::JoinSet};

/// Rules that are written together are looked at together.
const QUIET: Duration = Duration::from_secs(1);
/// How long a change waits at most while others keep coming.
const AT_MOST: Duration = Duration::from_secs(5);

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `apiVersion`, as it is watched.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which of its specs it is.
    pub generation: Option<i64>,
    /// What policy reads of it, as JSON.
    pub text: Arc<str>,
}

/// Everything that policy is made of, by file: `servers.policy.linkerd.io/shop/web`.
pub type Look = BTreeMap<String, Object>;

/// A kind that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} cannot be read: {error}")]
pub struct Unseen {
    /// As kubectl names it.
    pub kind: String,
    /// What the API server said.
    pub error: String,
}

struct Whole {
    kinds: Vec<Watched<Object>>,
    changed: bool,
}

impl Whole {
    fn new() -> Self {
        Self { kinds: KINDS.iter().map(Watched::new).collect(), changed: false }
    }

    fn take(&mut self, (kind, told): From) {
        let Some(watched) = self.kinds.get_mut(kind) else { return };
        for change in watched.take(told) {
            match change {
                Change::Standing => self.changed = true,
                Change::Put(file, value) => {
                    let object = Object::of(value);
                    // An object whose status alone changed says nothing new.
                    if watched.objects.get(&file) != Some(&object) {
                        watched.objects.insert(file, object);
                        self.changed = true;
                    }
                }
                Change::Gone(file) => self.changed |= watched.objects.remove(&file).is_some(),
            }
        }
    }

    fn complete(&self) -> bool {
        self.kinds.iter().all(|kind| kind.standing != Standing::Unknown)
    }

    /// A kind that was never read and cannot be now.
    fn unseen(&self) -> Option<Unseen> {
        self.kinds
            .iter()
            .filter(|kind| kind.standing == Standing::Unknown)
            .find_map(|kind| Some(Unseen { kind: kind.kind.resource(), error: kind.error.clone()? }))
    }

    fn look(&self) -> Look {
        let objects = self.kinds.iter().flat_map(|kind| kind.objects.iter());
        objects.map(|(file, object)| (file.clone(), object.clone())).collect()
    }
}

impl Object {
    fn of(value: Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let namespace = Some(text("/metadata/namespace")).filter(|it| !it.is_empty());
        let mut object = Self {
            api_version: text("/apiVersion").to_owned(),
            kind: text("/kind").to_owned(),
            namespace: namespace.map(str::to_owned),
            name: text("/metadata/name").to_owned(),
            uid: text("/metadata/uid").to_owned(),
            generation: value.pointer("/metadata/generation").and_then(Value::as_i64),
            text: Arc::from(""),
        };
        // Of every pod as much as its own node's agent keeps.
        let node = text("/spec/nodeName").to_owned();
        object.text = trim(value, &object.kind, &node).to_string().into();
        object
    }
}

/// Lists everything once.
///
/// # Errors
/// A kind cannot be read.
pub async fn look(client: &Client, at_most: Duration) -> Result<Look, Unseen> {
    let (told, received) = channel();
    let watching = watch_all(client, &told, std::convert::identity);
    drop(told);
    let looked = tokio::task::spawn_blocking(move || first(&received, at_most)).await;
    drop(watching);
    looked.unwrap_or_else(|error| Err(Unseen { kind: "the cluster".to_owned(), error: error.to_string() }))
}

fn first(received: &Receiver<From>, at_most: Duration) -> Result<Look, Unseen> {
    let (mut whole, began) = (Whole::new(), Instant::now());
    while !whole.complete() {
        match received.recv_timeout(at_most.saturating_sub(began.elapsed())) {
            Ok(told) => whole.take(told),
            Err(_) => {
                let kind = whole.kinds.iter().find(|kind| kind.standing == Standing::Unknown);
                let kind = kind.map_or_else(String::new, |it| it.kind.resource());
                return Err(Unseen { kind, error: format!("it was not listed within {at_most:?}") });
            }
        }
        if let Some(unseen) = whole.unseen() {
            return Err(unseen);
        }
    }
    Ok(whole.look())
}

/// The cluster's resources, followed until this is dropped.
pub struct Following {
    /// What there is now; none: not every kind was read yet.
    pub looks: latest::Receiver<Option<Arc<Look>>>,
    _watching: JoinSet<()>,
}

/// Follows everything, on a thread of its own. To be called within a runtime.
///
/// # Errors
/// No thread can be started.
pub fn follow(client: &Client) -> std::io::Result<Following> {
    let (told, received) = channel();
    let watching = watch_all(client, &told, std::convert::identity);
    drop(told);
    let (looked, looks) = latest::channel(None);
    std::thread::Builder::new().name("heddle-whole".into()).spawn(move || keep(&received, &looked))?;
    Ok(Following { looks, _watching: watching })
}

/// Ends when nobody watches any more.
fn keep(received: &Receiver<From>, looked: &latest::Sender<Option<Arc<Look>>>) {
    let (mut whole, mut since) = (Whole::new(), None::<Instant>);
    loop {
        let wait = match since {
            Some(at) => QUIET.min(AT_MOST.saturating_sub(at.elapsed())),
            None => Duration::from_secs(30),
        };
        match received.recv_timeout(wait) {
            Ok(told) => {
                whole.take(told);
                if whole.changed {
                    since.get_or_insert_with(Instant::now);
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => since = None,
        }
        if whole.complete() && std::mem::take(&mut whole.changed) {
            looked.send_replace(Some(Arc::new(whole.look())));
        } else if let Some(unseen) = whole.unseen() {
            tracing::warn!(%unseen, "nothing is said of rules before every kind is read");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::kubernetes::watched::Told;
    use serde_json::json;

    fn server(name: &str, generation: i64, status: &str) -> Value {
        json!({
            "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
            "metadata": {"name": name, "namespace": "shop", "uid": "u", "generation": generation},
            "spec": {"port": 80}, "status": {"said": status},
        })
    }

    fn number(kind: &str) -> usize {
        KINDS.iter().position(|it| it.kind == kind).unwrap()
    }

    #[test]
    fn a_look_needs_every_kind_and_a_status_that_changes_is_no_news() {
        let mut whole = Whole::new();
        for kind in 0..KINDS.len() {
            assert!(!whole.complete());
            whole.take((kind, Told::Listing));
            if kind == number("Server") {
                whole.take((kind, Told::Listed(server("web", 1, "old"))));
            }
            whole.take((kind, Told::Complete));
        }
        assert!(whole.complete() && std::mem::take(&mut whole.changed));
        let look = whole.look();
        let object = &look["servers.policy.linkerd.io/shop/web"];
        assert_eq!((object.uid.as_str(), object.generation), ("u", Some(1)));
        assert!(object.text.contains("\"port\":80") && !object.text.contains("old"), "{}", object.text);

        whole.take((number("Server"), Told::Applied(server("web", 1, "new"))));
        assert!(!whole.changed, "its status alone");
        whole.take((number("Server"), Told::Applied(server("web", 2, "new"))));
        assert!(std::mem::take(&mut whole.changed), "control: its spec");
        whole.take((number("Server"), Told::Gone(server("web", 2, "new"))));
        assert!(whole.changed && whole.look().is_empty());
    }

    #[test]
    fn a_kind_that_cannot_be_read_is_named_and_one_that_could_be_before_stays() {
        let (told, received) = channel();
        told.send((number("Namespace"), Told::Absent)).unwrap();
        told.send((number("Server"), Told::Broken("forbidden".to_owned()))).unwrap();
        let unseen = first(&received, Duration::from_secs(60)).unwrap_err();
        assert_eq!(unseen.to_string(), "servers.policy.linkerd.io cannot be read: forbidden");
        let mut whole = Whole::new();
        whole.take((number("Server"), Told::Listing));
        whole.take((number("Server"), Told::Listed(server("web", 1, ""))));
        whole.take((number("Server"), Told::Complete));
        whole.take((number("Server"), Told::Broken("away".to_owned())));
        assert!(whole.unseen().is_none() && whole.look().len() == 1);
    }
}
