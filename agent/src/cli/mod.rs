//! The commands of `heddle`.
//!
//! `agent` runs a node's agent, `door` is where it is asked, and `workload_api` where pods ask; the other commands ask there (`client`) or look at
//! the host (`check`) and at rules (`policy`) by themselves.

pub mod agent;
pub mod ca;
mod cgroup;
mod check;
mod client;
mod cni;
pub mod config;
mod controller;
pub mod door;
mod events;
mod flows;
mod identity;
mod install;
mod listen;
mod logging;
mod mountinfo;
mod patience;
mod peer;
mod placed;
mod places;
mod pods;
mod policy;
mod process;
mod render;
mod report;
mod running_pods;
mod status;
pub mod workload_api;

use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// What went wrong in a command, with what to do about it.
type Failure = miette::Report;

#[derive(Parser)]
#[command(name = "heddle", version, about, long_about = ABOUT, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const ABOUT: &str = "Heddle is a service mesh of one agent per node: mutual TLS, an identity for each workload and deny-by-default \
authorization for the node's pods, without sidecars.\n\nStart with `heddle check` on the host, `heddle policy check DIR` on your \
manifests, then `heddle agent`. Pods enter by `heddle attach`; `heddle status` and `heddle events` say what is in force and what is refused.";

const AGENT: &str = "Runs this node's agent until SIGTERM or SIGINT.

The agent reads Kubernetes resources (Pods, Services, ServiceAccounts, Namespaces, Servers, AuthorizationPolicies, \
MeshTLSAuthentications, NetworkAuthentications) from a folder or, with --cluster, from the API server, follows their changes, puts the rules in force in the kernel and \
carries what the kernel does not carry alone. When it ends, however it ends, enforcement stands: what it carried is refused until \
an agent runs again. `heddle release` takes everything off the host.

Every field may stand in a YAML file (--config) in camelCase or be given as a flag; flags go first. The least file:

  node: node-a
  manifests: /etc/heddle/manifests
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/12]
  ca: {folder: /var/lib/heddle/ca}

`heddle agent --config FILE --print-config` shows every field as it would hold.";

#[derive(Subcommand)]
enum Command {
    /// Run this node's agent
    #[command(long_about = AGENT)]
    Agent {
        #[command(flatten)]
        flags: Box<config::Flags>,
        #[command(flatten)]
        supervision: agent::Supervision,
        /// Print the effective configuration and end
        #[arg(long)]
        print_config: bool,
    },
    /// Run a certificate authority, or make its keys
    Ca {
        #[command(subcommand)]
        command: ca::CaCommand,
    },
    /// Tell on each object of the cluster what its rule lacks
    #[command(long_about = controller::ABOUT)]
    Controller(controller::Flags),
    /// Install Heddle in a cluster
    #[command(long_about = install::ABOUT)]
    Install(install::Flags),
    /// Install it anew: another version, or other values
    Upgrade(install::UpgradeFlags),
    /// Take Heddle off a cluster and its nodes; rules, their kinds and the authority's keys stay
    Uninstall(install::UninstallFlags),
    /// The plugin for the container runtime, which calls it; or take it off this host
    Cni {
        #[command(subcommand)]
        command: Option<CniCommand>,
    },
    /// Take everything that an agent left in force off this host: programs, maps, pins
    Release {
        #[command(flatten)]
        flags: Box<config::PlaceFlags>,
    },
    /// Bring a pod into the mesh; returns when capture and guard are in force
    Attach {
        /// The pod
        #[arg(long, value_name = "NAMESPACE/NAME")]
        pod: door::PodName,
        /// Its network namespace, such as /run/netns/x
        #[arg(long, value_name = "PATH")]
        netns: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// Take a pod out of the mesh
    Detach {
        /// The pod
        #[arg(long, value_name = "NAMESPACE/NAME")]
        pod: door::PodName,
        #[command(flatten)]
        at: At,
    },
    /// Say what is in force and what is wrong
    Status {
        #[command(flatten)]
        at: At,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Only of an agent in this very container: while a node is handed over another one may answer
        #[arg(long)]
        own: bool,
    },
    /// Follow who reaches whom, or record it
    #[command(long_about = flows::ABOUT)]
    Flows {
        #[command(flatten)]
        at: At,
        /// Record into this file, in the form that `heddle policy` reads as --observed; it is gone on with
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// How much the file and the one before it (`.1`) may hold together
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_240))]
        megabytes: u64,
    },
    /// Follow refusals and drops as they happen
    Events {
        #[command(flatten)]
        at: At,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Say whether this host can run an agent, or what is wrong with a cluster's mesh; and what no mesh can hold there. Each
    /// thing that the kernel must offer is tried: nothing is taken from its version, nothing is left behind
    Check {
        /// What to look at
        #[arg(value_enum, default_value = "node")]
        what: Checked,
        /// Where bpffs is mounted
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
        /// How to reach the API server [default: KUBECONFIG, ~/.kube/config, or as a pod of the cluster does]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at identities and their certificates
    Identity {
        #[command(subcommand)]
        command: identity::IdentityCommand,
        #[command(flatten)]
        at: At,
    },
    /// Look at rules: check, explain, matrix, diff, suggest, test
    #[command(long_about = policy::ABOUT)]
    Policy {
        #[command(subcommand)]
        command: policy::Command,
    },
    /// Say what this program does, for whoever has to write it down
    Report {
        #[command(subcommand)]
        command: report::ReportCommand,
    },
    /// Print the version, and whose cryptography it is
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum CniCommand {
    /// Take plugin and chained configuration off this host: pods start without the mesh from then on
    Uninstall {
        /// The runtime's plugins
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        plugins: PathBuf,
        /// The runtime's network configurations
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        networks: PathBuf,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Checked {
    /// This host, its kernel first
    Node,
    /// The cluster, its API server first
    Cluster,
}

/// Which agent to ask.
#[derive(clap::Args)]
struct At {
    /// The agent's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "HEDDLE_SOCKET",
        default_value = "/run/heddle/agent.sock",
        global = true
    )]
    socket: PathBuf,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    // The container runtime calls the plugin by its file's name alone.
    let called = std::env::args_os().next().map(PathBuf::from);
    if called.as_deref().and_then(Path::file_name).is_some_and(|name| name == cni::PLUGIN) {
        return cni::run();
    }
    let done = match Cli::parse().command {
        Command::Agent { flags, print_config: true, .. } => agent::print_config(&flags),
        Command::Agent { flags, supervision, .. } => agent::run(&flags, &supervision),
        Command::Ca { command } => ca::run(command),
        Command::Controller(flags) => controller::run(&flags),
        Command::Install(flags) => install::install(&flags),
        Command::Upgrade(flags) => install::upgrade(&flags),
        Command::Uninstall(flags) => install::uninstall(&flags),
        Command::Cni { command: None } => return cni::run(),
        Command::Cni { command: Some(CniCommand::Uninstall { plugins, networks }) } => {
            cni::uninstall(&plugins, &networks).map(|()| ExitCode::SUCCESS).map_err(|error| {
                miette::miette!(help = "call as root", "the plugin cannot be taken away: {error}")
            })
        }
        Command::Release { flags } => agent::release(&flags),
        Command::Attach { pod, netns, at } => pods::attach(&at.socket, &pod, &netns),
        Command::Detach { pod, at } => pods::detach(&at.socket, &pod),
        Command::Status { at, json, own } => status::show(&at.socket, json, own),
        Command::Flows { at, output, megabytes } => flows::follow(&at.socket, output.as_ref(), megabytes),
        Command::Events { at, json } => events::follow(&at.socket, json),
        Command::Identity { command, at } => identity::run(&at.socket, &command),
        Command::Check { what: Checked::Node, bpffs, json, .. } => check::run(&bpffs, json),
        Command::Check { what: Checked::Cluster, kubeconfig, json, .. } => {
            check::of_cluster(kubeconfig.as_deref(), json)
        }
        Command::Policy { command } => policy::run(&command),
        Command::Report { command } => report::run(&command),
        Command::Version { json } => version(json),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure:?}");
        ExitCode::from(2)
    })
}

fn version(json: bool) -> Result<ExitCode, Failure> {
    let (version, schema) = (env!("CARGO_PKG_VERSION"), heddle_ebpf::SCHEMA);
    let module = heddle_identity::module();
    if json {
        let module = serde_json::json!({
            "awsLc": module.version, "fipsModule": module.fips, "fipsCertificate": module.certificate(),
        });
        let told = serde_json::json!({"version": version, "schema": schema, "cryptography": module});
        render::print(&told.to_string())?;
    } else {
        render::print(&format!("heddle {version} (maps' layout {schema})\n{}", report::described(&module)))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed_and_the_agents_help_teaches() {
        super::Cli::command().debug_assert();
        let mut command = super::Cli::command();
        let help = command.find_subcommand_mut("agent").unwrap().render_long_help().to_string();
        for taught in
            ["enforcement stands", "podNetworks", "--print-config", "--default-outbound", "heddle release"]
        {
            assert!(help.contains(taught), "{taught} is not in {help}");
        }
    }
}
