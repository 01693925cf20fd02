//! What comes from the peer of a TLS connection, until its plaintext is taken.

use std::{
    io,
    task::{Context, Poll},
};

use tokio::net::TcpStream;

use super::{
    buffers::{AREA, Aside, Buffer, SCARCE, Span, Supply, Waiter},
    tls::TlsError,
};

/// Bytes of a record's header.
const TLS_HEADER: usize = 5;
/// What is set aside while the application is being reached: what is read at once where buffers are scarce.
const LITTLE: usize = SCARCE;

/// Bytes from the peer.
#[derive(Debug, Default)]
pub struct Inflow {
    pub buffer: Option<Buffer>,
    pub waiter: Option<Waiter>,
    /// There was something to read and no buffer for it, or nobody to take it.
    pub starved: bool,
    pub records: Span,
    pub plain: Span,
    /// The beginning of a record, kept without a buffer until there is more of it.
    pub cut: Option<Aside>,
    /// The first of the plaintext, kept without a buffer until the application is reached, and how much of it is taken.
    pub first: Option<(Aside, usize)>,
    /// A record that the handshake's last step opened.
    pub opened: Vec<u8>,
    /// The socket or TLS has ended; `Some(true)`: TLS said so.
    pub closed: Option<bool>,
}

impl Inflow {
    /// Reads behind the records that wait. `to`: where their plaintext goes.
    pub fn fill<E: From<io::Error> + From<TlsError>>(
        &mut self,
        supply: &Supply,
        to: Option<&TcpStream>,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut [u8], &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Result<bool, E> {
        let lent = supply.poll_lend(&mut self.buffer, &mut self.waiter, to, cx);
        self.starved = lent.is_pending();
        let Poll::Ready(scarce) = lent else { return Ok(false) };
        let Self { buffer: Some(buffer), records, closed, cut, .. } = self else { return Ok(false) };
        let area = buffer.areas().1;
        if let Some(cut) = cut.take() {
            area[..cut.len()].copy_from_slice(&cut);
            *records = Span::first(cut.len());
        }
        if records.range().start > 0 {
            area.copy_within(records.range(), 0);
            *records = Span::first(records.len());
        }
        // Where they are scarce, one record: what follows it would stay here for as long as nobody takes that one.
        let start = records.range().end;
        let end = if scarce { start + missing(&area[records.range()]) } else { AREA };
        let room = area.get_mut(start..end).filter(|room| !room.is_empty()).ok_or(TlsError::Room)?;
        match read(room, cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Ready(Ok(count)) => {
                if count == 0 {
                    *closed = Some(false);
                }
                records.grow(count);
                Ok(true)
            }
        }
    }

    /// Plaintext that waits.
    pub fn plain(&self) -> &[u8] {
        match (&self.first, &self.buffer) {
            (Some((first, taken)), _) => &first[*taken..],
            (None, Some(buffer)) => &buffer.plain()[self.plain.range()],
            (None, None) => &[],
        }
    }

    /// The first `count` bytes of it are taken.
    pub fn consume_plain(&mut self, count: usize) {
        match &mut self.first {
            Some((first, taken)) => {
                *taken += count;
                if *taken >= first.len() {
                    self.first = None;
                }
            }
            None => self.plain.consume(count),
        }
    }

    /// Nobody takes it.
    pub fn discard_plain(&mut self) {
        self.first = None;
        self.plain = Span::default();
    }

    /// Whether records wait that were not opened.
    pub fn has_records(&self) -> bool {
        !self.records.is_empty() || !self.opened.is_empty() || self.cut.is_some()
    }

    /// Gives the buffer back if it holds nothing, and where they are scarce if it holds the beginning of a record alone.
    /// `false`: there is no room for that.
    pub fn release(&mut self, supply: &Supply) -> bool {
        if !self.plain.is_empty() || !self.opened.is_empty() {
            return true;
        }
        if supply.is_scarce() && self.is_cut() && !self.set_cut_aside(supply) {
            return false;
        }
        if self.records.is_empty() {
            self.buffer = None;
        }
        true
    }

    /// Gives the buffer back if what it holds is little and there is room for it.
    pub fn set_aside(&mut self, supply: &Supply) {
        let Self { buffer: Some(buffer), records, plain, opened, first, .. } = self else { return };
        let little = records.len() + plain.len() <= LITTLE && opened.is_empty();
        let whole = !records.is_empty() && missing(&buffer.records()[records.range()]) == 0;
        if !little || whole || first.is_some() {
            return;
        }
        if !plain.is_empty() {
            let Some(bytes) = supply.quota.set_aside(&buffer.plain()[plain.range()]) else { return };
            *first = Some((bytes, 0));
            *plain = Span::default();
        }
        if self.records.is_empty() || self.set_cut_aside(supply) {
            self.buffer = None;
        }
    }

    /// Whether the records that wait are the beginning of one, and nothing else.
    fn is_cut(&self) -> bool {
        let Self { buffer: Some(buffer), records, .. } = self else { return false };
        !records.is_empty() && missing(&buffer.records()[records.range()]) > 0
    }

    fn set_cut_aside(&mut self, supply: &Supply) -> bool {
        let Self { buffer: Some(buffer), records, cut, .. } = self else { return false };
        *cut = supply.quota.set_aside(&buffer.records()[records.range()]);
        if cut.is_some() {
            *records = Span::default();
        }
        cut.is_some()
    }
}

/// How many bytes a TLS record's header lacks, or the record behind it (RFC 8446, section 5.1: the length is in the header's
/// last two bytes); none if they are a whole one.
fn missing(bytes: &[u8]) -> usize {
    match bytes {
        [_, _, _, high, low, rest @ ..] => {
            usize::from(u16::from_be_bytes([*high, *low])).saturating_sub(rest.len())
        }
        part => TLS_HEADER - part.len(),
    }
}
