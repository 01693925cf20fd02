//! `cargo xtask cluster test`: what the mesh promises, seen in a real cluster.

mod adopting;
mod away;
mod cold;
mod control;
mod families;
mod faults;
mod joining;
mod life;
mod measured;
mod pods;
mod reboot;
mod restarts;
mod rules;
mod scene;
mod services;
mod story;
mod verbs;
mod wire;

use super::programs::Programs;
use super::state::State;
use anyhow::{Context, Result, ensure};
use scene::Scene;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use xtask::demo::report::{Step, summary};

type Show = fn(&Scene, &mut Step) -> Result<()>;

const STEPS: [(char, &str, Show); 21] = [
    ('a', "A permitted request across nodes is TLS 1.3, and the marker is not seen", wire::across),
    ('b', "Everybody else is refused, the kubelet's probe is not", wire::refusals),
    ('c', "A rule that kubectl applies holds soon", rules::show),
    ('w', "Each of a pod's addresses is guarded, and no neighbor speaks for it", families::show),
    ('s', "Two tenants and one who watches them: all pairs, as the rules say", story::show),
    ('u', "Audit, flows recorded, rules suggested, then deny: nothing is broken", adopting::show),
    ('d', "The agent killed: new pods wait, existing ones are refused, nothing opens", away::killed),
    ('e', "The agents are rolled out anew under load", away::rolled),
    ('f', "Jobs finish, deleted pods are let go, new ones are captured", life::show),
    ('p', "Pods of every kind live as without a mesh, and are judged", pods::show),
    ('j', "A namespace joins the mesh and leaves it while its pods run", joining::show),
    ('g', "Linkerd's rules hold, and a bad one is rejected", rules::linkerd),
    ('h', "The API server stopped, the CNI's configuration taken away", faults::show),
    (
        'r',
        "etcd, watches, kubelet, containerd, the CNI's folders and an agent without memory: nothing opens",
        restarts::show,
    ),
    (
        'o',
        "A node switched off and on again, its pods before its agent: nothing passes until captured",
        reboot::show,
    ),
    ('x', "All nodes switched off and on again at once: nothing passes until captured", cold::show),
    ('v', "The CNI plugin's CHECK, GC and STATUS, as a runtime asks them", verbs::show),
    ('n', "Names lead where Services lead", control::names),
    ('k', "What is wrong with the cluster and its rules is told", control::told),
    ('m', "What Heddle itself takes", control::resources),
    ('i', "Services lead where their EndpointSlices say, the API server's among them", services::show),
];

/// What takes minutes: shown where it is named.
const ON_DEMAND: [(char, &str, Show); 1] =
    [('t', "How soon rules hold and a killed agent is back, many times", measured::show)];

/// Runs the steps (all that do not take minutes, where none is named). Success only if each was seen.
pub fn run(
    state: &State,
    programs: &Programs,
    heddle: &Path,
    letters: &[char],
    report: Option<&Path>,
) -> Result<ExitCode> {
    let known = || STEPS.iter().chain(&ON_DEMAND);
    for letter in letters {
        ensure!(known().any(|(known, ..)| known == letter), "there is no step {letter:?}");
    }
    let wanted = |letter: &char| {
        if letters.is_empty() {
            STEPS.iter().any(|(known, ..)| known == letter)
        } else {
            letters.contains(letter)
        }
    };
    let began = Instant::now();
    let scene = Scene::set(state, programs, heddle)?;
    let mut steps = Vec::new();
    for (letter, title, show) in known().filter(|(letter, ..)| wanted(letter)) {
        let mut step = Step::begin(*letter, title);
        if let Err(error) = show(&scene, &mut step) {
            step.check("it can be shown", false, format!("{error:#}"));
        }
        step.end();
        steps.push(step);
    }
    summary(&steps, began.elapsed());
    if let Some(path) = report {
        let observed: Vec<_> = steps.iter().map(Step::to_json).collect();
        fs::write(path, serde_json::to_vec_pretty(&json!({ "steps": observed }))?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let seen = steps.iter().all(Step::seen);
    if seen {
        scene.clear()?;
    }
    Ok(if seen { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
