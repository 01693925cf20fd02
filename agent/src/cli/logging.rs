//! The log, on standard error.

use super::config::{Log, LogFormat};
use std::io::{IsTerminal, Write};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How many lines may wait to be written; more are lost.
const LINES: usize = 4096;

/// Keeps the log going; what is still to be written is written when it goes.
#[must_use = "the log ends with it"]
pub(super) struct Logging(#[allow(dead_code, reason = "kept for its end")] WorkerGuard);

/// Starts logging. The filter was checked with the configuration; one that is wrong all the same logs everything from
/// `info` on.
pub(super) fn start(log: &Log) -> Logging {
    let filter: Targets =
        log.filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let (writer, guard) = aside(std::io::stderr());
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let started = match log.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
    };
    if let Err(error) = started {
        eprintln!("the log was started before: {error}");
    }
    Logging(guard)
}

/// A thread of its own writes: whoever reads the log, or the disk under it, may stand still without the mesh doing so.
fn aside(to: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().thread_name("heddle-log").buffered_lines_limit(LINES).finish(to)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use super::*;

    /// Stands still until it is let go, then counts what it is given.
    struct Stuck {
        let_go: mpsc::Receiver<()>,
        lines: mpsc::Sender<usize>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.let_go.recv();
            let _ = self.lines.send(line.len());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_stands_still() {
        let ((go, let_go), (lines, written)) = (mpsc::channel(), mpsc::channel());
        let (writer, guard) = aside(Stuck { let_go, lines });
        let log = tracing_subscriber::fmt().with_writer(writer.clone()).finish();
        let more = 10;
        tracing::subscriber::with_default(log, || {
            for _ in 0..LINES + more {
                tracing::info!("a line");
            }
        });
        let lost = writer.error_counter().dropped_lines();
        assert!((1..=more).contains(&lost), "{lost}");
        drop(go);
        drop(guard);
        // Where the guard's word finds no room in time, the thread ends with the last who could write.
        drop(writer);
        assert_eq!(written.iter().count(), LINES + more - lost);
    }
}
