//! The end of a pod's capture.

use std::io::ErrorKind;
use std::path::Path;

use heddle_ebpf::attach::{Pod, SLOTS_PER_POD};

use super::super::counters::Counters;
use super::super::error::CaptureError;
use super::super::namespace::Namespace;
use super::super::pod::{CapturedPod, string};
use super::super::programs;
use super::super::request::AttachRefusal;
use super::super::rows::{interfaces_of, remove_rows};
use super::{Capture, Inner};

impl Capture {
    /// Ends a pod's capture, in the network namespace at `netns` alone if one is given; returns what was captured.
    ///
    /// # Errors
    /// Behind the fence, and where the pod is captured in another namespace.
    pub fn detach(
        &self,
        namespace: &str,
        name: &str,
        netns: Option<&Path>,
    ) -> Result<Option<CapturedPod>, AttachRefusal> {
        let name = format!("{namespace}/{name}");
        let inner = &mut *self.lock();
        if !self.writes() {
            return Err(AttachRefusal::Succeeded);
        }
        let Some(pod) = inner.pods.values().find(|pod| pod.name() == name).cloned() else {
            return Ok(None);
        };
        let path = pod.namespace.path();
        // An older sandbox's end is not the new one's.
        if netns.is_some_and(|netns| netns != path) {
            return Err(AttachRefusal::OtherNamespace { pod: name, path: path.to_owned() });
        }
        self.forget(inner, pod.namespace.cookie());
        self.end_flows_to_the_gone(inner);
        Ok(Some(pod))
    }

    /// A connect to a pod that is gone would reach whoever has its address next: the permission is on its socket, and
    /// the tables have not changed.
    pub(super) fn end_flows_to_the_gone(&self, inner: &mut Inner) {
        if let Err(error) = inner.flows.end_revoked(&self.kernel, &inner.pods) {
            tracing::error!(%error, "connections to a pod that is gone could not be ended");
        }
    }

    /// Look-up first, then the rows, the guard last: a pod that is being let go is not let out on the way.
    pub(super) fn forget(&self, inner: &mut Inner, cookie: u64) {
        inner.watches.remove(&cookie);
        inner.early.forget(cookie);
        inner.ports.remove(&cookie);
        inner.settling.remove(&cookie);
        let Some(pod) = inner.pods.remove(&cookie) else {
            return;
        };
        for slot in pod.row.first_slot..pod.row.first_slot + SLOTS_PER_POD {
            let _ = inner.maps.listeners.clear_index(&slot);
        }
        let addresses = [pod.row.v4, pod.row.v6];
        let indexes: Vec<u32> = pod.interfaces.iter().map(|(index, _)| *index).collect();
        self.unpin(cookie, &indexes);
        for (index, name) in &pod.interfaces {
            programs::detach_guard(name);
            let _ = inner.maps.veths.remove(index);
            let _ = inner.maps.bare_segments.remove(index);
        }
        remove_rows(&mut inner.maps, cookie, &addresses);
        // Its counters go with it, or pods that come and go would leave no room for the next one's.
        if let Ok(mut counters) = Counters::open(&self.kernel.pins) {
            counters.forget(cookie);
        }
    }

    /// Takes away what an earlier agent put in force for a pod whose namespace is gone; says whether it is. `opened`: what
    /// came of opening its path.
    pub(super) fn forget_if_gone(
        &self,
        inner: &mut Inner,
        cookie: u64,
        row: &Pod,
        opened: &Result<Namespace, CaptureError>,
    ) -> bool {
        let gone = match opened {
            Ok(namespace) => namespace.cookie() != cookie,
            Err(CaptureError::Path { source, .. }) if source.kind() == ErrorKind::NotFound => true,
            // Whatever else failed says nothing of the pod. A link ends with its namespace.
            Err(_) => !programs::in_force(&self.lookup_pin(cookie)),
        };
        if gone {
            tracing::info!(pod = string(&row.name), "its network namespace is gone");
            let indexes = interfaces_of(&inner.maps, cookie).unwrap_or_default();
            remove_rows(&mut inner.maps, cookie, &[row.v4, row.v6]);
            self.unpin(cookie, &indexes);
        }
        gone
    }

    pub(super) fn unpin(&self, cookie: u64, indexes: &[u32]) {
        let _ = std::fs::remove_file(self.lookup_pin(cookie));
        for index in indexes {
            for pin in self.guard_pins(*index) {
                let _ = std::fs::remove_file(pin);
            }
        }
    }
}
