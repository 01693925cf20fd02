//! The authority's folder: one file with the root key and its certificate, readable by its owner alone.
//!
//! One file, so that key and certificate appear together or not at all: it is written beside its place and then
//! linked there, which fails where another agent was first. Every check is made on the opened file itself.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use rcgen::{Certificate, KeyPair};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::AuthorityError;

const FILE: &str = "authority.pem";
/// The file has about 1 KiB.
const MAX_FILE: u64 = 64 * 1024;

pub(super) struct Folder {
    path: PathBuf,
    folder: File,
}

impl Folder {
    /// Opens the folder, made with mode 0700 if it is not there. Its parent must exist.
    pub(super) fn open(path: &Path) -> Result<Self, AuthorityError> {
        let shown = path.display().to_string();
        match rustix::fs::mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io(&shown, "make the folder", error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder: File = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(opened) => opened.into(),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(not_safe(
                    &shown,
                    "it is not a folder, or a symbolic link",
                    "name the folder itself",
                ));
            }
            Err(error) => return Err(io(&shown, "open the folder", error)),
        };
        let stat = rustix::fs::fstat(&folder).map_err(|error| io(&shown, "inspect the folder", error))?;
        private(&stat, &shown, "0700")?;
        Ok(Self { path: path.to_owned(), folder })
    }

    pub(super) fn file_path(&self) -> String {
        self.path.join(FILE).display().to_string()
    }

    /// The file's content; `None`: there is no authority yet.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, AuthorityError> {
        let shown = self.file_path();
        // NONBLOCK: a FIFO in its place must not stop the agent.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file: File = match rustix::fs::openat(&self.folder, FILE, flags, Mode::empty()) {
            Ok(opened) => opened.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(not_safe(&shown, "it is a symbolic link", "put the file itself there"));
            }
            Err(error) => return Err(io(&shown, "open", error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| io(&shown, "inspect", error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_safe(&shown, "it is not a regular file", "remove it"));
        }
        private(&stat, &shown, "0600")?;
        // Room for all of it at once: growing would leave copies of the key behind.
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE).read_to_end(&mut content).map_err(|source| AuthorityError::Io {
            path: shown,
            action: "read",
            source,
        })?;
        Ok(Some(content))
    }

    /// Puts a new authority there unless another was first; gives what is there in the end.
    pub(super) fn write_once(
        &self,
        key: &KeyPair,
        root: &Certificate,
    ) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
        let shown = self.file_path();
        let content = encode(key, root);
        let draft = Draft { folder: &self.folder, name: draft_name()? };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File =
            rustix::fs::openat(&self.folder, draft.name.as_str(), flags, Mode::RUSR | Mode::WUSR)
                .map_err(|error| io(&shown, "write a draft beside", error))?
                .into();
        file.write_all(&content).and_then(|()| file.sync_all()).map_err(|source| AuthorityError::Io {
            path: self.file_path(),
            action: "write a draft beside",
            source,
        })?;
        match rustix::fs::linkat(&self.folder, draft.name.as_str(), &self.folder, FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io(&shown, "put the new root in place", error)),
        }
        drop(draft);
        rustix::fs::fsync(&self.folder).map_err(|error| io(&shown, "sync the folder of", error))?;
        self.read()?.ok_or_else(|| AuthorityError::Content {
            path: self.file_path(),
            problem: "it vanished while it was made".to_owned(),
        })
    }
}

/// A file on its way; removed however it ends.
struct Draft<'a> {
    folder: &'a File,
    name: String,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(self.folder, self.name.as_str(), AtFlags::empty())
            && error != Errno::NOENT
        {
            tracing::warn!(file = %self.name, %error, "a draft of the authority's file could not be removed");
        }
    }
}

fn draft_name() -> Result<String, AuthorityError> {
    let mut bytes = [0; 8];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Crypto("no randomness".to_owned()))?;
    Ok(format!(".{FILE}.{:016x}", u64::from_ne_bytes(bytes)))
}

fn encode(key: &KeyPair, root: &Certificate) -> Zeroizing<Vec<u8>> {
    let key = Zeroizing::new(key.serialize_pem());
    let root = root.pem();
    let mut content = Zeroizing::new(Vec::with_capacity(key.len() + root.len()));
    content.extend_from_slice(key.as_bytes());
    content.extend_from_slice(root.as_bytes());
    content
}

/// Reads the key and the root certificate out of the file.
pub(super) fn decode(
    content: &[u8],
    path: &str,
) -> Result<(KeyPair, CertificateDer<'static>), AuthorityError> {
    let wrong = |problem: String| AuthorityError::Content { path: path.to_owned(), problem };
    let key = PrivateKeyDer::from_pem_slice(content)
        .map_err(|error| wrong(format!("it holds no private key: {error}")))?;
    let key = KeyPair::try_from(&key).map_err(|error| wrong(format!("its key cannot be used: {error}")))?;
    let mut roots = CertificateDer::pem_slice_iter(content);
    match (roots.next(), roots.next()) {
        (Some(Ok(root)), None) => Ok((key, root)),
        (Some(Err(error)), _) => Err(wrong(format!("its certificate cannot be read: {error}"))),
        _ => Err(wrong("it must hold exactly one certificate".to_owned())),
    }
}

fn private(stat: &Stat, path: &str, mode: &str) -> Result<(), AuthorityError> {
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me {
        let problem = format!("it belongs to user {} and not to user {me}, as which this runs", stat.st_uid);
        return Err(not_safe(path, &problem, &format!("chown {me} {path}")));
    }
    if stat.st_mode & 0o077 != 0 {
        let problem = format!("others may use it (mode {:04o})", stat.st_mode & 0o7777);
        return Err(not_safe(path, &problem, &format!("chmod {mode} {path}")));
    }
    Ok(())
}

fn not_safe(path: &str, problem: &str, remedy: &str) -> AuthorityError {
    AuthorityError::Unsafe { path: path.to_owned(), problem: problem.to_owned(), remedy: remedy.to_owned() }
}

fn io(path: &str, action: &'static str, error: Errno) -> AuthorityError {
    AuthorityError::Io { path: path.to_owned(), action, source: error.into() }
}
