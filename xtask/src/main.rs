//! `cargo xtask`: every developer's command.
#![forbid(unsafe_code)]

mod apt;
mod bench_crate;
mod btf;
mod circles;
mod cluster;
mod command;
mod ebpf;
mod mutants;
mod on_the_lab;
mod preflight;
mod privilege;
mod stage;
mod test;
mod toolchain;
mod tools;
mod verify_programs;
mod vm;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::{any::Any, panic, process::ExitCode};
use workspace::Workspace;

/// Every command of Heddle's developers. Start with `cargo xtask demo`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two nodes, two agents, real applications: what the mesh promises, shown
    ///
    /// Looks whether this machine is fit before it fetches anything, says what it will install, builds as you and runs
    /// the demo as root (sudo asks if it must). Leaves nothing running.
    Demo(on_the_lab::Arguments<xtask::demo::Options>),
    /// What the mesh costs beside a bare connection, as ratios, measured in turns in one run
    ///
    /// `bench policy` and `bench identity` measure what deciding, certificates and handshakes cost instead, without a lab
    /// and as any user.
    #[command(args_conflicts_with_subcommands = true)]
    Bench(Bench),
    Test(test::Arguments),
    Mutants(mutants::Arguments),
    Build(ebpf::Build),
    Ebpf(ebpf::Arguments),
    Verifier(verify_programs::Arguments),
    Vm(vm::Arguments),
    Cluster(cluster::Arguments),
    /// Build SPIRE's agent and server into the cache, for the tests that run beside them
    Spire,
    /// Make this machine one of two that a link joins: a node, its pods and its agent, left up
    ///
    /// For two machines of your own, as `test-vms/Vagrantfile` makes them.
    Node(on_the_lab::Arguments<xtask::machines::node::Options>),
    /// One of two machines that `vm demo` directs: does what comes over a serial line
    #[command(hide = true)]
    Machine {
        /// This machine's number on the link
        number: u8,
        /// Its interface on the link
        interface: String,
        /// The serial line
        line: std::path::PathBuf,
    },
}

#[derive(clap::Args)]
struct Bench {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    whole: on_the_lab::Arguments<xtask::bench::Options>,
}

#[derive(Subcommand)]
enum Part {
    /// Compiling and deciding: 10,000 rules, 2,000 namespaces, 100,000 pods
    Policy,
    /// Certificates and handshakes, beside rustls' own in the same run
    Identity,
}

fn main() -> ExitCode {
    if let Some(code) = xtask::lab::apps::entry() {
        return code;
    }
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |defect| {
        if !output_closed(defect.payload()) {
            usual(defect);
        }
    }));
    match panic::catch_unwind(|| run(Arguments::parse().command)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(defect) if output_closed(&*defect) => ExitCode::from(READER_GONE),
        Err(defect) => panic::resume_unwind(defect),
    }
}

/// What a shell says of a program that SIGPIPE ended.
const READER_GONE: u8 = 128 + 13;

/// Whether `defect` is what `println!` makes of a reader that went away, as `head` does: no defect of ours. The lab is
/// taken down on the way out, which the signal itself would not leave time for.
fn output_closed(defect: &(dyn Any + Send)) -> bool {
    defect
        .downcast_ref::<String>()
        .is_some_and(|told| told.starts_with("failed printing to stdout") && told.contains("Broken pipe"))
}

fn run(command: Command) -> Result<ExitCode> {
    // The inner demo runs where there is no source tree, as in a virtual machine.
    let workspace = Workspace::find;
    match command {
        Command::Demo(arguments) => on_the_lab::run(&arguments),
        Command::Bench(Bench { part: Some(Part::Policy), .. }) => bench_crate::run("policy"),
        Command::Bench(Bench { part: Some(Part::Identity), .. }) => bench_crate::run("identity"),
        Command::Bench(Bench { part: None, whole }) => on_the_lab::run(&whole),
        Command::Test(arguments) => test::run(&workspace()?, &arguments),
        Command::Mutants(arguments) => mutants::run(&workspace()?, &arguments),
        Command::Build(arguments) => ebpf::build(&workspace()?, &arguments).map(|()| ExitCode::SUCCESS),
        Command::Ebpf(arguments) => ebpf::run(&workspace()?, &arguments).map(|_| ExitCode::SUCCESS),
        Command::Verifier(arguments) => verify_programs::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Vm(arguments) => vm::run(&workspace()?, &arguments),
        Command::Cluster(arguments) => cluster::run(&workspace()?, &arguments),
        Command::Spire => {
            println!("{}", xtask::spire::build()?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Node(arguments) => on_the_lab::run(&arguments),
        Command::Machine { number, interface, line } => {
            xtask::machines::act(number, &interface, &line).map(|()| ExitCode::SUCCESS)
        }
    }
}
