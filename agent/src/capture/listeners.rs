//! The agent's listening sockets inside a pod: on the pod's own address, on ports that nothing there needs to know.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    ops::RangeInclusive,
};

use heddle_ebpf::{
    Address,
    attach::Direction,
    flows::{AgentMark, MARK_LISTENER},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{namespace::Namespace, sockets::Marks};

/// One listening socket of one worker.
#[derive(Debug)]
pub struct PodListener {
    /// What arrives there.
    pub direction: Direction,
    /// Which worker accepts.
    pub worker: u32,
    /// The socket: listening, not blocking.
    pub socket: TcpListener,
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Ports that applications often want: databases, gRPC's examples, proxies, metrics.
const USUAL: &[u16] =
    &[15000, 15001, 15006, 15021, 15090, 18080, 19090, 25565, 26257, 27017, 28015, 30000, 50051];
/// Where ports are sought: below the default range for outgoing connections, above most services'.
const SOUGHT: RangeInclusive<u16> = 20_001..=32_700;

/// Opens the listeners of `workers` workers on each of `addresses`, marked before they listen.
pub(super) fn open(
    namespace: &Namespace,
    addresses: &[IpAddr],
    workers: u32,
    taken: &HashSet<u16>,
    marks: &Marks,
) -> io::Result<Vec<PodListener>> {
    namespace.run(|| {
        let outgoing = outgoing_ports();
        let mut candidates = SOUGHT
            .chain(1025..=20_000)
            .filter(|port| !taken.contains(port) && !USUAL.contains(port) && !outgoing.contains(port));
        let mut listeners = Vec::new();
        for address in addresses {
            for direction in [Direction::Outbound, Direction::Inbound] {
                for worker in 0..workers {
                    let socket = bind(*address, &mut candidates, marks)?;
                    listeners.push(PodListener { direction, worker, socket });
                }
            }
        }
        Ok(listeners)
    })?
}

fn bind(
    address: IpAddr,
    candidates: &mut impl Iterator<Item = u16>,
    marks: &Marks,
) -> io::Result<TcpListener> {
    loop {
        let Some(port) = candidates.next() else {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free for a listener"));
        };
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // An application may take the port over while old connections linger on it.
        socket.set_reuse_address(true)?;
        // Before it is bound: of an application's socket the kernel waits here until the agent gives way, of an agent before
        // this one too. Before it listens: the children inherit the mark, and socket events do not count it as an application's.
        marks
            .set(&socket, AgentMark { kind: MARK_LISTENER, client_port: 0, client: Address::UNSPECIFIED })?;
        match socket.bind(&SocketAddr::new(address, port).into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(error) => return Err(error),
        }
        match socket.listen(BACKLOG) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(error) => return Err(error),
        }
        socket.set_nonblocking(true)?;
        return Ok(socket.into());
    }
}

/// The ports from which this namespace's connections go out, in which a listener would take one away.
fn outgoing_ports() -> RangeInclusive<u16> {
    let default = 32_768..=60_999;
    let Ok(text) = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") else {
        return default;
    };
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => default,
    }
}
