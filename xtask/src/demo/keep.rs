//! `--keep`: the lab stays up, with a way into it.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt};

use anyhow::Result;

use super::scene::{MARKER, NODE_A, Scene};

/// Writes a script that runs programs in pods and nodes, says what to try, and leaves the lab up.
pub fn keep(scene: Scene) -> Result<()> {
    let mut script = String::from(
        "#!/bin/sh\n# Runs a program in a pod, a node or outside: in PLACE PROGRAM…\nplace=$1; shift\ncase $place in\n",
    );
    for pod in scene.lab.pods() {
        writeln!(script, "{}) {} ;;", pod.name, pod.place().shell_words("\"$@\""))?;
    }
    for node in scene.lab.nodes() {
        writeln!(script, "{}) {} ;;", node.name, node.host().shell_words("\"$@\""))?;
    }
    writeln!(script, "outside) {} ;;", scene.lab.outside().shell_words("\"$@\""))?;
    script.push_str("*) echo \"no place $place\" >&2; exit 2 ;;\nesac\n");
    let path = scene.lab.directory().join("in");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;

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
