//! Sockets that the data plane opens inside pods, and where the connections that it accepted were meant to go.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::maps::{HashMap, MapData, SkStorage};
use heddle_ebpf::{
    Address,
    flows::{AgentMark, FlowKey, MARK_HOP, MARK_UPSTREAM, Origin, Tuple, maps},
};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{error::CaptureError, maps::Pins, namespace::Namespace, syscalls};

/// Puts the agent's mark on its sockets, by which the guard knows them.
#[derive(Clone)]
pub(super) struct Marks(Arc<Mutex<SkStorage<MapData, AgentMark>>>);

impl Marks {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self(Arc::new(Mutex::new(pins.storage(maps::AGENT_MARKS)?))))
    }

    pub(super) fn set(&self, socket: &Socket, mark: AgentMark) -> io::Result<()> {
        let mut storage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        storage.insert(socket, mark, 0).map_err(io::Error::other)
    }
}

/// Where an application's connection was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDestination {
    /// The address and port that it asked for.
    pub address: SocketAddr,
}

/// What the data plane may do with sockets in pods: nothing else of the kernel is within its reach.
#[derive(Clone)]
pub struct PodSockets {
    home: Namespace,
    marks: Marks,
    proxied: Arc<Mutex<HashMap<MapData, FlowKey, Origin>>>,
    probes: Arc<Mutex<HashMap<MapData, Tuple, u64>>>,
    next_source: Arc<AtomicU32>,
}

impl PodSockets {
    pub(super) fn open(home: Namespace, marks: Marks, pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            home,
            marks,
            proxied: Arc::new(Mutex::new(pins.hash(maps::PROXIED)?)),
            probes: Arc::new(Mutex::new(pins.lru(maps::PROBES)?)),
            next_source: Arc::new(AtomicU32::new(0)),
        })
    }

    /// Where a connection that was accepted on a pod's outbound listener was meant to go; asked once, then forgotten.
    /// `None`: nobody registered it, and it must be closed.
    pub fn take_origin(
        &self,
        pod: &Namespace,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Option<OriginalDestination> {
        let key = FlowKey { netns: pod.cookie(), tuple: tuple(client, local), pad: 0 };
        let mut proxied = self.proxied.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = proxied.get(&key, 0).ok()?;
        // Its handshake is over: no look-up needs the entry any more.
        let _ = proxied.remove(&key);
        let port = u16::try_from(origin.port).ok().filter(|port| *port != 0)?;
        Some(OriginalDestination { address: SocketAddr::new(origin.address.to_ip(), port) })
    }

    /// Whether a connection that was accepted on a pod's inbound listener came from a socket of this node's kubelet.
    pub fn take_probe(&self, client: SocketAddr, local: SocketAddr) -> bool {
        let key = tuple(client, local);
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = probes.get(&key, 0).is_ok();
        if found {
            let _ = probes.remove(&key);
        }
        found
    }

    /// Begins a connection from the pod to `destination`, as the pod, on its address. The socket does not block; it
    /// is connected once it is writable and bears no error.
    ///
    /// # Errors
    /// When the namespace is gone, or the kernel refuses at once.
    pub fn connect_upstream(&self, pod: &Namespace, destination: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(pod, destination)?;
        let none = Address::UNSPECIFIED;
        self.marks.set(&socket, AgentMark { kind: MARK_UPSTREAM, client_port: 0, client: none })?;
        begin(socket, destination)
    }

    /// Begins a connection to the application at `destination` inside the pod, which will see `client` as its peer.
    ///
    /// IPv4 hops leave from 127.0.1.0/24, so that the pod's range of ports does not bound them, unless
    /// `from_own_address` asks for the pod's address: an application that is bound to a device answers only there.
    ///
    /// # Errors
    /// When the namespace is gone, or the kernel refuses at once.
    pub fn connect_application(
        &self,
        pod: &Namespace,
        destination: SocketAddr,
        client: SocketAddr,
        from_own_address: bool,
    ) -> io::Result<TcpStream> {
        let socket = self.socket(pod, destination)?;
        let mark = AgentMark {
            kind: MARK_HOP,
            client_port: u32::from(client.port()),
            client: client.ip().to_canonical().into(),
        };
        self.marks.set(&socket, mark)?;
        if destination.is_ipv4() {
            syscalls::bind_address_no_port(&socket)?;
            let source = if from_own_address {
                destination.ip()
            } else {
                let next = self.next_source.fetch_add(1, Ordering::Relaxed) % 254 + 1;
                IpAddr::V4(Ipv4Addr::new(127, 0, 1, next as u8))
            };
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        begin(socket, destination)
    }

    fn socket(&self, pod: &Namespace, destination: SocketAddr) -> io::Result<Socket> {
        let domain = if destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let kind = Type::STREAM.nonblocking();
        pod.briefly(&self.home, || Socket::new(domain, kind, Some(Protocol::TCP)))?
    }
}

fn begin(socket: Socket, destination: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&destination.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

fn tuple(client: SocketAddr, local: SocketAddr) -> Tuple {
    Tuple {
        source: client.ip().into(),
        destination: local.ip().into(),
        source_port: client.port(),
        destination_port: local.port(),
    }
}
