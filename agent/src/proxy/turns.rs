//! Whose turn it is: pods take turns at a worker, whatever number of streams each has.
//!
//! A worker is one thread, and its runtime runs tasks in the order in which they were woken: a pod with a thousand streams
//! that always have bytes would have a thousand turns for each of a neighbor's. Here a pod carries [`ROUND`] bytes in a
//! round and what it has beyond that waits for the next, in the order in which it came (deficit round robin, Shreedhar and
//! Varghese, 1995). A round is over when every task that could run has run, so that a pod by itself never waits for anybody.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

/// Bytes of one pod in one round: half a millisecond's work. Half as many cost a tenth of what many streams carry together.
const ROUND: u64 = 512 * 1024;
/// Bytes of one stream at once while others of its pod wait.
const SLICE: u64 = 256 * 1024;

/// What takes a worker as long as so many bytes do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Cost {
    /// To look at a stream's sockets, whatever is there.
    Look = 4 * 1024,
    /// To accept a connection and to make another for it.
    Connection = 32 * 1024,
    /// A TLS handshake.
    Handshake = 512 * 1024,
}

/// What a step of a task came to.
#[derive(Debug)]
pub enum Step<T> {
    /// It is done.
    Done(T),
    /// There may be more; this took as long as so many bytes do.
    More(u64),
    /// Nothing can be done now.
    Wait,
}

/// The rounds of a worker.
#[derive(Debug, Default)]
pub struct Rounds {
    waiting: RefCell<Vec<Rc<Share>>>,
    sleeper: RefCell<Option<Waker>>,
}

impl Rounds {
    /// What one pod has of them.
    pub fn share(self: &Rc<Self>) -> Rc<Share> {
        Rc::new(Share {
            rounds: Rc::clone(self),
            spent: Cell::new(0),
            queue: RefCell::default(),
            listed: Cell::new(false),
        })
    }

    /// Begins a round whenever somebody waits for one. Runs as one of the worker's tasks, for ever.
    pub async fn run(&self) {
        loop {
            std::future::poll_fn(|cx| {
                if !self.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.sleeper.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            // Comes back behind all that can run, and the runtime has looked at its sockets meanwhile.
            tokio::task::yield_now().await;
            self.begin();
        }
    }

    fn begin(&self) {
        let shares = self.waiting.take();
        for share in shares {
            share.spent.set(share.spent.get().saturating_sub(ROUND));
            share.call();
            if share.queue.borrow().is_empty() {
                share.listed.set(false);
                share.spent.set(0);
            } else {
                self.waiting.borrow_mut().push(share);
            }
        }
    }
}

/// A pod's share of a worker's rounds.
#[derive(Debug)]
pub struct Share {
    rounds: Rc<Rounds>,
    spent: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Place>>>,
    listed: Cell<bool>,
}

impl Share {
    fn has_some_left(&self) -> bool {
        self.spent.get() < ROUND
    }

    fn spend(&self, bytes: u64) {
        self.spent.set(self.spent.get().saturating_add(bytes));
    }

    /// Calls whoever waits longest, if there is something left for it.
    fn call(&self) {
        while self.has_some_left() {
            let Some(place) = self.queue.borrow_mut().pop_front() else { return };
            if let Waiting::For(waker) = place.0.replace(Waiting::Called) {
                return waker.wake();
            }
        }
    }

    /// Waits for the pod's turn and takes what `cost` is of it.
    pub async fn turn(self: &Rc<Self>, cost: Cost) {
        let mut turn = Turn::new(self);
        std::future::poll_fn(|cx| turn.poll(cx)).await;
        turn.end(cost as u64);
    }
}

/// One task's place in its pod's queue.
#[derive(Debug)]
struct Place(RefCell<Waiting>);

#[derive(Debug)]
enum Waiting {
    For(Waker),
    Called,
    /// The task has left.
    Gone,
}

/// The turns of one task.
#[derive(Debug)]
pub struct Turn {
    share: Rc<Share>,
    place: Option<Rc<Place>>,
}

impl Turn {
    pub fn new(share: &Rc<Share>) -> Self {
        Self { share: Rc::clone(share), place: None }
    }

    /// Ready when the task may go on; then [`Self::end`] or [`Self::enter`] is to follow.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.place {
            None if self.share.has_some_left() && self.share.queue.borrow().is_empty() => Poll::Ready(()),
            None => {
                self.enter(cx);
                Poll::Pending
            }
            Some(place) => {
                if let Waiting::For(waker) = &mut *place.0.borrow_mut() {
                    waker.clone_from(cx.waker());
                    return Poll::Pending;
                }
                self.place = None;
                Poll::Ready(())
            }
        }
    }

    /// Takes steps in the pod's turns until one is done or nothing can be.
    pub fn poll_steps<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Step<T>,
    ) -> Poll<T> {
        ready!(self.poll(cx));
        let mut work = Cost::Look as u64;
        let (result, more) = loop {
            match step(cx) {
                Step::Done(value) => break (Poll::Ready(value), false),
                Step::Wait => break (Poll::Pending, false),
                Step::More(steps) => work += steps,
            }
            if self.is_over(work) {
                break (Poll::Pending, true);
            }
        };
        self.end(work);
        if more {
            self.enter(cx);
        }
        result
    }

    /// Whether the task is to stop after so many bytes that it has carried in this turn. To be asked after something was
    /// done: whoever is called does something, even if others have spent all meanwhile.
    pub fn is_over(&self, carried: u64) -> bool {
        let share = &*self.share;
        share.spent.get() + carried >= ROUND || (carried >= SLICE && !share.queue.borrow().is_empty())
    }

    /// The task has done what it could, or stops here.
    pub fn end(&self, carried: u64) {
        self.share.spend(carried);
        self.share.call();
    }

    /// It has more to do: in the next round, or behind the others of its pod.
    pub fn enter(&mut self, cx: &mut Context<'_>) {
        if let Some(place) = &self.place
            && let Waiting::For(waker) = &mut *place.0.borrow_mut()
        {
            return waker.clone_from(cx.waker());
        }
        let share = &self.share;
        let place = Rc::new(Place(RefCell::new(Waiting::For(cx.waker().clone()))));
        share.queue.borrow_mut().push_back(Rc::clone(&place));
        self.place = Some(place);
        if !share.listed.replace(true) {
            share.rounds.waiting.borrow_mut().push(Rc::clone(share));
            if let Some(sleeper) = share.rounds.sleeper.take() {
                sleeper.wake();
            }
        }
    }
}

impl Drop for Turn {
    /// Who was called and does not come leaves its turn to the next.
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && matches!(place.0.replace(Waiting::Gone), Waiting::Called)
        {
            self.share.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// Runs `tasks` beside the rounds until `until` ends.
    fn run(rounds: &Rc<Rounds>, until: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rounds = Rc::clone(rounds);
        LocalSet::new().block_on(&runtime, async move {
            let running = spawn_local(async move { rounds.run().await });
            until.await;
            running.abort();
        });
    }

    /// Carries without end, `at_once` bytes in one go, as far as its turns let it.
    async fn carry(share: Rc<Share>, at_once: u64, told: impl Fn(u64)) {
        let mut turn = Turn::new(&share);
        std::future::poll_fn(|cx| {
            if turn.poll(cx).is_pending() {
                return Poll::<()>::Pending;
            }
            let mut carried = 0;
            loop {
                carried += at_once;
                told(at_once);
                if turn.is_over(carried) {
                    break;
                }
            }
            turn.end(carried);
            turn.enter(cx);
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn a_pod_with_many_streams_has_as_much_as_one_with_one() {
        let rounds = Rc::<Rounds>::default();
        let carried = Rc::new(RefCell::new([0_u64; 2]));
        run(&rounds, async {
            for (pod, streams) in [(0, 500), (1, 1)] {
                let share = rounds.share();
                for _ in 0..streams {
                    let carried = Rc::clone(&carried);
                    spawn_local(carry(Rc::clone(&share), 16 * 1024, move |bytes| {
                        carried.borrow_mut()[pod] += bytes;
                    }));
                }
            }
            while carried.borrow()[1] < 100 * ROUND {
                yield_now().await;
            }
        });
        let [many, one] = *carried.borrow();
        assert!(many.abs_diff(one) <= 2 * ROUND, "{many} and {one}");
    }

    #[test]
    fn the_streams_of_a_pod_have_the_same() {
        let rounds = Rc::<Rounds>::default();
        let carried = Rc::new(RefCell::new(vec![0_u64; 50]));
        run(&rounds, async {
            let share = rounds.share();
            for index in 0..50 {
                let carried = Rc::clone(&carried);
                spawn_local(carry(Rc::clone(&share), 16 * 1024, move |bytes| {
                    carried.borrow_mut()[index] += bytes;
                }));
            }
            while carried.borrow()[49] < 100 * SLICE {
                yield_now().await;
            }
        });
        let carried = carried.borrow();
        let (least, most) = (carried.iter().min().unwrap(), carried.iter().max().unwrap());
        assert!(most - least <= ROUND + SLICE, "{carried:?}");
    }

    #[test]
    fn who_is_called_and_does_not_come_holds_up_nobody() {
        let rounds = Rc::<Rounds>::default();
        let share = rounds.share();
        let mut cx = Context::from_waker(Waker::noop());
        let enter = |cx: &mut Context<'_>| {
            let mut turn = Turn::new(&share);
            turn.enter(cx);
            turn
        };
        let (first, second, mut third) = (enter(&mut cx), enter(&mut cx), enter(&mut cx));
        rounds.begin();
        assert!(third.poll(&mut cx).is_pending());
        drop(second);
        drop(first);
        assert!(third.poll(&mut cx).is_ready());
        third.end(1);
        assert!(Turn::new(&share).poll(&mut cx).is_ready(), "nobody waits");
    }

    #[test]
    fn what_costs_more_than_a_round_is_paid_for() {
        let rounds = Rc::<Rounds>::default();
        let share = rounds.share();
        let mut cx = Context::from_waker(Waker::noop());
        let mut turn = Turn::new(&share);
        assert!(turn.poll(&mut cx).is_ready());
        turn.end(Cost::Handshake as u64);
        assert!(turn.poll(&mut cx).is_pending());
        for _ in 1..Cost::Handshake as u64 / ROUND {
            rounds.begin();
            assert!(turn.poll(&mut cx).is_pending());
        }
        rounds.begin();
        assert!(turn.poll(&mut cx).is_ready());
    }
}
