//! What one pod may have of the API, and all of the node's together.

use std::{num::NonZeroU32, time::Duration};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tonic::Status;

use crate::cli::places::{Place, Places};

/// Streams that one pod may begin in a second, after so many at first.
const BEGUN: (u32, u32) = (1, 20);
/// Streams that one pod may have: each that is not read holds two answers.
const STREAMS_EACH: usize = 32;
/// Streams in all.
const STREAMS: usize = 4096;
/// Certificates for this node's workloads in a second, after so many at first: half of what an authority signs for a node
/// (`issued_per_node` of its bounds), so that the other half is the mesh's own.
const ISSUED: (u32, u32) = (25, 200);
/// Certificates that are asked for at once: the mesh's own renewals are not to wait for workloads'.
const AT_ONCE: usize = 8;
/// How long an answer may wait for its caller to read the one before.
const UNREAD: Duration = Duration::from_secs(60);

/// Why a stream is not begun: as counters name it, and in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuch {
    pub reason: &'static str,
    pub why: &'static str,
}

/// What was begun and asked for lately.
#[derive(Debug)]
pub(super) struct Limits {
    begun: DefaultKeyedRateLimiter<u64>,
    streams: Places<u64>,
    issued: DefaultDirectRateLimiter,
    issuing: Semaphore,
}

fn quota((per_second, burst): (u32, u32)) -> Quota {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            begun: RateLimiter::keyed(quota(BEGUN)),
            streams: Places::new(STREAMS, STREAMS_EACH),
            issued: RateLimiter::direct(quota(ISSUED)),
            issuing: Semaphore::new(AT_ONCE),
        }
    }
}

impl Limits {
    /// One more stream of the pod whose network namespace has this cookie; it has its place as long as it goes on.
    pub fn begin(&self, cookie: u64) -> Result<Place<u64>, TooMuch> {
        let allowed = self.begun.check_key(&cookie);
        self.begun.retain_recent();
        if allowed.is_err() {
            let why = "too many streams are begun: keep one open";
            return Err(TooMuch { reason: "rate", why });
        }
        let why = "too many streams are open: keep one";
        self.streams.enter(cookie).ok_or(TooMuch { reason: "too_many", why })
    }

    /// Waits until one more certificate may be asked for.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.issued.until_ready().await;
        // It is never closed.
        self.issuing.acquire().await.ok()
    }
}

/// Gives an answer; false: nobody takes it, and the stream is over.
pub(super) async fn give<T>(send: &mpsc::Sender<Result<T, Status>>, answer: Result<T, Status>) -> bool {
    give_within(send, answer, UNREAD).await
}

async fn give_within<T>(
    send: &mpsc::Sender<Result<T, Status>>,
    answer: Result<T, Status>,
    time: Duration,
) -> bool {
    matches!(tokio::time::timeout(time, send.send(answer)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_so_many_streams_and_begins_them_so_fast() {
        let limits = Limits::default();
        let begun: Vec<_> = (0..100).filter_map(|_| limits.begin(1).ok()).collect();
        assert_eq!(begun.len(), BEGUN.1 as usize);
        assert_eq!(limits.begin(1).unwrap_err().reason, "rate");
        limits.begin(2).unwrap();
    }

    #[test]
    fn a_pod_that_is_patient_has_no_more_streams_either() {
        let limits = Limits { begun: RateLimiter::keyed(quota((1000, 1000))), ..Limits::default() };
        let mut open: Vec<_> = (0..STREAMS_EACH).map(|_| limits.begin(1).unwrap()).collect();
        assert_eq!(limits.begin(1).unwrap_err().reason, "too_many");
        limits.begin(2).unwrap();
        open.pop();
        limits.begin(1).unwrap();
    }

    #[tokio::test]
    async fn a_nodes_workloads_leave_the_authority_time_for_the_mesh() {
        let limits = Limits::default();
        let began = std::time::Instant::now();
        // However many pods ask.
        for _ in 0..ISSUED.1 + 10 {
            drop(limits.turn().await.unwrap());
        }
        let least = Duration::from_millis(u64::from(10 * 1000 / ISSUED.0) - 50);
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        let held: Vec<_> = {
            let mut held = Vec::new();
            for _ in 0..AT_ONCE {
                held.push(limits.turn().await.unwrap());
            }
            held
        };
        let next = tokio::time::timeout(Duration::from_millis(200), limits.turn());
        assert!(next.await.is_err(), "no more at once");
        drop(held);
        drop(limits.turn().await.unwrap());
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_written_for() {
        let (send, mut answers) = mpsc::channel(1);
        let soon = Duration::from_millis(100);
        assert!(give_within(&send, Ok(1), soon).await);
        assert!(!give_within(&send, Ok(2), soon).await, "the first was not read");
        assert_eq!(answers.recv().await.unwrap().unwrap(), 1);
        assert!(give_within(&send, Ok(3), soon).await);
    }
}
