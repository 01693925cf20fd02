//! From a connected socket to a TLS connection of the framing, on either side.

use std::{io, sync::Arc};

use rustls::{
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
    server::{Acceptor, UnbufferedServerConnection},
};
use tokio::net::TcpStream;

use super::{
    environment::{ClientCredentials, Credentials, PeerName, Proven, ServerCredentials},
    tls::{Progress, Tls, TlsError, unfinished},
    wire,
};

/// A record of the handshake protocol (RFC 8446, 5.1): what TLS begins with, on either side.
const HANDSHAKE_RECORD: u8 = 0x16;
/// Bytes of a handshake that may wait for more of it: a ClientHello, or a client's certificates. A record's worth;
/// a ClientHello with X25519MLKEM768 has about 1.5 KiB.
pub const HANDSHAKE_LIMIT: usize = 16 * 1024;
/// Bytes of a handshake in all, so that endless messages of no use are no way to stay.
const HANDSHAKE_TOTAL: usize = 64 * 1024;
/// What is read at once.
const STEP: usize = 4 * 1024;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer closed within the handshake.
    #[error("the peer closed the connection within the handshake")]
    Closed,
    /// The handshake is longer than is taken.
    #[error("more than {HANDSHAKE_LIMIT} bytes of a handshake message")]
    TooLarge,
    /// The peer does not speak the framing.
    #[error("the peer does not offer heddle/1 in ALPN")]
    Protocol,
    /// The peer's certificate bears no identity, or another than the one that was demanded.
    #[error("the peer is {found:?} and must be {expected:?}")]
    Identity {
        /// Who it is.
        found: Option<PeerName>,
        /// Who it must be.
        expected: Option<PeerName>,
    },
    /// The expected identity is no DNS name: an error of the snapshot's.
    #[error("{0} is no name that TLS could ask for")]
    Name(PeerName),
}

/// What a handshake yields.
#[derive(Debug)]
pub struct Established {
    /// The connection.
    pub tls: Tls,
    /// Bytes that are still to be sent.
    pub control: Vec<u8>,
    /// What came behind the handshake: OPEN travels with the client's last message.
    pub behind: Behind,
    /// Who the peer is.
    pub peer: Proven,
}

/// Bytes that came behind a handshake.
#[derive(Debug, Default)]
pub struct Behind {
    /// The first record's plaintext: TLS has opened it in the same step that ended the handshake.
    pub record: Vec<u8>,
    /// Records that are still sealed.
    pub records: Vec<u8>,
}

impl Behind {
    /// Nothing came.
    pub fn is_empty(&self) -> bool {
        self.record.is_empty() && self.records.is_empty()
    }
}

/// Shows `credentials` to the server, which must be `expected`.
///
/// # Errors
/// There is no connection; the peer has been told by an alert where TLS has one.
pub async fn connect(
    stream: &TcpStream,
    credentials: &ClientCredentials,
    identities: &dyn Credentials,
    expected: &PeerName,
) -> Result<Established, HandshakeError> {
    let name = ServerName::try_from(expected.as_str().to_owned())
        .map_err(|_| HandshakeError::Name(expected.clone()))?;
    let client =
        UnbufferedClientConnection::new(Arc::clone(&credentials.config), name).map_err(TlsError::from)?;
    establish(stream, Tls::Client(Box::new(client)), Vec::new(), identities, Some(expected)).await
}

/// Takes a client that has sent `received` already.
///
/// # Errors
/// As [`connect`].
pub async fn accept(
    stream: &TcpStream,
    credentials: &ServerCredentials,
    identities: &dyn Credentials,
    received: Vec<u8>,
) -> Result<Established, HandshakeError> {
    let server = UnbufferedServerConnection::new(Arc::clone(&credentials.config)).map_err(TlsError::from)?;
    establish(stream, Tls::Server(Box::new(server)), received, identities, None).await
}

async fn establish(
    stream: &TcpStream,
    mut tls: Tls,
    mut received: Vec<u8>,
    identities: &dyn Credentials,
    expected: Option<&PeerName>,
) -> Result<Established, HandshakeError> {
    let mut control = Vec::new();
    let mut record = Vec::new();
    let mut total = received.len();
    let mut first = received.first().copied();
    loop {
        first = first.or(received.first().copied());
        let (done, progress) =
            tls.advance(&mut received, &mut control, &mut |plain| record.extend_from_slice(plain));
        received.drain(..done.min(received.len()));
        let progress = match progress {
            Ok(progress) => progress,
            Err(error) => {
                // An alert is for who speaks TLS. Anybody else is refused without a byte.
                if first == Some(HANDSHAKE_RECORD) {
                    tls.alert(&mut received, &mut control);
                    drop(stream.try_write(&control));
                }
                return Err(error.into());
            }
        };
        match progress {
            Progress::More => continue,
            Progress::PeerClosed => return Err(HandshakeError::Closed),
            Progress::Record => break,
            Progress::Blocked if !tls.state().is_handshaking() => {
                if unfinished(&received) {
                    return Err(TlsError::Cut.into());
                }
                break;
            }
            Progress::Blocked => {}
        }
        write_all(stream, &mut control).await?;
        if received.len() >= HANDSHAKE_LIMIT || total >= HANDSHAKE_TOTAL {
            return Err(HandshakeError::TooLarge);
        }
        total += read_some(stream, &mut received).await?;
    }
    if tls.state().alpn_protocol() != Some(wire::ALPN) {
        return Err(HandshakeError::Protocol);
    }
    let chain: &[CertificateDer<'_>] = tls.state().peer_certificates().unwrap_or_default();
    let found = identities.peer_identity(chain);
    match found {
        Some(peer) if expected.is_none_or(|expected| *expected == peer.name) => {
            let behind = Behind { record, records: received };
            Ok(Established { tls, control, behind, peer })
        }
        found => {
            let found = found.map(|found| found.name);
            Err(HandshakeError::Identity { found, expected: expected.cloned() })
        }
    }
}

async fn write_all(stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match stream.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    bytes.clear();
    Ok(())
}

/// Appends what the peer sent, up to [`HANDSHAKE_LIMIT`] in all.
async fn read_some(stream: &TcpStream, bytes: &mut Vec<u8>) -> Result<usize, HandshakeError> {
    let start = bytes.len();
    loop {
        stream.readable().await?;
        bytes.resize((start + STEP).min(HANDSHAKE_LIMIT), 0);
        let read = stream.try_read(&mut bytes[start..]);
        bytes.truncate(start + read.as_ref().ok().copied().unwrap_or(0));
        match read {
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a client that need not show an identity began with.
#[derive(Debug)]
pub enum First {
    /// A ClientHello for this pod's name: the mesh's TLS, to be answered here.
    Mesh(Vec<u8>),
    /// Anything else, and nothing at all: the application's.
    Other(Vec<u8>),
}

/// Reads the client's first bytes, a whole ClientHello if it is one.
///
/// A ClientHello that is too large, or that ends early, is an error: it is never taken for something weaker.
///
/// # Errors
/// [`HandshakeError::TooLarge`], [`HandshakeError::Closed`], or the socket's.
pub async fn first_bytes(stream: &TcpStream, own: Option<&PeerName>) -> Result<First, HandshakeError> {
    let mut bytes = Vec::new();
    let mut acceptor = Acceptor::default();
    loop {
        let fed = bytes.len();
        read_some(stream, &mut bytes).await?;
        if !looks_like_tls(&bytes) {
            return Ok(First::Other(bytes));
        }
        let mut new = &bytes[fed..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
        }
        match acceptor.accept() {
            Ok(None) if bytes.len() >= HANDSHAKE_LIMIT => return Err(HandshakeError::TooLarge),
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mesh = own.is_some_and(|own| hello.server_name() == Some(own.as_str()));
                return Ok(if mesh { First::Mesh(bytes) } else { First::Other(bytes) });
            }
            Err(_) => return Ok(First::Other(bytes)),
        }
    }
}

/// A record of handshake messages, of some TLS version (RFC 8446, section 5.1).
fn looks_like_tls(bytes: &[u8]) -> bool {
    [0x16, 0x03].iter().zip(bytes).all(|(expected, found)| expected == found)
}
