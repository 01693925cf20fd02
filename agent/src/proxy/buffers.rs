//! A worker's buffers: lent while bytes are under way, given back when a direction is idle.
//!
//! A direction whose far side takes nothing more keeps what was read for it. So that those who do not read cannot hold all
//! of a pod's, buffers are scarce from half on: then no more is read than the far side takes at once. Small things that
//! must wait are set aside, in memory of their own size, and have a bound of their own.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, Range},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use slab::Slab;
use tokio::net::TcpStream;

use super::{
    sockets::poll_takes_more,
    wire::{MAX_PAYLOAD, RECORD},
};

/// TLS records that are sealed for one write.
pub const RECORDS: usize = 4;
/// Bytes read from an application at once.
pub const CHUNK: usize = RECORDS * MAX_PAYLOAD;
/// What a TLS 1.3 record adds to its plaintext: header, content type and tag.
const OVERHEAD: usize = 22;
/// One area of a buffer. Four records fill it but for [`SLACK`], which is for small frames behind them.
pub const AREA: usize = RECORDS * (RECORD + OVERHEAD) + SLACK;
const SLACK: usize = 4_008;
/// Free buffers that a worker keeps when nothing moves.
const KEPT: usize = 8;

/// What is read at once where they are scarce: the longest record that rustls takes, 18 KiB and its header, and some.
pub const SCARCE: usize = 20 * 1024;

const _: () = assert!(AREA.is_multiple_of(4096) && super::wire::HEADER + CHUNK <= AREA);

/// What may be set aside for each buffer that a pod may have.
const ASIDE: usize = 16 * 1024;

/// How many buffers a pod has on loan.
#[derive(Debug)]
pub struct Quota {
    lent: Cell<usize>,
    limit: usize,
    reserved: usize,
    aside: Cell<usize>,
    waiting: Rc<Waiting>,
}

impl Quota {
    /// `limit` at most; `reserved` of them even where all of the worker's are lent.
    pub fn new(limit: usize, reserved: usize) -> Rc<Self> {
        Rc::new(Self { lent: Cell::new(0), limit, reserved, aside: Cell::new(0), waiting: Rc::default() })
    }

    /// A copy that needs no buffer; `None`: so much is set aside already.
    pub fn set_aside(self: &Rc<Self>, bytes: &[u8]) -> Option<Aside> {
        let all = self.aside.get() + bytes.len();
        if all > self.limit * ASIDE {
            return None;
        }
        self.aside.set(all);
        Some(Aside { bytes: bytes.into(), quota: Rc::clone(self) })
    }
}

/// Bytes that wait without a buffer.
#[derive(Debug)]
pub struct Aside {
    bytes: Box<[u8]>,
    quota: Rc<Quota>,
}

impl Deref for Aside {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.quota.aside.set(self.quota.aside.get() - self.bytes.len());
    }
}

/// Directions that wait for a buffer.
#[derive(Debug, Default)]
struct Waiting {
    wakers: RefCell<Slab<Waker>>,
    /// How often all were woken.
    woken: Cell<u64>,
}

impl Waiting {
    fn enter(self: &Rc<Self>, waiter: &mut Option<Waiter>, waker: &Waker) {
        if let Some(waiter) = waiter
            && Rc::ptr_eq(&waiter.waiting, self)
            && waiter.entered == self.woken.get()
            && let Some(known) = self.wakers.borrow_mut().get_mut(waiter.key)
        {
            return known.clone_from(waker);
        }
        let key = self.wakers.borrow_mut().insert(waker.clone());
        *waiter = Some(Waiter { waiting: Rc::clone(self), entered: self.woken.get(), key });
    }

    fn wake(&self) {
        if self.wakers.borrow().is_empty() {
            return;
        }
        self.woken.set(self.woken.get() + 1);
        for (_, waker) in self.wakers.take() {
            waker.wake();
        }
    }
}

/// A direction's place among those that wait; leaving is dropping it.
#[derive(Debug)]
pub struct Waiter {
    waiting: Rc<Waiting>,
    entered: u64,
    key: usize,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.entered == self.waiting.woken.get() {
            self.waiting.wakers.borrow_mut().try_remove(self.key);
        }
    }
}

/// The buffers of one worker.
#[derive(Debug)]
pub struct Buffers {
    free: RefCell<Vec<Box<[u8]>>>,
    lent: Cell<usize>,
    most: Cell<usize>,
    limit: usize,
    /// Of pods that have not had their share, where all buffers are lent.
    waiting: Rc<Waiting>,
}

impl Buffers {
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            free: RefCell::new(Vec::new()),
            lent: Cell::new(0),
            most: Cell::new(0),
            limit,
            waiting: Rc::default(),
        })
    }

    /// Lends a buffer, or wakes the task when one comes back that it could have: who waits for its own pod's buffers costs
    /// other pods nothing when they give theirs back. A direction holds one at most, so that nobody who has one waits for
    /// another.
    pub fn poll_lend(
        self: &Rc<Self>,
        quota: &Rc<Quota>,
        waiter: &mut Option<Waiter>,
        cx: &mut Context<'_>,
    ) -> Poll<Buffer> {
        if quota.lent.get() >= quota.limit {
            quota.waiting.enter(waiter, cx.waker());
            return Poll::Pending;
        }
        if self.lent.get() >= self.limit && quota.lent.get() >= quota.reserved {
            self.waiting.enter(waiter, cx.waker());
            return Poll::Pending;
        }
        *waiter = None;
        self.lent.set(self.lent.get() + 1);
        self.most.set(self.most.get().max(self.lent.get()));
        quota.lent.set(quota.lent.get() + 1);
        let bytes = self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; 2 * AREA].into_boxed_slice());
        Poll::Ready(Buffer { bytes, home: Rc::clone(self), quota: Rc::clone(quota) })
    }

    /// Whether so many are lent, to the pod or to all, that none may be held by those who do not read.
    pub fn are_scarce(&self, quota: &Quota) -> bool {
        2 * quota.lent.get() >= quota.limit || 2 * self.lent.get() >= self.limit
    }

    /// Gives memory back to the system after a burst: called now and then.
    pub fn trim(&self) {
        let mut free = self.free.borrow_mut();
        let keep = KEPT.max(self.most.get().saturating_sub(self.lent.get()));
        free.truncate(keep);
        self.most.set(self.lent.get());
    }

    #[cfg(test)]
    pub fn most_lent(&self) -> usize {
        self.most.get()
    }
}

/// A buffer on loan: two areas, one of plaintext and one of TLS records.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    home: Rc<Buffers>,
    quota: Rc<Quota>,
}

impl Buffer {
    /// The area of plaintext and the area of TLS records.
    pub fn areas(&mut self) -> (&mut [u8], &mut [u8]) {
        self.bytes.split_at_mut(AREA)
    }

    /// The area of TLS records.
    pub fn records(&self) -> &[u8] {
        &self.bytes[AREA..]
    }

    /// The area of plaintext.
    pub fn plain(&self) -> &[u8] {
        &self.bytes[..AREA]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.free.borrow_mut().push(std::mem::take(&mut self.bytes));
        self.home.lent.set(self.home.lent.get() - 1);
        self.quota.lent.set(self.quota.lent.get() - 1);
        self.quota.waiting.wake();
        self.home.waiting.wake();
    }
}

/// Where a worker's buffers come from.
#[derive(Clone, Debug)]
pub struct Supply {
    /// The worker's buffers.
    pub buffers: Rc<Buffers>,
    /// The pod's share.
    pub quota: Rc<Quota>,
}

impl Supply {
    /// Whether no more is to be read than the far side takes at once.
    pub fn is_scarce(&self) -> bool {
        self.buffers.are_scarce(&self.quota)
    }

    /// Fills the slot with a buffer for bytes that go to `to`; whether buffers are scarce.
    pub fn poll_lend(
        &self,
        slot: &mut Option<Buffer>,
        waiter: &mut Option<Waiter>,
        to: Option<&TcpStream>,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        let scarce = self.is_scarce();
        if scarce && let Some(to) = to {
            ready!(poll_takes_more(to, cx));
        }
        if slot.is_none() {
            *slot = Some(ready!(self.buffers.poll_lend(&self.quota, waiter, cx)));
        }
        Poll::Ready(scarce)
    }
}

/// A part of an area that holds bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// From the area's beginning.
    pub fn first(length: usize) -> Self {
        Self { start: 0, end: length as u32 }
    }
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
    /// The first `count` bytes are done with.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count as u32).min(self.end);
        if self.is_empty() {
            *self = Self::default();
        }
    }
    /// `count` more stand behind them.
    pub fn grow(&mut self, count: usize) {
        self.end += count as u32;
    }
}
