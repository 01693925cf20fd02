//! Sockets of a namespace, listed and ended by `NETLINK_SOCK_DIAG`.

use std::{io, net::SocketAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

use super::namespace::Namespace;

/// `SOCK_DESTROY`, beside `SOCK_DIAG_BY_FAMILY` (20).
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_NOCOOKIE`.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The kernel's number for the state.
const TCP_LISTEN: u8 = 10;

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Listening {
    pub cookie: u64,
    pub port: u16,
}

/// Every listening TCP socket of the namespace.
pub(super) fn listening(namespace: &Namespace) -> io::Result<Vec<Listening>> {
    namespace.run(|| {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            let request = InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::LISTEN,
                socket_id,
            };
            exchange(SockDiagMessage::InetRequest(request), NLM_F_REQUEST | NLM_F_DUMP, None, |message| {
                if let SockDiagMessage::InetResponse(response) = message {
                    let id = &response.header.socket_id;
                    found.push(Listening { cookie: u64::from_ne_bytes(id.cookie), port: id.source_port });
                }
            })?;
        }
        Ok(found)
    })?
}

/// A TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub cookie: u64,
    /// 0: no process has it.
    pub inode: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Every TCP connection of the namespace that is open or being opened.
pub(super) fn connections(namespace: &Namespace) -> io::Result<Vec<Connection>> {
    namespace.run(|| {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            let states = StateFlags::ESTABLISHED
                | StateFlags::SYN_SENT
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2
                | StateFlags::CLOSE_WAIT
                | StateFlags::CLOSING
                | StateFlags::LAST_ACK;
            let extensions = ExtensionFlags::empty();
            let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
            exchange(SockDiagMessage::InetRequest(request), NLM_F_REQUEST | NLM_F_DUMP, None, |message| {
                if let SockDiagMessage::InetResponse(response) = message {
                    let id = &response.header.socket_id;
                    found.push(Connection {
                        cookie: u64::from_ne_bytes(id.cookie),
                        inode: response.header.inode,
                        local: SocketAddr::new(id.source_address, id.source_port),
                        remote: SocketAddr::new(id.destination_address, id.destination_port),
                    });
                }
            })?;
        }
        Ok(found)
    })?
}

/// Ends the TCP connection with these addresses: its process sees ECONNABORTED, its peer a reset.
///
/// The kernel looks a socket up as a segment would find it: where the connection is gone already, that is whoever
/// listens there, and it would be ended instead. So the socket is asked for first, and ended by its cookie.
///
/// # Errors
/// `NotFound` when there is none, which is as good.
pub(super) fn destroy(namespace: &Namespace, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    namespace.run(|| {
        let mut socket_id = if local.is_ipv4() { SocketId::new_v4() } else { SocketId::new_v6() };
        socket_id.source_address = local.ip();
        socket_id.source_port = local.port();
        socket_id.destination_address = remote.ip();
        socket_id.destination_port = remote.port();
        socket_id.cookie = NO_COOKIE;
        let mut cookie = None;
        exchange(one(socket_id.clone()), NLM_F_REQUEST | NLM_F_ACK, None, |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                let header = &response.header;
                let found = &header.socket_id;
                if header.state != TCP_LISTEN && found.destination_port == remote.port() {
                    cookie = Some(found.cookie);
                }
            }
        })?;
        socket_id.cookie = cookie.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        exchange(one(socket_id), NLM_F_REQUEST | NLM_F_ACK, Some(SOCK_DESTROY), |_| {})
    })?
}

fn one(socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    })
}

fn exchange(
    message: SockDiagMessage,
    flags: u16,
    kind: Option<u16>,
    mut each: impl FnMut(SockDiagMessage),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    if let Some(kind) = kind {
        packet.header.message_type = kind;
    }
    let mut bytes = vec![0; packet.header.length as usize];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut at = 0;
        while at < answer.len() {
            let parsed =
                NetlinkMessage::<SockDiagMessage>::deserialize(&answer[at..]).map_err(io::Error::other)?;
            let length = parsed.header.length as usize;
            match parsed.payload {
                NetlinkPayload::InnerMessage(message) => each(message),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(()),
                        Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                    };
                }
                _ => {}
            }
            if length == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // Messages are aligned to four bytes.
            at += length.div_ceil(4) * 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    #[test]
    #[ignore = "needs root: cargo xtask test"]
    fn a_connection_is_ended_and_whoever_listens_there_never_is() {
        let own = Namespace::own().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let served = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(served).unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();

            destroy(&own, served, peer).unwrap();
            let ended = accepted.read(&mut [0]).unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

            // Once more, as when the reset of one end was faster than the turn of the other.
            let again = destroy(&own, served, peer).unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::ENOENT));
            let _later = TcpStream::connect(served).unwrap();
            listener.accept().unwrap();
        }
    }
}
