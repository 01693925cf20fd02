//! What the kernel programs tell, read from their ring buffer as it comes.

use std::{
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use heddle_ebpf::flows::maps;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{error::CaptureError, kernel::Kernel};

/// How long one wait lasts before the thread looks whether it should end.
const WAIT: Duration = Duration::from_millis(200);

/// The thread that reads events, until this is dropped.
#[derive(Debug)]
pub struct FollowedEvents {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for FollowedEvents {
    /// Waits for it: a ring buffer has one reader, and the next may be another agent.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads events on a thread of its own and hands each one's bytes to `tell`.
///
/// # Errors
/// When the ring buffer cannot be opened or no thread can be made.
pub(super) fn follow(
    kernel: &Kernel,
    mut tell: impl FnMut(&[u8]) + Send + 'static,
) -> Result<FollowedEvents, CaptureError> {
    let mut ring = kernel.pins.ring(maps::EVENTS)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::Builder::new()
        .name("heddle-events".into())
        .spawn(move || {
            let wait = Timespec { tv_sec: 0, tv_nsec: WAIT.as_nanos() as _ };
            while !stopped.load(Ordering::Acquire) {
                while !stopped.load(Ordering::Acquire)
                    && let Some(event) = ring.next()
                {
                    tell(&event);
                }
                let mut ready = [PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)];
                let _ = poll(&mut ready, Some(&wait));
            }
        })
        .map_err(CaptureError::system("starting to follow events"))?;
    Ok(FollowedEvents { stop, thread: Some(thread) })
}
