//! Many connections that say nothing, held by a process of its own: a process may have only so many.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use xtask::lab::{Place, Running};

const ROLE: &str = "HEDDLE_CROWD";

/// Opens `count` connections, every second of which ends its own side at once, and holds what it gets until dropped.
/// Returns how many were opened.
pub fn gather(from: &Place, to: SocketAddr, count: usize) -> Result<(Running, usize)> {
    let own = std::env::current_exe()?;
    let role = format!("{ROLE}={to} {count}");
    let test = "common::crowd::is_started_by_a_test";
    let running =
        from.spawn(&["env", &role, &own.to_string_lossy(), "--exact", test, "--ignored", "--nocapture"])?;
    running.wait_for(" gathered", Duration::from_secs(240))?;
    let said = running.stdout();
    let held = said.split_whitespace().rev().nth(1).context("no number")?.parse()?;
    Ok((running, held))
}

#[test]
#[ignore = "not a test of its own"]
fn is_started_by_a_test() -> Result<()> {
    let Ok(role) = std::env::var(ROLE) else { return Ok(()) };
    let (to, count) = role.split_once(' ').context("ADDRESS COUNT")?;
    let (to, count): (SocketAddr, usize) = (to.parse()?, count.parse()?);
    let mut held = Vec::with_capacity(count);
    for index in 0..count {
        let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else { continue };
        if index % 2 == 0 {
            drop(stream.shutdown(Shutdown::Write));
        }
        held.push(stream);
    }
    println!("{} gathered", held.len());
    drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    Ok(())
}
