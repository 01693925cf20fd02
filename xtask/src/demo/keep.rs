//! `--keep`: the lab stays up, with a way into it.

use anyhow::Result;

use super::scene::{MARKER, NODE_A, Scene};

/// Writes a script that runs programs in pods and nodes, says what to try, and leaves the lab up.
pub fn keep(scene: Scene) -> Result<()> {
    let path = scene.lab.entrance()?;
    let run = path.display();
    let socket = scene.agent(NODE_A)?.socket();
    let heddle = scene.heddle.display();
    println!("The lab is up. To try, as root:");
    println!("  {run} client curl -s http://{}:8080/        # permitted", scene.web.v4);
    println!("  {run} stranger curl -s http://{}:8080/      # refused", scene.web.v4);
    println!(
        "  {run} client ncat {} 7                      # direct, through the Service",
        scene.near_service.v4
    );
    println!("  {run} node-a {heddle} status --socket {}", socket.display());
    println!("  {run} node-a {heddle} events --socket {}", socket.display());
    println!("  {run} node-a tcpdump -ni uplink -A | grep {MARKER}");
    println!("  {run} node-a sh -c 'bpftool map dump pinned /sys/fs/bpf/heddle/v*/maps/pods'");
    println!("  $EDITOR {}/*.yaml", scene.lab.manifests().directory().display());
    println!("To remove it: cargo xtask demo --remove (the next demo removes it, too)");
    let Scene { lab, applications, .. } = scene;
    applications.into_iter().for_each(crate::lab::Running::leave);
    lab.keep()
}
