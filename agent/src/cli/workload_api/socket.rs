//! The socket that pods mount: everybody may connect, nobody but the agent may put another in its place.

use std::{
    fs::{DirBuilder, Permissions},
    os::{
        linux::fs::MetadataExt,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use miette::miette;

use crate::cli::Failure;

/// The socket's name in its folder.
pub const SOCKET: &str = "workload-api.sock";

/// A socket that listens beside its place.
#[derive(Debug)]
pub struct Beside {
    listener: UnixListener,
    fresh: PathBuf,
    socket: PathBuf,
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone where it was put in its place.
        let _ = std::fs::remove_file(&self.fresh);
    }
}

impl Beside {
    /// Puts it in its place: an earlier agent's is replaced at once, and nobody finds none.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn put_in_place(self) -> Result<UnixListener, Failure> {
        std::fs::rename(&self.fresh, &self.socket)
            .and_then(|()| self.listener.try_clone())
            .map_err(|error| miette!("cannot listen on {}: {error}", self.socket.display()))
    }
}

/// Listens in `folder`, which is made if it is missing, beside the socket's place.
///
/// # Errors
/// A folder that somebody else may write to, something that is no socket in its place, or the system refuses.
pub fn listen(folder: &Path) -> Result<Beside, Failure> {
    let failed = |doing: &str, error: std::io::Error| {
        miette!(
            help = "see `workloadApi` in the configuration",
            "cannot {doing} {}: {error}",
            folder.display()
        )
    };
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(|error| failed("make", error))?;
    let meta = std::fs::symlink_metadata(folder).map_err(|error| failed("examine", error))?;
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.st_uid() != own || meta.st_mode() & 0o022 != 0 {
        return Err(miette!(
            help = format!("chown {own} {0} && chmod 755 {0}", folder.display()),
            "{} must be a folder of uid {own} that nobody else may write to: whoever could would answer in the agent's place",
            folder.display()
        ));
    }
    // A umask may have taken the others' right to enter.
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))
        .map_err(|error| failed("set the mode of", error))?;
    let (socket, fresh) = (folder.join(SOCKET), folder.join(format!("{SOCKET}.{}", std::process::id())));
    for path in [&socket, &fresh] {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => {}
            Ok(_) => {
                return Err(miette!(
                    help = "remove it",
                    "{} is there already and is no socket",
                    path.display()
                ));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("examine", error)),
        }
    }
    // Of a process with this id that was killed in between.
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(|error| failed("listen in", error))?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o666))
        .and_then(|()| listener.set_nonblocking(true))
        .map_err(|error| failed("listen in", error))?;
    Ok(Beside { listener, fresh, socket })
}

/// Takes the socket out of `folder`: its agent ends, and no other has taken its place. What is no socket stays.
///
/// # Errors
/// If the system refuses.
pub fn withdraw(folder: &Path) -> std::io::Result<()> {
    let socket = folder.join(SOCKET);
    match std::fs::symlink_metadata(&socket) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(&socket),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_may_connect_and_nobody_else_may_listen_there() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("workloads");
        let _first = listen(&folder).unwrap().put_in_place().unwrap();
        let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&folder), mode(&folder.join(SOCKET))), (0o755, 0o666));
        // The successor takes its place, and nothing else is left there.
        let second = listen(&folder).unwrap();
        assert_eq!(
            std::fs::read_dir(&folder).unwrap().count(),
            2,
            "beside the first until it is put in its place"
        );
        let second = second.put_in_place().unwrap();
        second.set_nonblocking(false).unwrap();
        let _called = std::os::unix::net::UnixStream::connect(folder.join(SOCKET)).unwrap();
        second.accept().unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        withdraw(&folder).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        withdraw(&folder).unwrap();

        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        let error = listen(&folder).unwrap_err().to_string();
        assert!(error.contains("nobody else may write"), "{error}");
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.join(SOCKET), "").unwrap();
        withdraw(&folder).unwrap();
        let error = listen(&folder).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
    }
}
