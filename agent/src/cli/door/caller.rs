//! Who is at the door.
//!
//! A pod that got hold of the socket (mounted, or passed on) must not attach anything, whatever its uid says: uid 0 in
//! a container without a user namespace of its own *is* uid 0. So the caller's pid and user namespaces are compared
//! with the agent's, while its process is pinned ([`Peer`]).

use crate::cli::peer::Peer;
use rustix::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

/// A caller that may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// Why a caller may not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither root nor the agent's user.
    #[error("uid {0} is neither root nor the agent's user")]
    User(u32),
    /// The process is in another pid namespace: in a container.
    #[error("process {0} is in another pid namespace than the agent")]
    PidNamespace(u32),
    /// The process is in another user namespace.
    #[error("process {0} is in another user namespace than the agent")]
    UserNamespace(u32),
    /// The process is gone, or cannot be seen from here.
    #[error("the calling process is gone or cannot be seen from the agent's pid namespace")]
    Gone,
    /// Its namespaces cannot be read.
    #[error("the namespaces of process {0} cannot be read")]
    Unreadable(u32),
}

impl Refusal {
    /// As counters name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::PidNamespace(_) => "pid_namespace",
            Self::UserNamespace(_) => "user_namespace",
            Self::Gone => "gone",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// The agent's own namespaces and user: what a caller must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    uid: u32,
    pid: Namespace,
    user: Namespace,
}

/// A namespace's device and inode.
type Namespace = (u64, u64);

fn namespace(process: &str, kind: &str) -> std::io::Result<Namespace> {
    std::fs::metadata(format!("/proc/{process}/ns/{kind}")).map(|meta| (meta.st_dev(), meta.st_ino()))
}

impl Own {
    /// Reads them.
    ///
    /// # Errors
    /// If `/proc` is not mounted or not this pid namespace's.
    pub fn read() -> std::io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        Ok(Self { uid, pid: namespace("self", "pid")?, user: namespace("self", "user")? })
    }

    /// Whether the process at the other end of `stream` may ask.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, stream: &impl AsFd) -> Result<Caller, Refusal> {
        self.admit_pinned(stream).map(|(caller, _)| caller)
    }

    /// The same, with the process held by its pidfd. At the calling end the peer is whoever listens.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_pinned(&self, stream: &impl AsFd) -> Result<(Caller, OwnedFd), Refusal> {
        let process = Peer::of(stream).ok_or(Refusal::Gone)?;
        let (pid, uid) = (process.pid(), process.uid());
        if uid != 0 && uid != self.uid {
            return Err(Refusal::User(uid));
        }
        let found = self.judge(pid);
        // Still the same process: what was read was its own.
        if !process.is_alive() {
            return Err(Refusal::Gone);
        }
        found.map(|()| (Caller { pid, uid }, process.into_pidfd()))
    }

    fn judge(&self, pid: u32) -> Result<(), Refusal> {
        let process = pid.to_string();
        let read = |kind| namespace(&process, kind).map_err(|_| Refusal::Unreadable(pid));
        if read("pid")? != self.pid {
            return Err(Refusal::PidNamespace(pid));
        }
        if read("user")? != self.user {
            return Err(Refusal::UserNamespace(pid));
        }
        Ok(())
    }
}
