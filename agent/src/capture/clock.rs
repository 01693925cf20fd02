//! The clock of `bpf_ktime_get_ns`.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine started, without the time that it slept.
pub(super) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
