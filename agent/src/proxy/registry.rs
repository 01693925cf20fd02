//! The tasks of a worker, and how they are told: a deadline has passed, the rules changed, the pod is gone.
//!
//! One clock and one list for all of a worker's connections instead of a timer and a channel for each.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use slab::Slab;

use super::environment::PodId;

/// How exact deadlines are.
pub const TICK: Duration = Duration::from_millis(50);
/// Ticks between two looks of a task at a socket that it does not read from.
const LOOK: u32 = 10;

#[derive(Debug)]
struct Entry {
    pod: PodId,
    waker: Option<Waker>,
    deadline: Option<Instant>,
    idle: bool,
    /// The task waits to write, and would not learn that the other side of what it reads from is gone.
    stalled: bool,
    told: Option<Told>,
}

/// Why a task must stop what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Its deadline has passed.
    TimedOut,
    /// Its pod is detached or the agent stops.
    Ended,
    /// The agent is about to stop, and the task carries nothing. Told once: what was begun meanwhile is carried.
    Draining,
}

/// A worker's tasks.
#[derive(Debug, Default)]
pub struct Registry {
    entries: RefCell<Slab<Entry>>,
    generation: Cell<u64>,
    draining: Cell<bool>,
    ticks: Cell<u32>,
    looks: Cell<u32>,
}

impl Registry {
    /// Enters a task.
    pub fn enter(self: &Rc<Self>, pod: PodId) -> Membership {
        let entry = Entry { pod, waker: None, deadline: None, idle: false, stalled: false, told: None };
        let key = self.entries.borrow_mut().insert(entry);
        Membership {
            registry: Rc::clone(self),
            key,
            seen: Cell::new(self.generation.get()),
            looked: Cell::new(self.looks.get()),
        }
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// The rules changed: every task judges again.
    pub fn judge_again(&self) {
        self.generation.set(self.generation.get() + 1);
        self.wake(|_| true);
    }

    /// Tells the tasks of `pod`, or all, to end.
    pub fn end(&self, pod: Option<PodId>) {
        self.wake(|entry| {
            let concerned = pod.is_none_or(|pod| pod == entry.pod);
            if concerned {
                entry.told = Some(Told::Ended);
            }
            concerned
        });
    }

    /// Tells the tasks that carry nothing that the agent is about to stop, now and from now on.
    pub fn drain(&self) {
        self.draining.set(true);
        self.wake(|entry| {
            if entry.idle {
                entry.told.get_or_insert(Told::Draining);
            }
            entry.idle
        });
    }

    /// Tells those whose deadline has passed, and wakes those that are stalled now and then.
    pub fn tick(&self, now: Instant) {
        self.ticks.set(self.ticks.get().wrapping_add(1));
        let look = self.ticks.get().is_multiple_of(LOOK);
        if look {
            self.looks.set(self.looks.get().wrapping_add(1));
        }
        self.wake(|entry| {
            let late = entry.deadline.is_some_and(|deadline| deadline <= now);
            if late {
                entry.deadline = None;
                entry.told.get_or_insert(Told::TimedOut);
            }
            late || (look && entry.stalled)
        });
    }

    fn wake(&self, mut concerned: impl FnMut(&mut Entry) -> bool) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if concerned(entry)
                && let Some(waker) = entry.waker.take()
            {
                waker.wake();
            }
        }
    }
}

/// A task's place in the list; leaving is dropping it.
#[derive(Debug)]
pub struct Membership {
    registry: Rc<Registry>,
    key: usize,
    seen: Cell<u64>,
    looked: Cell<u32>,
}

impl Membership {
    fn with<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.registry.entries.borrow_mut().get_mut(self.key).map(change)
    }

    /// Sets or lifts the deadline.
    pub fn set_deadline(&self, after: Option<Duration>) {
        self.with(|entry| {
            entry.deadline = after.map(|after| Instant::now() + after);
            if entry.told == Some(Told::TimedOut) {
                entry.told = None;
            }
        });
    }

    /// Says whether this task carries nothing, so that it is told of a drain.
    pub fn set_idle(&self, idle: bool) {
        let draining = self.registry.draining.get();
        self.with(|entry| {
            entry.idle = idle;
            if idle && draining {
                entry.told.get_or_insert(Told::Draining);
            } else if entry.told == Some(Told::Draining) {
                entry.told = None;
            }
        });
    }

    /// Says whether the task waits to write, so that it is woken now and then to look at its sockets.
    pub fn set_stalled(&self, stalled: bool) {
        self.with(|entry| entry.stalled = stalled);
    }

    /// What the task was told; else it is woken when it is told something.
    pub fn poll_told(&self, cx: &mut Context<'_>) -> Poll<Told> {
        let told = self.with(|entry| match entry.told {
            Some(told) => {
                if told == Told::Draining {
                    entry.told = None;
                }
                Poll::Ready(told)
            }
            None => {
                if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    entry.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        });
        told.unwrap_or(Poll::Ready(Told::Ended))
    }

    /// Whether the rules changed since the last time this was asked.
    pub fn must_judge_again(&self) -> bool {
        let now = self.registry.generation.get();
        self.seen.replace(now) != now
    }

    /// Whether a stalled task is to look at its sockets: now and then.
    pub fn must_look(&self) -> bool {
        let now = self.registry.looks.get();
        self.looked.replace(now) != now
    }

    /// Runs `work` until it is done or the task is told to stop.
    pub async fn unless_told<T>(&self, work: impl Future<Output = T>) -> Result<T, Told> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(told) = self.poll_told(cx) {
                return Poll::Ready(Err(told));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().try_remove(self.key);
    }
}
