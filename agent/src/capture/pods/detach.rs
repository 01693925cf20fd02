//! The end of a pod's capture.

use heddle_ebpf::attach::SLOTS_PER_POD;

use super::super::counters::Counters;
use super::super::programs;
use super::super::request::AttachRefusal;
use super::super::rows::remove_rows;
use super::{Capture, Inner};

impl Capture {
    /// Ends a pod's capture. `false` if it was not captured.
    ///
    /// # Errors
    /// Behind the fence.
    pub fn detach(&self, namespace: &str, name: &str) -> Result<bool, AttachRefusal> {
        let name = format!("{namespace}/{name}");
        let inner = &mut *self.lock();
        if !self.writes() {
            return Err(AttachRefusal::Succeeded);
        }
        let Some(cookie) =
            inner.pods.values().find(|pod| pod.name() == name).map(|pod| pod.namespace.cookie())
        else {
            return Ok(false);
        };
        self.forget(inner, cookie);
        self.end_flows_to_the_gone(inner);
        Ok(true)
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

    pub(super) fn unpin(&self, cookie: u64, indexes: &[u32]) {
        let _ = std::fs::remove_file(self.lookup_pin(cookie));
        for index in indexes {
            for pin in self.guard_pins(*index) {
                let _ = std::fs::remove_file(pin);
            }
        }
    }
}
