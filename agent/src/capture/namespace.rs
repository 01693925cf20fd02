//! Network namespaces: opened by path, told apart by the kernel's cookie, entered by one thread at a time.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{error::CaptureError, syscalls};

/// `NSFS_MAGIC`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace, held open.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    path: PathBuf,
    cookie: u64,
    inode: (u64, u64),
}

impl Namespace {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When the path is no network namespace, or cannot be entered.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let fail = |what| CaptureError::path(what, path);
        // Not blocked by a FIFO, not led elsewhere by a terminal.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail("opening")(e.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| fail("looking at")(e.into()))?;
        let magic = rustix::fs::fstatfs(&file).map_err(|e| fail("looking at")(e.into()))?.f_type;
        if magic != NSFS_MAGIC || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(fail("not a namespace:")(io::ErrorKind::InvalidInput.into()));
        }
        let (cookie, held) = within(file.as_fd(), || -> io::Result<_> {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
            // Not the path's own file: as long as that is open, whoever mounted the namespace there cannot unmount it.
            Ok((syscalls::netns_cookie(&socket)?, File::open("/proc/thread-self/ns/net")?))
        })
        .map_err(fail("entering"))?
        .map_err(fail("reading the cookie of"))?;
        Ok(Self { file: Arc::new(held), path: path.to_owned(), cookie, inode: (stat.st_dev, stat.st_ino) })
    }

    /// The calling process's own namespace.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn own() -> Result<Self, CaptureError> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// The kernel's number for it, which is never used twice.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this namespace, as far as can be told.
    pub fn still_there(&self) -> bool {
        match rustix::fs::stat(&self.path) {
            Ok(stat) => (stat.st_dev, stat.st_ino) == self.inode,
            // Whatever else fails says nothing of the pod, and one that is let go is not guarded.
            Err(error) => !matches!(error, Errno::NOENT | Errno::NOTDIR),
        }
    }

    /// Whether the process whose `/proc/<pid>` is `process` is in it. No other namespace has its number as long as this
    /// holds it open.
    pub fn holds(&self, process: &Path) -> bool {
        rustix::fs::stat(process.join("ns/net")).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.inode)
    }

    /// Whether both are one.
    pub fn is(&self, other: &Self) -> bool {
        self.inode == other.inode
    }

    /// Runs `job` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// When it cannot be entered or no thread can be made.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> io::Result<T> {
        within(self.file.as_fd(), job)
    }

    /// Runs the short, synchronous `job` inside the namespace on this very thread, then goes back to `home`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn briefly<T>(&self, home: &Self, job: impl FnOnce() -> T) -> io::Result<T> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let result = job();
        if move_into_link_name_space(home.file.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
            // A worker that stayed in a pod's namespace would open every later socket there.
            tracing::error!("cannot leave a pod's network namespace: ending the agent, enforcement stands");
            std::process::abort();
        }
        Ok(result)
    }
}

/// Runs `job` on a thread of its own inside a network namespace that is made for it and goes with it.
///
/// # Errors
/// When none can be made.
pub(super) fn within_a_new_one<T: Send>(job: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_its_own_thread(|| {
        syscalls::unshare_network()?;
        Ok(job())
    })
}

fn within<T: Send>(namespace: BorrowedFd<'_>, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_its_own_thread(|| {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        Ok(job())
    })
}

fn on_its_own_thread<T: Send>(job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("heddle-netns".into()).spawn_scoped(scope, job)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace died")))
    })
}
