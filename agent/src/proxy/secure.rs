//! A TLS connection between two agents, with its socket and its buffers.
//!
//! Bytes out: `control` (handshakes, small frames) and then the lent buffer's records, in one vectored write. Bytes
//! in: the lent buffer's records, opened one by one into its plaintext. Between streams both buffers are given back.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffers::{AREA, Buffer, CHUNK, Span, Supply, Waiter},
    handshake::Behind,
    inflow::Inflow,
    sockets::shut_down,
    tls::{Progress, Tls, TlsError, unfinished},
    wire::{Connection, HEADER, MAX_PAYLOAD, Misuse, RECORD, Violation},
};

/// What it takes to open a record, however short, in bytes that are carried as fast.
const RECORD_WORK: u64 = 256;

/// Why the connection between the agents cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer broke the framing.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// A frame was to be sent where none may be: this agent's own mistake.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The pod has no room for what must wait.
    #[error("too much waits in the pod's connections already")]
    Full,
    /// The peer closed within a stream; `clean` if TLS said so.
    #[error("the peer closed the connection within a stream")]
    Closed {
        /// TLS said so: the peer processed nothing after it.
        clean: bool,
    },
}

/// Bytes to the peer.
#[derive(Debug, Default)]
struct Outflow {
    control: Vec<u8>,
    written: usize,
    buffer: Option<Buffer>,
    waiter: Option<Waiter>,
    /// As the inflow's.
    starved: bool,
    records: Span,
    /// The plaintext's bytes, kept for a repetition.
    kept: u32,
}

/// The connection.
#[derive(Debug)]
pub struct Secure {
    /// The socket.
    pub stream: TcpStream,
    /// The framing.
    pub wire: Connection,
    tls: Tls,
    inflow: Inflow,
    outflow: Outflow,
    /// What was done since [`Self::take_work`], in bytes that take as long.
    work: u64,
}

impl Secure {
    /// A connection whose handshake is done but for `control`, which is still to be sent.
    pub fn new(stream: TcpStream, tls: Tls, wire: Connection, control: Vec<u8>) -> Self {
        let outflow = Outflow { control, ..Outflow::default() };
        Self { stream, wire, tls, inflow: Inflow::default(), outflow, work: 0 }
    }

    /// Takes what was read with the handshake's last message.
    pub fn poll_preload(&mut self, behind: &mut Behind, supply: &Supply, cx: &mut Context<'_>) -> Poll<()> {
        if behind.is_empty() {
            return Poll::Ready(());
        }
        let Inflow { buffer, waiter, .. } = &mut self.inflow;
        ready!(supply.poll_lend(buffer, waiter, None, cx));
        if let Some(buffer) = &mut self.inflow.buffer {
            let Behind { record, records } = std::mem::take(behind);
            let length = records.len().min(AREA);
            buffer.areas().1[..length].copy_from_slice(&records[..length]);
            self.inflow.records = Span::first(length);
            self.inflow.opened = record;
        }
        Poll::Ready(())
    }

    // ---- out ----

    /// Nothing waits to be sent.
    pub fn is_flushed(&self) -> bool {
        self.outflow.control.is_empty() && self.outflow.records.is_empty()
    }

    /// Queues a small frame behind everything that waits already.
    ///
    /// # Errors
    /// TLS cannot seal it.
    pub fn push_frame(&mut self, frame: &[u8]) -> Result<(), SecureError> {
        let Outflow { control, buffer, records, .. } = &mut self.outflow;
        match buffer {
            Some(buffer) if !records.is_empty() => {
                let area = &mut buffer.areas().1[records.range().end..];
                let sealed = self.tls.seal(frame, area)?;
                records.grow(sealed);
            }
            _ => self.tls.seal_onto(frame, control)?,
        }
        Ok(())
    }

    /// Queues what rustls had to say by itself.
    fn push_own(&mut self, bytes: &[u8]) -> Result<(), SecureError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Outflow { control, buffer, records, .. } = &mut self.outflow;
        match buffer {
            Some(buffer) if !records.is_empty() => {
                let end = records.range().end;
                let area = buffer.areas().1.get_mut(end..end + bytes.len()).ok_or(TlsError::Room)?;
                area.copy_from_slice(bytes);
                records.grow(bytes.len());
            }
            _ => control.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// The area that DATA's bytes are read into. Ready when nothing of the last load waits.
    pub fn poll_load<'b>(&'b mut self, supply: &Supply, cx: &mut Context<'_>) -> Poll<&'b mut [u8]> {
        if !self.outflow.records.is_empty() {
            return Poll::Pending;
        }
        let Outflow { buffer, waiter, starved, .. } = &mut self.outflow;
        let lent = supply.poll_lend(buffer, waiter, Some(&self.stream), cx);
        *starved = lent.is_pending();
        let scarce = ready!(lent);
        let room = if scarce { MAX_PAYLOAD } else { CHUNK };
        match &mut self.outflow.buffer {
            Some(buffer) => Poll::Ready(&mut buffer.areas().0[HEADER..HEADER + room]),
            None => Poll::Pending,
        }
    }

    /// Seals the first `length` bytes of the load into DATA frames.
    ///
    /// # Errors
    /// DATA may not be sent, or TLS cannot seal it.
    pub fn seal_load(&mut self, length: usize) -> Result<(), SecureError> {
        let Some(buffer) = &mut self.outflow.buffer else { return Ok(()) };
        self.outflow.kept = length as u32;
        let (plain, area) = buffer.areas();
        let mut at = 0;
        let mut end = 0;
        while at < length {
            let size = (length - at).min(MAX_PAYLOAD);
            let header = self.wire.data(size)?;
            // The header takes the place of the eight bytes before the payload: sealed already, and put back
            // because they may have to be sent again.
            let frame = &mut plain[at..at + HEADER + size];
            let mut before = [0; HEADER];
            before.copy_from_slice(&frame[..HEADER]);
            frame[..HEADER].copy_from_slice(&header);
            let sealed = self.tls.seal(frame, &mut area[end..]);
            frame[..HEADER].copy_from_slice(&before);
            end += sealed?;
            at += size;
        }
        self.outflow.records = Span::first(end);
        Ok(())
    }

    /// The load that was sealed last, to be sent again on another connection.
    pub fn take_load(&mut self) -> Option<(Buffer, usize)> {
        let kept = std::mem::take(&mut self.outflow.kept) as usize;
        let buffer = self.outflow.buffer.take()?;
        self.outflow.records = Span::default();
        (kept > 0).then_some((buffer, kept))
    }

    /// Sends a load of another connection again.
    ///
    /// # Errors
    /// As [`Self::seal_load`].
    pub fn repeat_load(&mut self, load: (Buffer, usize)) -> Result<(), SecureError> {
        self.outflow.buffer = Some(load.0);
        self.seal_load(load.1)
    }

    /// Writes what waits; whether anything was written.
    ///
    /// # Errors
    /// The socket failed.
    pub fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        let mut progress = false;
        while !self.is_flushed() {
            let out = &mut self.outflow;
            let control = &out.control[out.written..];
            let records = match &out.buffer {
                Some(buffer) => &buffer.records()[out.records.range()],
                None => &[],
            };
            let slices = [IoSlice::new(control), IoSlice::new(records)];
            let written = match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Err(error.into()),
            };
            progress = true;
            let of_control = written.min(control.len());
            out.written += of_control;
            if out.written == out.control.len() {
                out.control = Vec::new();
                out.written = 0;
            }
            out.records.consume(written - of_control);
        }
        Ok(progress)
    }

    // ---- in ----

    /// Bytes for the application that wait.
    pub fn plain(&self) -> &[u8] {
        self.inflow.plain()
    }

    /// The application took the first `count` of them.
    pub fn consume_plain(&mut self, count: usize) {
        self.inflow.consume_plain(count);
    }

    /// Nobody will take them.
    pub fn discard_plain(&mut self) {
        self.inflow.discard_plain();
    }

    /// Whether the peer has closed its side, and everything that it sent is opened.
    pub fn closed(&self) -> Option<bool> {
        self.inflow.closed
    }

    /// Whether records wait that were not opened.
    pub fn has_records(&self) -> bool {
        self.inflow.has_records()
    }

    /// Opens the records that wait, as far as there is room for their plaintext. `event` is handed each frame's
    /// meaning, with the bytes of DATA taken already; it says whether to go on.
    ///
    /// # Errors
    /// TLS failed or the peer broke the framing.
    pub fn open_records(
        &mut self,
        event: &mut dyn FnMut(super::wire::Event, &Connection) -> bool,
    ) -> Result<bool, SecureError> {
        let Inflow { buffer: Some(buffer), records, plain, opened, closed, .. } = &mut self.inflow else {
            return Ok(false);
        };
        let wire = &mut self.wire;
        let (plain_area, records_area) = buffer.areas();
        let mut own = Vec::new();
        let mut progress = false;
        let mut result = Ok(());
        let mut go_on = true;
        while go_on
            && !(records.is_empty() && opened.is_empty())
            && plain_area.len() - plain.range().end >= RECORD
        {
            let mut violation = None;
            let mut take = |record: &[u8]| {
                self.work += RECORD_WORK;
                let mut at = 0;
                loop {
                    match wire.receive(record, at) {
                        Ok(None) => break,
                        Ok(Some((meaning, next))) => {
                            if let super::wire::Event::Data(range) = &meaning {
                                let end = plain.range().end;
                                plain_area[end..end + range.len()].copy_from_slice(&record[range.clone()]);
                                plain.grow(range.len());
                            }
                            go_on &= event(meaning, wire);
                            at = next;
                        }
                        Err(error) => {
                            violation = Some(error);
                            break;
                        }
                    }
                }
            };
            let advanced = if opened.is_empty() {
                self.tls.advance(&mut records_area[records.range()], &mut own, &mut take)
            } else {
                take(&std::mem::take(opened));
                progress = true;
                (0, Ok(Progress::Record))
            };
            if let Some(violation) = violation {
                result = Err(violation.into());
                break;
            }
            let (discard, step) = advanced;
            records.consume(discard);
            progress |= discard > 0;
            match step {
                Ok(Progress::Record | Progress::More) => {}
                Ok(Progress::Blocked) if unfinished(&records_area[records.range()]) => {
                    result = Err(TlsError::Cut.into());
                    break;
                }
                Ok(Progress::Blocked) => break,
                Ok(Progress::PeerClosed) => {
                    *closed = Some(true);
                    break;
                }
                Err(error) => {
                    self.tls.alert(&mut records_area[records.range()], &mut own);
                    result = Err(error.into());
                    break;
                }
            }
        }
        self.push_own(&own)?;
        result.map(|()| progress)
    }

    /// Reads more records, whose plaintext goes to `to`; whether anything came. Does nothing while plaintext waits.
    ///
    /// # Errors
    /// The socket failed.
    pub fn read_records(
        &mut self,
        supply: &Supply,
        to: Option<&TcpStream>,
        cx: &mut Context<'_>,
    ) -> Result<bool, SecureError> {
        if self.inflow.closed.is_some() {
            return Ok(false);
        }
        match self.stream.poll_read_ready(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(error.into()),
            Poll::Ready(Ok(())) => {}
        }
        let stream = &mut self.stream;
        self.inflow.fill(supply, to, cx, |area, cx| {
            let mut free = ReadBuf::new(area);
            let read = ready!(Pin::new(stream).poll_read(cx, &mut free));
            Poll::Ready(read.map(|()| free.filled().len()))
        })
    }

    /// The same on a socket that has failed: what came before that is still in the kernel, and the runtime need not know
    /// of it.
    ///
    /// # Errors
    /// There is nothing left.
    pub fn read_last_records(&mut self, supply: &Supply, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        use rustix::net::{RecvFlags, recv};
        if self.inflow.closed.is_some() {
            return Ok(false);
        }
        let stream = &self.stream;
        self.inflow.fill(supply, None, cx, |area, _| {
            let read = recv(stream, area, RecvFlags::DONTWAIT);
            Poll::Ready(read.map(|(count, _)| count).map_err(io::Error::from))
        })
    }

    /// What was done since this was asked, in bytes that take as long.
    pub fn take_work(&mut self) -> u64 {
        std::mem::take(&mut self.work)
    }

    /// Whether there was something to read and no buffer for it, or nobody to take it: the sockets would not tell that their
    /// peers are gone.
    pub fn is_starved(&self) -> bool {
        self.inflow.starved || self.outflow.starved
    }

    /// Gives back the buffers that hold nothing, and where they are scarce one that holds the beginning of a record alone.
    /// `keep_load`: the last load may have to be sent again.
    ///
    /// # Errors
    /// [`SecureError::Full`]: there is no room for the beginning of the record, which stays where it is.
    pub fn release(&mut self, supply: &Supply, keep_load: bool) -> Result<(), SecureError> {
        if self.outflow.records.is_empty() && !keep_load {
            self.outflow.buffer = None;
            self.outflow.kept = 0;
        }
        if self.inflow.release(supply) { Ok(()) } else { Err(SecureError::Full) }
    }

    /// Gives the inflow's buffer back for as long as it takes to reach the application, if what it holds is little and there
    /// is room for it.
    pub fn set_aside(&mut self, supply: &Supply) {
        self.inflow.set_aside(supply);
    }

    /// Idle, nothing waits in either direction, and the peer has not closed: another stream may follow.
    pub fn is_reusable(&self) -> bool {
        self.wire.is_reusable()
            && self.is_flushed()
            && !self.has_records()
            && self.plain().is_empty()
            && self.inflow.closed.is_none()
    }

    /// Whether the peer has said or closed anything since the connection became idle: looked up in the kernel.
    pub fn is_untouched(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8; 1];
        matches!(
            recv(&self.stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Err(rustix::io::Errno::WOULDBLOCK)
        )
    }

    /// Sends the alert that nothing more comes, as far as the socket takes it, and closes.
    pub fn close(self) {
        drop(self.close_writing());
    }

    /// The same, but what the peer still sends is not answered with a reset, which may overtake the alert.
    pub fn close_writing(mut self) -> TcpStream {
        use rustix::net::{SendFlags, send};
        let mut alert = Vec::new();
        self.tls.close(&mut alert);
        if self.push_own(&alert).is_ok() && self.outflow.records.is_empty() {
            // Asked of the kernel: the runtime may hold a socket that was full once for full still.
            let rest = &self.outflow.control[self.outflow.written..];
            let _ = send(&self.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        shut_down(&self.stream);
        self.stream
    }
}
