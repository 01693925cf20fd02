//! One of two machines of somebody's own, made by Vagrant or standing on a table: a node with its pods and its agent.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::scene::{self, CLIENT, MARKER, ORDERS, PLAIN, Scene, WEB};
use crate::lab;

/// Which of the two machines this is, and what joins them.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// 1: the machine with the clients; 2: the one with the server that they ask
    #[arg(value_parser = clap::value_parser!(u8).range(1..=2))]
    number: u8,
    /// The interface on the link to the other machine: the lab's alone until it is removed, and 10.76.0.NUMBER there
    interface: String,
    /// The authority of both agents: machine 1 writes the file, which machine 2 must then be given
    #[arg(long, value_name = "FILE")]
    authority: PathBuf,
    /// Remove the node that an earlier call left up, and do nothing else
    #[arg(long)]
    pub remove: bool,
    /// The agent's program; without it the one beside this program
    #[arg(long, value_name = "FILE", env = "HEDDLE_BIN")]
    heddle: Option<PathBuf>,
}

/// Makes this machine's node as root, starts its agent, says what to try, and leaves it up.
///
/// # Errors
/// When there is no such interface, on machine 2 when there is no authority, or when the agent does not start.
pub fn run(options: &Options) -> Result<ExitCode> {
    let number = options.number;
    let removed = lab::remove_kept(&scene::lab_name(number))?;
    if options.remove {
        println!("{removed} node(s) removed");
        return Ok(ExitCode::SUCCESS);
    }
    let authority = known(&options.authority)?;
    if authority.is_none() && number != 1 {
        bail!(
            "no authority in {}: machine 1 writes that file; copy it here, readable by root alone, and run this again",
            options.authority.display()
        );
    }
    if removed > 0 {
        // The kernel gives the link back to the machine only some time after the router's namespace is gone.
        let given_back = || Ok(present(&options.interface)?);
        lab::eventually("the link to come back", Duration::from_secs(10), given_back)?;
    }
    let mut scene = Scene::set(number, &options.interface)?;
    if let Some(path) = &options.heddle {
        scene.lab.binary(path);
    }
    if let Some(text) = &authority {
        scene.lab.take_authority(text)?;
    }
    if let Err(error) = scene.lab.start_agents() {
        eprintln!("{}", scene.lab.agent_logs());
        return Err(error);
    }
    if authority.is_none() {
        write(&options.authority, &scene.lab.authority()?)?;
    }
    tell(&scene, options)?;
    scene.keep()?;
    Ok(ExitCode::SUCCESS)
}

fn present(interface: &str) -> std::io::Result<bool> {
    Ok(Command::new("ip").args(["link", "show", interface]).output()?.status.success())
}

fn known(authority: &Path) -> Result<Option<String>> {
    match fs::read_to_string(authority) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", authority.display())),
    }
}

fn write(authority: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(authority)
        .with_context(|| format!("cannot write {}", authority.display()))?;
    file.write_all(text.as_bytes())?;
    println!("The authority of both agents, a private key in it, is in {}.", authority.display());
    Ok(())
}

fn tell(scene: &Scene, options: &Options) -> Result<()> {
    let entrance = scene.lab.entrance()?;
    let run = entrance.display();
    let node = scene.lab.nodes().next().context("no node")?;
    let socket = scene.lab.agent(&node.name)?.socket();
    let heddle = scene.lab.heddle()?;
    println!("{} is up: pods {}", node.name, scene.pods.keys().cloned().collect::<Vec<_>>().join(", "));
    println!("To try, as root:");
    if options.number == 1 {
        println!(
            "  {run} {CLIENT} curl -s http://10.77.2.10:8080/     # {WEB} on the other machine: permitted"
        );
        println!("  {run} {PLAIN} curl -s http://10.77.2.10:8080/      # in no mesh: refused");
    } else {
        println!(
            "  {run} {WEB} curl -s http://10.77.1.12:8080/        # {ORDERS} on the other machine: permitted"
        );
    }
    println!(
        "  {run} router tcpdump -ni {} -A | grep {MARKER}    # the link: TLS, no marker",
        options.interface
    );
    println!("  {run} {} {} status --socket {}", node.name, heddle.display(), socket.display());
    println!("  {run} {} {} events --socket {}", node.name, heddle.display(), socket.display());
    println!("  {run} {} sh -c 'bpftool map dump pinned /sys/fs/bpf/heddle/v*/maps/pods'", node.name);
    println!(
        "  $EDITOR {}/*.yaml    # the rules, on both machines",
        scene.lab.manifests().directory().display()
    );
    println!("To remove it: the same command with --remove");
    Ok(())
}
