//! The process at the other end of a unix socket, pinned while something is read of it.
//!
//! The pin is a pidfd: the peer's own from `SO_PEERPIDFD` where the kernel has it (6.5), which no reuse of process ids can
//! deceive; before that one that is opened by the id, which a peer that passes its socket on, exits and has its id
//! reused in that moment could.

use nix::sys::socket::{getsockopt, sockopt};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, AsRawFd, OwnedFd},
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A process that has connected.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    pidfd: OwnedFd,
}

impl Peer {
    /// Of `stream`; `None`: it is gone, or cannot be seen from this pid namespace.
    pub fn of(stream: &impl AsFd) -> Option<Self> {
        let peer = socket_peercred(stream).ok()?;
        let pidfd = pin(stream, peer.pid)?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).ok()?;
        Some(Self { pid, uid: peer.uid.as_raw(), pidfd })
    }

    /// Its id.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Its user, when it connected.
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// What holds it, for whoever goes on with it.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// It has not ended: what was read of its id until now was its own.
    pub fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process ends.
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }
}

/// A pidfd of the peer. `pid` is only trusted where the kernel cannot give one.
fn pin(stream: &impl AsFd, pid: Pid) -> Option<OwnedFd> {
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => (pid_of(&pidfd) == Some(pid)).then_some(pidfd),
        Err(nix::errno::Errno::ENOPROTOOPT) => pidfd_open(pid, PidfdFlags::empty()).ok(),
        Err(_) => None,
    }
}

fn pid_of(pidfd: &OwnedFd) -> Option<Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    Pid::from_raw(pid.trim().parse().ok().filter(|pid| *pid > 0)?)
}
