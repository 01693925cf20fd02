//! The worker threads, from outside.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use super::{
    environment::{Environment, PodId},
    polling::Seats,
    run::{self, Command},
    settings::Settings,
    worker::Worker,
};

/// One worker's listeners in a pod, of both families.
#[derive(Debug, Default)]
pub struct WorkerListeners {
    /// For connections of the pod's applications.
    pub outbound: Vec<TcpListener>,
    /// For connections to them.
    pub inbound: Vec<TcpListener>,
}

/// The listeners in a pod: one set for each worker.
#[derive(Debug)]
pub struct PodListeners {
    /// The pod.
    pub pod: PodId,
    /// As many as there are workers, in their order.
    pub workers: Vec<WorkerListeners>,
}

/// Why a pod is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There must be one set of listeners for each worker.
    #[error("{given} sets of listeners for {workers} workers: give each worker its own")]
    Count {
        /// How many were given.
        given: usize,
        /// How many workers there are.
        workers: usize,
    },
    /// A worker could not use a listener; none of the pod's is in use.
    #[error("a worker cannot use its listener: {0}")]
    Io(#[from] io::Error),
    /// A worker has ended: the agent must be restarted.
    #[error("worker {0} has ended")]
    Ended(usize),
}

struct Running {
    commands: mpsc::UnboundedSender<Command>,
    beats: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// The data plane: threads, each with a runtime of its own, between which nothing is handed over.
pub struct Workers {
    running: Vec<Running>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("count", &self.running.len()).finish()
    }
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub fn start(count: usize, environment: &Environment, settings: &Settings) -> io::Result<Self> {
        let seats = Seats::of(thread::available_parallelism().map_or(1, usize::from));
        let mut running = Vec::with_capacity(count);
        for index in 0..count {
            let (commands, receiver) = mpsc::unbounded_channel();
            let beats = Arc::new(AtomicU64::new(0));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (environment, settings, seats) = (environment.clone(), settings.clone(), seats.clone());
            let beating = Arc::clone(&beats);
            let thread = thread::Builder::new().name(format!("heddle-proxy-{index}")).spawn(move || {
                let tasks = LocalSet::new();
                let worker = Worker::new(environment, settings, seats);
                tasks.block_on(&runtime, run::run(worker, receiver, beating));
            })?;
            running.push(Running { commands, beats, thread });
        }
        Ok(Self { running })
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// A number for each worker that grows for as long as it lives: one that stands still for long is
    /// a worker that hangs.
    pub fn beats(&self) -> Vec<u64> {
        self.running.iter().map(|worker| worker.beats.load(Ordering::Relaxed)).collect()
    }

    /// Accepts on a pod's listeners, instead of those it had before.
    ///
    /// # Errors
    /// [`AttachError`]; none of the pod's listeners is in use then.
    pub async fn attach(&self, listeners: PodListeners) -> Result<(), AttachError> {
        let PodListeners { pod, workers } = listeners;
        if workers.len() != self.running.len() {
            return Err(AttachError::Count { given: workers.len(), workers: self.running.len() });
        }
        // All are told before any is waited for: an application may wait in `bind()` for the slowest of them.
        let mut answers = Vec::with_capacity(workers.len());
        for (worker, listeners) in self.running.iter().zip(workers) {
            let (done, answer) = oneshot::channel();
            let WorkerListeners { outbound, inbound } = listeners;
            drop(worker.commands.send(Command::Attach { pod, outbound, inbound, done }));
            answers.push(answer);
        }
        for (index, answer) in answers.into_iter().enumerate() {
            let result = match answer.await {
                Ok(result) => result.map_err(AttachError::from),
                Err(_) => Err(AttachError::Ended(index)),
            };
            if let Err(error) = result {
                self.detach(pod).await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Closes a pod's listeners and ends its connections with resets.
    pub async fn detach(&self, pod: PodId) {
        for worker in &self.running {
            let (done, answer) = oneshot::channel();
            drop(worker.commands.send(Command::Detach { pod, done }));
            // A worker that has ended has no listener left.
            drop(answer.await);
        }
    }

    /// Closes idle connections, every listener after `listen`, lets streams go on for `deadline` at most, and has the
    /// workers end. Until a listener closes it accepts: what the kernel took for it before is carried.
    pub fn begin_drain(&self, listen: Duration, deadline: Duration) {
        for worker in &self.running {
            drop(worker.commands.send(Command::Drain { listen, deadline }));
        }
    }

    /// Closes a pod's listeners, with what waits there, and leaves its connections alone.
    pub async fn close(&self, pod: PodId) {
        for worker in &self.running {
            let (done, answer) = oneshot::channel();
            drop(worker.commands.send(Command::Close { pod, done }));
            drop(answer.await);
        }
    }

    /// Whether every worker has ended.
    pub fn ended(&self) -> bool {
        self.running.iter().all(|worker| worker.thread.is_finished())
    }

    /// Closes every listener and idle connection, lets streams go on for `deadline` at most, and ends the workers.
    pub async fn drain(self, deadline: Duration) {
        self.begin_drain(Duration::ZERO, deadline);
        let threads: Vec<_> = self.running.into_iter().map(|worker| worker.thread).collect();
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a worker had panicked");
                }
            }
        });
        drop(joined.await);
    }
}
