//! What was put in force is looked for in the kernel, again and again, and put back where somebody took it away.

use std::{collections::HashSet, net::SocketAddr, sync::PoisonError};

use heddle_ebpf::{
    Address,
    attach::{Direction, ListeningKey, Veth, maps, slot},
    flows::Tuple,
};

use super::super::error::CaptureError;
use super::super::listeners::PodListener;
use super::super::pod::CapturedPod;
use super::super::programs;
use super::super::rows::{Maps, occupied};
use super::super::sock_diag;
use super::super::syscalls::GracePeriod;
use super::{Capture, Inner, guarded};

/// A pod whose capture or guard somebody took away.
#[derive(Debug)]
pub struct Repair {
    /// The pod.
    pub pod: CapturedPod,
    /// What was missing.
    pub missing: Vec<String>,
    /// Why it could not be put back: the pod stays cut off. `None`: everything is in force again.
    pub failed: Option<String>,
    /// Listeners in place of lost ones, for the data plane; it tells [`Capture::gave_way`] when the old ones are closed.
    pub listeners: Vec<PodListener>,
}

impl Capture {
    /// Looks in the kernel whether a pod's capture and guard are in force; says what is missing.
    pub fn verify(&self, pod: &CapturedPod) -> Vec<String> {
        let inner = self.lock();
        // As it is now: since it was handed out it may have been given interfaces, or lost some.
        let pod = inner.pods.get(&pod.namespace.cookie()).unwrap_or(pod);
        let mut missing = self.missing(&inner, pod);
        missing.extend(self.deaf(pod));
        // A way out that was added later and cannot be guarded: nothing here could put it right.
        if let Some(watch) = inner.watches.get(&pod.namespace.cookie()) {
            missing.extend(watch.unguarded.iter().cloned());
        }
        missing
    }

    /// Looks at every pod as [`Self::verify`] does and puts back what is missing. While that is being done, and for as
    /// long as it fails, what is left of the guard drops whatever the pod sends and is sent.
    pub fn repair(&self) -> Vec<Repair> {
        let inner = &mut *self.lock();
        if !self.writes() {
            return Vec::new();
        }
        let look = |inner: &Inner| -> Vec<(CapturedPod, Vec<String>)> {
            let pods = inner.pods.values().map(|pod| (pod.clone(), self.missing(inner, pod)));
            pods.filter(|(_, missing)| !missing.is_empty()).collect()
        };
        for (pod, _) in look(inner) {
            // An interface that went just now is missing nothing.
            self.guard_new_ways(inner, pod.namespace.cookie());
        }
        // All are looked at before any is repaired: what was taken from the node was taken from each of its pods.
        let broken = look(inner);
        let mut repairs = Vec::new();
        for (pod, missing) in broken {
            let failed = match self.put_back(inner, &pod) {
                Err(error) => Some(error),
                Ok(()) => {
                    let left = self.missing(inner, &pod);
                    (!left.is_empty()).then(|| left.join("; "))
                }
            };
            if failed.is_some() {
                cut_off(&mut inner.maps, &pod);
            }
            repairs.push(Repair { pod, missing, failed, listeners: Vec::new() });
        }
        // Without them connections are refused: nothing of the pod needs to be cut off for that.
        let deaf: Vec<(CapturedPod, String)> =
            inner.pods.values().filter_map(|pod| Some((pod.clone(), self.deaf(pod)?))).collect();
        for (pod, missing) in deaf {
            let listening = occupied(&inner.maps, pod.namespace.cookie())
                .and_then(|taken| self.listen(inner, &pod, &taken));
            let (listeners, failed) = match listening {
                Ok(listeners) => (listeners, None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            repairs.push(Repair { pod, missing: vec![missing], failed, listeners });
        }
        repairs
    }

    fn missing(&self, inner: &Inner, pod: &CapturedPod) -> Vec<String> {
        let cookie = pod.namespace.cookie();
        let mut missing: Vec<String> = self
            .kernel
            .detached()
            .map(|program| format!("{program} is not attached to the node's cgroup"))
            .collect();
        if !inner.maps.pods.get(&cookie, 0).is_ok_and(|row| row == pod.row) {
            missing.push("its row in `pods` is gone or is another's".to_owned());
        }
        for ip in &pod.addresses {
            if !inner.maps.addresses.get(&Address::from(*ip), 0).is_ok_and(|owner| owner == cookie) {
                missing.push(format!("its address {ip} is not in `pod_addresses`"));
            }
        }
        missing.extend(
            self.kernel.unpinned().map(|map| format!("map {map} is not pinned, or another is in its place")),
        );
        if !programs::in_force(&self.lookup_pin(cookie)) {
            missing.push("no look-up is attached to its network namespace".to_owned());
        }
        for (index, name) in &pod.interfaces {
            let settling = inner.settles(cookie);
            let own = |veth: &Veth| is_of(veth, pod) && veth.settling == settling;
            if !inner.maps.veths.get(index, 0).is_ok_and(|veth| own(&veth)) {
                missing.push(format!("interface {name} is not in `veths`, or not as it should be"));
            }
            if !programs::guarded(name, &self.guard_pins(*index)) {
                missing.push(format!("no guard is attached to interface {name}"));
            }
        }
        missing
    }

    /// Says so if listeners of a pod's are not where the look-up finds them, or the kernel cannot be asked.
    fn deaf(&self, pod: &CapturedPod) -> Option<String> {
        let slots = pod.addresses.iter().flat_map(|ip| {
            [Direction::Outbound, Direction::Inbound].into_iter().flat_map(move |direction| {
                (0..pod.row.workers)
                    .map(move |worker| slot(pod.row.first_slot, direction, ip.is_ipv4(), worker))
            })
        });
        let empty = slots.filter(|slot| !self.kernel.listener_in(*slot).unwrap_or(false)).count();
        (empty > 0).then(|| format!("{empty} of its listeners are not in `listeners`"))
    }

    /// The row in `veths` comes last: without it the guard drops everything.
    fn put_back(&self, inner: &mut Inner, pod: &CapturedPod) -> Result<(), String> {
        cut_off(&mut inner.maps, pod);
        let cookie = pod.namespace.cookie();
        let interfaces =
            guarded(&pod.namespace, &self.home, &pod.addresses, true).map_err(|error| error.to_string())?;
        self.put_rows_and_programs_back(inner, pod).map_err(|error| error.to_string())?;
        for (inside, host) in &interfaces {
            let veth = inner.veth(cookie, &pod.row, inside.mac);
            inner
                .maps
                .veths
                .insert(host.index, veth, 0)
                .map_err(|error| format!("kernel map veths: {error}"))?;
        }
        Ok(())
    }

    fn put_rows_and_programs_back(&self, inner: &mut Inner, pod: &CapturedPod) -> Result<(), CaptureError> {
        let cookie = pod.namespace.cookie();
        self.kernel.attach_detached()?;
        self.kernel.pin_again()?;
        let mut ebpf = self.kernel.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, name) in &pod.interfaces {
            let [from, to] = self.guard_pins(*index);
            programs::attach_guard(&mut ebpf, name, &from, &to)?;
        }
        inner.maps.pods.insert(cookie, pod.row, 0).map_err(CaptureError::map(maps::PODS))?;
        for ip in &pod.addresses {
            let address = Address::from(*ip);
            inner
                .maps
                .addresses
                .insert(address, cookie, 0)
                .map_err(CaptureError::map(maps::POD_ADDRESSES))?;
        }
        let path = pod.namespace.path();
        let file = std::fs::File::open(path).map_err(CaptureError::path("opening", path))?;
        programs::attach_lookup(&mut ebpf, file, &self.lookup_pin(cookie))
    }

    /// Takes the rows of ports away on which nobody has listened since the last call: the programs only count down to
    /// zero, and a pod that listens on one port after the other would fill the map.
    ///
    /// # Errors
    /// When the grace period cannot be waited for.
    pub fn forget_closed_ports(&self) -> Result<usize, CaptureError> {
        const WAITING: &str = "waiting for programs to leave the old rows";
        let _whole = self.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guard = self.lock();
        if !self.writes() {
            return Ok(0);
        }
        let inner = &mut *guard;
        let closed: HashSet<ListeningKey> = inner
            .maps
            .all_listening
            .rows()?
            .into_iter()
            .filter(|(_, sockets)| *sockets == 0)
            .map(|(key, _)| key)
            .collect();
        let still: Vec<ListeningKey> = closed.intersection(&inner.closed_ports).copied().collect();
        inner.closed_ports = closed;
        if still.is_empty() {
            return Ok(0);
        }
        // Before a row is gone that would have to be put back.
        let programs = GracePeriod::new().map_err(CaptureError::system(WAITING))?;
        for key in &still {
            inner.closed_ports.remove(key);
            let _ = inner.maps.listening.remove(key);
        }
        // A program that had found the row counts a new socket in a row that is none any more. It noted the socket
        // before; when it has ended, what it noted is counted again. Not under the lock: the program that is waited for
        // may be a `bind()` that waits for the agent to give way.
        drop(guard);
        programs.wait().map_err(CaptureError::system(WAITING))?;
        let inner = &mut *self.lock();
        let gone: HashSet<ListeningKey> = still.iter().copied().collect();
        let mut counts = std::collections::HashMap::<ListeningKey, u64>::new();
        for (_, key) in
            inner.maps.all_listening_sockets.rows()?.into_iter().filter(|(_, key)| gone.contains(key))
        {
            *counts.entry(key).or_default() += 1;
        }
        for (key, sockets) in counts {
            // BPF_NOEXIST: who listened after the row was gone is counted already.
            let _ = inner.maps.listening.insert(key, sockets, 1);
        }
        Ok(still.len())
    }

    /// Ends a connection that socket events refused when it was under way already. The guard lets nothing of it out,
    /// but its application would wait until it gives up.
    pub fn end_unregistered(&self, cookie: u64, tuple: &Tuple) {
        let Some(pod) = self.pod(cookie) else { return };
        let client = SocketAddr::new(tuple.source.to_ip(), tuple.source_port);
        let server = SocketAddr::new(tuple.destination.to_ip(), tuple.destination_port);
        let ends = if pod.addresses.contains(&client.ip()) { (client, server) } else { (server, client) };
        // One that has ended by itself is as good.
        if let Err(error) = sock_diag::destroy(&pod.namespace, ends.0, ends.1)
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            tracing::debug!(pod = %pod.name(), %client, %server, %error, "cannot end a refused connection; it times out");
        }
    }
}

/// The guard drops everything of an interface that has no row.
pub(super) fn cut_off(maps: &mut Maps, pod: &CapturedPod) {
    for (index, _) in &pod.interfaces {
        let _ = maps.veths.remove(index);
    }
}

fn is_of(veth: &Veth, pod: &CapturedPod) -> bool {
    (veth.netns, veth.v4, veth.v6) == (pod.namespace.cookie(), pod.row.v4, pod.row.v6)
}
