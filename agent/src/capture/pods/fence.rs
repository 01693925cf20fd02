//! Of two agents on a node one writes what the kernel programs read. The other stands behind a fence: it goes on reading,
//! and carries what it has.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::PathBuf,
    sync::{PoisonError, atomic::Ordering},
};

use heddle_ebpf::attach::{Pod, maps};

use super::super::error::CaptureError;
use super::super::namespace::Namespace;
use super::super::pod::{CapturedPod, string};
use super::super::rows::occupied;
use super::{Capture, Inner};

/// A pod that is captured on this node, as its row in the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// `namespace/name`.
    pub name: String,
    /// The digest of its UID.
    pub uid: u64,
}

impl Capture {
    /// From here on nothing is written; whatever was being written has been when this returns. Whoever is to write next
    /// may begin.
    pub fn fence(&self) {
        self.writing.store(false, Ordering::SeqCst);
        // Writers look behind their lock: those that found the fence open are waited for.
        drop(self.forgetting.lock().unwrap_or_else(PoisonError::into_inner));
        drop(self.publication());
        drop(self.lock());
    }

    /// From here on this agent writes: its programs and bounds come into force.
    ///
    /// # Errors
    /// When the kernel refuses; the fence stands then.
    pub fn unfence(&self) -> Result<(), CaptureError> {
        self.kernel.enforce()?;
        self.writing.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether this agent writes. Asked under the lock of what is to be written.
    pub(super) fn writes(&self) -> bool {
        self.writing.load(Ordering::SeqCst)
    }

    /// The pods that are captured here, by whichever agent.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn known(&self) -> Result<Vec<KnownPod>, CaptureError> {
        let rows = rows(&self.lock())?;
        Ok(rows.into_iter().map(|(_, row)| KnownPod { name: string(&row.name), uid: row.uid }).collect())
    }

    /// Opens this agent's listeners in every captured pod, for [`Self::adopt`]: whatever may fail fails before anything is
    /// changed. Until then they are nobody's.
    ///
    /// # Errors
    /// When a pod has no room for them; none stays open then.
    pub fn listen_beforehand(&self) -> Result<(), CaptureError> {
        let inner = &mut *self.lock();
        inner.opened.clear();
        for (cookie, row) in rows(inner)? {
            // One that is gone is let go when pods are adopted.
            let Ok(namespace) = Namespace::open(&PathBuf::from(string(&row.netns))) else { continue };
            if namespace.cookie() != cookie {
                continue;
            }
            let taken = occupied(&inner.maps, cookie)?;
            match self.open_listeners(&namespace, &addresses(&row), &taken) {
                Ok(opened) => drop(inner.opened.insert(cookie, opened)),
                Err(error) => {
                    inner.opened.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The listeners of an agent before this one are closed: applications may have their ports.
    pub fn forget_others_ports(&self) {
        let own: Vec<(u64, HashSet<u16>)> =
            self.lock().ports.iter().map(|(cookie, ports)| (*cookie, ports.clone())).collect();
        for (cookie, ports) in own {
            self.gave_way(cookie, &ports);
        }
    }

    /// Behind the fence: forgets the pods that another agent let go, and whose namespace is gone. Nothing is written.
    pub(super) fn forget_what_others_let_go(&self, inner: &mut Inner) -> Vec<CapturedPod> {
        let captured = |pod: &CapturedPod| {
            let row = inner.maps.pods.get(&pod.namespace.cookie(), 0);
            pod.namespace.still_there() && row.is_ok_and(|row| row.uid == pod.row.uid)
        };
        let gone: Vec<CapturedPod> = inner.pods.values().filter(|pod| !captured(pod)).cloned().collect();
        for pod in &gone {
            let cookie = pod.namespace.cookie();
            inner.pods.remove(&cookie);
            inner.watches.remove(&cookie);
            inner.early.forget(cookie);
            inner.ports.remove(&cookie);
            inner.settling.remove(&cookie);
        }
        gone
    }
}

pub(super) fn rows(inner: &Inner) -> Result<Vec<(u64, Pod)>, CaptureError> {
    inner.maps.pods.iter().collect::<Result<_, _>>().map_err(CaptureError::map(maps::PODS))
}

/// The addresses in a pod's row.
pub(super) fn addresses(row: &Pod) -> Vec<IpAddr> {
    [row.v4, row.v6].iter().filter(|it| !it.is_unspecified()).map(|it| it.to_ip()).collect()
}
