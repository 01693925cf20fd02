//! A worker's buffers: lent while bytes are under way, given back when a direction is idle.
//!
//! A direction whose far side takes nothing more keeps what was read for it. So that those who do not read cannot hold all
//! of a pod's, buffers are scarce from half on: then no more is read than the far side takes at once.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::wire::{MAX_PAYLOAD, RECORD};

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

/// How many buffers a pod has on loan.
#[derive(Debug)]
pub struct Quota {
    lent: Cell<usize>,
    limit: usize,
    reserved: usize,
    waiting: Waiting,
}

impl Quota {
    /// `limit` at most; `reserved` of them even where all of the worker's are lent.
    pub fn new(limit: usize, reserved: usize) -> Rc<Self> {
        Rc::new(Self { lent: Cell::new(0), limit, reserved, waiting: Waiting::default() })
    }
}

/// Tasks that wait for a buffer.
#[derive(Debug, Default)]
struct Waiting(RefCell<Vec<Waker>>);

impl Waiting {
    fn enter(&self, waker: &Waker) {
        let mut waiting = self.0.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn wake(&self) {
        for waker in self.0.borrow_mut().drain(..) {
            waker.wake();
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
    waiting: Waiting,
}

impl Buffers {
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            free: RefCell::new(Vec::new()),
            lent: Cell::new(0),
            most: Cell::new(0),
            limit,
            waiting: Waiting::default(),
        })
    }

    /// Lends a buffer, or wakes the task when one comes back that it could have: who waits for its own pod's buffers costs
    /// other pods nothing when they give theirs back. A direction holds one at most, so that nobody who has one waits for
    /// another.
    pub fn poll_lend(self: &Rc<Self>, quota: &Rc<Quota>, cx: &mut Context<'_>) -> Poll<Buffer> {
        if quota.lent.get() >= quota.limit {
            quota.waiting.enter(cx.waker());
            return Poll::Pending;
        }
        if self.lent.get() >= self.limit && quota.lent.get() >= quota.reserved {
            self.waiting.enter(cx.waker());
            return Poll::Pending;
        }
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
