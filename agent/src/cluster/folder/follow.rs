//! Waiting for changes: inotify where it works, and a look now and then for what it loses.

use super::{Folder, Refreshed};
use notify::{RecursiveMode, Watcher};
use std::{
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How fast changes are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long the folder must be quiet before it is read: an editor writes in several steps.
    pub quiet: Duration,
    /// How long a change waits at most while others keep coming.
    pub at_most: Duration,
    /// How often the folder is looked at without a sign of change: events can be lost, and a folder moved away and
    /// replaced sends none.
    pub rescan: Duration,
    /// The same, where changes cannot be watched.
    pub without_watch: Duration,
}

impl Default for Pace {
    /// A rule is in force well within a second, also where nothing can be watched.
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(50),
            at_most: Duration::from_millis(300),
            rescan: Duration::from_secs(5),
            without_watch: Duration::from_millis(500),
        }
    }
}

enum Sign {
    Changed,
    Lost,
    Stop,
}

/// A folder that is followed by a thread; ends when dropped.
pub struct Following {
    signs: Sender<Sign>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        // An error says that the thread has ended already.
        let _ = self.signs.send(Sign::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that followed the manifests folder had panicked");
        }
    }
}

/// Follows `folder` on a thread of its own: `changed` is called after each look that brought something, and again when
/// as long has passed as it said.
///
/// # Errors
/// If no thread can be started.
pub fn follow<T: Send + Sync + 'static>(
    mut folder: Folder<T>,
    pace: Pace,
    mut changed: impl FnMut(&Folder<T>, Refreshed) -> Option<Duration> + Send + 'static,
) -> std::io::Result<Following> {
    let (signs, received) = channel();
    let own = signs.clone();
    let thread = std::thread::Builder::new().name("heddle-folder".into()).spawn(move || {
        let mut watch = Watch::default();
        let mut due: Option<Instant> = None;
        loop {
            let lost_before = watch.error.clone();
            watch.renew(folder.path(), &own);
            folder.slow.clone_from(&watch.error);
            let mut done = folder.refresh();
            done.status |= lost_before != watch.error;
            if done.content || done.status || due.is_some_and(|at| at <= Instant::now()) {
                due = changed(&folder, done).map(|after| Instant::now() + after);
            }
            let idle = if done.again {
                pace.quiet
            } else if watch.error.is_some() {
                pace.without_watch
            } else {
                pace.rescan
            };
            let idle = due.map_or(idle, |at| idle.min(at.saturating_duration_since(Instant::now())));
            match wait(&received, &pace, idle) {
                Waited::Look => {}
                Waited::LookAndWatchAnew => watch = Watch::default(),
                Waited::Stop => return,
            }
        }
    })?;
    Ok(Following { signs, thread: Some(thread) })
}

enum Waited {
    Look,
    LookAndWatchAnew,
    Stop,
}

fn wait(signs: &Receiver<Sign>, pace: &Pace, idle: Duration) -> Waited {
    let mut waited = match signs.recv_timeout(idle) {
        Err(RecvTimeoutError::Timeout) => return Waited::Look,
        Ok(Sign::Stop) | Err(RecvTimeoutError::Disconnected) => return Waited::Stop,
        Ok(Sign::Changed) => Waited::Look,
        Ok(Sign::Lost) => Waited::LookAndWatchAnew,
    };
    let end = Instant::now() + pace.at_most;
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(pace.quiet);
        match signs.recv_timeout(left) {
            Ok(Sign::Stop) | Err(RecvTimeoutError::Disconnected) => return Waited::Stop,
            Ok(Sign::Lost) => waited = Waited::LookAndWatchAnew,
            Ok(Sign::Changed) if left.is_zero() => return waited,
            Ok(Sign::Changed) => {}
            Err(RecvTimeoutError::Timeout) => return waited,
        }
    }
}

#[derive(Default)]
struct Watch {
    /// The watcher and the folder's device and inode: another folder under the same name is watched anew.
    watcher: Option<(notify::RecommendedWatcher, (u64, u64))>,
    error: Option<String>,
}

impl Watch {
    fn renew(&mut self, path: &Path, signs: &Sender<Sign>) {
        let id = std::fs::metadata(path).ok().map(|meta| (meta.st_dev(), meta.st_ino()));
        if let (Some((_, watched)), Some(id)) = (&self.watcher, id)
            && *watched == id
        {
            return;
        }
        self.watcher = None;
        let Some(id) = id else {
            self.error = Some("the folder is not there to be watched".into());
            return;
        };
        match start(path.to_owned(), signs.clone()) {
            Ok(watcher) => {
                self.watcher = Some((watcher, id));
                self.error = None;
            }
            Err(error) => {
                self.error = Some(format!(
                    "changes are looked for instead of being told: {error} (sysctl fs.inotify.max_user_watches and \
                     max_user_instances bound what can be watched)"
                ));
            }
        }
    }
}

fn start(path: PathBuf, signs: Sender<Sign>) -> notify::Result<notify::RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        let sign = match event {
            Ok(event) if !is_change(&event.kind) => return,
            Ok(event) if event.need_rescan() => Sign::Lost,
            Ok(_) => Sign::Changed,
            Err(_) => Sign::Lost,
        };
        // An error says that nobody follows the folder any more.
        let _ = signs.send(sign);
    };
    // Links are not followed: one could lead anywhere. What they lead to within the folder is watched by its own path.
    let config = notify::Config::default().with_follow_symlinks(false);
    let mut watcher = notify::RecommendedWatcher::new(tell, config)?;
    // inotify would watch a link in place of the folder that it names.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    watcher.watch(&path, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Whether something changed. That somebody read is told as well: whoever looks at each sign and reads would never come to rest.
pub fn is_change(kind: &notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    !kind.is_access() || matches!(kind, notify::EventKind::Access(AccessKind::Close(AccessMode::Write)))
}
