//! h: what the cluster itself suffers.

use super::scene::{Inside, NODE_A, Scene};
use crate::cluster::control_plane::API;
use crate::cluster::daemon::Daemon;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::{eventually, stretched};

/// Stopped, and going on when this is dropped, whatever happens between.
pub struct Stopped<'a>(&'a Daemon);

impl<'a> Stopped<'a> {
    /// Stops it.
    pub fn new(daemon: &'a Daemon) -> Result<Self> {
        daemon.signal(Signal::STOP)?;
        Ok(Self(daemon))
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::CONT) {
            eprintln!("what was stopped cannot be let go on: {error}");
        }
    }
}

/// h. The API server stopped, the chained configuration taken away.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let web = format!("http://{}:8080/", scene.address("shop", "web")?);
    let other = scene.captured(NODE_A)?.remove("bank/stranger").context("bank/stranger is not captured")?;
    let stranger = Inside { place: scene.node(NODE_A)?, netns: other };
    step.does("SIGSTOP to the API server, for eight seconds");
    let (mut answered, mut let_in) = (0, 0);
    {
        let _stopped = Stopped::new(scene.state.daemon(API)?)?;
        for _ in 0..8 {
            std::thread::sleep(stretched(Duration::from_secs(1)));
            answered += usize::from(inside.reaches(&web)?);
            let_in += usize::from(stranger.reaches(&web)?);
        }
    }
    step.check(
        "the rules stay in force",
        answered == 8 && let_in == 0,
        format!("the client answered {answered} of 8 times, the stranger {let_in}"),
    );
    eventually("the API server to answer", Duration::from_secs(30), || {
        Ok(scene.state.kubectl_output(scene.programs, &["get", "--raw", "/readyz"])?.succeeded())
    })?;
    step.does("rm /etc/cni/net.d/00-heddle.conflist on node-a");
    let list = || scene.node(NODE_A)?.check(&["ls", "/etc/cni/net.d"]);
    let chained = |listed: String| listed.lines().any(|name| name == "00-heddle.conflist");
    let there = chained(list()?);
    scene.node(NODE_A)?.check(&["rm", "/etc/cni/net.d/00-heddle.conflist"])?;
    let back = eventually("it to be back", Duration::from_secs(20), || Ok(chained(list()?)));
    step.check("it is back", there && back.is_ok(), list()?.replace('\n', " "));
    Ok(())
}
