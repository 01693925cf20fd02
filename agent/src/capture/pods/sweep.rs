//! What changes by itself: namespaces that vanish, interfaces that come and go, listeners from before that close.

use std::sync::PoisonError;

use super::super::pod::{CapturedPod, string};
use super::super::request::AttachRefusal;
use super::super::ways::ways_out;
use super::detach::LASTING;
use super::{Capture, Inner, LeftOver};
use heddle_ebpf::attach::Veth;

/// Every so many sweeps it is looked which listeners from before a capture are left.
const SWEEPS_A_LOOK: u64 = 8;

impl Capture {
    /// Lets go of pods whose namespace's path leads elsewhere now; returns them. A namespace may outlive its path: they pass
    /// nothing until it is gone, and then their capture is taken away, as is that of what could not be adopted. Guards what
    /// leads out of the others since it was last called.
    pub fn sweep(&self) -> Vec<CapturedPod> {
        let inner = &mut *self.lock();
        if !self.writes() {
            return self.forget_what_others_let_go(inner);
        }
        let gone: Vec<CapturedPod> =
            inner.pods.values().filter(|pod| !pod.namespace.still_there()).cloned().collect();
        for pod in &gone {
            self.leave(inner, pod.namespace.cookie());
        }
        for (cookie, LeftOver { interfaces, sweeps }) in inner.left_over.clone() {
            let Ok(row) = inner.maps.pods.get(&cookie, 0) else {
                inner.left_over.remove(&cookie);
                continue;
            };
            if self.forget_if_gone(inner, cookie, &row, &interfaces) {
                inner.left_over.remove(&cookie);
                continue;
            }
            if sweeps == LASTING {
                tracing::warn!(
                    pod = string(&row.name),
                    netns = string(&row.netns),
                    "its network namespace lives on and its path does not lead there: what is in it passes nothing; end its processes, \
                     or attach it by the path that leads there now"
                );
            }
            inner.left_over.insert(cookie, LeftOver { interfaces, sweeps: sweeps.saturating_add(1) });
        }
        if !gone.is_empty() {
            self.end_flows_to_the_gone(inner);
        }
        let changed: Vec<u64> = inner
            .watches
            .iter_mut()
            .filter_map(|(cookie, watch)| watch.changed().then_some(*cookie))
            .collect();
        for cookie in changed {
            self.guard_new_ways(inner, cookie);
        }
        inner.sweeps += 1;
        if inner.sweeps.is_multiple_of(SWEEPS_A_LOOK) {
            let Inner { pods, early, .. } = inner;
            for pod in pods.values() {
                if !early.any(pod.namespace.cookie()) {
                    continue;
                }
                if let Err(error) = early.look_again(&pod.namespace) {
                    tracing::warn!(pod = pod.name(), %error, "it is not known which ports are still listened on");
                }
            }
        }
        gone
    }

    /// Guards interfaces that a captured pod was given, and forgets those that were taken from it. What cannot be
    /// guarded is told by [`Self::verify`].
    pub(super) fn guard_new_ways(&self, inner: &mut Inner, cookie: u64) {
        let settling = inner.settles(cookie);
        let Inner { maps, pods, watches, .. } = inner;
        let (Some(pod), Some(watch)) = (pods.get_mut(&cookie), watches.get_mut(&cookie)) else {
            return;
        };
        let name = pod.name();
        let ways = match ways_out(&pod.namespace, &self.home) {
            Ok(ways) => ways,
            Err(error) => {
                tracing::error!(pod = name, %error, "the pod's interfaces have changed and cannot be listed");
                watch.again = true;
                return;
            }
        };
        if !ways.nested.is_empty() {
            let interfaces = ways.nested.join(", ");
            tracing::info!(
                pod = name,
                interfaces,
                "the pod has namespaces behind it; what leaves them leaves by its own veth"
            );
        }
        watch.unguarded = ways
            .unguarded
            .iter()
            .map(|interface| AttachRefusal::Interface(interface.clone()).to_string())
            .collect();
        let mut ebpf = self.kernel.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        for pair in &ways.pairs {
            let host = &pair.1;
            if pod.interfaces.iter().any(|(index, _)| *index == host.index) {
                continue;
            }
            let veth =
                Veth { netns: cookie, v4: pod.row.v4, v6: pod.row.v6, mac: pair.0.mac, settling, pad: 0 };
            match self.guard(maps, &mut ebpf, veth, host) {
                Ok(()) => {
                    tracing::warn!(
                        pod = name,
                        interface = host.name,
                        "the pod was given another interface: guarded"
                    );
                    pod.interfaces.push((host.index, host.name.clone()));
                }
                Err(error) => {
                    watch.unguarded.push(format!("interface {} cannot be guarded: {error}", host.name));
                    watch.again = true;
                }
            }
        }
        for problem in &watch.unguarded {
            tracing::error!(pod = name, problem, "a way out of the pod is not guarded");
        }
        // The first stays, and its absence is told: it is the pod's own.
        let gone = |index: &u32| !ways.pairs.iter().any(|(_, host)| host.index == *index);
        for (index, _) in pod.interfaces.iter().skip(1).filter(|(index, _)| gone(index)) {
            for pin in self.guard_pins(*index) {
                let _ = std::fs::remove_file(pin);
            }
            let _ = maps.veths.remove(index);
        }
        let own = pod.row.ifindex;
        pod.interfaces.retain(|(index, _)| *index == own || !gone(index));
    }
}
