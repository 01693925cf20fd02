//! One TLS connection without its socket: rustls' unbuffered interface for either side.

use std::fmt;

use rustls::{
    CommonState,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};

/// Why TLS cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's doing, or the certificates'.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// An area was too small for what had to go into it: this agent's own mistake.
    #[error("a TLS record did not fit its buffer")]
    Room,
    /// A message of TLS's own came in pieces after the handshake.
    #[error("the peer cut a handshake message into records after the handshake")]
    Cut,
    /// Something was to be sent in a state where nothing can be.
    #[error("TLS cannot send now")]
    State,
}

/// What became of the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// A record's plaintext was handed over.
    Record,
    /// Something was done; call again.
    More,
    /// Nothing more can be done without bytes from the peer.
    Blocked,
    /// The peer said that it sends no more.
    PeerClosed,
}

/// A client's or a server's connection.
pub enum Tls {
    /// A client's.
    Client(Box<UnbufferedClientConnection>),
    /// A server's.
    Server(Box<UnbufferedServerConnection>),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are in there: nothing but the side is told.
        f.write_str(match self {
            Self::Client(_) => "Tls::Client",
            Self::Server(_) => "Tls::Server",
        })
    }
}

impl Tls {
    /// What both kinds have in common.
    pub fn state(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    /// Processes the front of `input`: how many bytes of it are done with, and what happened. What rustls itself has
    /// to say is appended to `output`.
    ///
    /// rustls remembers where in `input` a handshake message lies that is not complete: until one is, the next call
    /// must be given the same bytes, less those that were done with. [`unfinished`] tells.
    pub fn advance(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
        record: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Progress, TlsError>) {
        match self {
            Self::Client(connection) => step(connection.process_tls_records(input), output, record),
            Self::Server(connection) => step(connection.process_tls_records(input), output, record),
        }
    }

    /// Seals `plain` (a record's plaintext at most) into `output`; how many bytes were written. Not to be called
    /// while a handshake message is [`unfinished`].
    ///
    /// # Errors
    /// [`TlsError::State`] before the handshake is done; [`TlsError::Room`].
    pub fn seal(&mut self, plain: &[u8], output: &mut [u8]) -> Result<usize, TlsError> {
        let mut written = 0;
        loop {
            let room = &mut output[written..];
            let step = match self {
                Self::Client(connection) => seal(connection.process_tls_records(&mut []), plain, room)?,
                Self::Server(connection) => seal(connection.process_tls_records(&mut []), plain, room)?,
            };
            match step {
                Sealed::Plain(length) => return Ok(written + length),
                Sealed::First(length) => written += length,
            }
        }
    }

    /// The same, appended.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_onto(&mut self, plain: &[u8], output: &mut Vec<u8>) -> Result<(), TlsError> {
        // Room for a key update before it.
        const SMALL: usize = 256;
        let start = output.len();
        output.resize(start + plain.len() + SMALL, 0);
        let sealed = self.seal(plain, &mut output[start..]);
        output.truncate(start + sealed.as_ref().ok().copied().unwrap_or(0));
        sealed.map(drop)
    }

    /// Appends the alert that tells the peer of the failure that [`Self::advance`] met. `input`: what it had not
    /// done with.
    pub fn alert(&mut self, input: &mut [u8], output: &mut Vec<u8>) {
        let mut at = 0;
        // One alert, and what stands before it; not a byte more of what failed is looked at, which rustls takes for a
        // mistake of ours.
        for _ in 0..4 {
            if !self.state().wants_write() {
                break;
            }
            let (done, result) = self.advance(&mut input[at..], output, &mut |_| {});
            at = (at + done).min(input.len());
            if !matches!(result, Ok(Progress::More)) {
                break;
            }
        }
    }

    /// Appends the alert that tells the peer that nothing more comes.
    pub fn close(&mut self, output: &mut Vec<u8>) {
        const ALERT: usize = 256;
        let start = output.len();
        output.resize(start + ALERT, 0);
        let written = match self {
            Self::Client(connection) => close(connection.process_tls_records(&mut []), &mut output[start..]),
            Self::Server(connection) => close(connection.process_tls_records(&mut []), &mut output[start..]),
        };
        output.truncate(start + written);
    }
}

fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    output: &mut Vec<u8>,
    record: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Progress, TlsError>) {
    let mut discard = status.discard;
    let progress =
        status.state.map_err(TlsError::from).and_then(|state| go(state, &mut discard, output, record));
    (discard, progress)
}

fn go<D>(
    state: ConnectionState<'_, '_, D>,
    discard: &mut usize,
    output: &mut Vec<u8>,
    record: &mut dyn FnMut(&[u8]),
) -> Result<Progress, TlsError> {
    Ok(match state {
        ConnectionState::ReadTraffic(mut traffic) => match traffic.next_record() {
            Some(plain) => {
                let plain = plain?;
                *discard += plain.discard;
                record(plain.payload);
                Progress::Record
            }
            None => Progress::More,
        },
        ConnectionState::EncodeTlsData(mut data) => {
            let required = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => size.required_size,
                Ok(_) => 0,
                Err(EncodeError::AlreadyEncoded) => return Err(TlsError::State),
            };
            if required > 0 {
                let start = output.len();
                output.resize(start + required, 0);
                data.encode(&mut output[start..]).map_err(|_| TlsError::Room)?;
            }
            Progress::More
        }
        ConnectionState::TransmitTlsData(transmit) => {
            // `output` is the caller's to send before anything else.
            transmit.done();
            Progress::More
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Progress::Blocked,
        ConnectionState::PeerClosed | ConnectionState::Closed => Progress::PeerClosed,
        // Early data is never offered nor accepted.
        _ => return Err(TlsError::State),
    })
}

/// Whether `rest`, which is what was left when [`Tls::advance`] was [`Progress::Blocked`], begins with a whole record:
/// rustls has read it and waits for the rest of a handshake message.
///
/// After the handshake nobody has a reason to cut such a message, and while one is incomplete nothing can be sealed:
/// a peer that does so is refused.
pub fn unfinished(rest: &[u8]) -> bool {
    match rest {
        [_, _, _, high, low, body @ ..] => body.len() >= usize::from(u16::from_be_bytes([*high, *low])),
        _ => false,
    }
}

/// What went out: the caller's bytes, or something of rustls' own that goes before them.
enum Sealed {
    Plain(usize),
    First(usize),
}

fn seal<D>(status: UnbufferedStatus<'_, '_, D>, plain: &[u8], output: &mut [u8]) -> Result<Sealed, TlsError> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            traffic.encrypt(plain, output).map(Sealed::Plain).map_err(|_| TlsError::Room)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            data.encode(output).map(Sealed::First).map_err(|_| TlsError::Room)
        }
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Sealed::First(0))
        }
        _ => Err(TlsError::State),
    }
}

fn close<D>(status: UnbufferedStatus<'_, '_, D>, output: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.queue_close_notify(output).unwrap_or(0),
        _ => 0,
    }
}
