//! `cargo xtask mutants`: whether the tests would notice if what decides access were broken.

mod ask;
mod list;
mod sites;
mod tree;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};

use self::{
    ask::{Answer, Look, ask},
    list::{Mutant, cargo_mutants},
    tree::TESTS,
};
use crate::{command, workspace::Workspace};

/// A first look: over a few random clusters.
const FIRST: Look = Look { programs: &TESTS, clusters: Some("60") };
/// What survives it is shown all of them, a million decisions.
const SECOND: Look = Look { programs: &["agreement"], clusters: None };
/// What cargo-mutants ends with when tests noticed nothing of a mutant, or took too long over one.
const SURVIVORS: [i32; 2] = [2, 3];

/// Break the code that decides access in one place after the other, and ask the policy's tests
///
/// Takes `cargo install cargo-mutants`, which says what to break. All mutants are built at once, each behind a switch, and
/// the tests are run once with each. What no test notices at a first look is asked again over a million decisions; what
/// is listed in the end survived both. docs/mutants.md explains those that may.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this file of policy/src, as `verdict.rs`; may be given more than once
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<String>,
    /// Only mutants whose name has this in it, as cargo-mutants tells it; may be given more than once
    #[arg(long = "name", value_name = "TEXT")]
    names: Vec<String>,
    /// How many at a time
    #[arg(long, value_name = "N", default_value = "2")]
    jobs: usize,
    /// Leave out the second look and the few mutants that cannot be switched, which are built one by one
    #[arg(long)]
    quick: bool,
}

impl Arguments {
    fn want(&self, mutant: &Mutant) -> bool {
        let within = |list: &[String], wanted: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|it| wanted(it))
        };
        within(&self.files, &|file| mutant.short_file() == file)
            && within(&self.names, &|name| mutant.name.contains(name))
    }
}

/// What became of the mutants of one file.
#[derive(Default)]
struct Row {
    tried: u32,
    caught: u32,
    too_long: u32,
    broken: u32,
    survived: u32,
    rest: u32,
}

/// Runs it; the code says whether any survived.
///
/// # Errors
/// When cargo-mutants is missing, or the tests fail over the code as it is.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut mutants = list::mutants(workspace)?;
    mutants.retain(|mutant| arguments.want(mutant));
    let numbered = || (1u32..).zip(&mutants);
    if mutants.is_empty() {
        bail!("no mutant of policy/src is meant: see `cargo mutants --list --package heddle-policy`");
    }
    let folder = workspace.target.join("broken");
    println!("building {} mutants in {}", mutants.len(), folder.display());
    let tree = tree::build(workspace, &folder, &mutants)?;
    let name = |number: u32| mutants.get(number as usize - 1).map_or("", |mutant| &*mutant.name);

    let left_out = &tree.broken | &tree.rest;
    let wanted: Vec<(u32, &str)> = numbered()
        .filter(|(number, _)| !left_out.contains(number))
        .map(|(number, mutant)| (number, &*mutant.file))
        .collect();
    let tell = |number, answer: &Answer| match answer {
        Answer::Caught(by) => println!("caught    {} ({by})", name(number)),
        Answer::TooLong => println!("too long  {}", name(number)),
        Answer::Survived => println!("SURVIVED  {}", name(number)),
    };
    let mut answers: BTreeMap<u32, Answer> =
        ask(&tree, FIRST, &wanted, arguments.jobs, tell)?.into_iter().collect();
    let again: Vec<(u32, &str)> =
        wanted.iter().filter(|(number, _)| answers.get(number) == Some(&Answer::Survived)).copied().collect();
    if !again.is_empty() && !arguments.quick {
        println!("those that survived, over all random clusters");
        answers.extend(ask(&tree, SECOND, &again, arguments.jobs, tell)?);
    }

    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for (number, mutant) in numbered() {
        let row = rows.entry(mutant.short_file()).or_default();
        row.tried += 1;
        match answers.get(&number) {
            Some(Answer::Caught(_)) => row.caught += 1,
            Some(Answer::TooLong) => row.too_long += 1,
            Some(Answer::Survived) => row.survived += 1,
            None if tree.broken.contains(&number) => row.broken += 1,
            None => row.rest += 1,
        }
    }
    print_table(&rows);
    let survived = answers.iter().filter(|(_, answer)| **answer == Answer::Survived);
    let survived: Vec<&str> = survived.map(|(number, _)| name(*number)).collect();
    for name in &survived {
        println!("SURVIVED  {name}");
    }
    let rest: Vec<&str> = numbered()
        .filter(|(number, _)| tree.rest.contains(number))
        .map(|(_, mutant)| &*mutant.name)
        .collect();
    let alone = !rest.is_empty() && one_by_one(workspace, &folder, &rest, arguments)?;
    Ok(if alone || !survived.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_table(rows: &BTreeMap<&str, Row>) {
    println!("| file | mutants | caught | endless | do not compile | survived | one by one |");
    println!("|---|---|---|---|---|---|---|");
    for (file, it) in rows {
        let Row { tried, caught, too_long, broken, survived, rest } = it;
        println!("| `{file}` | {tried} | {caught} | {too_long} | {broken} | {survived} | {rest} |");
    }
}

/// What cannot be switched, as a function that returns another type in each case: each is built alone.
fn one_by_one(workspace: &Workspace, folder: &Path, names: &[&str], arguments: &Arguments) -> Result<bool> {
    if arguments.quick {
        for name in names {
            println!("not tried {name}");
        }
        return Ok(false);
    }
    println!("{} mutants, each built alone", names.len());
    let mut cargo = cargo_mutants(workspace);
    cargo.arg("--output").arg(folder).args(["--no-shuffle", "--jobs", &arguments.jobs.to_string()]);
    for name in names {
        cargo.args(["--re", &format!("^{}$", escaped(name))]);
    }
    // Each copy builds in its own folder.
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_INCREMENTAL").env("HEDDLE_CLUSTERS", "60");
    survived(&mut cargo)
}

/// A text as a regular expression that means just it.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|it| (!it.is_alphanumeric() && it != ' ').then_some('\\').into_iter().chain([it]))
        .collect()
}

/// Whether some mutants survived.
fn survived(cargo: &mut Command) -> Result<bool> {
    let status = cargo.status()?;
    match status.code() {
        Some(0) => Ok(false),
        Some(code) if SURVIVORS.contains(&code) => Ok(true),
        _ => bail!("`{}` failed ({status})", command::shown(cargo)),
    }
}
