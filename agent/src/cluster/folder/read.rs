//! Opening and reading what the agent's user alone may have written.

use super::{Fault, Limits};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FileType, Mode, OFlags, Stat},
};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

/// Linux itself gives up after 40; Kubernetes' own layout needs two.
const LINKS: usize = 16;
/// How often a file that changes under the reader is read again.
const READS: u32 = 3;
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Fingerprint {
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }

    /// Whether a later change could bear the same times: the kernel's clock for files ticks every 1 to 10 ms.
    pub(super) fn may_hide_a_change(&self, now: (i64, u64)) -> bool {
        let nanos = |(s, n): (i64, u64)| i128::from(s) * 1_000_000_000 + i128::from(n);
        nanos(now) - nanos(self.changed) < 100_000_000
    }
}

/// Checks that `stat`'s owner is `uid` and that nobody else may write. `None`: anybody may.
pub(super) fn trusted(stat: &Stat, uid: Option<u32>) -> Result<(), Fault> {
    let Some(uid) = uid else { return Ok(()) };
    if stat.st_uid != uid {
        return Err(Fault::Owner { owner: stat.st_uid, wanted: uid });
    }
    // A link's own mode is always 0777 and means nothing.
    if !FileType::from_raw_mode(stat.st_mode).is_symlink() && stat.st_mode & OTHERS_WRITE != 0 {
        return Err(Fault::Writable { mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

/// The folder, open.
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) uid: Option<u32>,
}

impl Root {
    /// Opens `path` if nobody but root and `uid` can change what it names, and nobody but `uid` can write to it.
    pub(super) fn open(path: &Path, uid: Option<u32>) -> Result<Self, Fault> {
        let doing = "find";
        let absolute = std::path::absolute(path).map_err(io(doing))?;
        trusted_path(&absolute, uid)?;
        let canonical = std::fs::canonicalize(&absolute).map_err(io(doing))?;
        trusted_path(&canonical, uid)?;
        let flags =
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(&canonical, flags, Mode::empty()).map_err(Fault::system("open"))?;
        trusted(&rustix::fs::fstat(&fd).map_err(Fault::system("examine"))?, uid)?;
        Ok(Self { fd, uid })
    }
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Fault {
    move |error| {
        let error = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
        Fault::System { doing, error }
    }
}

/// Whether nobody but root and `uid` can put another folder at `path`: sshd's rule for its files. In a folder with the
/// sticky bit (`/tmp`) others may write, but they cannot rename what is not theirs.
fn trusted_path(path: &Path, uid: Option<u32>) -> Result<(), Fault> {
    let Some(uid) = uid else { return Ok(()) };
    let mut above = PathBuf::new();
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        above.push(component);
        let stat = rustix::fs::lstat(&above).map_err(Fault::system("find"))?;
        let link = FileType::from_raw_mode(stat.st_mode).is_symlink();
        if components.peek().is_none() && component != Component::RootDir && !link {
            break; // The folder itself: judged when it is open.
        }
        let folder = above.display().to_string();
        if stat.st_uid != 0 && stat.st_uid != uid {
            return Err(Fault::PathOwner { folder, owner: stat.st_uid });
        }
        if !link && stat.st_mode & OTHERS_WRITE != 0 && stat.st_mode & STICKY == 0 {
            return Err(Fault::PathWritable { folder, mode: stat.st_mode & 0o7777 });
        }
    }
    Ok(())
}

/// Something in the folder, found with every link on the way checked.
pub(super) struct Entry {
    parent: OwnedFd,
    name: OsString,
    pub(super) stat: Stat,
}

impl Entry {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Opens the entry as a folder to be listed.
    pub(super) fn open_folder(&self, uid: Option<u32>) -> Result<OwnedFd, Fault> {
        self.open(OFlags::DIRECTORY, uid)
    }

    /// O_NONBLOCK, so that even a pipe that took the file's place since would not be waited for.
    fn open(&self, more: OFlags, uid: Option<u32>) -> Result<OwnedFd, Fault> {
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC | more;
        let fd = rustix::fs::openat(&self.parent, self.name.as_os_str(), flags, Mode::empty())
            .map_err(Fault::system("open"))?;
        trusted(&rustix::fs::fstat(&fd).map_err(Fault::system("examine"))?, uid)?;
        Ok(fd)
    }

    /// Reads the file whole, if it stays as it is while it is read.
    pub(super) fn read(&self, root: &Root, limits: &Limits) -> Result<(String, Fingerprint), Fault> {
        for _ in 0..READS {
            let fd = self.open(OFlags::empty(), root.uid)?;
            let before = rustix::fs::fstat(&fd).map_err(Fault::system("examine"))?;
            regular(FileType::from_raw_mode(before.st_mode))?;
            within(&before, limits)?;
            let mut bytes = Vec::with_capacity(usize::try_from(before.st_size).unwrap_or(0));
            let file = std::fs::File::from(fd);
            // One byte more than is allowed shows that the file grew.
            (&file).take(limits.file_bytes + 1).read_to_end(&mut bytes).map_err(io("read"))?;
            let after = rustix::fs::fstat(&file).map_err(Fault::system("examine"))?;
            let unchanged = Fingerprint::of(&before) == Fingerprint::of(&after);
            if unchanged && bytes.len() as u64 == u64::try_from(before.st_size).unwrap_or(0) {
                let text = String::from_utf8(bytes)
                    .map_err(|error| Fault::Encoding { at: error.utf8_error().valid_up_to() })?;
                return Ok((text, Fingerprint::of(&after)));
            }
        }
        Err(Fault::Unsettled { times: READS })
    }
}

/// Refuses what is no regular file: reading a pipe, a device or a socket may block or act.
pub(super) fn regular(kind: FileType) -> Result<(), Fault> {
    let kind = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Directory => "folder",
        FileType::Symlink => "symbolic link",
        _ => "file of an unknown kind",
    };
    Err(Fault::Kind { kind })
}

/// Refuses a file that is too long.
pub(super) fn within(stat: &Stat, limits: &Limits) -> Result<(), Fault> {
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limits.file_bytes {
        return Err(Fault::TooLarge { size, limit: limits.file_bytes });
    }
    Ok(())
}

/// Finds `path` in the folder, one step at a time: every folder and every link on the way must be the agent's user's
/// own, and no link may lead out. (Kubernetes mounts a ConfigMap as links by way of `..data`.)
pub(super) fn resolve(root: &Root, path: &Path) -> Result<Entry, Fault> {
    let mut folders = vec![duplicate(&root.fd)?];
    let mut steps: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
    let mut links = 0;
    let outside = |target: &OsStr| Fault::LinkOutside { target: target.to_string_lossy().into_owned() };
    while let Some(step) = steps.pop_front() {
        if step == "." || step.is_empty() {
            continue;
        }
        if step == ".." {
            folders.pop();
            if folders.is_empty() {
                return Err(outside(path.as_os_str()));
            }
            continue;
        }
        let Some(parent) = folders.last() else { return Err(outside(path.as_os_str())) };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, step.as_os_str(), flags, Mode::empty())
            .map_err(Fault::system("find"))?;
        let stat = rustix::fs::fstat(&fd).map_err(Fault::system("examine"))?;
        trusted(&stat, root.uid)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > LINKS {
                    return Err(Fault::LinkLoop { limit: LINKS });
                }
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(Fault::system("follow"))?;
                let target = OsStr::from_bytes(target.as_bytes()).to_owned();
                if Path::new(&target).is_absolute() {
                    return Err(outside(&target));
                }
                for step in Path::new(&target).iter().rev() {
                    steps.push_front(step.to_owned());
                }
            }
            FileType::Directory if steps.is_empty() => {
                return Ok(Entry { parent: duplicate(parent)?, name: step, stat });
            }
            FileType::Directory => folders.push(fd),
            _ if steps.is_empty() => return Ok(Entry { parent: duplicate(parent)?, name: step, stat }),
            _ => return Err(Fault::System { doing: "find", error: rustix::io::Errno::NOTDIR }),
        }
    }
    // The path, or a link at its end, named a folder above (`..`) or the folder itself.
    let folder = folders.pop().ok_or(Fault::LinkLoop { limit: LINKS })?;
    let stat = rustix::fs::fstat(&folder).map_err(Fault::system("examine"))?;
    Ok(Entry { parent: folder, name: ".".into(), stat })
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Fault> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(Fault::system("open"))
}
