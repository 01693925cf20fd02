//! A plain connection relayed to another: both directions in one task.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffers::{AREA, Buffer, SCARCE, Span, Waiter},
    relay::{Account, Surroundings},
    sockets::shut_down,
    turns::{Cost, Turn},
};

/// Why the copying stopped.
#[derive(Debug)]
pub enum CopyEnd {
    /// Both sides had said all they had.
    Closed,
    /// One of them was reset: the caller resets both.
    Reset,
    /// The rules in force do not allow it any more: the caller resets both.
    Terminated(super::environment::Refusal),
    /// The task was told to stop: the caller resets both.
    Told,
}

/// One direction.
#[derive(Default)]
struct Way {
    buffer: Option<Buffer>,
    waiter: Option<Waiter>,
    /// There is something to read and no buffer for it, or nobody to take it.
    starved: bool,
    span: Span,
    ended: bool,
    shut: bool,
}

/// Two plain connections.
pub struct Copy<'a> {
    client: &'a mut TcpStream,
    server: &'a mut TcpStream,
    around: Surroundings<'a>,
    account: Account<'a>,
    forth: Way,
    back: Way,
    stalled: bool,
    turn: Turn,
}

impl<'a> Copy<'a> {
    /// Between `client` and `server`.
    pub fn new(
        client: &'a mut TcpStream,
        server: &'a mut TcpStream,
        around: Surroundings<'a>,
        account: Account<'a>,
    ) -> Self {
        let turn = Turn::new(around.share);
        let (forth, back) = Default::default();
        Self { client, server, around, account, forth, back, stalled: false, turn }
    }

    /// Takes what the client sent before.
    pub fn poll_preload(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<()> {
        if bytes.is_empty() {
            return Poll::Ready(());
        }
        let Way { buffer, waiter, .. } = &mut self.forth;
        ready!(self.around.supply.poll_lend(buffer, waiter, None, cx));
        let Some(buffer) = buffer else { return Poll::Pending };
        let area = buffer.areas().0;
        let length = bytes.len().min(area.len());
        area[..length].copy_from_slice(&bytes[..length]);
        self.forth.span = Span::first(length);
        self.account.sent(length);
        Poll::Ready(())
    }

    /// Carries bytes until both sides have ended.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CopyEnd> {
        if self.around.member.poll_told(cx).is_ready() {
            return Poll::Ready(CopyEnd::Told);
        }
        if self.around.member.must_judge_again()
            && let Err(refusal) = (self.around.judge)()
        {
            return Poll::Ready(CopyEnd::Terminated(refusal));
        }
        if self.turn.poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.stalled && self.around.member.must_look() && self.is_reset() {
            return Poll::Ready(CopyEnd::Reset);
        }
        let around = &self.around;
        let mut work = 0;
        let mut over = |carried: usize| {
            work += Cost::Look as u64 + carried as u64;
            self.turn.is_over(work)
        };
        let (sent, forth) = carry(&mut self.forth, self.client, self.server, around, &mut over, cx);
        // The other way has its part of each turn.
        let (received, back) = carry(&mut self.back, self.server, self.client, around, &mut over, cx);
        self.account.sent(sent);
        self.account.received(received);
        self.account.pass();
        self.turn.end(work.max(Cost::Look as u64));
        self.look_out();
        match (forth, back) {
            (Err(_), _) | (_, Err(_)) => Poll::Ready(CopyEnd::Reset),
            _ if self.forth.shut && self.back.shut => Poll::Ready(CopyEnd::Closed),
            (Ok(forth), Ok(back)) => {
                if forth || back {
                    self.turn.enter(cx);
                }
                Poll::Pending
            }
        }
    }

    /// A socket that is not read from would not tell that its peer has reset it, or is gone: it is looked at now and then.
    fn look_out(&mut self) {
        let stalled =
            [&self.forth, &self.back].into_iter().any(|way| way.ended || way.starved || !way.span.is_empty());
        if stalled != self.stalled {
            self.stalled = stalled;
            self.around.member.set_stalled(stalled);
        }
    }

    fn is_reset(&self) -> bool {
        [&*self.client, &*self.server].into_iter().any(|socket| !matches!(socket.take_error(), Ok(None)))
    }
}

/// Carries what can be carried one way until the turn is `over`, which is told how much was read at once; how much in all,
/// and whether there may be more.
fn carry(
    way: &mut Way,
    from: &mut TcpStream,
    to: &mut TcpStream,
    around: &Surroundings<'_>,
    over: &mut dyn FnMut(usize) -> bool,
    cx: &mut Context<'_>,
) -> (usize, io::Result<bool>) {
    let (mut total, mut untold) = (0, 0);
    let result = loop {
        if let Some(buffer) = &way.buffer
            && !way.span.is_empty()
        {
            match Pin::new(&mut *to).poll_write(cx, &buffer.plain()[way.span.range()]) {
                Poll::Pending => return (total, Ok(false)),
                Poll::Ready(Ok(0)) => break Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => way.span.consume(count),
                Poll::Ready(Err(error)) => break Err(error),
            }
            if way.span.is_empty() && over(std::mem::take(&mut untold)) {
                break Ok(true);
            }
            continue;
        }
        if way.ended {
            if !way.shut {
                way.shut = true;
                shut_down(to);
            }
            break Ok(false);
        }
        match from.poll_read_ready(cx) {
            Poll::Pending => break Ok(false),
            Poll::Ready(_) => {}
        }
        let lent = around.supply.poll_lend(&mut way.buffer, &mut way.waiter, Some(to), cx);
        way.starved = lent.is_pending();
        let Poll::Ready(scarce) = lent else { break Ok(false) };
        let Some(buffer) = &mut way.buffer else { break Ok(false) };
        let room = if scarce { SCARCE } else { AREA };
        let mut free = ReadBuf::new(&mut buffer.areas().0[..room]);
        match Pin::new(&mut *from).poll_read(cx, &mut free) {
            Poll::Pending => break Ok(false),
            Poll::Ready(Err(error)) => break Err(error),
            Poll::Ready(Ok(())) => {
                let count = free.filled().len();
                total += count;
                untold += count;
                way.ended = count == 0;
                way.span = Span::first(count);
            }
        }
    };
    way.buffer = None;
    (total, result)
}
