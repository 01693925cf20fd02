//! The captured pods as the data plane's calls need them: found by number or by address, without a lock.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use heddle_ebpf::Address;
use heddle_identity::Workload;
use tokio::sync::watch;

use crate::{capture::CapturedPod, cli::workload_api, proxy::environment::PodId};

/// How long a pod that starts is new: the kubelet tells the API server its address a second or so after it has begun to
/// run, and other nodes' agents learn it from there.
const NEW: Duration = Duration::from_secs(5);

/// A captured pod and its identity.
pub(super) struct Entry {
    pub captured: CapturedPod,
    /// Held as long as the pod is captured: its certificate is kept renewed.
    pub workload: Arc<Workload>,
    /// `namespace/name`.
    pub name: Arc<str>,
    /// When it was captured, if the API server did not tell its address by then.
    pub started: Option<Instant>,
}

impl Entry {
    /// Whether other nodes' agents may not know its address yet.
    pub fn is_new(&self, now: Instant) -> bool {
        self.started.is_some_and(|started| now.saturating_duration_since(started) < NEW)
    }

    /// The pod's address of the family of `other`; unspecified if it has none.
    pub fn address_like(&self, other: IpAddr) -> Address {
        if other.to_canonical().is_ipv4() { self.captured.row.v4 } else { self.captured.row.v6 }
    }
}

#[derive(Default, Clone)]
struct Index {
    by_id: HashMap<u64, Arc<Entry>>,
    by_address: HashMap<Address, u64>,
}

/// Every captured pod.
#[derive(Default)]
pub(super) struct Pods {
    index: ArcSwap<Index>,
    writing: Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Pods {
    pub fn get(&self, pod: PodId) -> Option<Arc<Entry>> {
        self.index.load().by_id.get(&pod.0).cloned()
    }

    /// The digest of the UID of the pod that is captured at an address.
    pub fn captured(&self, address: &Address) -> Option<u64> {
        let index = self.index.load();
        Some(index.by_id.get(index.by_address.get(address)?)?.captured.row.uid)
    }

    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let wanted = format!("{namespace}/{name}");
        self.index.load().by_id.values().find(|entry| *entry.name == wanted).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.index.load().by_id.values().cloned().collect()
    }

    pub fn insert(&self, entry: Entry) {
        self.change(|index| {
            let id = entry.captured.namespace.cookie();
            index.by_address.extend(entry.captured.addresses.iter().map(|ip| (Address::from(*ip), id)));
            index.by_id.insert(id, Arc::new(entry));
        });
    }

    pub fn remove(&self, pod: PodId) {
        self.change(|index| {
            index.by_id.remove(&pod.0);
            index.by_address.retain(|_, id| *id != pod.0);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Index)) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = Index::clone(&self.index.load());
        change(&mut index);
        self.index.store(Arc::new(index));
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl workload_api::Pods for Pods {
    fn pod(&self, cookie: u64) -> Option<workload_api::Pod> {
        let entry = self.get(PodId(cookie))?;
        Some(workload_api::Pod {
            name: Arc::clone(&entry.name),
            uid: entry.captured.row.uid,
            identity: entry.workload.identity().clone(),
            namespace: entry.captured.namespace.clone(),
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
