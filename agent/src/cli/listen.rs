//! Where a server listens.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// As the standard library has it.
const BACKLOG: i32 = 1024;

/// Listens at an address; at `[::]` for both families, whatever `net.ipv6.bindv6only` says, and for IPv4 alone where the
/// kernel has no IPv6 (`ipv6.disable=1`).
///
/// # Errors
/// The kernel's.
pub(super) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.is_ipv6() || !address.ip().is_unspecified() {
        return TcpListener::bind(address).await;
    }
    match Socket::new(Domain::IPV6, Type::STREAM.nonblocking().cloexec(), None) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn everywhere_is_in_both_families() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "::1"] {
            TcpStream::connect((host, port)).await.unwrap();
        }
        let one = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let own = one.local_addr().unwrap();
        TcpStream::connect(own).await.unwrap();
        assert!(TcpStream::connect(("127.0.0.2", own.port())).await.is_err());
    }
}
