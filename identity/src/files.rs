//! Files that decide what is trusted, or hold what must stay secret: read with every check made on what was opened.
//!
//! Secrets and ConfigMaps are mounted as links to files of root's. So links are followed, and what is demanded is that
//! nobody but root and this user can have written the file, and where it is secret, that only the file's group may read it.

use std::{fs::File, io::Read, path::Path};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use zeroize::Zeroizing;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Anybody: it decides what is trusted, but is no secret.
    Anybody,
    /// Its owner and its group.
    Group,
}

/// A file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}; {remedy}")]
pub struct FileError {
    /// Which.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl FileError {
    pub(crate) fn new(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.display().to_string(), problem: problem.into(), remedy: remedy.into() }
    }
}

/// Reads a file of at most `most` bytes; what was read is wiped when it goes.
///
/// # Errors
/// A file that is missing, too large or no file, or one that others may have written, or read where they must not.
pub fn read(path: &Path, readers: Readers, most: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let wrong = |problem: String, remedy: &str| FileError::new(path, problem, remedy);
    // NONBLOCK: a FIFO in its place must not stop the process.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| wrong(format!("cannot be opened: {error}"), "name a file that this user can read"))?
        .into();
    let stat = rustix::fs::fstat(&file)
        .map_err(|error| wrong(format!("cannot be inspected: {error}"), "name another"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong("it is not a regular file".to_owned(), "name the file itself"));
    }
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != me {
        let problem = format!(
            "it belongs to user {}, neither to root nor to user {me}, as which this runs",
            stat.st_uid
        );
        return Err(wrong(problem, &format!("chown {me} it")));
    }
    let (forbidden, remedy) = match readers {
        Readers::Anybody => (0o022, "chmod go-w it"),
        Readers::Group => (0o037, "chmod 0400 it, or where a Secret is mounted set `defaultMode: 0440`"),
    };
    if stat.st_mode & forbidden != 0 {
        return Err(wrong(format!("others may use it (mode {:04o})", stat.st_mode & 0o7777), remedy));
    }
    // Room for all of it at once: growing would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(format!("cannot be read: {error}"), "name another"))?;
    if bytes.len() > most {
        return Err(wrong(format!("it is larger than {most} bytes"), "name the right file"));
    }
    Ok(bytes)
}
