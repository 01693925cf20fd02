//! What the mesh costs: the same load beside it and through it, in turns, in one run.

mod field;
mod machine;
mod part;
mod programs;
mod report;
mod rounds;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use self::{field::Field, part::Part, rounds::Plan};

/// What the bench is asked for.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Few short rounds: about two minutes
    #[arg(long)]
    pub quick: bool,
    /// Measure this alone; may be given more than once
    #[arg(long, value_name = "PART")]
    pub only: Vec<Part>,
    /// Leave out what stays on one node
    #[arg(long)]
    pub across: bool,
    /// How many rounds
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    pub rounds: u32,
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
    let measured = measure(&field, options);
    if measured.is_err() {
        eprintln!("{}", field.lab.agent_logs());
    }
    let Measured { facts, proof, rounds, memory, programs } = measured?;
    let figures = report::figures(&rounds);
    report::print(&facts, &proof, &figures, memory.as_ref());
    programs::print(&programs);
    if let Some(path) = &options.json {
        let told = json!({
            "machine": facts, "proof": proof, "figures": figures, "rounds": rounds, "memory": memory, "programs": programs,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&told)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    field.close()?;
    Ok(if proof.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Measured {
    facts: machine::Facts,
    proof: field::Proof,
    rounds: Vec<rounds::Round>,
    memory: Option<rounds::Memory>,
    programs: Vec<programs::UnderLoad>,
}

fn measure(field: &Field, options: &Options) -> Result<Measured> {
    let facts = machine::Facts::of(field)?;
    let proof = field.prove()?;
    let wanted = |part: Part| options.only.is_empty() || options.only.contains(&part);
    let plan = Plan {
        rounds: options.rounds,
        parts: [Part::Questions, Part::Stream, Part::Connections]
            .into_iter()
            .filter(|part| wanted(*part))
            .collect(),
        across_alone: options.across,
        questions: 4000,
        stream: Duration::from_secs(1),
        connections: Duration::from_secs(1),
    };
    // Before the loads, for the idle agent: what they leave behind is not what an agent costs that has nothing to do.
    let memory = wanted(Part::Memory).then(|| rounds::memory(field, 1000)).transpose()?;
    let rounds = rounds::run(field, &plan)?;
    let programs = if options.only.contains(&Part::Programs) {
        programs::measure(field, plan.questions, plan.connections)?
    } else {
        Vec::new()
    };
    Ok(Measured { facts, proof, rounds, memory, programs })
}
