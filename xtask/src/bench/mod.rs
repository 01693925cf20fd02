//! What the mesh costs: the same load beside it and through it, in turns, in one run.

mod field;
mod machine;
mod report;
mod rounds;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use self::{field::Field, rounds::Plan};

/// What the bench is asked for.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Few short rounds: about two minutes
    #[arg(long)]
    pub quick: bool,
    /// Write every figure of every round to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The agent's program; without it the one beside this program
    #[arg(long, value_name = "FILE", env = "HEDDLE_BIN")]
    pub heddle: Option<PathBuf>,
}

/// Runs the bench as root. Success if the path that was measured is the one that was claimed: ciphertext between
/// nodes, nothing through the agent on one node.
///
/// # Errors
/// When the lab cannot be made, an agent does not start or a load fails.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.quick, "only the quick bench exists: say --quick");
    let field = Field::make(options.heddle.as_deref())?;
    let measured = measure(&field);
    if measured.is_err() {
        eprintln!("{}", field.lab.agent_logs());
    }
    let (facts, proof, rounds, memory) = measured?;
    let figures = report::figures(&rounds);
    report::print(&facts, &proof, &figures, &memory);
    if let Some(path) = &options.json {
        let told = json!({ "machine": facts, "proof": proof, "figures": figures, "rounds": rounds, "memory": memory });
        std::fs::write(path, serde_json::to_vec_pretty(&told)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    field.close()?;
    Ok(if proof.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Measured = (machine::Facts, field::Proof, Vec<rounds::Round>, rounds::Memory);

fn measure(field: &Field) -> Result<Measured> {
    let facts = machine::Facts::of(field)?;
    let proof = field.prove()?;
    let plan = Plan {
        rounds: 5,
        questions: 4000,
        stream: Duration::from_secs(1),
        connections: Duration::from_secs(1),
    };
    let rounds = rounds::run(field, &plan)?;
    let memory = rounds::memory(field, 1000)?;
    Ok((facts, proof, rounds, memory))
}
