//! What is done to sockets, whatever they carry.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockRef, TcpKeepalive};
use tokio::{io::Interest, net::TcpStream};

/// Closes with a reset.
pub fn abort(stream: TcpStream) {
    // It fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
}

/// From now on whatever closes the socket resets it: [`release`] alone ends it in good order. The kernel closes the
/// sockets of a process that dies, and without this an application would take what was cut off for the whole.
pub fn reset_unless_released(stream: &TcpStream) {
    // It fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Closes in good order.
pub fn release(stream: TcpStream) {
    // It fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_linger(None));
}

/// Says that no more bytes come.
pub fn shut_down(stream: &TcpStream) {
    // It fails only where the peer reset the connection, which the next read or write tells.
    drop(SockRef::from(stream).shutdown(Shutdown::Write));
}

/// Has the kernel find out, within two minutes, that the machine at the other end is gone.
pub fn keep_alive(stream: &TcpStream) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    // It fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_tcp_keepalive(&probes));
}

/// Ready when the kernel takes more of this stream's bytes: asked of it, because the runtime holds a socket for writable until
/// a write has failed. What is wrong with the socket is told by the write.
pub fn poll_takes_more(stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        let _ = ready!(stream.poll_write_ready(cx));
        let mut asked = [PollFd::new(stream, PollFlags::OUT)];
        if !matches!(rustix::event::poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0)) {
            return Poll::Ready(());
        }
        // The runtime is to wait for the kernel's word.
        let _ = stream.try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
    }
}

/// An address with IPv4 in its own form.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Waits for a connect that is under way on a socket that does not block.
///
/// # Errors
/// The connect failed.
pub async fn connected(stream: io::Result<std::net::TcpStream>) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(stream?)?;
    // Inside one machine it is over before `connect()` returns: nothing to wait for.
    if stream.peer_addr().is_err() {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    // A relay writes what it has: waiting for more would only delay it.
    stream.set_nodelay(true)?;
    Ok(stream)
}
