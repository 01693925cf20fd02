//! The run folder: one agent at a time, one socket that only root reaches.

use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use std::{
    fs::{DirBuilder, File, Permissions},
    io::{Read, Write},
    os::{
        linux::fs::MetadataExt,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

/// The socket's name in the run folder.
pub const SOCKET: &str = "agent.sock";
const LOCK: &str = "agent.lock";

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

/// The run folder, held by a lock for as long as this lives.
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Makes the folder if it is missing, checks it and takes its lock. The kernel drops the lock with the process,
    /// however it ends.
    ///
    /// # Errors
    /// If another agent holds it, others may reach it, or the system refuses.
    pub fn take(path: &Path) -> Result<Self, RunDirectoryError> {
        let system = |doing, path: &Path| {
            let path = path.to_owned();
            move |error| RunDirectoryError::System { doing, path, error }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(system("make", path))?;
        let meta = std::fs::symlink_metadata(path).map_err(system("examine", path))?;
        let wanted = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.st_uid() != wanted || meta.st_mode() & 0o077 != 0 {
            let (path, owner, mode) = (path.to_owned(), meta.st_uid(), meta.st_mode() & 0o7777);
            return Err(RunDirectoryError::Insecure { path, owner, wanted, mode });
        }
        let lock_path = path.join(LOCK);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(CWD, &lock_path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| system("open", &lock_path)(errno.into()))?;
        let mut lock = File::from(lock);
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let pid = lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
                return Err(RunDirectoryError::Held { lock: lock_path, pid });
            }
            Err(errno) => return Err(system("lock", &lock_path)(errno.into())),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(system("write to", &lock_path))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens on the socket. A dead agent's socket is replaced: whoever holds the lock is the only one alive.
    ///
    /// # Errors
    /// If something else is in the socket's place or the system refuses.
    pub fn listen(&self) -> Result<UnixListener, RunDirectoryError> {
        let path = self.path.join(SOCKET);
        let system = |doing| {
            let path = path.clone();
            move |error| RunDirectoryError::System { doing, path, error }
        };
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.file_type().is_socket() => {
                std::fs::remove_file(&path).map_err(system("remove"))?
            }
            Ok(_) => return Err(RunDirectoryError::NoSocket { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("examine")(error)),
        }
        let listener = UnixListener::bind(&path).map_err(system("listen on"))?;
        // Nobody else can reach it in between: the folder's mode is 0700.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(system("set the mode of"))?;
        listener.set_nonblocking(true).map_err(system("listen on"))?;
        Ok(listener)
    }

    /// Takes the socket away, so that clients learn at once that nobody is there.
    pub fn close(&self) {
        if let Err(error) = std::fs::remove_file(self.path.join(SOCKET)) {
            tracing::debug!(%error, "the socket was gone already");
        }
    }
}
