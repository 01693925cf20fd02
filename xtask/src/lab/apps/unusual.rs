//! Connections that are opened in ways that few applications know.

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Result;
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
