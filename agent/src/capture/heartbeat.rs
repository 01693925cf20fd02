//! The agent's sign of life in a map: without it the kernel refuses what it would hand to the agent.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use heddle_ebpf::attach::maps;

use super::{clock, error::CaptureError, kernel::Kernel};

/// How a heartbeat ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Says so at once instead of letting the bound run out.
    Told,
    /// Another agent beats already.
    Succeeded,
}

/// How many times within the bound it beats, if that is long: a machine that stands still for a while is not an agent that
/// does.
const BEATS: u32 = 5;
/// How far apart beats are at most.
const PERIOD: Duration = Duration::from_millis(200);

/// Beats while it lives.
#[derive(Debug)]
pub struct Heartbeat {
    stop: std::sync::mpsc::Sender<End>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Beats as long as `alive` says of each look that every worker makes progress, given how many looks a second there
    /// are. If one does not, the kernel is told at once. `late` counts how often `bound` ran out between two beats.
    ///
    /// # Errors
    /// When the map cannot be opened or no thread can be made.
    pub fn start(
        kernel: &Kernel,
        bound: Duration,
        late: Arc<AtomicU64>,
        mut alive: impl FnMut(Duration) -> bool + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let period = PERIOD.min(bound / BEATS);
        let mut map = kernel.pins.array::<u64>(maps::HEARTBEAT)?;
        beat(&mut map)?;
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("heddle-heartbeat".into())
            .spawn(move || {
                first_in_line();
                let mut last = Instant::now();
                let end = loop {
                    match stopped.recv_timeout(period) {
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                        end => break end,
                    }
                    let told = if alive(period) { beat(&mut map) } else { tell_dead(&mut map) };
                    if let Err(error) = told {
                        tracing::error!(%error, "no heartbeat");
                    }
                    let since = last.elapsed();
                    last = Instant::now();
                    if since > bound {
                        late.fetch_add(1, Ordering::Relaxed);
                        let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                        tracing::warn!(
                            milliseconds,
                            "the machine stood still or gave the agent no time: the kernel refused meanwhile what the agent would carry"
                        );
                    }
                };
                if end != Ok(End::Succeeded) {
                    let _ = tell_dead(&mut map);
                }
            })
            .map_err(CaptureError::system("starting the heartbeat"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it and leaves the last sign of life: the successor beats already.
    pub fn leave(mut self) {
        self.end(End::Succeeded);
    }

    fn end(&mut self, end: End) {
        // It may have ended already.
        let _ = self.stop.send(end);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end(End::Told);
    }
}

/// A thread that works for microseconds, a few times a second: a machine that is busy with other things must not make
/// the agent look dead. Whether it is alive the workers say, who wait their turn as ever.
fn first_in_line() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        // Without CAP_SYS_NICE it waits its turn, too.
        tracing::debug!(%error, "the heartbeat has no priority");
    }
}

fn beat(map: &mut Array<MapData, u64>) -> Result<(), CaptureError> {
    map.set(0, clock::monotonic(), 0).map_err(CaptureError::map(maps::HEARTBEAT))
}

fn tell_dead(map: &mut Array<MapData, u64>) -> Result<(), CaptureError> {
    map.set(0, 0, 0).map_err(CaptureError::map(maps::HEARTBEAT))
}

impl From<io::Error> for CaptureError {
    fn from(source: io::Error) -> Self {
        Self::System { what: "a system call", source }
    }
}
