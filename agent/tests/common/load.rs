//! Requests that go on while something else happens.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use xtask::lab::{
    Pod,
    apps::{self, Burst},
    eventually,
};

/// Requests, one after the other from four threads, counted where they are made.
pub struct Load {
    enough: Arc<AtomicBool>,
    counted: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<Burst>>,
}

impl Load {
    /// From now on.
    pub fn begin(from: &Pod, to: SocketAddr) -> Self {
        let (enough, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count, place) = (Arc::clone(&enough), Arc::clone(&counted), from.place().clone());
        let thread = std::thread::spawn(move || {
            let mut total = Burst { succeeded: 0, failed: 0, last_error: None, seconds: 0.0 };
            while !end.load(Ordering::Acquire) {
                let burst = apps::burst(&place, to, 4, Duration::from_secs(2))?;
                total.succeeded += burst.succeeded;
                total.failed += burst.failed;
                total.last_error = burst.last_error.or(total.last_error);
                count.store(total.succeeded, Ordering::Release);
            }
            Ok(total)
        });
        Self { enough, counted, thread }
    }

    /// When so many succeeded.
    pub fn end(self, wanted: u64) -> Result<Burst> {
        let done = eventually(&format!("{wanted} requests"), Duration::from_secs(300), || {
            Ok(self.counted.load(Ordering::Acquire) >= wanted || self.thread.is_finished())
        });
        self.enough.store(true, Ordering::Release);
        let counted = self.thread.join().map_err(|_| anyhow::anyhow!("the load failed"))??;
        done.map(|()| counted)
    }
}
