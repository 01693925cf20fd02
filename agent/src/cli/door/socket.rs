//! The run folder: one agent at a time, sockets that only root reaches.
//!
//! Whoever holds `agent.lock` is the node's agent and alone writes what the kernel programs read. Whoever wants it must
//! hold `successor.lock` first, so that an agent that lets go of the one can only be followed by the holder of the other.

use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use std::{
    fs::{DirBuilder, File, Permissions},
    io::{Read, Seek as _, Write},
    os::{
        linux::fs::MetadataExt,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The socket's name in the run folder.
pub const SOCKET: &str = "agent.sock";
/// The name of the socket at which an agent is succeeded.
pub const SUCCESSION: &str = "successor.sock";
const LOCK: &str = "agent.lock";
const TURN: &str = "successor.lock";
/// Under this name a socket is made. It is longer than either's own: whoever could not be reached cannot be made.
const UNBORN: &str = "unborn-one.sock";

/// Why the run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// Another agent is alive.
    #[error("another agent{} runs on this node: it holds {lock}", pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    Held {
        /// The lock.
        lock: PathBuf,
        /// Its process, if it said so.
        pid: Option<u32>,
    },
    /// Another agent is about to become the node's.
    #[error("another agent{} is about to take this node over: it holds {lock}", pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    Turn {
        /// The lock.
        lock: PathBuf,
        /// Its process, if it said so.
        pid: Option<u32>,
    },
    /// Others may reach what is in it.
    #[error(
        "{path} belongs to uid {owner} with mode {mode:04o}; it must be a folder of uid {wanted} with mode 0700"
    )]
    Insecure {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
        /// Its mode.
        mode: u32,
    },
    /// There is something else where the socket belongs.
    #[error("{path} is there already and is no socket")]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {path}: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

impl RunDirectoryError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Held { pid: Some(pid), .. } => {
                format!(
                    "stop it first (kill {pid}), or give this one another --run-directory, --bpffs and --cgroup"
                )
            }
            Self::Held { .. } => {
                "stop it first, or give this one another --run-directory, --bpffs and --cgroup".into()
            }
            Self::Turn { .. } => "wait until it has, or stop it".into(),
            Self::Insecure { path, wanted, .. } => {
                format!("chown {wanted} {0} && chmod 700 {0}", path.display())
            }
            Self::NoSocket { path } => format!("remove {}", path.display()),
            Self::System { error, .. } if error.kind() == std::io::ErrorKind::InvalidInput => {
                "a socket's path has at most 107 bytes: choose a shorter --run-directory".into()
            }
            Self::System { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "run as root, or choose a --run-directory that the agent's user may write to".into()
            }
            Self::System { .. } => "choose another --run-directory".into(),
        }
    }
}

/// The run folder of the node's agent: it holds the lock, unless a successor is about to.
pub struct RunDirectory {
    path: PathBuf,
    lock: Mutex<Lock>,
}

/// The run folder as somebody finds it who would be the node's agent.
pub enum Approach {
    /// There is no other: it is.
    Alone(RunDirectory),
    /// There is another; its turn is next.
    Next(Candidate),
}

/// Whoever may have the lock next.
pub struct Candidate {
    path: PathBuf,
    lock: File,
    _turn: File,
}

struct Lock {
    file: File,
    held: bool,
}

fn system(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunDirectoryError {
    let path = path.to_owned();
    move |error| RunDirectoryError::System { doing, path, error }
}

fn open(path: &Path) -> Result<File, RunDirectoryError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| system("open", path)(errno.into()))?;
    Ok(File::from(file))
}

/// Takes a lock and writes down who has it. The kernel drops it with the process, however it ends.
fn lock(file: &mut File, path: &Path) -> Result<bool, RunDirectoryError> {
    match flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(errno) => return Err(system("lock", path)(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(system("write to", path))?;
    Ok(true)
}

/// Who has a lock, if it said so.
fn holder(file: &mut File) -> Option<u32> {
    let mut pid = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut pid)).ok()?;
    pid.trim().parse().ok()
}

impl Candidate {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn try_take(&mut self) -> Result<Option<RunDirectory>, RunDirectoryError> {
        let path = self.path.join(LOCK);
        if !lock(&mut self.lock, &path)? {
            return Ok(None);
        }
        let file = self.lock.try_clone().map_err(system("open", &path))?;
        Ok(Some(RunDirectory { path: self.path.clone(), lock: Mutex::new(Lock { file, held: true }) }))
    }

    /// Why it cannot have it.
    pub fn held(&mut self) -> RunDirectoryError {
        let pid = holder(&mut self.lock);
        RunDirectoryError::Held { lock: self.path.join(LOCK), pid }
    }
}

impl RunDirectory {
    /// Makes the folder if it is missing, checks it, and takes its lock if nobody holds it.
    ///
    /// # Errors
    /// If others may reach it, somebody else's turn is next, or the system refuses.
    pub fn approach(path: &Path) -> Result<Approach, RunDirectoryError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(system("make", path))?;
        let meta = std::fs::symlink_metadata(path).map_err(system("examine", path))?;
        let wanted = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.st_uid() != wanted || meta.st_mode() & 0o077 != 0 {
            let (path, owner, mode) = (path.to_owned(), meta.st_uid(), meta.st_mode() & 0o7777);
            return Err(RunDirectoryError::Insecure { path, owner, wanted, mode });
        }
        let turn_path = path.join(TURN);
        let mut turn = open(&turn_path)?;
        if !lock(&mut turn, &turn_path)? {
            let pid = holder(&mut turn);
            return Err(RunDirectoryError::Turn { lock: turn_path, pid });
        }
        let lock = open(&path.join(LOCK))?;
        let mut candidate = Candidate { path: path.to_owned(), lock, _turn: turn };
        Ok(match candidate.try_take()? {
            Some(directory) => Approach::Alone(directory),
            None => Approach::Next(candidate),
        })
    }

    /// The same for whoever is nobody's successor.
    ///
    /// # Errors
    /// If another agent is alive, or as [`Self::approach`].
    pub fn take(path: &Path) -> Result<Self, RunDirectoryError> {
        match Self::approach(path)? {
            Approach::Alone(directory) => Ok(directory),
            Approach::Next(mut candidate) => Err(candidate.held()),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets go of the lock, for the successor.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn release(&self) -> Result<(), RunDirectoryError> {
        let mut lock = self.lock();
        flock(&lock.file, FlockOperation::Unlock)
            .map_err(|errno| system("unlock", &self.path.join(LOCK))(errno.into()))?;
        lock.held = false;
        Ok(())
    }

    /// Takes the lock again, unless somebody has it now.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn retake(&self) -> Result<bool, RunDirectoryError> {
        let held = &mut *self.lock();
        held.held = lock(&mut held.file, &self.path.join(LOCK))?;
        Ok(held.held)
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens on a socket of this name. It takes the place of another agent's at once, alive or dead; whoever waits there
    /// is not turned away.
    ///
    /// # Errors
    /// If something else is in the socket's place or the system refuses.
    pub fn listen(&self, name: &str) -> Result<UnixListener, RunDirectoryError> {
        let (path, unborn) = (self.path.join(name), self.path.join(UNBORN));
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.file_type().is_socket() => {}
            Ok(_) => return Err(RunDirectoryError::NoSocket { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("examine", &path)(error)),
        }
        match std::fs::remove_file(&unborn) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(system("remove", &unborn)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&unborn).map_err(system("listen on", &path))?;
        // Nobody else can reach it in between: the folder's mode is 0700.
        std::fs::set_permissions(&unborn, Permissions::from_mode(0o600))
            .map_err(system("set the mode of", &path))?;
        listener.set_nonblocking(true).map_err(system("listen on", &path))?;
        std::fs::rename(&unborn, &path).map_err(system("listen on", &path))?;
        Ok(listener)
    }

    /// Takes the sockets away, so that clients learn at once that nobody is there. A successor's stay.
    pub fn close(&self) {
        if !self.lock().held {
            return;
        }
        for name in [SOCKET, SUCCESSION] {
            if let Err(error) = std::fs::remove_file(self.path.join(name)) {
                tracing::debug!(name, %error, "the socket was gone already");
            }
        }
    }
}
