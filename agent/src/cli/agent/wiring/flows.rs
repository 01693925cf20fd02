//! Flows are taken from the kernel and from the book each second, and go to the file and to whoever follows them.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::broadcast;

use super::recorder::Told;
use crate::{
    capture::DirectCounts,
    observe::flows::{FlowBook, FlowFile, record::FlowLine},
};

/// How long connections that are alike are gathered into one record.
const INTERVAL: Duration = Duration::from_secs(1);
/// A file that cannot be opened is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Where records go.
struct Output {
    path: PathBuf,
    most_bytes: u64,
    file: Option<FlowFile>,
    tried: Option<Instant>,
    /// Records that came while there was no file.
    unwritten: u64,
}

pub(super) struct FlowKeeper {
    book: Arc<FlowBook>,
    told: Arc<Told>,
    /// None: another agent tells what the kernel counts.
    counts: Mutex<Option<DirectCounts>>,
    output: Option<Mutex<Output>>,
    lines: broadcast::Sender<Arc<str>>,
    failing: AtomicBool,
    /// Whether the file is another agent's.
    ceased: AtomicBool,
}

impl FlowKeeper {
    pub fn new(told: Arc<Told>, file: Option<(PathBuf, u64)>, lines: broadcast::Sender<Arc<str>>) -> Self {
        let output = file.map(|(path, most_bytes)| {
            Mutex::new(Output { path, most_bytes, file: None, tried: None, unwritten: 0 })
        });
        let book = Arc::clone(told.flows());
        Self {
            book,
            told,
            counts: Mutex::default(),
            output,
            lines,
            failing: AtomicBool::default(),
            ceased: AtomicBool::default(),
        }
    }

    /// Tells what the kernel counts from now on, or leaves that to another agent.
    pub fn count(&self, counts: Option<DirectCounts>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Writes what was seen until now, and from now on nothing more into the file: another agent does.
    pub fn cease(&self) {
        self.write();
        self.ceased.store(true, Ordering::Release);
    }

    /// Each record from now on, as a line.
    pub fn follow(&self) -> broadcast::Receiver<Arc<str>> {
        self.lines.subscribe()
    }

    /// Takes and writes again and again.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let keeper = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || keeper.write()).await {
                tracing::error!(%error, "writing flows failed within the agent");
            }
        }
    }

    /// Takes what was seen and writes it. Blocks for as long as the disk does.
    pub fn write(&self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, lost) = counts.as_mut().map(|counts| counts.take(Instant::now())).unwrap_or_default();
        drop(counts);
        for one in &seen {
            self.told.direct(one);
        }
        if lost > 0 {
            self.book.lost(lost);
        }
        let lines = self.book.take(SystemTime::now());
        for line in &lines {
            // Nobody listening is no error.
            drop(self.lines.send(line.to_json().into()));
        }
        let Some(output) = self.output.as_ref().filter(|_| !self.ceased.load(Ordering::Acquire)) else {
            return;
        };
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let result = output.write(&lines, &self.book);
        if let Err(error) = &result
            && !self.failing.swap(true, Ordering::Relaxed)
        {
            tracing::error!(file = %output.path.display(), %error, "flows cannot be written: they are counted until they can");
        }
        if result.is_ok() && self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(file = %output.path.display(), "flows are written again");
        }
    }
}

impl Output {
    fn write(&mut self, lines: &[FlowLine], book: &FlowBook) -> std::io::Result<()> {
        let missing = |count, why: &str| book.left_out(count, why, SystemTime::now());
        if let Some(file) = &mut self.file {
            return file.write(lines, missing);
        }
        if self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            self.unwritten += lines.len() as u64;
            return Err(std::io::Error::other("the file is not open"));
        }
        self.tried = Some(Instant::now());
        let file = FlowFile::open(&self.path, self.most_bytes).inspect_err(|_| {
            self.unwritten += lines.len() as u64;
        })?;
        let file = self.file.insert(file);
        if self.unwritten > 0 {
            let line = missing(std::mem::take(&mut self.unwritten), "there was no file to write them to");
            file.write(&[FlowLine::LeftOut(line)], missing)?;
        }
        file.write(lines, missing)
    }
}
