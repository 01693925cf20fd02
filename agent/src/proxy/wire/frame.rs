//! The layout of the frames.
//!
//! A frame is a header of eight bytes and a payload, and lies whole within one TLS record; a record may hold several.
//!
//! ```text
//! 0        1        2                 4                                   8
//! | kind   | zero   | payload length  | stream                            | payload …
//! ```
//!
//! Numbers are in network order.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Range,
};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// The plaintext of a TLS 1.3 record at most (RFC 8446, section 5.1), and so of a frame with its header.
pub const RECORD: usize = 16_384;
/// Bytes of DATA in one frame at most.
pub const MAX_PAYLOAD: usize = RECORD - HEADER;
/// The version that OPEN names.
pub const VERSION: u8 = 1;

/// Bytes of an OPEN frame.
pub const OPEN_FRAME: usize = HEADER + OPEN_PAYLOAD;
/// Bytes of a RESET or REFUSED frame.
pub const CODE_FRAME: usize = HEADER + CODE_PAYLOAD;

const OPEN_PAYLOAD: usize = 40;
const CODE_PAYLOAD: usize = 4;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;
const ACCEPTED: u8 = 5;
const REFUSED: u8 = 6;
const RETIRE: u8 = 7;

/// Who opens a stream, and where it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// The application's own address and port, as it would be seen without a mesh.
    pub client: SocketAddr,
    /// The address and port that the client's agent dialled: the server pod's.
    pub destination: SocketAddr,
}

/// One frame of a record. DATA is a range of that record: nothing is copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Begins a stream.
    Open(Open),
    /// Bytes of the application's: one at least.
    Data(Range<usize>),
    /// The sender has no more bytes.
    End,
    /// The sender gives the stream up, for this reason ([`heddle_ebpf::codes::Reason`]; 0: its application did).
    Reset(u32),
    /// The server's application has accepted the connection.
    Accepted,
    /// The server does not open the stream, for this reason.
    Refused(u32),
    /// The server asks for no stream after this one and the next, which may be under way.
    Retire,
}

/// A frame, the stream that it belongs to, and where in the record the next one begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The frame.
    pub frame: Frame,
    /// The stream's number.
    pub stream: u32,
    /// Where the next frame begins.
    pub next: usize,
}

/// Why a record cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The record ends within a frame.
    #[error("the record ends within a frame")]
    Cut,
    /// No such kind of frame.
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    /// The second byte is not zero.
    #[error("the header's second byte is {0} and must be 0")]
    Flags(u8),
    /// A frame of this kind has another length.
    #[error("a frame of kind {kind} cannot have a payload of {length} bytes")]
    Length {
        /// The kind.
        kind: u8,
        /// The length that it claims.
        length: u16,
    },
    /// OPEN names a version that is not known here.
    #[error("OPEN names version {0}; this agent speaks {VERSION}")]
    Version(u8),
    /// A byte of OPEN that must be zero is not.
    #[error("a reserved byte of OPEN is not 0")]
    Reserved,
    /// OPEN names port 0 or an address that no TCP connection has.
    #[error("OPEN names an address or a port that no TCP connection has")]
    Address,
}

/// Reads the frame of `record` that begins at `at`; `None` at the record's end.
///
/// # Errors
/// Whatever is not exactly a frame of this version is an error: there is no resynchronizing.
pub fn parse(record: &[u8], at: usize) -> Result<Option<Parsed>, FrameError> {
    let rest = record.get(at..).ok_or(FrameError::Cut)?;
    if rest.is_empty() {
        return Ok(None);
    }
    let (header, body) = rest.split_first_chunk::<HEADER>().ok_or(FrameError::Cut)?;
    let [kind, flags, l0, l1, s0, s1, s2, s3] = *header;
    if !(OPEN..=RETIRE).contains(&kind) {
        return Err(FrameError::Kind(kind));
    }
    if flags != 0 {
        return Err(FrameError::Flags(flags));
    }
    let length = u16::from_be_bytes([l0, l1]);
    let size = usize::from(length);
    let fits = match kind {
        OPEN => size == OPEN_PAYLOAD,
        DATA => (1..=MAX_PAYLOAD).contains(&size),
        RESET | REFUSED => size == CODE_PAYLOAD,
        _ => size == 0,
    };
    if !fits {
        return Err(FrameError::Length { kind, length });
    }
    let payload = body.get(..size).ok_or(FrameError::Cut)?;
    let start = at + HEADER;
    let frame = match kind {
        OPEN => Frame::Open(read_open(payload)?),
        DATA => Frame::Data(start..start + size),
        END => Frame::End,
        RESET => Frame::Reset(read_code(payload)?),
        ACCEPTED => Frame::Accepted,
        REFUSED => Frame::Refused(read_code(payload)?),
        _ => Frame::Retire,
    };
    Ok(Some(Parsed { frame, stream: u32::from_be_bytes([s0, s1, s2, s3]), next: start + size }))
}

fn read_code(payload: &[u8]) -> Result<u32, FrameError> {
    payload.try_into().map(u32::from_be_bytes).map_err(|_| FrameError::Cut)
}

fn read_open(payload: &[u8]) -> Result<Open, FrameError> {
    let payload: &[u8; OPEN_PAYLOAD] = payload.try_into().map_err(|_| FrameError::Cut)?;
    let [version, r0, r1, r2, c0, c1, d0, d1, addresses @ ..] = *payload;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if [r0, r1, r2] != [0; 3] {
        return Err(FrameError::Reserved);
    }
    let (client, destination) = addresses.split_at(16);
    Ok(Open {
        client: read_address(client, u16::from_be_bytes([c0, c1]))?,
        destination: read_address(destination, u16::from_be_bytes([d0, d1]))?,
    })
}

fn read_address(bytes: &[u8], port: u16) -> Result<SocketAddr, FrameError> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| FrameError::Cut)?;
    let address = Ipv6Addr::from(bytes).to_canonical();
    if port == 0 || address.is_unspecified() || address.is_multicast() {
        return Err(FrameError::Address);
    }
    Ok(SocketAddr::new(address, port))
}

fn header(kind: u8, length: u16, stream: u32) -> [u8; HEADER] {
    let [l0, l1] = length.to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [kind, 0, l0, l1, s0, s1, s2, s3]
}

/// An OPEN frame.
pub fn open(stream: u32, open: &Open) -> [u8; OPEN_FRAME] {
    let mut out = [0; OPEN_FRAME];
    let (head, payload) = out.split_at_mut(HEADER);
    head.copy_from_slice(&header(OPEN, OPEN_PAYLOAD as u16, stream));
    payload[0] = VERSION;
    payload[4..6].copy_from_slice(&open.client.port().to_be_bytes());
    payload[6..8].copy_from_slice(&open.destination.port().to_be_bytes());
    payload[8..24].copy_from_slice(&octets(open.client.ip()));
    payload[24..40].copy_from_slice(&octets(open.destination.ip()));
    out
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The header of a DATA frame of `length` bytes (1 to [`MAX_PAYLOAD`]).
pub fn data(stream: u32, length: u16) -> [u8; HEADER] {
    header(DATA, length, stream)
}

/// An END frame.
pub fn end(stream: u32) -> [u8; HEADER] {
    header(END, 0, stream)
}

/// An ACCEPTED frame.
pub fn accepted(stream: u32) -> [u8; HEADER] {
    header(ACCEPTED, 0, stream)
}

/// A RETIRE frame; `stream` is the last one that is over.
pub fn retire(stream: u32) -> [u8; HEADER] {
    header(RETIRE, 0, stream)
}

/// A RESET frame.
pub fn reset(stream: u32, code: u32) -> [u8; CODE_FRAME] {
    coded(RESET, stream, code)
}

/// A REFUSED frame.
pub fn refused(stream: u32, code: u32) -> [u8; CODE_FRAME] {
    coded(REFUSED, stream, code)
}

fn coded(kind: u8, stream: u32, code: u32) -> [u8; CODE_FRAME] {
    let mut out = [0; CODE_FRAME];
    let (head, payload) = out.split_at_mut(HEADER);
    head.copy_from_slice(&header(kind, CODE_PAYLOAD as u16, stream));
    payload.copy_from_slice(&code.to_be_bytes());
    out
}
