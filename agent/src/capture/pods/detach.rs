//! The end of a pod's capture.

use std::path::Path;

use heddle_ebpf::attach::{Pod, SLOTS_PER_POD};

use super::super::counters::Counters;
use super::super::pod::string;
use super::super::programs;
use super::super::request::AttachRefusal;
use super::super::rows::remove_rows;
use super::upkeep::cut_off;
use super::{Capture, Inner, LeftOver};

/// Sweeps, of a quarter of a second, after which a namespace that lives on is told of: its end takes a moment.
pub(super) const LASTING: u32 = 40;

impl Capture {
    /// Ends a pod's capture, in the network namespace at `netns` alone if one is given; returns the namespace's cookie,
    /// `None` if the pod was not captured.
    ///
    /// # Errors
    /// Behind the fence, and where the pod is captured in another namespace.
    pub fn detach(
        &self,
        namespace: &str,
        name: &str,
        netns: Option<&Path>,
    ) -> Result<Option<u64>, AttachRefusal> {
        let name = format!("{namespace}/{name}");
        let inner = &mut *self.lock();
        if !self.writes() {
            return Err(AttachRefusal::Succeeded);
        }
        let Some(pod) = inner.pods.values().find(|pod| pod.name() == name).cloned() else {
            return Ok(self.detach_left_over(inner, &name, netns));
        };
        let path = pod.namespace.path();
        // An older sandbox's end is not the new one's.
        if netns.is_some_and(|netns| netns != path) {
            return Err(AttachRefusal::OtherNamespace { pod: name, path: path.to_owned() });
        }
        let cookie = pod.namespace.cookie();
        self.forget(inner, cookie);
        self.end_flows_to_the_gone(inner);
        Ok(Some(cookie))
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
        let indexes: Vec<u32> = pod.interfaces.iter().map(|(index, _)| *index).collect();
        self.take_away(inner, cookie, &pod.row, &indexes);
        for (_, name) in &pod.interfaces {
            programs::detach_guard(name);
        }
    }

    /// Lets go of a pod whose namespace's path leads there no longer. Whether something lives in it is not known: what it
    /// sends and is sent is dropped until the namespace is gone ([`Self::forget_if_gone`]), which this agent must not
    /// hold open.
    pub(super) fn leave(&self, inner: &mut Inner, cookie: u64) {
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
        cut_off(&mut inner.maps, &pod);
        // Whoever has its address next is not it.
        for address in [pod.row.v4, pod.row.v6] {
            if inner.maps.addresses.get(&address, 0).is_ok_and(|owner| owner == cookie) {
                let _ = inner.maps.addresses.remove(&address);
            }
        }
        let interfaces = pod.interfaces.iter().map(|(index, _)| *index).collect();
        inner.left_over.insert(cookie, LeftOver::new(interfaces));
    }

    /// What is left of a pod is taken away because whoever runs it says that it is over.
    fn detach_left_over(&self, inner: &mut Inner, name: &str, netns: Option<&Path>) -> Option<u64> {
        let mut detached = None;
        for (cookie, LeftOver { interfaces, .. }) in inner.left_over.clone() {
            let Ok(row) = inner.maps.pods.get(&cookie, 0) else { continue };
            let its = string(&row.netns);
            if string(&row.name) == name && netns.is_none_or(|netns| netns == Path::new(&its)) {
                self.take_away(inner, cookie, &row, &interfaces);
                inner.left_over.remove(&cookie);
                detached = Some(cookie);
            }
        }
        detached
    }

    /// The pods that were let go of and whose namespace lives on, for longer than its end takes.
    pub fn left_over(&self) -> Vec<String> {
        let inner = self.lock();
        let lasting = inner.left_over.iter().filter(|(_, left)| left.sweeps > LASTING);
        let rows = lasting.filter_map(|(cookie, _)| inner.maps.pods.get(cookie, 0).ok());
        rows.map(|row| string(&row.name)).collect()
    }

    /// Takes away what was put in force for a pod whose namespace is gone; says whether it is. Where its path leads says
    /// nothing of that: a namespace lives as long as a process is in it. The look-up's link ends with it.
    pub(super) fn forget_if_gone(
        &self,
        inner: &mut Inner,
        cookie: u64,
        row: &Pod,
        interfaces: &[u32],
    ) -> bool {
        let gone = !programs::in_force(&self.lookup_pin(cookie));
        if gone {
            tracing::info!(pod = string(&row.name), "its network namespace is gone");
            self.take_away(inner, cookie, row, interfaces);
        }
        gone
    }

    fn take_away(&self, inner: &mut Inner, cookie: u64, row: &Pod, interfaces: &[u32]) {
        let _ = std::fs::remove_file(self.lookup_pin(cookie));
        remove_rows(&mut inner.maps, cookie, &[row.v4, row.v6]);
        for index in interfaces {
            let _ = inner.maps.bare_segments.remove(index);
            for pin in self.guard_pins(*index) {
                let _ = std::fs::remove_file(pin);
            }
        }
        // Its counters go with it, or pods that come and go would leave no room for the next one's.
        if let Ok(mut counters) = Counters::open(&self.kernel.pins) {
            counters.forget(cookie);
        }
    }
}
