//! What the kernel programs tell, read from their ring buffer as it comes.

use std::{os::fd::AsFd as _, time::Duration};

use heddle_ebpf::flows::maps;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{error::CaptureError, kernel::Kernel};

/// How long one wait lasts before the thread looks whether it should end.
const WAIT: Duration = Duration::from_millis(200);

/// Reads events on a thread of its own and hands each one's bytes to `tell`, until `tell` says `false`.
///
/// # Errors
/// When the ring buffer cannot be opened or no thread can be made.
pub(super) fn follow(
    kernel: &Kernel,
    mut tell: impl FnMut(Option<&[u8]>) -> bool + Send + 'static,
) -> Result<(), CaptureError> {
    let mut ring = kernel.pins.ring(maps::EVENTS)?;
    std::thread::Builder::new()
        .name("heddle-events".into())
        .spawn(move || {
            let wait = Timespec { tv_sec: 0, tv_nsec: WAIT.as_nanos() as _ };
            loop {
                while let Some(event) = ring.next() {
                    if !tell(Some(&event)) {
                        return;
                    }
                }
                if !tell(None) {
                    return;
                }
                let mut ready = [PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)];
                let _ = poll(&mut ready, Some(&wait));
            }
        })
        .map_err(CaptureError::system("starting to follow events"))?;
    Ok(())
}
