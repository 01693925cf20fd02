//! A pod's share of the metrics, at the pod's own address, where Linkerd's sidecar had its own.
//!
//! Clients come there as to any port of the pod: by the mesh's TLS, and by the rules about the port. What would be the hop to
//! the application leads here.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime::Handle, sync::Semaphore};

use super::super::scrape::Scrape;
use crate::observe::metrics::Metrics;

/// How many connections to one pod's at a time: whoever takes them all keeps others from that pod's alone.
const CONNECTIONS: usize = 8;

pub(super) struct Shares {
    metrics: Arc<Metrics>,
    runtime: Handle,
    open: Open,
    /// One is made at a time: each goes through every series.
    turn: Arc<Semaphore>,
}

impl Shares {
    /// Shares of these metrics, served on the runtime that this is called from.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { metrics, runtime: Handle::current(), open: Open::default(), turn }
    }

    /// A connection at whose other end the pod's share is served.
    ///
    /// # Errors
    /// There are too many, or what the kernel says.
    pub(super) fn connect(&self, pod: &Arc<str>) -> io::Result<TcpStream> {
        let room = self.open.room(pod).ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "too many clients read the pod's metrics")
        })?;
        let (near, far) = pair()?;
        let (metrics, whose) = (Arc::clone(&self.metrics), Arc::clone(pod));
        let text = move || metrics.share(&whose).map_err(|error| error.to_string());
        let scrape = Scrape::new(Arc::clone(pod), Arc::clone(&self.turn), text);
        self.runtime.spawn(async move {
            let _room = room;
            match tokio::net::TcpStream::from_std(far) {
                Ok(far) => scrape.serve(far).await,
                Err(error) => tracing::warn!(%error, "a pod's metrics cannot be served"),
            }
        });
        Ok(near)
    }
}

/// How many connections there are to each pod's.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<Arc<str>, usize>>>);

impl Open {
    fn counts(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more, while this is held.
    fn room(&self, pod: &Arc<str>) -> Option<Room> {
        let mut counts = self.counts();
        let count = counts.entry(Arc::clone(pod)).or_default();
        if *count >= CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Room { open: self.clone(), pod: Arc::clone(pod) })
    }
}

struct Room {
    open: Open,
    pod: Arc<str>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut counts = self.open.counts();
        if let Some(count) = counts.get_mut(&self.pod) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.pod);
            }
        }
    }
}

/// Two ends of a connection, neither of which blocks. It is TCP's, as the data plane's sockets are.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let own = near.local_addr()?;
    loop {
        let (far, peer) = listener.accept()?;
        // Whoever else of this host came first is none of ours.
        if peer == own {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_connections_are_bounded_and_no_others_by_them() {
        let open = Open::default();
        let (busy, other): (Arc<str>, Arc<str>) = ("shop/busy".into(), "shop/other".into());
        let mut held: Vec<Room> = (0..CONNECTIONS).map(|_| open.room(&busy).unwrap()).collect();
        assert!(open.room(&busy).is_none());
        assert!(open.room(&other).is_some(), "another pod's");
        held.pop();
        assert!(open.room(&busy).is_some(), "one has ended");
        held.clear();
        assert!(open.counts().is_empty(), "nothing is kept of pods that nobody reads");
    }
}
