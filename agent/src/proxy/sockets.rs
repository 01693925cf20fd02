//! What is done to sockets, whatever they carry.

use std::{io, net::Shutdown, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Closes with a reset.
pub fn abort(stream: TcpStream) {
    // It fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
}

/// Says that no more bytes come.
pub fn shut_down(stream: &TcpStream) {
    // It fails only where the peer reset the connection, which the next read or write tells.
    drop(SockRef::from(stream).shutdown(Shutdown::Write));
}

/// An address with IPv4 in its own form.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Waits for a connect that is under way.
///
/// # Errors
/// The connect failed.
pub async fn connected(stream: io::Result<std::net::TcpStream>) -> io::Result<TcpStream> {
    let stream = stream?;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // A relay writes what it has: waiting for more would only delay it.
    stream.set_nodelay(true)?;
    Ok(stream)
}
