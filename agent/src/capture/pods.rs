//! Which pods are captured: the way in, the way out, and the way back after a restart.

mod detach;
pub(super) mod fence;
mod give_way;
pub(super) mod running;
mod sweep;
pub(super) mod upkeep;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use aya::Ebpf;
use heddle_ebpf::{
    Address,
    attach::{ListeningKey, POD_NAME, Pod, Veth, WORKERS, maps, slot},
    text,
};
use heddle_policy::tables::TableSet;

use running::Settling;

use super::{
    counters::Counters,
    early::EarlyListeners,
    error::CaptureError,
    events::{self, FollowedEvents},
    flows::{DirectFlows, EndedFlow},
    kernel::Kernel,
    links::Interface,
    listeners::{self, PodListener},
    namespace::Namespace,
    pod::{CapturedPod, string},
    programs,
    request::{AttachRefusal, AttachRequest, Attachment},
    rows::{Maps, address, free_slot, interfaces_of, occupied},
    seen::DirectCounts,
    sockets::{Marks, PodSockets},
    tables::{Publication, TableRows},
    ways::{Watch, ways_out},
};

struct Inner {
    maps: Maps,
    pods: BTreeMap<u64, CapturedPod>,
    watches: BTreeMap<u64, Watch>,
    early: EarlyListeners,
    sweeps: u64,
    flows: DirectFlows,
    /// Ports on which nobody listened when it was looked last.
    closed_ports: HashSet<ListeningKey>,
    /// Listeners that were opened beforehand, by the pod's cookie.
    opened: BTreeMap<u64, Vec<PodListener>>,
    /// The ports of this agent's own listeners, by the pod's cookie.
    ports: BTreeMap<u64, HashSet<u16>>,
    /// Of the pods that were captured while they ran and have not settled: the sockets that were open, by the pod's cookie.
    settling: BTreeMap<u64, Settling>,
    /// What an earlier agent captured and this one could not adopt, and pods whose namespace lives on though its path does
    /// not lead to it, by the cookie: refused until the namespace is gone.
    left_over: BTreeMap<u64, LeftOver>,
}

/// What is known of a pod that is refused until its namespace is gone.
#[derive(Clone)]
struct LeftOver {
    /// The indexes of its guarded interfaces.
    interfaces: Vec<u32>,
    /// For how many sweeps it has been one.
    sweeps: u32,
}

impl LeftOver {
    fn new(interfaces: Vec<u32>) -> Self {
        Self { interfaces, sweeps: 0 }
    }
}

/// The capture of this node's pods.
pub struct Capture {
    kernel: Kernel,
    home: Namespace,
    workers: u32,
    marks: Marks,
    /// Beside the rest: it waits for grace periods, and a pod's `bind()` that waits for the agent would be waited for.
    publication: Mutex<Publication>,
    inner: Mutex<Inner>,
    /// Whether this agent writes what the programs read.
    writing: AtomicBool,
    /// Held while ports are forgotten, which waits for the programs in between.
    forgetting: Mutex<()>,
}

impl Capture {
    /// Opens everything that [`Kernel`] loaded. Nothing is written before [`Self::unfence`].
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn new(kernel: Kernel, workers: u32) -> Result<Arc<Self>, CaptureError> {
        let pins = &kernel.pins;
        let inner = Inner {
            maps: Maps::open(pins)?,
            pods: BTreeMap::new(),
            watches: BTreeMap::new(),
            early: EarlyListeners::open(pins)?,
            sweeps: 0,
            flows: DirectFlows::open(&kernel)?,
            closed_ports: HashSet::new(),
            opened: BTreeMap::new(),
            ports: BTreeMap::new(),
            settling: BTreeMap::new(),
            left_over: BTreeMap::new(),
        };
        let marks = Marks::open(pins)?;
        Ok(Arc::new(Self {
            home: Namespace::own()?,
            workers: workers.clamp(1, WORKERS),
            marks,
            publication: Mutex::new(Publication::open(&kernel)?),
            inner: Mutex::new(inner),
            writing: AtomicBool::new(false),
            forgetting: Mutex::new(()),
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
        self.publication().generation()
    }

    /// Puts tables in force; behind the fence nothing is done. Live `direct` connections are judged again by [`Self::end_revoked`].
    ///
    /// # Errors
    /// When the kernel refuses; the generation before stays in force.
    pub fn publish(&self, tables: &TableSet, generation: u64) -> Result<TableRows, CaptureError> {
        let mut publication = self.publication();
        if !self.writes() {
            return Ok(TableRows::default());
        }
        publication.publish(tables, generation)
    }

    /// Ends live `direct` connections that the tables in force no longer allow; returns the ends of those flows.
    ///
    /// # Errors
    /// When the kernel gives no verdict.
    pub fn end_revoked(&self) -> Result<Vec<EndedFlow>, CaptureError> {
        let inner = &mut *self.lock();
        if !self.writes() {
            return Ok(Vec::new());
        }
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
        // Its row's text ends with a zero. Two that are alike so far would be taken for each other.
        let at_most = POD_NAME - 1;
        if name.len() > at_most {
            return Err(AttachRefusal::LongName { pod: name, at_most });
        }
        let inner = &mut *self.lock();
        if !self.writes() {
            return Err(AttachRefusal::Succeeded);
        }
        if let Some(known) = inner.pods.get(&namespace.cookie()) {
            if known.name() != name || known.row.uid != request.uid {
                return Err(AttachRefusal::OtherPod { path: request.netns.clone(), pod: known.name() });
            }
            return Ok(Attachment { pod: known.clone(), listeners: Vec::new(), fresh: false });
        }
        if let Some(known) = inner.pods.values().find(|pod| pod.name() == name) {
            if known.namespace.still_there() {
                let path = known.namespace.path().to_owned();
                return Err(AttachRefusal::OtherNamespace { pod: name, path });
            }
            let cookie = known.namespace.cookie();
            self.leave(inner, cookie);
        }
        let first_slot = free_slot(&inner.maps, inner.pods.values().map(|pod| pod.row.first_slot))?
            .ok_or(AttachRefusal::Full)?;
        let row = Pod {
            uid: request.uid,
            v4: address(&request.addresses, IpAddr::is_ipv4),
            v6: address(&request.addresses, IpAddr::is_ipv6),
            ifindex: 0,
            first_slot,
            workers: self.workers,
            left: 0,
            name: text(&name),
            netns: text(&request.netns.to_string_lossy()),
        };
        self.capture(inner, namespace, row, &request.addresses, &request.ports, How::of(request.running))
    }

    /// Finds again, after a restart, the pods whose capture an earlier agent left pinned. Each stays captured; those
    /// whose namespace is gone are taken away, now or by [`Self::sweep`].
    ///
    /// # Errors
    /// When the map cannot be read. A pod that cannot be adopted stays refused, and is logged.
    pub fn adopt(&self) -> Result<Vec<Attachment>, CaptureError> {
        let inner = &mut *self.lock();
        if !self.writes() {
            return Ok(Vec::new());
        }
        let rows = fence::rows(inner)?;
        let mut adopted = Vec::new();
        for (cookie, row) in rows {
            let path = PathBuf::from(string(&row.netns));
            match Namespace::open(&path) {
                Ok(namespace) if namespace.cookie() == cookie => {
                    let interfaces = interfaces_of(&inner.maps, cookie)?;
                    inner.left_over.insert(cookie, LeftOver::new(interfaces));
                    let addresses = fence::addresses(&row);
                    // What an earlier agent let settle was to end in any case.
                    match self.capture(inner, namespace, row, &addresses, &HashSet::new(), How::Again) {
                        Ok(attachment) => adopted.push(attachment),
                        Err(error) => {
                            tracing::error!(pod = string(&row.name), %error, "a captured pod cannot be adopted: it stays refused");
                        }
                    }
                }
                opened => {
                    let interfaces = interfaces_of(&inner.maps, cookie)?;
                    if !self.forget_if_gone(inner, cookie, &row, &interfaces) {
                        inner.left_over.insert(cookie, LeftOver::new(interfaces));
                        let error = opened.err().map(|error| error.to_string());
                        tracing::error!(
                            pod = string(&row.name),
                            error,
                            "its network namespace cannot be entered: it stays refused"
                        );
                    }
                }
            }
        }
        Ok(adopted)
    }

    /// Puts the guard on the host's end of one of a pod's veths.
    fn guard(
        &self,
        maps: &mut Maps,
        ebpf: &mut Ebpf,
        veth: Veth,
        host: &Interface,
    ) -> Result<(), CaptureError> {
        maps.veths.insert(host.index, veth, 0).map_err(CaptureError::map(maps::VETHS))?;
        let [from, to] = self.guard_pins(host.index);
        programs::attach_guard(ebpf, &host.name, &from, &to)
    }

    /// Reads what the programs tell on a thread of its own: each event's bytes. A ring buffer has one reader.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened.
    pub fn follow_events(
        &self,
        tell: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<FollowedEvents, CaptureError> {
        events::follow(&self.kernel, tell)
    }

    fn publication(&self) -> MutexGuard<'_, Publication> {
        self.publication.lock().unwrap_or_else(PoisonError::into_inner)
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
        how: How,
    ) -> Result<Attachment, AttachRefusal> {
        let (cookie, known) = (namespace.cookie(), how == How::Again);
        // Before the interfaces are listed: what comes between is heard.
        let watch = Watch::new(&namespace).map_err(CaptureError::system("watching the pod's interfaces"))?;
        let interfaces = guarded(&namespace, &self.home, addresses, known)?;
        row.ifindex = interfaces[0].1.index;
        // An earlier agent may have had more workers, whose slots nobody fills now.
        row.workers = self.workers;
        row.left = 0;
        // By this agent or, where it could not be adopted, by an earlier one.
        let captured_before = known || inner.maps.pods.get(&cookie, 0).is_ok();
        if how == How::Running && !captured_before {
            inner.settling.insert(cookie, Settling::default());
        }
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
                inner.left_over.remove(&cookie);
                Ok(Attachment { pod, listeners, fresh: !captured_before })
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
            let veth = inner.veth(cookie, row, pair.0.mac);
            self.guard(&mut inner.maps, &mut ebpf, veth, &pair.1)?;
        }
        let pod = CapturedPod {
            row: *row,
            namespace: namespace.clone(),
            interfaces: Vec::new(),
            addresses: addresses.to_vec(),
        };
        // Before the row: it may name more workers than an earlier agent had, each of whom the look-up may choose.
        let listeners = self.listen(inner, &pod, ports)?;
        let running = inner.settling.contains_key(&cookie);
        let mut before = HashSet::new();
        if running {
            // Beforehand too: between its rows and the look-up whatever the pod opens is refused.
            inner.early.count(namespace, &occupied(&inner.maps, cookie)?)?;
            before.extend(running::open(namespace, addresses)?.into_iter().map(|it| it.socket));
        }
        // The addresses first: with its row the pod's connects are judged, by who has the address.
        for ip in addresses {
            let address = Address::from(*ip);
            inner
                .maps
                .addresses
                .insert(address, cookie, 0)
                .map_err(CaptureError::map(maps::POD_ADDRESSES))?;
        }
        inner.maps.pods.insert(cookie, row, 0).map_err(CaptureError::map(maps::PODS))?;
        if !running {
            // The agent listens there already, and so does one that it succeeds.
            inner.early.count(namespace, &occupied(&inner.maps, cookie)?)?;
        }
        let pin = self.lookup_pin(cookie);
        let file =
            std::fs::File::open(namespace.path()).map_err(CaptureError::path("opening", namespace.path()))?;
        programs::attach_lookup(&mut ebpf, file, &pin)?;
        if running {
            inner.early.count(namespace, &occupied(&inner.maps, cookie)?)?;
            // What was accepted meanwhile is a process's; what the agent's listeners have been handed is nobody's yet.
            let accepted = running::open(namespace, addresses)?;
            before.extend(accepted.into_iter().filter(|it| it.owned).map(|it| it.socket));
            inner.settling.insert(cookie, Settling { captured: true, sockets: before });
            inner.tell_guard(cookie)?;
        }
        Ok(listeners)
    }

    fn listen(
        &self,
        inner: &mut Inner,
        pod: &CapturedPod,
        taken: &HashSet<u16>,
    ) -> Result<Vec<PodListener>, CaptureError> {
        let netns = pod.namespace.cookie();
        let listeners = match inner.opened.remove(&netns) {
            Some(opened) => opened,
            None => self.open_listeners(&pod.namespace, &pod.addresses, taken)?,
        };
        let mut own = HashSet::new();
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
            own.insert(local.port());
        }
        inner.ports.insert(netns, own);
        Ok(listeners)
    }

    fn open_listeners(
        &self,
        namespace: &Namespace,
        addresses: &[IpAddr],
        taken: &HashSet<u16>,
    ) -> Result<Vec<PodListener>, CaptureError> {
        listeners::open(namespace, addresses, self.workers, taken, &self.marks)
            .map_err(CaptureError::system("opening the agent's listeners in the pod"))
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

/// How a pod comes to be captured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Before it runs.
    Starting,
    /// While it runs.
    Running,
    /// After an earlier agent did.
    Again,
}

impl How {
    const fn of(running: bool) -> Self {
        if running { Self::Running } else { Self::Starting }
    }
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
    // A pod that runs may have made the nested ones itself: they are no reason to cut it off.
    let nested = ways.nested.first().filter(|_| !known);
    if let Some(name) = ways.unguarded.first().or(nested) {
        return Err(AttachRefusal::Interface(name.clone()));
    }
    let expected: HashSet<IpAddr> = addresses.iter().copied().collect();
    let found: HashSet<IpAddr> = ways.addresses.iter().copied().collect();
    if expected.is_empty() || !(found == expected || known && found.is_superset(&expected)) {
        return Err(AttachRefusal::Addresses { found: ways.addresses, expected: addresses.to_vec() });
    }
    if ways.own_first(&expected) { Ok(ways.pairs) } else { Err(AttachRefusal::NoVeth) }
}
