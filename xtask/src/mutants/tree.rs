//! A copy of the source tree in which every mutant is a switch, and the tests built from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    list::Mutant,
    sites::{Blame, SWITCH, Switched, blame},
};
use crate::{command, workspace::Workspace};

/// What the compiler refuses to build although it is what a mutant asks for.
const ALLOWED: &str = "#![allow(warnings, arithmetic_overflow, overflowing_literals, unconditional_panic)]\n";
/// More mutants than this are worth a slower build of quicker tests.
const MANY: usize = 500;
/// Where the switches' function is put.
const ROOT: &str = "policy/src/lib.rs";
/// The tests that are asked, the quickest to notice first.
pub const TESTS: [&str; 3] = ["agreement", "semantics", "heddle_policy"];

/// All mutants in one build.
pub struct Tree {
    /// Where the tests expect to run.
    pub folder: PathBuf,
    /// The tests' programs, in the order of [`TESTS`].
    pub tests: Vec<PathBuf>,
    /// The mutants whose own text does not compile.
    pub broken: BTreeSet<u32>,
    /// The mutants that no switch could be made for.
    pub rest: BTreeSet<u32>,
}

/// Copies the tree, switches every mutant in, takes out what does not compile, and builds the tests.
///
/// # Errors
/// When something does not compile that no mutant is to blame for.
pub fn build(workspace: &Workspace, folder: &Path, mutants: &[Mutant]) -> Result<Tree> {
    let (tree, many) = (folder.join("tree"), mutants.len() > MANY);
    let switched = mutants.iter().map(|mutant| &*mutant.file).collect();
    copy(workspace, &tree, &switched)?;
    let mut by_file: BTreeMap<&str, Vec<(u32, &Mutant)>> = BTreeMap::new();
    for (number, mutant) in (1..).zip(mutants) {
        by_file.entry(&mutant.file).or_default().push((number, mutant));
    }
    let mut rest: BTreeSet<u32> = BTreeSet::new();
    let mut texts = BTreeMap::new();
    for (file, mutants) in &by_file {
        let text =
            fs::read_to_string(workspace.root.join(file)).with_context(|| format!("cannot read {file}"))?;
        let placed = Switched::new(&text, mutants).with_context(|| (*file).to_owned())?.numbers();
        rest.extend(mutants.iter().map(|(number, _)| *number).filter(|number| !placed.contains(number)));
        texts.insert(*file, text);
    }
    let key = key(&texts);
    let known = folder.join("known.json");
    let mut broken = BTreeSet::new();
    if let Some(earlier) = fs::read(&known).ok().and_then(|text| serde_json::from_slice::<Known>(&text).ok())
        && earlier.key == key
    {
        (broken, rest) = (earlier.broken, earlier.rest);
    }
    loop {
        let without = &broken | &rest;
        let mut written = BTreeMap::new();
        for (file, mutants) in &by_file {
            let switched = Switched::new(&texts[file], mutants)?.render(&without);
            written.insert((*file).to_owned(), switched);
        }
        let root = match written.remove(ROOT) {
            Some(text) => text,
            None => fs::read_to_string(workspace.root.join(ROOT))?,
        };
        written.insert(ROOT.to_owned(), format!("{ALLOWED}{root}{SWITCH}"));
        for (file, text) in &written {
            write(&tree.join(file), text.as_bytes())?;
        }
        let errors = errors(workspace, &tree, many)?;
        if errors.is_empty() {
            break;
        }
        let known = without.len();
        for error in &errors {
            error.settle(&written, &mut broken, &mut rest);
        }
        if broken.union(&rest).count() == known {
            let told: Vec<&str> = errors.iter().map(|error| &*error.rendered).collect();
            bail!("this does not compile, and no mutant is to blame:\n{}", told.join("\n"));
        }
        println!("{} do not compile, {} cannot be switched", broken.len(), rest.len());
    }
    let settled = Known { key, broken: broken.clone(), rest: rest.clone() };
    write(&known, &serde_json::to_vec(&settled)?)?;
    let tests = tests(workspace, &tree, many)?;
    Ok(Tree { folder: tree.join("policy"), tests, broken, rest })
}

/// What an earlier run found out about the same code.
#[derive(Serialize, Deserialize)]
struct Known {
    key: u64,
    broken: BTreeSet<u32>,
    rest: BTreeSet<u32>,
}

/// Tells one state of the code from another, and what may be switched in it.
fn key(texts: &BTreeMap<&str, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (texts, include_str!("sites.rs")).hash(&mut hasher);
    hasher.finish()
}

/// What git knows or would, so that nothing is built anew that did not change.
fn copy(workspace: &Workspace, tree: &Path, switched: &BTreeSet<&str>) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = command::output(&mut git)?;
    let files: BTreeSet<&str> = listed.split('\0').filter(|file| !file.is_empty()).collect();
    clear(tree, &tree.join("policy"), &files)?;
    for file in files {
        // One that is switched is written once, with its switches.
        if file == ROOT || switched.contains(file) {
            continue;
        }
        let from = workspace.root.join(file);
        if from.is_file() {
            write(&tree.join(file), &fs::read(&from).with_context(|| from.display().to_string())?)?;
        }
    }
    Ok(())
}

/// Removes what an earlier run copied and is no more.
fn clear(tree: &Path, folder: &Path, files: &BTreeSet<&str>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            clear(tree, &path, files)?;
        } else if !path.strip_prefix(tree).is_ok_and(|it| it.to_str().is_some_and(|it| files.contains(it))) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes a file unless that is what it holds.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|held| held == content) {
        return Ok(());
    }
    let context = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    fs::write(path, content).with_context(context)
}

/// What rustc tells about an error.
#[derive(Deserialize)]
struct Error {
    level: String,
    rendered: String,
    spans: Vec<ErrorSpan>,
}

#[derive(Deserialize)]
struct ErrorSpan {
    file_name: String,
    byte_start: usize,
    is_primary: bool,
}

impl Error {
    /// Adds the mutants that are to blame to those that do not compile or cannot be switched.
    fn settle(
        &self,
        written: &BTreeMap<String, String>,
        broken: &mut BTreeSet<u32>,
        rest: &mut BTreeSet<u32>,
    ) {
        for primary in [true, false] {
            for span in self.spans.iter().filter(|span| span.is_primary == primary) {
                let Some(text) = written.get(&span.file_name) else { continue };
                match blame(text, span.byte_start) {
                    Blame::Mutant(number) => broken.insert(number),
                    Blame::Site(numbers) => {
                        rest.extend(numbers);
                        true
                    }
                    Blame::Nobody => continue,
                };
                return;
            }
        }
    }
}

fn cargo(workspace: &Workspace, tree: &Path, many: bool, command: &str) -> Command {
    let mut cargo = command::cargo();
    cargo.current_dir(tree).args([command, "--profile=mutants", "--package=heddle-policy", "--lib"]);
    // All is built in one go, and run two thousand times; a few files are looked at sooner as they are built sooner.
    if many {
        cargo.args(["--config", "profile.mutants.package.heddle-policy.opt-level=1"]);
    }
    // A folder of its own: to cargo the copy is the same package, and what was built of one would pass for the other.
    cargo.args(["--message-format=json", "--quiet"]);
    cargo.env("CARGO_TARGET_DIR", workspace.target.join("broken").join("target"));
    cargo.env("CARGO_INCREMENTAL", "0").stdin(Stdio::null());
    cargo
}

fn messages(cargo: &mut Command) -> Result<(Vec<Value>, bool)> {
    let output = cargo.output().with_context(|| format!("cannot run `{}`", command::shown(cargo)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if messages.is_empty() && !output.status.success() {
        bail!("`{}` failed: {}", command::shown(cargo), String::from_utf8_lossy(&output.stderr));
    }
    Ok((messages, output.status.success()))
}

fn errors(workspace: &Workspace, tree: &Path, many: bool) -> Result<Vec<Error>> {
    let (messages, built) = messages(&mut cargo(workspace, tree, many, "build"))?;
    let mut errors = Vec::new();
    for message in messages.into_iter().filter(|it| it["reason"] == "compiler-message") {
        let error: Error = serde_json::from_value(message["message"].clone())?;
        if error.level == "error" {
            errors.push(error);
        }
    }
    if errors.is_empty() && !built {
        bail!("`cargo build` failed in {} without a word of the compiler's", tree.display());
    }
    Ok(errors)
}

fn tests(workspace: &Workspace, tree: &Path, many: bool) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo(workspace, tree, many, "test");
    cargo.args(["--test=semantics", "--test=agreement", "--no-run"]);
    let (messages, built) = messages(&mut cargo)?;
    if !built {
        let told: Vec<&str> = messages.iter().filter_map(|it| it["message"]["rendered"].as_str()).collect();
        bail!("the tests do not compile in {}:\n{}", tree.display(), told.join("\n"));
    }
    let program = |name: &str| {
        let found = messages.iter().find(|it| it["target"]["name"] == name && it["executable"].is_string());
        let path = found.and_then(|it| it["executable"].as_str()).map(PathBuf::from);
        path.with_context(|| format!("cargo built no program for the test {name}"))
    };
    TESTS.iter().map(|name| program(name)).collect()
}
