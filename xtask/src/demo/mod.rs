//! Two nodes, two real agents, real applications: each promise of the mesh shown as a step that says what was done,
//! what came back and why.

mod keep;
pub mod report;
mod rules;
mod scene;
mod steps;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use self::{report::Step, scene::Scene};
use crate::lab;

/// What the demo is asked for.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Write what was observed in each step to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leave the lab up and print commands to try
    #[arg(long)]
    pub keep: bool,
    /// Remove a lab that --keep left up, and do nothing else
    #[arg(long, conflicts_with_all = ["keep", "steps", "json"])]
    pub remove: bool,
    /// Show only these steps
    #[arg(long, value_name = "LETTERS", value_delimiter = ',')]
    pub steps: Vec<char>,
    /// The agent's program; without it the one beside this program
    #[arg(long, value_name = "FILE", env = "HEDDLE_BIN")]
    pub heddle: Option<PathBuf>,
}

/// Runs the demo as root. Success only if every step that was asked for was seen.
///
/// # Errors
/// When the lab cannot be made or an agent does not start: with the agents' logs.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.remove {
        println!("{} lab(s) removed", lab::remove_kept(scene::LAB)?);
        return Ok(ExitCode::SUCCESS);
    }
    let letters: Vec<char> = steps::ALL.iter().map(|step| step.letter).collect();
    for letter in &options.steps {
        ensure!(letters.contains(letter), "there is no step {letter:?}: choose from {letters:?}");
    }
    let missing = lab::missing_tools(&["nginx", "curl", "socat", "ncat", "openssl", "bpftool"]);
    ensure!(
        missing.is_empty(),
        "the demo needs programs that are not installed (with their packages): {missing:?}"
    );

    let began = Instant::now();
    println!("Heddle's demo: two nodes, a router, real agents, real applications\n");
    let mut scene = Scene::set(options.heddle.as_deref())?;
    let mut shown = Vec::new();
    let outcome = play(&mut scene, options, &mut shown);
    if outcome.is_err() {
        eprintln!("{}", scene.lab.agent_logs());
    }
    let finished = outcome.is_ok();
    report::summary(&shown, began.elapsed());
    let seen = finished && !shown.is_empty() && shown.iter().all(Step::seen);
    if let Some(path) = &options.json {
        let told = json!({
            "seen": seen,
            "seconds": began.elapsed().as_secs_f64(),
            "kernel": report::kernel(),
            "error": outcome.as_ref().err().map(|error| format!("{error:#}")),
            "steps": shown.iter().map(Step::to_json).collect::<Vec<_>>(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&told)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.keep {
        keep::keep(scene)?;
    } else {
        scene.close()?;
    }
    outcome?;
    Ok(if seen { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play(scene: &mut Scene, options: &Options, shown: &mut Vec<Step>) -> Result<()> {
    let asked = |letter: char| options.steps.is_empty() || options.steps.contains(&letter);
    // What the wire shows without a mesh is seen before there is one.
    let control = if asked('a') { Some(steps::wire::without_mesh(scene)?) } else { None };
    scene.start_agents()?;
    for act in steps::ALL.iter().filter(|act| asked(act.letter)) {
        let mut step = Step::begin(act.letter, act.title);
        let result = (act.show)(scene, control.as_ref(), &mut step);
        if let Err(error) = &result {
            step.check("the step could be carried out", false, format!("{error:#}"));
        }
        step.end();
        shown.push(step);
        result.with_context(|| format!("step {} could not be carried out", act.letter))?;
    }
    Ok(())
}
