//! One connection, told in full.

use std::{
    io::{Error, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// `MSG_FASTOPEN` and `EINPROGRESS`, as on every architecture of Linux that the lab runs on.
const MSG_FASTOPEN: i32 = 0x2000_0000;
const EINPROGRESS: i32 = 115;

/// A connection to try.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Where to. An IPv4-mapped IPv6 address is asked for as such.
    pub to: SocketAddr,
    /// The address to bind first.
    pub from: Option<SocketAddr>,
    /// What to send once connected.
    pub send: String,
    /// Enough bytes of answer. More are not waited for; with 0 the answer is read to its end.
    pub enough: usize,
    /// How long connect, and then each read, may take.
    pub milliseconds: u64,
    /// Close the sending side after sending.
    pub half_close: bool,
    /// Datagrams instead of a stream.
    pub udp: bool,
    /// Ask for MPTCP.
    pub mptcp: bool,
    /// Bind to this interface first (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// Connect without blocking, wait until the socket is writable, and ask `connect()` a second time.
    pub nonblocking: bool,
    /// Send with the SYN (`MSG_FASTOPEN`) instead of calling `connect()`.
    pub fast_open: bool,
}

impl Attempt {
    /// Connects, sends `send`, and waits for as many bytes back.
    pub fn new(to: impl Into<SocketAddr>, send: &str) -> Self {
        Self {
            to: to.into(),
            from: None,
            send: send.into(),
            enough: send.len().max(1),
            milliseconds: 3000,
            half_close: false,
            udp: false,
            mptcp: false,
            device: None,
            nonblocking: false,
            fast_open: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// `connect()` succeeded.
    pub connected: bool,
    /// The last step that was tried: `bind`, `connect`, `send`, `receive`.
    pub step: String,
    /// The name of the errno with which that step failed; `TIMEOUT` when nothing came in time.
    pub error: Option<String>,
    /// The far side closed in order after what was received.
    pub closed: bool,
    /// What was received.
    pub received: String,
    /// `getpeername()` after the connect.
    pub peer: Option<SocketAddr>,
    /// `getsockname()` after the connect.
    pub local: Option<SocketAddr>,
    /// What a second `connect()` said, after one that did not block: `EISCONN`, or nothing where it said yes.
    pub second_connect: Option<String>,
    /// How long `connect()` took.
    pub connect_microseconds: u64,
    /// From the beginning of `connect()` to the first byte received.
    pub first_byte_microseconds: Option<u64>,
    /// From the beginning to the end.
    pub microseconds: u64,
}

impl Outcome {
    /// It got bytes back.
    pub fn answered(&self) -> bool {
        !self.received.is_empty()
    }

    /// Nothing came back, because somebody said no: a refusal, a reset or an end, neither silence nor a missing route.
    pub fn refused(&self) -> bool {
        let no = ["ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE"];
        !self.answered() && (self.closed || self.error.as_deref().is_some_and(|error| no.contains(&error)))
    }

    /// In a few words, for people.
    pub fn summary(&self) -> String {
        let milliseconds = self.microseconds as f64 / 1000.0;
        match &self.error {
            Some(error) => format!("{error} at {} after {milliseconds:.1} ms", self.step),
            None if self.answered() => format!("{} bytes after {milliseconds:.1} ms", self.received.len()),
            None => format!("closed without a byte after {milliseconds:.1} ms"),
        }
    }
}

pub fn run(attempt: &Attempt) -> Result<()> {
    let began = Instant::now();
    let mut outcome = Outcome::default();
    let result =
        if attempt.udp { datagram(attempt, &mut outcome) } else { stream(attempt, &mut outcome, began) };
    if let Err(error) = result {
        outcome.error = Some(error_name(&error));
    }
    outcome.microseconds = micros(began);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Makes the connection and sends what is to be sent with it or at once.
pub(super) fn open(attempt: &Attempt, outcome: &mut Outcome) -> std::io::Result<TcpStream> {
    let limit = Some(crate::lab::stretched(Duration::from_millis(attempt.milliseconds)));
    let protocol = if attempt.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(attempt.to), Type::STREAM, Some(protocol))?;
    // A blocking connect gives up after this and says EINPROGRESS.
    socket.set_write_timeout(limit)?;
    socket.set_read_timeout(limit)?;
    socket.set_tcp_nodelay(true)?;
    outcome.step = "bind".into();
    if let Some(device) = &attempt.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(from) = attempt.from {
        socket.bind(&from.into())?;
    }
    outcome.step = "connect".into();
    let connecting = Instant::now();
    let mut unsent = attempt.send.as_bytes();
    let connected = if attempt.fast_open {
        let sent = socket.send_to_with_flags(unsent, &attempt.to.into(), MSG_FASTOPEN);
        sent.map(|sent| unsent = unsent.get(sent..).unwrap_or_default())
    } else if attempt.nonblocking {
        connect_later(&socket, attempt, outcome)
    } else {
        socket.connect(&attempt.to.into())
    };
    outcome.connect_microseconds = micros(connecting);
    connected?;
    outcome.connected = true;
    let mut stream = TcpStream::from(socket);
    outcome.peer = stream.peer_addr().ok();
    outcome.local = stream.local_addr().ok();
    outcome.step = "send".into();
    stream.write_all(unsent)?;
    if attempt.half_close {
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(stream)
}

/// As event loops connect.
fn connect_later(socket: &Socket, attempt: &Attempt, outcome: &mut Outcome) -> std::io::Result<()> {
    let to = attempt.to.into();
    socket.set_nonblocking(true)?;
    match socket.connect(&to) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
        _ => {}
    }
    let mut waiting = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    let limit = crate::lab::stretched(Duration::from_millis(attempt.milliseconds));
    let limit = rustix::event::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    if rustix::event::poll(&mut waiting, Some(&limit))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    outcome.second_connect = socket.connect(&to).err().map(|error| error_name(&error));
    socket.set_nonblocking(false)
}

fn stream(attempt: &Attempt, outcome: &mut Outcome, began: Instant) -> std::io::Result<()> {
    let mut stream = open(attempt, outcome)?;
    outcome.step = "receive".into();
    let (mut buffer, mut received) = (vec![0u8; 64 * 1024], Vec::new());
    let result = loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                outcome.closed = true;
                break Ok(());
            }
            Ok(read) => {
                outcome.first_byte_microseconds.get_or_insert_with(|| micros(began));
                received.extend_from_slice(buffer.get(..read).unwrap_or_default());
                if attempt.enough > 0 && received.len() >= attempt.enough {
                    break Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    outcome.received = String::from_utf8_lossy(&received).into_owned();
    result
}

fn datagram(attempt: &Attempt, outcome: &mut Outcome) -> std::io::Result<()> {
    let any: SocketAddr = if attempt.to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    outcome.step = "bind".into();
    let socket = UdpSocket::bind(attempt.from.unwrap_or(any))?;
    socket.set_read_timeout(Some(crate::lab::stretched(Duration::from_millis(attempt.milliseconds))))?;
    outcome.step = "connect".into();
    socket.connect(attempt.to)?;
    outcome.connected = true;
    outcome.step = "send".into();
    socket.send(attempt.send.as_bytes())?;
    outcome.step = "receive".into();
    let mut buffer = [0u8; 64 * 1024];
    let read = socket.recv(&mut buffer)?;
    outcome.received = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()).into_owned();
    Ok(())
}

pub(super) fn error_name(error: &Error) -> String {
    match error.raw_os_error() {
        // EAGAIN of a read or write with a time limit; EINPROGRESS of a connect with one.
        Some(11 | 115) | None => "TIMEOUT".into(),
        Some(number) => errno_name(number).map_or_else(|| format!("errno {number}"), str::to_owned),
    }
}

/// The name of an errno that a connection may meet.
pub const fn errno_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "EPERM",
        13 => "EACCES",
        22 => "EINVAL",
        32 => "EPIPE",
        90 => "EMSGSIZE",
        97 => "EAFNOSUPPORT",
        98 => "EADDRINUSE",
        99 => "EADDRNOTAVAIL",
        101 => "ENETUNREACH",
        103 => "ECONNABORTED",
        104 => "ECONNRESET",
        105 => "ENOBUFS",
        106 => "EISCONN",
        107 => "ENOTCONN",
        110 => "ETIMEDOUT",
        111 => "ECONNREFUSED",
        113 => "EHOSTUNREACH",
        _ => return None,
    })
}

/// `ADDRESS PROTOCOL HEX`.
pub fn send_raw(packet: &str) -> Result<()> {
    let mut words = packet.split(' ');
    let mut word = || words.next().context("a raw packet is ADDRESS PROTOCOL HEX");
    let to: IpAddr = word()?.parse()?;
    let protocol: u8 = word()?.parse()?;
    let hex = word()?;
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2).unwrap_or_default(), 16))
        .collect::<Result<_, _>>()?;
    let to = SocketAddr::new(to, 0);
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
    if to.is_ipv4() {
        socket.set_header_included_v4(true)?;
    }
    socket.send_to(&bytes, &to.into()).context("the kernel did not take the packet")?;
    Ok(())
}
