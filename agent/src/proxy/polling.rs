//! A worker that stays awake for the next word of a conversation.
//!
//! To be woken costs more than what a worker does with 64 bytes. Where the last few messages of a stream were small and
//! followed each other sooner than [`Polling`]'s bound, the worker asks the kernel again and again for so long instead of
//! going to sleep. Each message must earn it anew, so that a stream that falls silent costs one bound; of all workers
//! only some may do it at the same time, so that the rest of the node's cores stay with the applications.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// More bytes at once are no question and no answer.
const SMALL: u64 = 16 * 1024;
/// Quick messages in a row that make a conversation.
const CONVERSATION: u8 = 6;
/// Of so many cores one may be kept awake.
const CORES_FOR_ONE: usize = 4;

/// How many workers may stay awake at the same time.
#[derive(Clone, Debug)]
pub struct Seats(Arc<AtomicUsize>);

impl Seats {
    /// As many as `cores` allow: one of four, and none of fewer.
    pub fn of(cores: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(cores / CORES_FOR_ONE)))
    }

    fn take(&self) -> Option<Seat<'_>> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Seat(self))
    }
}

struct Seat<'a>(&'a Seats);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A worker's.
#[derive(Debug)]
pub struct Polling {
    bound: Duration,
    seats: Seats,
    until: Cell<Option<Instant>>,
    sleeper: RefCell<Option<Waker>>,
}

impl Polling {
    /// For so long after a message; zero: never.
    pub fn new(bound: Duration, seats: Seats) -> Self {
        Self { bound, seats, until: Cell::new(None), sleeper: RefCell::default() }
    }

    fn stay_awake(&self, now: Instant) {
        if self.until.replace(Some(now + self.bound)).is_none()
            && let Some(sleeper) = self.sleeper.take()
        {
            sleeper.wake();
        }
    }

    /// Keeps the worker's runtime from going to sleep while a conversation wants it. Runs as one of its tasks, for ever.
    pub async fn run(&self) {
        loop {
            std::future::poll_fn(|cx| {
                if self.until.get().is_some() {
                    return Poll::Ready(());
                }
                *self.sleeper.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            if let Some(_seat) = self.seats.take() {
                while self.until.get().is_some_and(|until| Instant::now() < until) {
                    // The runtime looks at its sockets, without waiting, before it comes back.
                    tokio::task::yield_now().await;
                }
            }
            self.until.set(None);
        }
    }
}

/// How the messages of one stream follow each other.
#[derive(Debug, Default)]
pub struct Rhythm {
    last: Option<Instant>,
    quick: u8,
}

impl Rhythm {
    /// So many bytes were carried just now.
    pub fn carried(&mut self, bytes: u64, polling: &Polling) {
        if bytes == 0 || polling.bound.is_zero() {
            return;
        }
        if bytes > SMALL {
            *self = Self::default();
            return;
        }
        let now = Instant::now();
        let quick = self.last.replace(now).is_some_and(|last| now - last <= polling.bound);
        self.quick = if quick { (self.quick + 1).min(CONVERSATION) } else { 0 };
        if self.quick == CONVERSATION {
            polling.stay_awake(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CONVERSATION, Polling, Rhythm, SMALL, Seats};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(3600);

    fn awake_after(bound: Duration, messages: &[u64]) -> bool {
        let polling = Polling::new(bound, Seats::of(4));
        let mut rhythm = Rhythm::default();
        messages.iter().for_each(|bytes| rhythm.carried(*bytes, &polling));
        polling.until.get().is_some()
    }

    #[test]
    fn only_a_conversation_keeps_a_worker_awake() {
        let quick = [64; CONVERSATION as usize + 1];
        assert!(awake_after(LONG, &quick));
        assert!(!awake_after(LONG, &quick[1..]), "one message too few");
        assert!(!awake_after(Duration::ZERO, &quick), "it is switched off");
        assert!(!awake_after(Duration::from_nanos(1), &quick), "too slow");
        assert!(!awake_after(LONG, &[SMALL + 1; 20]), "bulk");
        let mut broken = quick.to_vec();
        broken.extend([SMALL + 1, 64]);
        assert!(!awake_after(Duration::from_nanos(1), &broken));
    }

    #[test]
    fn a_quarter_of_the_cores_at_most() {
        assert!(Seats::of(3).take().is_none());
        let seats = Seats::of(8);
        let held = (seats.take(), seats.take());
        assert!(held.0.is_some() && held.1.is_some() && seats.take().is_none());
        drop(held);
        assert!(seats.take().is_some());
    }

    #[test]
    fn who_is_kept_awake_falls_asleep_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let polling = Polling::new(Duration::from_millis(5), Seats::of(4));
        runtime.block_on(async {
            let running = polling.run();
            let busy = async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                    polling.stay_awake(std::time::Instant::now());
                    assert!(polling.until.get().is_some());
                    while polling.until.get().is_some() {
                        tokio::task::yield_now().await;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! { () = running => unreachable!(), () = busy => {} }
        });
    }
}
