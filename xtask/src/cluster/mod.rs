//! `cargo xtask cluster`: a real Kubernetes of two nodes, in the lab's namespaces.

mod certificates;
mod control_plane;
mod daemon;
mod dns;
mod hierarchies;
mod images;
mod install;
mod network;
mod node;
mod programs;
mod state;
mod test;

use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, ebpf, privilege, tools};
use anyhow::{Context, Result, anyhow};
use certificates::Authority;
use images::Images;
use network::PodNetwork;
use programs::Programs;
use state::State;
use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use xtask::lab::{self, Lab};

/// What every cluster's lab is called at least.
const LAB: &str = "cluster";

/// A real Kubernetes of two nodes on this machine: API server, kubelets, containerd, in namespaces of their own
///
/// The first `up` builds Kubernetes from its Go modules (about 13 minutes of a core's time), later ones take half a minute.
/// `down` leaves nothing, also after a crash.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    part: Part,
    /// Several clusters may be up at once: this one's name
    #[arg(long, value_name = "NAME", default_value = "cluster", global = true)]
    name: String,
    /// Everything is built, and this is root
    #[arg(long, hide = true, global = true)]
    inner: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Build what is missing and start the cluster
    Up {
        /// Only etcd and the API server, without nodes: to try resources and admission against
        #[arg(long)]
        api: bool,
        /// Heddle as it is shipped: optimized
        #[arg(long)]
        release: bool,
        #[command(flatten)]
        network: PodNetwork,
    },
    /// Build Heddle's image from this tree, give it to the nodes and install it, or install it anew
    Install {
        /// Heddle as it is shipped: optimized
        #[arg(long)]
        release: bool,
    },
    /// Install Heddle from this tree into the cluster that is up, and see what it promises
    Test {
        /// Only these steps
        #[arg(long, value_name = "LETTERS", value_delimiter = ',')]
        steps: Vec<char>,
        /// Write what was observed to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Heddle as it is shipped: optimized
        #[arg(long)]
        release: bool,
        /// Take Heddle as it is installed already
        #[arg(long)]
        installed: bool,
    },
    /// Remove the cluster, and whatever a crashed one left
    Down,
    /// What is up
    Status,
    /// Call kubectl as the cluster's administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Prepares as the caller and becomes the same command as root, or is it.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.inner {
        return inner(workspace, arguments);
    }
    privilege::refuse_sudo_around_cargo(workspace)?;
    match arguments.part {
        Part::Up { api, release, .. } => {
            apt::install(&lab::packages())?;
            Programs::prepare(workspace)?;
            if !api {
                prepare_images(workspace, release)?;
            }
        }
        Part::Install { release } | Part::Test { release, installed: false, .. } => {
            Programs::prepare(workspace)?;
            prepare_images(workspace, release)?;
        }
        Part::Test { .. } | Part::Down | Part::Status | Part::Kubectl { .. } => {}
    }
    let mut inner = privilege::as_root("env")?;
    let mut path = std::ffi::OsString::from("PATH=");
    path.push(tools::path(workspace)?);
    let own = env::current_exe().context("cannot tell where this program is")?;
    // Before the subcommand: whatever follows `kubectl` is for kubectl.
    inner.arg(path).arg(own).arg("cluster").arg("--inner").args(env::args_os().skip(2));
    Err(anyhow!(inner.exec()).context("cannot become root"))
}

fn inner(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let programs = Programs::of(workspace);
    // What is swept after a crash is known by its name.
    let name = &if arguments.name.starts_with(LAB) {
        arguments.name.clone()
    } else {
        format!("{LAB}-{}", arguments.name)
    };
    match &arguments.part {
        Part::Up { api, network, .. } => {
            up(workspace, &programs, name, *api, *network).map(|()| ExitCode::SUCCESS)
        }
        Part::Install { .. } => {
            install::install(workspace, &State::read(name)?, &programs).map(|()| ExitCode::SUCCESS)
        }
        Part::Test { steps, json, installed, .. } => {
            let state = State::read(name)?;
            if !installed {
                install::install(workspace, &state, &programs)?;
            }
            let heddle = Images::of(workspace).heddle();
            test::run(&state, &programs, &heddle, steps, json.as_deref())
        }
        Part::Down => down(name).map(|()| ExitCode::SUCCESS),
        Part::Status => {
            let state = State::read(name)?;
            println!("{name} in {}: {}", state.folder.display(), state.network);
            if state.nodes.is_empty() {
                println!("the API server alone");
                return Ok(ExitCode::SUCCESS);
            }
            state.kubectl(&programs, &["get", "nodes,pods", "--all-namespaces", "-o", "wide"])
        }
        Part::Kubectl { arguments: words } => State::read(name)?.kubectl(&programs, words),
    }
}

/// What the images are made of, built as the caller.
fn prepare_images(workspace: &Workspace, release: bool) -> Result<()> {
    // Before what takes long: it goes into an image.
    tools::fetch(workspace)?;
    apt::install(&["buildah"])?;
    ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
    Images::of(workspace).prepare(workspace, release)
}

fn down(name: &str) -> Result<()> {
    let removed = lab::remove_kept(name)?;
    // What holds a container's cgroup ends with the lab's own, and goes a moment later.
    lab::eventually("the containers' cgroups to be empty", Duration::from_secs(10), || {
        Ok(hierarchies::sweep(State::alive).is_ok())
    })?;
    hierarchies::sweep(State::alive)?;
    println!("{removed} cluster(s) removed");
    Ok(())
}

fn up(workspace: &Workspace, programs: &Programs, name: &str, api: bool, network: PodNetwork) -> Result<()> {
    let began = Instant::now();
    let step = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    hierarchies::sweep(State::alive)?;
    let mut lab = Lab::new(name)?;
    if !api {
        lab.add_node("node-a")?;
        lab.add_node("node-b")?;
    }
    let folder = lab.directory().join("control");
    let authority = Authority::new(&folder.join("certificates"))?;
    step("etcd and the API server");
    if api {
        // The address at which the API server is known is the router's on the first node's link.
        lab.router().check(&["ip", "addr", "add", &format!("{}/32", control_plane::ADDRESS), "dev", "lo"])?;
    }
    let daemons = control_plane::start_api(lab.router(), programs, &authority, &folder, network)?;
    let mut state = State::of(&lab, network, daemons, authority.path("admin.kubeconfig"));
    state.write()?;
    if !api {
        step("controllers and scheduler");
        control_plane::start_controllers(lab.router(), programs, &authority, &folder)?;
        for node in lab.nodes() {
            step(&format!("{}: containerd, kubelet, kube-proxy", node.name));
            state.daemons.extend(node::start(&lab, node, programs, &authority, network)?);
        }
        state.write()?;
        state.check(
            programs,
            &[
                "create",
                "clusterrolebinding",
                "kube-proxy",
                "--clusterrole=system:node-proxier",
                "--user=system:kube-proxy",
            ],
        )?;
        step("waiting for the nodes to be ready");
        lab::eventually("both nodes to be ready", Duration::from_secs(120), || {
            let ready = state.kubectl_output(
                programs,
                &["get", "nodes", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"],
            )?;
            Ok(ready.stdout.trim() == "True True")
        })?;
    }
    if !api {
        step("images by buildah, CoreDNS, the Gateway API's kinds, Heddle's authority and agents");
        install::install(workspace, &state, programs)?;
    }
    lab.keep()?;
    step("ready: `cargo xtask cluster kubectl get nodes`, `cargo xtask cluster down`");
    Ok(())
}
