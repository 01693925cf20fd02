//! One stream between an application's socket and a TLS connection: both directions in one task.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffers::Supply,
    environment::{Carried, Refusal},
    polling::{Polling, Rhythm},
    registry::{Membership, Told},
    secure::{Secure, SecureError},
    sockets::{abort, release, shut_down},
    turns::{Cost, Share, Turn},
    wire::Event,
};

/// Bytes that may have been carried without being told of.
const UNTOLD: u64 = 256 * 1024;

/// How a stream ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// Both sides had said all they had.
    Closed,
    /// One of the applications gave it up.
    Reset,
    /// The server refused it with this code.
    Refused(u32),
    /// The rules in force do not allow it any more.
    Terminated(Refusal),
}

/// Why the relay stopped.
#[derive(Debug)]
pub enum End {
    /// The stream is over and the connection between the agents is whole.
    Over(How),
    /// The connection between the agents broke.
    Lost(SecureError),
    /// The stream is over, and the peer did not say in its time that it heard so.
    Unsettled(How),
    /// The task was told to stop.
    Told(Told),
}

/// Bytes carried, and whom to tell.
pub struct Account<'a> {
    carried: &'a dyn Carried,
    sent: u64,
    received: u64,
}

impl<'a> Account<'a> {
    pub fn new(carried: &'a dyn Carried) -> Self {
        Self { carried, sent: 0, received: 0 }
    }

    /// `count` bytes came from the client.
    pub fn sent(&mut self, count: usize) {
        self.sent += count as u64;
    }

    /// `count` bytes went back to it.
    pub fn received(&mut self, count: usize) {
        self.received += count as u64;
    }

    fn total(&self) -> u64 {
        self.sent + self.received
    }

    /// Tells of what has gathered, if it is enough.
    pub fn settle(&mut self, at_least: u64) {
        if self.sent + self.received >= at_least.max(1) {
            self.carried.bytes(self.sent, self.received);
            (self.sent, self.received) = (0, 0);
        }
    }

    /// The same, after each round.
    pub fn pass(&mut self) {
        self.settle(UNTOLD);
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        self.settle(1);
    }
}

/// Which way the application's bytes count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The application is the client.
    Client,
    /// The application is the server.
    Server,
}

/// What a relay needs of its surroundings.
pub struct Surroundings<'a> {
    /// The task's place in the registry.
    pub member: &'a Membership,
    /// Buffers.
    pub supply: &'a Supply,
    /// Its pod's turns.
    pub share: &'a Rc<Share>,
    /// Judges the stream again.
    pub judge: &'a dyn Fn() -> Result<(), Refusal>,
    /// How long the peer may take to answer a RESET.
    pub settle_timeout: Duration,
    /// The worker, which may stay awake for the next message.
    pub polling: &'a Polling,
}

/// A stream.
pub struct Relay<'a> {
    secure: &'a mut Secure,
    app: Option<TcpStream>,
    around: Surroundings<'a>,
    account: Account<'a>,
    side: Side,
    /// The application has said all it had.
    app_ended: bool,
    /// Its socket was looked into at least once.
    app_tried: bool,
    /// The relay was polled before.
    begun: bool,
    /// It was written to at least once.
    app_written: bool,
    /// Something was read from it.
    loaded: bool,
    /// The first load is kept and nothing more is read until the server accepts: it may have to be sent again.
    hold: bool,
    /// The server said something of this stream.
    heard: bool,
    peer_ended: bool,
    shut: bool,
    /// One of the sockets is not being read from.
    stalled: bool,
    how: Option<How>,
    rhythm: Rhythm,
    turn: Turn,
    /// It ended in good order.
    finished: bool,
}

impl<'a> Relay<'a> {
    /// A stream whose OPEN (client) or ACCEPTED (server) is queued already.
    pub fn new(
        secure: &'a mut Secure,
        app: TcpStream,
        around: Surroundings<'a>,
        account: Account<'a>,
        side: Side,
        peer_ended: bool,
    ) -> Self {
        Self {
            turn: Turn::new(around.share),
            secure,
            app: Some(app),
            around,
            account,
            side,
            app_ended: false,
            app_tried: false,
            begun: false,
            app_written: false,
            loaded: false,
            hold: false,
            heard: false,
            peer_ended,
            shut: false,
            stalled: false,
            how: None,
            rhythm: Rhythm::default(),
            finished: false,
        }
    }

    /// Keeps the first load until the server accepts.
    pub fn hold(mut self) -> Self {
        self.hold = true;
        self
    }

    /// Goes on with what another connection could not carry.
    ///
    /// # Errors
    /// The load cannot be sealed.
    pub fn resume(mut self, kept: Kept) -> Result<Self, SecureError> {
        self.app_tried = true;
        if let Some(load) = kept.load {
            self.secure.repeat_load(load)?;
            self.loaded = true;
        }
        if kept.app_ended {
            self.end()?;
        }
        Ok(self)
    }

    /// What is left to be carried by another connection. `None`: something may have reached the far application.
    ///
    /// That is so unless nothing of this stream was heard and either TLS closed the connection in good order (the
    /// server processes nothing after that) or nothing but OPEN was sent.
    pub fn give_back(mut self, error: &SecureError) -> Option<(TcpStream, Kept)> {
        let clean = matches!(error, SecureError::Closed { clean: true });
        if !self.hold || self.heard || self.how.is_some() || (self.loaded && !clean) {
            return None;
        }
        let load = self.secure.take_load();
        if self.loaded && load.is_none() {
            return None;
        }
        Some((self.app.take()?, Kept { load, app_ended: self.app_ended }))
    }

    /// Whether the peer has said nothing of this stream yet, and is still expected to.
    pub fn is_unanswered(&self) -> bool {
        !self.heard && self.how.is_none()
    }

    /// Carries bytes until the stream is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(told) = self.around.member.poll_told(cx) {
            return Poll::Ready(match &self.how {
                Some(how) if told == Told::TimedOut => End::Unsettled(how.clone()),
                _ => End::Told(told),
            });
        }
        if let Err(error) = self.judge_again() {
            return Poll::Ready(End::Lost(error));
        }
        // A stream that is given up has its last word at once.
        if self.how.is_none() && self.turn.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let before = self.account.total();
        let mut work = 0;
        let result = self.run(&mut work, cx);
        let carried = self.account.total() - before;
        self.rhythm.carried(carried, self.around.polling);
        self.account.pass();
        self.turn.end(work);
        // A stream that the rules allow may hold a buffer.
        let _ = self.secure.release(self.around.supply, self.hold && !self.heard);
        self.look_out();
        match result {
            Err(error) => Poll::Ready(End::Lost(error)),
            Ok(_) if self.is_over() => {
                self.finished = true;
                Poll::Ready(End::Over(self.how.clone().unwrap_or(How::Closed)))
            }
            Ok(more) => {
                if more {
                    self.turn.enter(cx);
                }
                Poll::Pending
            }
        }
    }

    fn judge_again(&mut self) -> Result<(), SecureError> {
        if self.around.member.must_judge_again()
            && self.how.is_none()
            && let Err(refusal) = (self.around.judge)()
        {
            let code = heddle_ebpf::codes::Reason::Revoked as u32;
            self.give_up(code, How::Terminated(refusal))?;
        }
        Ok(())
    }

    /// Carries what can be carried in this turn; whether there may be more. `work`: what it took, in bytes.
    fn run(&mut self, work: &mut u64, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        if self.stalled && self.around.member.must_look() {
            self.look_at_sockets(cx)?;
        }
        if self.side == Side::Server && !std::mem::replace(&mut self.begun, true) && self.deliver(cx)? {
            // ACCEPTED is sent after the next look at the sockets: where the worker is so busy that the application
            // has answered by then, the answer travels with it. An idle worker looks at once.
            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            return Ok(false);
        }
        loop {
            let before = self.account.total();
            // The application first: it can begin with its answer while the peer is told that it was reached.
            let mut progress = self.deliver(cx)?;
            progress |= self.load(cx)?;
            progress |= match self.secure.flush(cx) {
                Ok(written) => written,
                Err(error) => return Err(self.last_words(error, cx)),
            };
            progress |= self.fetch(cx)?;
            *work += Cost::Look as u64 + self.account.total() - before + self.secure.take_work();
            if !progress {
                return Ok(false);
            }
            if self.turn.is_over(*work) {
                return Ok(true);
            }
        }
    }

    /// A socket that is not read from would not tell that its peer has reset it: it is looked at now and then.
    fn look_out(&mut self) {
        let waits = !self.secure.is_flushed() || !self.secure.plain().is_empty();
        let stalled = self.app_ended || waits || self.secure.is_starved();
        if stalled != self.stalled {
            self.stalled = stalled;
            self.around.member.set_stalled(stalled);
        }
    }

    /// The socket failed: what TLS said before that may still be read, and whether it closed in good order decides
    /// whether the stream may be opened again.
    fn last_words(&mut self, error: SecureError, cx: &mut Context<'_>) -> SecureError {
        loop {
            match self
                .take_records()
                .and_then(|progress| Ok(progress || self.secure.read_last_records(self.around.supply, cx)?))
            {
                Ok(true) => {}
                Err(closed @ SecureError::Closed { clean: true }) => return closed,
                Ok(false) | Err(_) => return error,
            }
        }
    }

    fn look_at_sockets(&mut self, cx: &mut Context<'_>) -> Result<(), SecureError> {
        if let Some(error) = self.secure.stream.take_error()? {
            return Err(self.last_words(error.into(), cx));
        }
        if let Some(app) = &self.app
            && app.take_error()?.is_some()
        {
            self.give_up(0, How::Reset)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.secure.wire.is_idle()
            && self.secure.is_flushed()
            && self.secure.plain().is_empty()
            && (self.app.is_none() || !self.peer_ended || self.shut)
    }

    /// Ends the stream before its time: the application sees a reset, the peer hears of it.
    fn give_up(&mut self, code: u32, how: How) -> Result<(), SecureError> {
        self.how.get_or_insert(how);
        if let Some(app) = self.app.take() {
            abort(app);
        }
        self.secure.discard_plain();
        if let Some(frame) = self.secure.wire.reset(code) {
            self.secure.push_frame(&frame)?;
        }
        self.around.member.set_deadline(Some(self.around.settle_timeout));
        Ok(())
    }

    /// From the application into TLS records.
    fn load(&mut self, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        let Some(app) = &mut self.app else { return Ok(false) };
        let held = self.hold && !self.heard && self.loaded;
        if self.app_ended || held || !self.secure.wire.may_send_data() {
            return Ok(false);
        }
        // What the application sent right behind its connect is read before the first poll of the socket would
        // tell, so that it travels with OPEN.
        let at_once = !std::mem::replace(&mut self.app_tried, true);
        if !at_once {
            match app.poll_read_ready(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(_) => {}
            }
        }
        let Poll::Ready(area) = self.secure.poll_load(self.around.supply, cx) else {
            self.app_tried = !at_once;
            return Ok(false);
        };
        let read = if at_once {
            match recv(&*app, area, RecvFlags::DONTWAIT) {
                Ok((count, _)) => Ok(count),
                Err(Errno::WOULDBLOCK) => return Ok(true),
                Err(error) => Err(io::Error::from(error)),
            }
        } else {
            let mut free = ReadBuf::new(area);
            match Pin::new(&mut *app).poll_read(cx, &mut free) {
                Poll::Pending => return Ok(false),
                Poll::Ready(result) => result.map(|()| free.filled().len()),
            }
        };
        match read {
            Ok(0) => self.end()?,
            Ok(count) => {
                self.loaded = true;
                match self.side {
                    Side::Client => self.account.sent(count),
                    Side::Server => self.account.received(count),
                }
                self.secure.seal_load(count)?;
                match ended_behind(app, cx) {
                    None => {}
                    Some(Ok(())) => self.end()?,
                    Some(Err(_)) => self.give_up(0, How::Reset)?,
                }
            }
            Err(_) => self.give_up(0, How::Reset)?,
        }
        Ok(true)
    }

    /// The application has no more bytes.
    fn end(&mut self) -> Result<(), SecureError> {
        self.app_ended = true;
        let end = self.secure.wire.end()?;
        self.secure.push_frame(&end)
    }

    /// From the opened records to the application.
    fn deliver(&mut self, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        let mut progress = false;
        while let Some(app) = &mut self.app {
            let plain = self.secure.plain();
            if plain.is_empty() {
                break;
            }
            // The runtime knows that a new socket can be written to only after another look at it: the first write
            // does not wait for that.
            let at_once = !std::mem::replace(&mut self.app_written, true);
            let written = match at_once.then(|| send(&*app, plain, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
            {
                Some(Ok(count)) => Poll::Ready(Ok(count)),
                _ => Pin::new(app).poll_write(cx, plain),
            };
            match written {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(count)) if count > 0 => {
                    progress = true;
                    match self.side {
                        Side::Client => self.account.received(count),
                        Side::Server => self.account.sent(count),
                    }
                    self.secure.consume_plain(count);
                }
                Poll::Ready(_) => self.give_up(0, How::Reset)?,
            }
        }
        if self.peer_ended
            && !self.shut
            && let Some(app) = &self.app
        {
            self.shut = true;
            progress = true;
            // Where both have ended and nothing waits, closing it says the same.
            if !(self.secure.wire.is_idle() && self.secure.is_flushed()) {
                shut_down(app);
            }
        }
        Ok(progress)
    }

    /// From the peer's socket into opened records. Reads only when the application took what was there.
    fn fetch(&mut self, cx: &mut Context<'_>) -> Result<bool, SecureError> {
        if !self.secure.plain().is_empty() || self.secure.wire.is_idle() {
            return Ok(false);
        }
        let progress = self.take_records()?;
        if progress || self.secure.wire.is_idle() {
            return Ok(progress);
        }
        self.secure.read_records(self.around.supply, self.app.as_ref(), cx)
    }

    /// Opens the records that were read, and learns from them.
    fn take_records(&mut self) -> Result<bool, SecureError> {
        let mut progress = false;
        if self.secure.has_records() {
            let mut given_up = None;
            let before = self.heard;
            let (heard, ended) = (&mut self.heard, &mut self.peer_ended);
            progress = self.secure.open_records(&mut |event, wire| {
                // RETIRE is of the connection, and a RESET that is ignored of the stream before: both may have crossed this
                // one's OPEN.
                *heard |= !matches!(event, Event::Retired | Event::Ignored);
                match event {
                    Event::Ended => *ended = true,
                    Event::Reset(_) => given_up = Some(How::Reset),
                    Event::Refused(code) => given_up = Some(How::Refused(code)),
                    Event::Opened(_) | Event::Accepted | Event::Data(_) | Event::Retired | Event::Ignored => {
                    }
                }
                !wire.is_idle()
            })?;
            // One that is given up has another: the peer's answer to that.
            if self.heard && !before && self.how.is_none() {
                // The deadline, if there was one, was the first word's.
                self.around.member.set_deadline(None);
            }
            if let Some(how) = given_up {
                self.give_up(0, how)?;
                return Ok(true);
            }
        }
        if progress || self.secure.wire.is_idle() {
            return Ok(progress);
        }
        match self.secure.closed() {
            Some(clean) => Err(SecureError::Closed { clean }),
            None => Ok(false),
        }
    }
}

/// How the application ended right behind what was read, if it did: then END travels with it. Costs a system call only
/// where the runtime has heard that there is more to read.
fn ended_behind(app: &TcpStream, cx: &mut Context<'_>) -> Option<io::Result<()>> {
    if app.poll_read_ready(cx).is_pending() {
        return None;
    }
    match recv(app, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Some(Ok(())),
        Ok(_) | Err(Errno::WOULDBLOCK) => None,
        // Told once: the next read would take a reset for an end.
        Err(error) => Some(Err(error.into())),
    }
}

impl Drop for Relay<'_> {
    /// Only END is an end: whatever else stops the relay is a reset for the application.
    fn drop(&mut self) {
        self.around.member.set_stalled(false);
        if let Some(app) = self.app.take() {
            if self.finished { release(app) } else { abort(app) }
        }
    }
}

/// What a connection could not carry and another may.
#[derive(Debug)]
pub struct Kept {
    load: Option<(super::buffers::Buffer, usize)>,
    app_ended: bool,
}
