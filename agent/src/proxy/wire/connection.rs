//! Who may send what, and when a connection is idle again.

use std::ops::Range;

use super::{
    DISCARD_LIMIT,
    frame::{self, CODE_FRAME, Frame, FrameError, HEADER, MAX_PAYLOAD, OPEN_FRAME, Open},
};

/// Which side of the TLS connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The agent of the pod whose application connected: it opens streams.
    Client,
    /// The agent of the pod that was connected to: it accepts or refuses them.
    Server,
}

/// How far one direction of the present stream has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Half {
    /// Nothing of this stream was said yet: before OPEN, or before ACCEPTED or REFUSED.
    Silent,
    /// DATA may come.
    Flowing,
    /// END was said: the last frame, unless RESET follows while the other direction is open.
    Ended,
    /// RESET or REFUSED was said: the last frame.
    Broken,
}

impl Half {
    fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Broken)
    }
}

/// What the peer's frame means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A stream begins (server only). Answer with [`Connection::accept`] or [`Connection::refuse`].
    Opened(Open),
    /// The far application accepted (client only).
    Accepted,
    /// The stream was refused for this reason (client only). Answer with [`Connection::reset`].
    Refused(u32),
    /// Bytes for the application: this range of the record.
    Data(Range<usize>),
    /// The peer sends no more bytes.
    Ended,
    /// The peer gave the stream up for this reason. Answer with [`Connection::reset`].
    Reset(u32),
    /// The server asks for no other stream than the one that may be under way (client only): close when it is over.
    Retired,
    /// A frame of a stream that this side gave up already, or a RESET that crossed the stream's end: nothing to do.
    Ignored,
}

/// What the peer did wrong. The connection must be closed; nobody else is harmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame names a stream other than the present one.
    #[error("a frame of stream {found}, where stream {expected} was due")]
    Stream {
        /// What the frame says.
        found: u32,
        /// What was due.
        expected: u32,
    },
    /// OPEN is not the first frame of its record.
    #[error("OPEN must be the first frame of its record")]
    OpenInsideRecord,
    /// The frame may not come in this state, or not from this side.
    #[error("{0} may not be sent in this state")]
    State(&'static str),
    /// More than [`DISCARD_LIMIT`] bytes came after the stream was given up.
    #[error("the peer went on sending after the stream was given up")]
    Flood,
}

/// What this side did wrong: an error of the caller's, not of the peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misuse {
    /// The frame may not be sent in this state.
    #[error("{0} may not be sent in this state")]
    State(&'static str),
    /// DATA of no bytes or too many.
    #[error("a DATA frame cannot have {0} bytes")]
    Length(usize),
}

/// One TLS connection's state: a stream at a time, and idle between them.
#[derive(Clone, Debug)]
pub struct Connection {
    role: Role,
    /// The present stream's number or, between streams, the last one's; 0 before the first.
    stream: u32,
    sent: Half,
    received: Half,
    active: bool,
    /// The last stream's peer ended with END and may have sent RESET before it learned that the stream is over.
    late_reset: bool,
    /// RETIRE was said: the stream after this one, whose OPEN may have crossed it, is the last.
    retired: Option<u32>,
    discarded: u64,
}

impl Connection {
    /// A connection whose handshake is done and which carries no stream yet.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            stream: 0,
            sent: Half::Silent,
            received: Half::Silent,
            active: false,
            late_reset: false,
            retired: None,
            discarded: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn after(role: Role, stream: u32) -> Self {
        Self { stream, ..Self::new(role) }
    }

    /// No stream is under way: the next may be opened.
    pub fn is_idle(&self) -> bool {
        !self.active
    }

    /// Idle, the server has not asked for an end, and there is a number left for another stream.
    pub fn is_reusable(&self) -> bool {
        !self.active && self.retired.is_none() && self.stream < u32::MAX
    }

    /// Whether RETIRE was said.
    pub fn is_retired(&self) -> bool {
        self.retired.is_some()
    }

    /// Whether [`Self::data`] may be called.
    pub fn may_send_data(&self) -> bool {
        self.active && self.sent == Half::Flowing && self.received != Half::Broken
    }

    /// The present stream's number, or the last one's.
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// Begins a stream (client). It must be the first frame of its record.
    ///
    /// # Errors
    /// [`Misuse`] unless this is an idle client.
    pub fn open(&mut self, open: &Open) -> Result<[u8; OPEN_FRAME], Misuse> {
        if self.role != Role::Client || !self.is_reusable() {
            return Err(Misuse::State("OPEN"));
        }
        self.begin(self.stream + 1);
        self.sent = Half::Flowing;
        Ok(frame::open(self.stream, open))
    }

    /// Tells that the application accepted (server).
    ///
    /// # Errors
    /// [`Misuse`] unless OPEN was received and not answered yet.
    pub fn accept(&mut self) -> Result<[u8; HEADER], Misuse> {
        if !self.unanswered() || self.received == Half::Broken {
            return Err(Misuse::State("ACCEPTED"));
        }
        self.sent = Half::Flowing;
        Ok(frame::accepted(self.stream))
    }

    /// Refuses the stream (server). What the client sent before it hears of it is ignored.
    ///
    /// # Errors
    /// [`Misuse`] unless OPEN was received and not answered yet.
    pub fn refuse(&mut self, code: u32) -> Result<[u8; CODE_FRAME], Misuse> {
        if !self.unanswered() {
            return Err(Misuse::State("REFUSED"));
        }
        self.sent = Half::Broken;
        self.settle();
        Ok(frame::refused(self.stream, code))
    }

    /// The header of a DATA frame of `length` bytes.
    ///
    /// # Errors
    /// [`Misuse`] where no DATA may be sent.
    pub fn data(&mut self, length: usize) -> Result<[u8; HEADER], Misuse> {
        if !self.may_send_data() {
            return Err(Misuse::State("DATA"));
        }
        match u16::try_from(length) {
            Ok(short) if (1..=MAX_PAYLOAD).contains(&length) => Ok(frame::data(self.stream, short)),
            _ => Err(Misuse::Length(length)),
        }
    }

    /// Tells that no more bytes come (half-close).
    ///
    /// # Errors
    /// [`Misuse`] where no DATA may be sent.
    pub fn end(&mut self) -> Result<[u8; HEADER], Misuse> {
        if !self.may_send_data() {
            return Err(Misuse::State("END"));
        }
        self.sent = Half::Ended;
        self.settle();
        Ok(frame::end(self.stream))
    }

    /// Gives the stream up, or answers the peer's RESET or REFUSED. `None`: nothing has to be sent, because the
    /// stream is over or this side's last frame went out already.
    ///
    /// A server that has not answered OPEN yet says so with REFUSED.
    pub fn reset(&mut self, code: u32) -> Option<[u8; CODE_FRAME]> {
        if !self.active || self.sent == Half::Broken {
            return None;
        }
        if self.sent == Half::Ended && self.received.is_over() {
            return None;
        }
        let frame = match self.sent {
            Half::Silent => frame::refused(self.stream, code),
            _ => frame::reset(self.stream, code),
        };
        self.sent = Half::Broken;
        self.settle();
        Some(frame)
    }

    /// Asks the client to open no other stream (server). One whose OPEN is under way already is to be answered like any
    /// other: nothing is lost where the two cross.
    ///
    /// # Errors
    /// [`Misuse`] within a stream, or if it was said before.
    pub fn retire(&mut self) -> Result<[u8; HEADER], Misuse> {
        if self.role != Role::Server || self.active || self.retired.is_some() {
            return Err(Misuse::State("RETIRE"));
        }
        self.retired = Some(self.stream);
        Ok(frame::retire(self.stream))
    }

    /// Takes the frame of `record` (a TLS record's plaintext) that begins at `at`: what it means and where the next
    /// begins; `None` at the record's end.
    ///
    /// # Errors
    /// [`Violation`]: the peer broke the protocol. The state is of no more use.
    pub fn receive(&mut self, record: &[u8], at: usize) -> Result<Option<(Event, usize)>, Violation> {
        let Some(parsed) = frame::parse(record, at)? else {
            return Ok(None);
        };
        let event = match &parsed.frame {
            Frame::Open(open) => self.opened(*open, parsed.stream, at)?,
            Frame::Retire => self.told_to_retire(parsed.stream)?,
            frame if self.active && parsed.stream == self.stream => self.step(frame)?,
            frame => self.late(frame, parsed.stream)?,
        };
        Ok(Some((event, parsed.next)))
    }

    fn begin(&mut self, stream: u32) {
        // `late_reset` stays: a RESET that crossed the last stream's end may reach a client that went on at once.
        self.stream = stream;
        self.sent = Half::Silent;
        self.received = Half::Silent;
        self.active = true;
        self.discarded = 0;
    }

    fn unanswered(&self) -> bool {
        self.role == Role::Server && self.active && self.sent == Half::Silent
    }

    /// The stream is over when both sides have said their last frame.
    fn settle(&mut self) {
        if self.sent.is_over() && self.received.is_over() {
            self.active = false;
            self.late_reset = self.received == Half::Ended;
        }
    }

    fn opened(&mut self, open: Open, stream: u32, at: usize) -> Result<Event, Violation> {
        if self.role != Role::Server || self.active {
            return Err(Violation::State("OPEN"));
        }
        if at != 0 {
            return Err(Violation::OpenInsideRecord);
        }
        // One OPEN may have crossed RETIRE. Before the next its client has read it.
        if self.retired.is_some_and(|last| self.stream > last) {
            return Err(Violation::State("OPEN"));
        }
        let expected = self.stream.checked_add(1).ok_or(Violation::State("OPEN"))?;
        if stream != expected {
            return Err(Violation::Stream { found: stream, expected });
        }
        self.begin(stream);
        // A client says everything of one stream before it opens the next: a late RESET cannot follow.
        self.late_reset = false;
        self.received = Half::Flowing;
        Ok(Event::Opened(open))
    }

    /// RETIRE comes between streams: the client may have opened the next one, and the server not answered yet.
    fn told_to_retire(&mut self, stream: u32) -> Result<Event, Violation> {
        let unanswered = !self.active || self.received == Half::Silent;
        if self.role != Role::Client || self.retired.is_some() || !unanswered {
            return Err(Violation::State("RETIRE"));
        }
        let expected = if self.active { self.stream.saturating_sub(1) } else { self.stream };
        if stream != expected {
            return Err(Violation::Stream { found: stream, expected });
        }
        self.late_reset = false;
        self.retired = Some(stream);
        Ok(Event::Retired)
    }

    /// A frame that is not of the present stream: only a RESET that crossed the last one's end may come, and once.
    fn late(&mut self, frame: &Frame, stream: u32) -> Result<Event, Violation> {
        let last = if self.active { self.stream.wrapping_sub(1) } else { self.stream };
        if !self.late_reset || stream != last || !matches!(frame, Frame::Reset(_)) {
            return Err(if stream == self.stream {
                Violation::State(name(frame))
            } else {
                Violation::Stream { found: stream, expected: self.stream }
            });
        }
        self.late_reset = false;
        Ok(Event::Ignored)
    }

    fn step(&mut self, frame: &Frame) -> Result<Event, Violation> {
        // In order: once the peer speaks of this stream, nothing of the last one can follow.
        self.late_reset = false;
        match (frame, self.received) {
            (Frame::Accepted, Half::Silent) => {
                self.received = Half::Flowing;
                Ok(if self.sent == Half::Broken { Event::Ignored } else { Event::Accepted })
            }
            (Frame::Refused(code), Half::Silent) => {
                self.received = Half::Broken;
                self.settle();
                Ok(if self.sent == Half::Broken { Event::Ignored } else { Event::Refused(*code) })
            }
            (Frame::Data(range), Half::Flowing) if self.sent == Half::Broken => {
                self.discarded += range.len() as u64;
                if self.discarded > DISCARD_LIMIT { Err(Violation::Flood) } else { Ok(Event::Ignored) }
            }
            (Frame::Data(range), Half::Flowing) => Ok(Event::Data(range.clone())),
            (Frame::End, Half::Flowing) => {
                self.received = Half::Ended;
                let given_up = self.sent == Half::Broken;
                self.settle();
                Ok(if given_up { Event::Ignored } else { Event::Ended })
            }
            (Frame::Reset(code), Half::Flowing | Half::Ended) => {
                self.received = Half::Broken;
                let given_up = self.sent == Half::Broken;
                self.settle();
                Ok(if given_up { Event::Ignored } else { Event::Reset(*code) })
            }
            _ => Err(Violation::State(name(frame))),
        }
    }
}

fn name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Open(_) => "OPEN",
        Frame::Data(_) => "DATA",
        Frame::End => "END",
        Frame::Reset(_) => "RESET",
        Frame::Accepted => "ACCEPTED",
        Frame::Refused(_) => "REFUSED",
        Frame::Retire => "RETIRE",
    }
}
