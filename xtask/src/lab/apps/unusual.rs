//! Connections that are opened in ways that few applications know.

use std::{
    io::{BufRead as _, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};

/// `MSG_FASTOPEN` of `sendto(2)`.
const FAST_OPEN: i32 = 0x2000_0000;
const LIMIT: Duration = Duration::from_secs(3);

fn socket(to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Prints as many bytes of answer as were asked.
fn answer(mut stream: TcpStream, text: &str) -> Result<()> {
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Makes its socket at once, and connects it when it is told to by a line of input.
pub fn late(to: SocketAddr, text: &str) -> Result<()> {
    let socket = socket(to)?;
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(text.as_bytes())?;
    answer(stream, text)
}

/// Sends `text` with its SYN.
pub fn fast_open(to: SocketAddr, text: &str) -> Result<()> {
    let socket = socket(to)?;
    socket.send_to_with_flags(text.as_bytes(), &to.into(), FAST_OPEN)?;
    answer(socket.into(), text)
}

/// Makes a socket for connections to `to` and gives it to whoever [`take`]s it at `path`.
pub fn make(path: &Path, to: SocketAddr) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    let socket = socket(to)?;
    println!("ready");
    hand_over(&listener, &socket)?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Gives a socket to the next caller (`SCM_RIGHTS`).
///
/// # Errors
/// When nobody can be served.
pub fn hand_over(listener: &UnixListener, socket: impl AsFd) -> Result<()> {
    let (taker, _) = listener.accept()?;
    let sockets = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    anyhow::ensure!(control.push(SendAncillaryMessage::ScmRights(&sockets)), "no room for a socket");
    sendmsg(&taker, &[IoSlice::new(b"s")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Takes a socket from whoever gives one at `path`, connects it and sends `text`.
pub fn take(path: &Path, to: SocketAddr, text: &str) -> Result<()> {
    let giver = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&giver, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::empty())?;
    let taken = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let socket = Socket::from(taken.context("no socket was given")?);
    socket.connect_timeout(&to.into(), LIMIT)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(text.as_bytes())?;
    answer(stream, text)
}
