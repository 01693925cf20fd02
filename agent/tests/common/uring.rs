//! A client that connects, sends and receives by io_uring, without a call of connect(2), send(2) or recv(2).
//!
//! It is the test's own program, started again: a socket belongs to the cgroup of the process that made it.

use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, squeue, types::Fd};
use socket2::{Domain, SockAddr, Socket, Type};
use xtask::lab::{Output, Place};

const ROLE: &str = "HEDDLE_URING";
/// What is printed where the kernel gives out no ring.
pub const NONE: &str = "no io_uring";

/// Sends `text` (without spaces) to an echo server; what came back, or why nothing did, is on its standard output.
pub fn ask(from: &Place, to: SocketAddr, text: &str) -> Result<Output> {
    let own = std::env::current_exe()?;
    let role = format!("{ROLE}={to} {text}");
    let test = "uring::is_started_by_a_test";
    from.spawn(&["env", &role, &own.to_string_lossy(), "--exact", test, "--ignored", "--nocapture"])?
        .finish(Duration::from_secs(30))
}

#[test]
#[ignore = "not a test of its own"]
fn is_started_by_a_test() -> Result<()> {
    let Ok(role) = std::env::var(ROLE) else { return Ok(()) };
    let (to, text) = role.split_once(' ').context("ADDRESS TEXT")?;
    match IoUring::new(4) {
        Ok(mut ring) => match exchange(&mut ring, to.parse()?, text) {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("{error}"),
        },
        Err(_) => println!("{NONE}"),
    }
    Ok(())
}

fn exchange(ring: &mut IoUring, to: SocketAddr, text: &str) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let fd = Fd(socket.as_raw_fd());
    let address = SockAddr::from(to);
    submit(ring, opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build())?;
    submit(ring, opcode::Send::new(fd, text.as_ptr(), text.len() as u32).build())?;
    let mut answer = [0u8; 512];
    let length = submit(ring, opcode::Recv::new(fd, answer.as_mut_ptr(), answer.len() as u32).build())?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Has the kernel do this, and waits until it has.
fn submit(ring: &mut IoUring, entry: squeue::Entry) -> io::Result<usize> {
    // SAFETY: what the entry points to lives in the caller, and nothing is under way when this returns.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?.result();
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
