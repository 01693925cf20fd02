//! One end of a connection that does what it is told, step by step: for what no fixed client or server can show.
//!
//! The end is a program of its own (`xtask app call|attend …`), which reads a command a line and answers with a line;
//! [`Talk`] is the test's hold on it.

use std::{
    io::{BufRead, Error, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use socket2::SockRef;

use super::{
    Attempt, Outcome, command,
    connect::{error_name, open},
    serve::listen,
};
use crate::lab::{place::Place, program::Running};

/// Stands before every answer.
const ANSWER: &str = "= ";

/// The test's hold on one end of a connection.
///
/// - `send TEXT`: `sent`
/// - `read BYTES`: the text
/// - `end`: closes the sending side; `ended`
/// - `finish`: reads to the end; `end after BYTES`, or the error's name instead of `end`
/// - `pour BYTES MILLISECONDS`: sends the pattern until BYTES are sent or a write has waited so long; `poured BYTES`,
///   with the error's name where one ended it. A later `pour` goes on in the pattern.
/// - `check BYTES`: reads so much of the pattern; `checked BYTES`, or where it differs
/// - `exchange BYTES`: `pour` and `check` at once; `exchanged BYTES`
/// - `reset`: closes with a reset; `closed`
/// - `close`: `closed`
pub struct Talk {
    program: Running,
    heard: usize,
    /// How the connection was made; of a server's end, the default.
    pub outcome: Outcome,
}

/// What a server's end saw when it accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// The client's address as `accept()` gave it.
    pub client: SocketAddr,
    /// The same as `getpeername()` gives it.
    pub peer: SocketAddr,
    /// `getsockname()`.
    pub local: SocketAddr,
}

impl Talk {
    /// Connects from `place`; that it fails is in the outcome.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn call(place: &Place, attempt: &Attempt) -> Result<Self> {
        let program = place.spawn(&command(&["call", &serde_json::to_string(attempt)?])?)?;
        let mut talk = Self { program, heard: 0, outcome: Outcome::default() };
        let limit = Duration::from_millis(attempt.milliseconds * 2 + 5000);
        talk.outcome = serde_json::from_str(&talk.answer(limit)?)?;
        Ok(talk)
    }

    /// Listens in `place`, on a device if one is named, and attends to one connection after the other.
    ///
    /// # Errors
    /// When the program cannot be run or cannot listen.
    pub fn attend(place: &Place, address: &str, device: &str) -> Result<Self> {
        let program = place.spawn(&command(&["attend", address, device])?)?;
        program.wait_for(super::READY, Duration::from_secs(30))?;
        Ok(Self { program, heard: 0, outcome: Outcome::default() })
    }

    /// The next connection.
    ///
    /// # Errors
    /// When none comes within ten seconds.
    pub fn accepted(&mut self) -> Result<Accepted> {
        let answer = self.answer(Duration::from_secs(10)).context("no connection was accepted")?;
        let mut words = answer.split(' ').skip(1).map(str::parse::<SocketAddr>);
        let mut word = || words.next().context("three addresses")?.context("an address");
        Ok(Accepted { client: word()?, peer: word()?, local: word()? })
    }

    /// Gives a command and waits for the answer.
    ///
    /// # Errors
    /// When none comes within a minute.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer(Duration::from_secs(60)).with_context(|| format!("to {command:?}"))
    }

    /// Gives a command whose answer is waited for later, with [`Self::answer`].
    ///
    /// # Errors
    /// When the program has ended.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.program.write(&format!("{command}\n"))
    }

    /// What [`Talk`] pours, from one place of the pattern to another.
    pub fn poured(range: std::ops::Range<u64>) -> Vec<u8> {
        range.map(pattern).collect()
    }

    /// The next answer.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn answer(&mut self, limit: Duration) -> Result<String> {
        let limit = crate::lab::stretched(limit);
        let until = Instant::now() + limit;
        loop {
            let printed = self.program.stdout();
            // The last line may not be whole yet.
            let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(answer) = whole.lines().filter_map(|line| line.strip_prefix(ANSWER)).nth(self.heard) {
                self.heard += 1;
                return Ok(answer.to_owned());
            }
            if Instant::now() >= until {
                bail!("no answer within {limit:?}; it printed {printed:?}, {:?}", self.program.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub(super) fn call(attempt: &Attempt) -> Result<()> {
    let mut outcome = Outcome::default();
    let stream = open(attempt, &mut outcome);
    outcome.error = stream.as_ref().err().map(error_name);
    println!("{ANSWER}{}", serde_json::to_string(&outcome)?);
    match stream {
        Ok(stream) => End::new(stream)?.obey(),
        Err(_) => Ok(()),
    }
}

pub(super) fn attend(address: SocketAddr, device: &str) -> Result<()> {
    let listener = listen(address, Some(device).filter(|device| !device.is_empty()))?;
    loop {
        let (stream, client) = listener.accept()?;
        println!("{ANSWER}accepted {client} {} {}", stream.peer_addr()?, stream.local_addr()?);
        End::new(stream)?.obey()?;
    }
}

struct End {
    stream: TcpStream,
    sent: u64,
    checked: u64,
}

/// The pattern's byte at a place: what is lost, doubled or moved shows at once.
const fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl End {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let patience = Some(crate::lab::stretched(Duration::from_secs(30)));
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        Ok(Self { stream, sent: 0, checked: 0 })
    }

    /// Until the connection is closed, or nobody gives commands any more.
    fn obey(mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let mut numbers = rest.split(' ').map(str::parse::<u64>);
            let mut number =
                || numbers.next().with_context(|| format!("{line}: a number"))?.context("a number");
            let answer = match verb {
                "send" => told(self.stream.write_all(rest.as_bytes()).map(|()| "sent".into())),
                "read" => told(self.read(usize::try_from(number()?)?)),
                "end" => told(self.stream.shutdown(Shutdown::Write).map(|()| "ended".into())),
                "finish" => self.finish(),
                "pour" => {
                    let (bytes, milliseconds) = (number()?, number()?);
                    self.stream.set_write_timeout(Some(Duration::from_millis(milliseconds)))?;
                    let (poured, error) = pour(&self.stream, self.sent, bytes);
                    self.sent += poured;
                    format!("poured {poured}{}", error.map_or_else(String::new, |error| format!(" {error}")))
                }
                "check" => self.check(number()?),
                "exchange" => self.exchange(number()?)?,
                "reset" => {
                    SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
                    break;
                }
                "close" => break,
                _ => bail!("no command {line:?}"),
            };
            println!("{ANSWER}{answer}");
        }
        drop(self);
        println!("{ANSWER}closed");
        Ok(())
    }

    fn read(&mut self, bytes: usize) -> std::io::Result<String> {
        let mut text = vec![0; bytes];
        self.stream.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn finish(&mut self) -> String {
        let (mut buffer, mut total) = (vec![0; 64 * 1024], 0);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return format!("end after {total}"),
                Ok(read) => total += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return format!("{} after {total}", error_name(&error)),
            }
        }
    }

    fn check(&mut self, bytes: u64) -> String {
        let mut buffer = vec![0; 64 * 1024];
        let until = self.checked + bytes;
        while self.checked < until {
            let room = usize::try_from(until - self.checked).unwrap_or(usize::MAX).min(buffer.len());
            let read = match self.stream.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => return format!("the end comes after {}", self.checked),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return format!("{} after {}", error_name(&error), self.checked),
            };
            for byte in buffer.get(..read).unwrap_or_default() {
                if *byte != pattern(self.checked) {
                    return format!("differs at {}", self.checked);
                }
                self.checked += 1;
            }
        }
        format!("checked {bytes}")
    }

    fn exchange(&mut self, bytes: u64) -> Result<String> {
        let (writer, from) = (self.stream.try_clone()?, self.sent);
        self.sent += bytes;
        let pouring = std::thread::spawn(move || pour(&writer, from, bytes));
        let checked = self.check(bytes);
        let Ok((poured, error)) = pouring.join() else { bail!("the sending half failed") };
        Ok(match (checked == format!("checked {bytes}"), error) {
            (true, None) if poured == bytes => format!("exchanged {bytes}"),
            (_, error) => format!("{checked}, poured {poured} {error:?}"),
        })
    }
}

/// Sends `bytes` of the pattern from a place on; how many, and what ended it early.
fn pour(mut stream: &TcpStream, from: u64, bytes: u64) -> (u64, Option<String>) {
    let mut sent = 0;
    while sent < bytes {
        let size = (bytes - sent).min(64 * 1024);
        let block: Vec<u8> = (from + sent..from + sent + size).map(pattern).collect();
        match stream.write(&block) {
            Ok(written) => sent += written as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (sent, Some(error_name(&error))),
        }
    }
    (sent, None)
}

fn told(result: std::io::Result<String>) -> String {
    result.unwrap_or_else(|error: Error| match error.kind() {
        ErrorKind::UnexpectedEof => "end".into(),
        _ => error_name(&error),
    })
}
