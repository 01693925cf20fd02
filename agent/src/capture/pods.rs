//! Which pods are captured: the way in, the way out, and the way back after a restart.

pub(super) mod upkeep;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, SockMap},
};
use heddle_ebpf::{
    Address,
    attach::{ListeningKey, MAX_PODS, Pod, SLOTS_PER_POD, Veth, WORKERS, maps, slot},
    flows::{BareSegments, maps as flow_maps},
    text,
};
use heddle_policy::tables::TableSet;

use super::{
    counters::Counters,
    early::EarlyListeners,
    error::CaptureError,
    events,
    flows::{DirectFlows, EndedFlow},
    kernel::Kernel,
    links::{self, Interface},
    listeners::{self, PodListener},
    maps::Pins,
    namespace::Namespace,
    pod::{CapturedPod, string},
    programs,
    seen::DirectCounts,
    sockets::{Marks, PodSockets},
    tables::{Publication, TableRows},
    ways::{Watch, ways_out},
};

/// Every so many sweeps it is looked which listeners from before a capture are left.
const SWEEPS_A_LOOK: u64 = 8;

/// A pod that asks to be captured, as the cluster knows it.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The digest of its UID that the tables bear.
    pub uid: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports that it declares, which no listener takes.
    pub ports: HashSet<u16>,
    /// Where its network namespace is.
    pub netns: PathBuf,
}

/// Why a pod is not captured.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AttachRefusal {
    #[error("{0} is no network namespace that can be entered: {1}")]
    NoNamespace(PathBuf, CaptureError),
    #[error("{0} is the host's own network namespace")]
    HostNamespace(PathBuf),
    #[error("{path} is already attached to pod {pod}")]
    OtherPod { path: PathBuf, pod: String },
    #[error("pod {pod} is already attached with another network namespace, {path}")]
    OtherNamespace { pod: String, path: PathBuf },
    #[error("the namespace has the addresses {found:?}, the pod has {expected:?}")]
    Addresses { found: Vec<IpAddr>, expected: Vec<IpAddr> },
    #[error("interface {0} leads out of the pod past any veth of this host, where nothing could guard it")]
    Interface(String),
    #[error("the namespace has no veth whose other end is in the agent's network namespace")]
    NoVeth,
    #[error("this node holds {MAX_PODS} captured pods, which is all it can")]
    Full,
    #[error(transparent)]
    Kernel(#[from] CaptureError),
}

/// A fresh capture, with the sockets on which the data plane accepts.
#[derive(Debug)]
pub struct Attachment {
    /// The pod.
    pub pod: CapturedPod,
    /// Its listeners; empty when the pod was captured before.
    pub listeners: Vec<PodListener>,
}

struct Maps {
    pods: HashMap<MapData, u64, Pod>,
    addresses: HashMap<MapData, Address, u64>,
    veths: HashMap<MapData, u32, Veth>,
    listeners: SockMap<MapData>,
    listener_ports: HashMap<MapData, ListeningKey, u32>,
    listening: HashMap<MapData, ListeningKey, u64>,
    listening_sockets: HashMap<MapData, u64, ListeningKey>,
    bare_segments: HashMap<MapData, u32, BareSegments>,
}

struct Inner {
    maps: Maps,
    pods: BTreeMap<u64, CapturedPod>,
    watches: BTreeMap<u64, Watch>,
    early: EarlyListeners,
    sweeps: u64,
    publication: Publication,
    flows: DirectFlows,
    /// Ports on which nobody listened when it was looked last.
    closed_ports: HashSet<ListeningKey>,
}

/// The capture of this node's pods.
pub struct Capture {
    kernel: Kernel,
    home: Namespace,
    workers: u32,
    marks: Marks,
    inner: Mutex<Inner>,
}

impl Capture {
    /// Opens everything that [`Kernel`] loaded.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn new(kernel: Kernel, workers: u32) -> Result<Arc<Self>, CaptureError> {
        let pins = &kernel.pins;
        let inner = Inner {
            maps: Maps {
                pods: pins.hash(maps::PODS)?,
                addresses: pins.hash(maps::POD_ADDRESSES)?,
                veths: pins.hash(maps::VETHS)?,
                listeners: pins.sockets(maps::LISTENERS)?,
                listener_ports: pins.hash(maps::LISTENER_PORTS)?,
                listening: pins.hash(maps::LISTENING)?,
                listening_sockets: pins.hash(maps::LISTENING_SOCKETS)?,
                bare_segments: pins.hash(flow_maps::BARE_SEGMENTS)?,
            },
            pods: BTreeMap::new(),
            watches: BTreeMap::new(),
            early: EarlyListeners::open(pins)?,
            sweeps: 0,
            publication: Publication::open(&kernel)?,
            flows: DirectFlows::open(&kernel)?,
            closed_ports: HashSet::new(),
        };
        let marks = Marks::open(pins)?;
        Ok(Arc::new(Self {
            home: Namespace::own()?,
            workers: workers.clamp(1, WORKERS),
            marks,
            inner: Mutex::new(inner),
            kernel,
        }))
    }

    /// The loaded programs.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What the data plane may do with sockets in pods.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn sockets(&self) -> Result<PodSockets, CaptureError> {
        PodSockets::open(self.home.clone(), self.marks.clone(), &self.kernel.pins)
    }

    /// How many workers listen in each pod.
    pub fn workers(&self) -> u32 {
        self.workers
    }

    /// The generation of tables in force; 0: none.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn generation(&self) -> Result<u64, CaptureError> {
        self.lock().publication.generation()
    }

    /// Puts tables in force. Live `direct` connections are judged again by [`Self::end_revoked`].
    ///
    /// # Errors
    /// When the kernel refuses; the generation before stays in force.
    pub fn publish(&self, tables: &TableSet, generation: u64) -> Result<TableRows, CaptureError> {
        self.lock().publication.publish(tables, generation)
    }

    /// Ends live `direct` connections that the tables in force no longer allow; returns the ends of those flows.
    ///
    /// # Errors
    /// When the kernel gives no verdict.
    pub fn end_revoked(&self) -> Result<Vec<EndedFlow>, CaptureError> {
        let inner = &mut *self.lock();
        inner.flows.end_revoked(&self.kernel, &inner.pods)
    }

    /// Every captured pod.
    pub fn pods(&self) -> Vec<CapturedPod> {
        self.lock().pods.values().cloned().collect()
    }

    /// The captured pod in the namespace with this cookie.
    pub fn pod(&self, cookie: u64) -> Option<CapturedPod> {
        self.lock().pods.get(&cookie).cloned()
    }

    /// The digest of the UID of the pod that is captured at an address.
    pub fn captured(&self, address: &Address) -> Option<u64> {
        let ip = address.to_ip();
        self.lock().pods.values().find(|pod| pod.addresses.contains(&ip)).map(|pod| pod.row.uid)
    }

    /// Captures a pod. When it returns, guard and capture are in force.
    ///
    /// # Errors
    /// When the namespace is not the pod's, or the kernel refuses; nothing stays behind then.
    pub fn attach(&self, request: &AttachRequest) -> Result<Attachment, AttachRefusal> {
        let namespace = Namespace::open(&request.netns)
            .map_err(|error| AttachRefusal::NoNamespace(request.netns.clone(), error))?;
        self.not_the_hosts(&namespace)?;
        let name = format!("{}/{}", request.namespace, request.name);
        let inner = &mut *self.lock();
        if let Some(known) = inner.pods.get(&namespace.cookie()) {
            if known.name() != name || known.row.uid != request.uid {
                return Err(AttachRefusal::OtherPod { path: request.netns.clone(), pod: known.name() });
            }
            return Ok(Attachment { pod: known.clone(), listeners: Vec::new() });
        }
        if let Some(known) = inner.pods.values().find(|pod| pod.name() == name) {
            if known.namespace.still_there() {
                let path = known.namespace.path().to_owned();
                return Err(AttachRefusal::OtherNamespace { pod: name, path });
            }
            let cookie = known.namespace.cookie();
            self.forget(inner, cookie);
        }
        let first_slot = free_slot(inner).ok_or(AttachRefusal::Full)?;
        let row = Pod {
            uid: request.uid,
            v4: address(&request.addresses, IpAddr::is_ipv4),
            v6: address(&request.addresses, IpAddr::is_ipv6),
            ifindex: 0,
            first_slot,
            workers: self.workers,
            pad: 0,
            name: text(&name),
            netns: text(&request.netns.to_string_lossy()),
        };
        self.capture(inner, namespace, row, &request.addresses, &request.ports, false)
    }

    /// Finds again, after a restart, the pods whose capture an earlier agent left pinned. Each stays captured; those
    /// whose namespace is gone are taken away.
    ///
    /// # Errors
    /// When the map cannot be read. A pod that cannot be adopted stays refused, and is logged.
    pub fn adopt(&self) -> Result<Vec<Attachment>, CaptureError> {
        let inner = &mut *self.lock();
        let rows: Vec<(u64, Pod)> =
            inner.maps.pods.iter().collect::<Result<_, _>>().map_err(CaptureError::map(maps::PODS))?;
        let mut adopted = Vec::new();
        for (cookie, row) in rows {
            let path = PathBuf::from(string(&row.netns));
            match Namespace::open(&path) {
                Ok(namespace) if namespace.cookie() == cookie => {
                    let addresses: Vec<IpAddr> = [row.v4, row.v6]
                        .iter()
                        .filter(|address| !address.is_unspecified())
                        .map(|address| address.to_ip())
                        .collect();
                    match self.capture(inner, namespace, row, &addresses, &HashSet::new(), true) {
                        Ok(attachment) => adopted.push(attachment),
                        Err(error) => {
                            tracing::error!(pod = string(&row.name), %error, "a captured pod cannot be adopted: it stays refused");
                        }
                    }
                }
                _ => {
                    tracing::info!(pod = string(&row.name), "its network namespace is gone");
                    let addresses = [row.v4, row.v6];
                    let indexes = interfaces_of(&inner.maps, cookie);
                    remove_rows(&mut inner.maps, cookie, &addresses);
                    self.unpin(cookie, &indexes);
                }
            }
        }
        Ok(adopted)
    }

    /// Ends a pod's capture. `false` if it was not captured.
    pub fn detach(&self, namespace: &str, name: &str) -> bool {
        let name = format!("{namespace}/{name}");
        let inner = &mut *self.lock();
        let Some(cookie) =
            inner.pods.values().find(|pod| pod.name() == name).map(|pod| pod.namespace.cookie())
        else {
            return false;
        };
        self.forget(inner, cookie);
        self.end_flows_to_the_gone(inner);
        true
    }

    /// Takes away the capture of pods whose namespace's path leads elsewhere now; returns them. Guards what leads out
    /// of the others since it was last called.
    pub fn sweep(&self) -> Vec<CapturedPod> {
        let inner = &mut *self.lock();
        let gone: Vec<CapturedPod> =
            inner.pods.values().filter(|pod| !pod.namespace.still_there()).cloned().collect();
        for pod in &gone {
            self.forget(inner, pod.namespace.cookie());
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
    fn guard_new_ways(&self, inner: &mut Inner, cookie: u64) {
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
            match self.guard(maps, &mut ebpf, cookie, &pod.row, pair) {
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

    /// Puts the guard on the host's end of one of a pod's veths.
    fn guard(
        &self,
        maps: &mut Maps,
        ebpf: &mut Ebpf,
        cookie: u64,
        row: &Pod,
        (inside, host): &(Interface, Interface),
    ) -> Result<(), CaptureError> {
        let veth = Veth { netns: cookie, v4: row.v4, v6: row.v6, mac: inside.mac, pad: [0; 2] };
        maps.veths.insert(host.index, veth, 0).map_err(CaptureError::map(maps::VETHS))?;
        let [from, to] = self.guard_pins(host.index);
        programs::attach_guard(ebpf, &host.name, &from, &to)
    }

    /// A connect to a pod that is gone would reach whoever has its address next: the permission is on its socket, and
    /// the tables have not changed.
    fn end_flows_to_the_gone(&self, inner: &mut Inner) {
        if let Err(error) = inner.flows.end_revoked(&self.kernel, &inner.pods) {
            tracing::error!(%error, "connections to a pod that is gone could not be ended");
        }
    }

    /// Opens a captured pod's listeners anew, on other ports: an application wants one of those that they occupy.
    /// The data plane must close the old ones before it tells [`Self::gave_way`].
    ///
    /// # Errors
    /// When no port is free.
    pub fn move_listeners(&self, cookie: u64, wanted: u16) -> Result<Option<Attachment>, CaptureError> {
        let inner = &mut *self.lock();
        let Some(pod) = inner.pods.get(&cookie).cloned() else {
            return Ok(None);
        };
        let mut taken: HashSet<u16> = occupied(&inner.maps, cookie);
        // An application that goes through a range should not meet the agent again on its next step.
        taken.extend((0..256).filter_map(|step| wanted.checked_add(step)));
        let listeners = self.listen(inner, &pod, &taken)?;
        Ok(Some(Attachment { pod, listeners }))
    }

    /// The old listeners are closed: lets the application that waits in `bind()` go on.
    pub fn gave_way(&self, cookie: u64, kept: &HashSet<u16>) {
        let inner = &mut *self.lock();
        for port in occupied(&inner.maps, cookie) {
            if !kept.contains(&port) {
                let _ = inner.maps.listener_ports.remove(&ListeningKey {
                    netns: cookie,
                    port: port.into(),
                    early: 0,
                });
            }
        }
    }

    /// Reads what the programs tell on a thread of its own: each event's bytes, and `None` whenever it has read all.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened.
    pub fn follow_events(
        &self,
        tell: impl FnMut(Option<&[u8]>) -> bool + Send + 'static,
    ) -> Result<(), CaptureError> {
        events::follow(&self.kernel, tell)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_the_hosts(&self, namespace: &Namespace) -> Result<(), AttachRefusal> {
        let first = Namespace::open(Path::new("/proc/1/ns/net"));
        if namespace.is(&self.home) || first.is_ok_and(|first| namespace.is(&first)) {
            return Err(AttachRefusal::HostNamespace(namespace.path().to_owned()));
        }
        Ok(())
    }

    /// Guard first, then the pod's rows, then the look-up: at no moment is more let through than at the end.
    fn capture(
        &self,
        inner: &mut Inner,
        namespace: Namespace,
        mut row: Pod,
        addresses: &[IpAddr],
        ports: &HashSet<u16>,
        known: bool,
    ) -> Result<Attachment, AttachRefusal> {
        let cookie = namespace.cookie();
        // Before the interfaces are listed: what comes between is heard.
        let watch = Watch::new(&namespace).map_err(CaptureError::system("watching the pod's interfaces"))?;
        let interfaces = guarded(&namespace, &self.home, addresses, known)?;
        row.ifindex = interfaces[0].1.index;
        // By this agent or, where it could not be adopted, by an earlier one.
        let captured_before = known || inner.maps.pods.get(&cookie, 0).is_ok();
        let result = self.put_in_force(inner, &namespace, &row, &interfaces, addresses, ports);
        let pod = CapturedPod {
            row,
            namespace,
            interfaces: interfaces.iter().map(|(_, host)| (host.index, host.name.clone())).collect(),
            addresses: addresses.to_vec(),
        };
        match result {
            Ok(listeners) => {
                inner.pods.insert(cookie, pod.clone());
                inner.watches.insert(cookie, watch);
                Ok(Attachment { pod, listeners })
            }
            Err(error) => {
                // A pod that was captured keeps its guard: it stays refused rather than free. A new one leaves nothing.
                if !captured_before {
                    inner.pods.insert(cookie, pod);
                    self.forget(inner, cookie);
                }
                Err(error.into())
            }
        }
    }

    fn put_in_force(
        &self,
        inner: &mut Inner,
        namespace: &Namespace,
        row: &Pod,
        interfaces: &[(Interface, Interface)],
        addresses: &[IpAddr],
        ports: &HashSet<u16>,
    ) -> Result<Vec<PodListener>, CaptureError> {
        let cookie = namespace.cookie();
        let mut ebpf = self.kernel.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        for pair in interfaces {
            self.guard(&mut inner.maps, &mut ebpf, cookie, row, pair)?;
        }
        inner.maps.pods.insert(cookie, row, 0).map_err(CaptureError::map(maps::PODS))?;
        for ip in addresses {
            let address = Address::from(*ip);
            inner
                .maps
                .addresses
                .insert(address, cookie, 0)
                .map_err(CaptureError::map(maps::POD_ADDRESSES))?;
        }
        // The agent listens there already where it was started anew.
        inner.early.count(namespace, &occupied(&inner.maps, cookie))?;
        let pod = CapturedPod {
            row: *row,
            namespace: namespace.clone(),
            interfaces: Vec::new(),
            addresses: addresses.to_vec(),
        };
        let listeners = self.listen(inner, &pod, ports)?;
        let pin = self.lookup_pin(cookie);
        let file =
            std::fs::File::open(namespace.path()).map_err(CaptureError::path("opening", namespace.path()))?;
        programs::attach_lookup(&mut ebpf, file, &pin)?;
        Ok(listeners)
    }

    fn listen(
        &self,
        inner: &mut Inner,
        pod: &CapturedPod,
        taken: &HashSet<u16>,
    ) -> Result<Vec<PodListener>, CaptureError> {
        let listeners = listeners::open(&pod.namespace, &pod.addresses, self.workers, taken, &self.marks)
            .map_err(CaptureError::system("opening the agent's listeners in the pod"))?;
        let netns = pod.namespace.cookie();
        for listener in &listeners {
            let local = listener.socket.local_addr()?;
            let slot = slot(pod.row.first_slot, listener.direction, local.is_ipv4(), listener.worker);
            inner
                .maps
                .listeners
                .set(slot, &listener.socket, 0)
                .map_err(CaptureError::map(maps::LISTENERS))?;
            let key = ListeningKey { netns, port: local.port().into(), early: 0 };
            inner
                .maps
                .listener_ports
                .insert(key, slot, 0)
                .map_err(CaptureError::map(maps::LISTENER_PORTS))?;
        }
        Ok(listeners)
    }

    /// Look-up first, then the rows, the guard last: a pod that is being let go is not let out on the way.
    fn forget(&self, inner: &mut Inner, cookie: u64) {
        inner.watches.remove(&cookie);
        inner.early.forget(cookie);
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

    fn unpin(&self, cookie: u64, indexes: &[u32]) {
        let _ = std::fs::remove_file(self.lookup_pin(cookie));
        for index in indexes {
            for pin in self.guard_pins(*index) {
                let _ = std::fs::remove_file(pin);
            }
        }
    }

    fn lookup_pin(&self, cookie: u64) -> PathBuf {
        self.kernel.links.join(format!("lookup-{cookie}"))
    }

    fn guard_pins(&self, index: u32) -> [PathBuf; 2] {
        [
            self.kernel.links.join(format!("from_pod-{index}")),
            self.kernel.links.join(format!("to_pod-{index}")),
        ]
    }

    /// The programs' counters.
    ///
    /// # Errors
    /// When the map cannot be opened.
    pub fn counters(&self) -> Result<Counters, CaptureError> {
        Counters::open(&self.kernel.pins)
    }

    /// What the programs counted of connections that the kernel carries alone.
    ///
    /// # Errors
    /// When the map cannot be opened.
    pub fn direct_counts(&self) -> Result<DirectCounts, CaptureError> {
        DirectCounts::open(&self.kernel.pins)
    }
}

fn remove_rows(maps: &mut Maps, cookie: u64, addresses: &[Address]) {
    for address in addresses {
        if maps.addresses.get(address, 0).is_ok_and(|owner| owner == cookie) {
            let _ = maps.addresses.remove(address);
        }
    }
    let _ = maps.pods.remove(&cookie);
    for index in interfaces_of(maps, cookie) {
        let _ = maps.veths.remove(&index);
    }
    for port in occupied(maps, cookie) {
        let _ = maps.listener_ports.remove(&ListeningKey { netns: cookie, port: port.into(), early: 0 });
    }
    let counted: Vec<ListeningKey> =
        maps.listening.keys().flatten().filter(|key| key.netns == cookie).collect();
    for key in counted {
        let _ = maps.listening.remove(&key);
    }
    let sockets: Vec<u64> = maps
        .listening_sockets
        .iter()
        .flatten()
        .filter(|(_, key)| key.netns == cookie)
        .map(|(socket, _)| socket)
        .collect();
    for socket in sockets {
        let _ = maps.listening_sockets.remove(&socket);
    }
}

/// The host's interfaces that lead into the namespace.
fn interfaces_of(maps: &Maps, cookie: u64) -> Vec<u32> {
    maps.veths.iter().flatten().filter(|(_, veth)| veth.netns == cookie).map(|(index, _)| index).collect()
}

/// The ports that the agent's listeners have in the namespace.
fn occupied(maps: &Maps, cookie: u64) -> HashSet<u16> {
    maps.listener_ports
        .keys()
        .flatten()
        .filter(|key| key.netns == cookie)
        .filter_map(|key| u16::try_from(key.port).ok())
        .collect()
}

/// The namespace's ways out, each with its end on the host, the one with the pod's addresses first. A pod that is
/// `known` may have been given more interfaces and addresses since: they are guarded like the first.
fn guarded(
    namespace: &Namespace,
    home: &Namespace,
    addresses: &[IpAddr],
    known: bool,
) -> Result<Vec<(Interface, Interface)>, AttachRefusal> {
    let mut ways = ways_out(namespace, home)
        .map_err(CaptureError::system("listing the pod's and the host's interfaces"))?;
    if let Some(name) = ways.unguarded.first() {
        return Err(AttachRefusal::Interface(name.clone()));
    }
    let expected: HashSet<IpAddr> = addresses.iter().copied().collect();
    let found: HashSet<IpAddr> = ways.addresses.iter().copied().collect();
    if expected.is_empty() || !(found == expected || known && found.is_superset(&expected)) {
        return Err(AttachRefusal::Addresses { found: ways.addresses, expected: addresses.to_vec() });
    }
    if ways.own_first(&expected) { Ok(ways.pairs) } else { Err(AttachRefusal::NoVeth) }
}

/// The first slots that no pod has, nor one of an earlier agent's that could not be adopted.
fn free_slot(inner: &Inner) -> Option<u32> {
    let pinned = inner.maps.pods.iter().flatten().map(|(_, row)| row.first_slot);
    let used: HashSet<u32> = inner.pods.values().map(|pod| pod.row.first_slot).chain(pinned).collect();
    (0..MAX_PODS).map(|number| number * SLOTS_PER_POD).find(|first| !used.contains(first))
}

fn address(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Address {
    addresses.iter().find(|ip| family(ip)).map_or(Address::UNSPECIFIED, |ip| Address::from(*ip))
}

/// Takes off the interfaces what no pin holds: below 6.6 the guard is a filter of the interface. Says what it removed.
///
/// # Errors
/// When the pinned pods cannot be read, or the host's interfaces.
pub fn release_guards(bpffs: &Path) -> Result<Vec<String>, CaptureError> {
    let pins = Pins::new(Kernel::version_directory(bpffs).join("maps"));
    if !pins.path(maps::VETHS).exists() {
        return Ok(Vec::new());
    }
    let veths = pins.hash::<u32, Veth>(maps::VETHS)?;
    let home = Namespace::own()?;
    let interfaces =
        links::interfaces(&home).map_err(CaptureError::system("listing the host's interfaces"))?;
    let mut removed = Vec::new();
    for index in veths.keys().flatten() {
        if let Some(interface) = interfaces.iter().find(|interface| interface.index == index)
            && programs::detach_guard(&interface.name)
        {
            removed.push(format!("the guard on {}", interface.name));
        }
    }
    Ok(removed)
}
