//! What cargo-mutants would change.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{command, workspace::Workspace};

/// One change to one place, as cargo-mutants tells it.
#[derive(Clone, Deserialize, Debug)]
pub struct Mutant {
    /// File, line, column and what is done.
    pub name: String,
    /// From the root of the source tree.
    pub file: String,
    /// What sort of change.
    pub genre: Genre,
    /// What is put in its place.
    pub replacement: String,
    /// What is replaced.
    pub span: Span,
}

/// What sort of place a mutant changes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
pub enum Genre {
    /// The body of a function becomes a value.
    FnValue,
    /// One operator for another.
    BinaryOperator,
    /// A negation is left out.
    UnaryOperator,
    /// A guard becomes `true` or `false`.
    MatchArmGuard,
    /// An arm is left out.
    MatchArm,
    /// A field is left to the struct's `..base`.
    StructField,
    /// Something that a later cargo-mutants does.
    #[serde(other)]
    Other,
}

/// Where it is.
#[derive(Clone, Copy, Deserialize, Debug)]
pub struct Span {
    /// Its first character.
    pub start: Place,
}

/// A character of a file, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Debug)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Mutant {
    /// The file as `--file` takes it.
    pub fn short_file(&self) -> &str {
        self.file.strip_prefix("policy/src/").unwrap_or(&self.file)
    }
}

/// `cargo mutants`, with the file's settings in `.cargo/mutants.toml`.
pub fn cargo_mutants(workspace: &Workspace) -> Command {
    let mut cargo = command::cargo();
    cargo.current_dir(&workspace.root).arg("mutants");
    cargo
}

/// Every mutant of the policy's code, in the order of files and lines.
///
/// # Errors
/// When cargo-mutants is missing or cannot read the code.
pub fn mutants(workspace: &Workspace) -> Result<Vec<Mutant>> {
    if command::output(cargo_mutants(workspace).arg("--version")).is_err() {
        bail!("cargo-mutants is missing: `cargo install --locked cargo-mutants`");
    }
    let mut list = cargo_mutants(workspace);
    list.args(["--list", "--json", "--file", "policy/src/**/*.rs"]);
    let text = command::output(&mut list)?;
    let mut mutants: Vec<Mutant> = serde_json::from_str(&text)
        .with_context(|| format!("`{}` answered something else than a list", command::shown(&list)))?;
    mutants.sort_by(|a, b| (&a.file, a.span.start).cmp(&(&b.file, b.span.start)));
    Ok(mutants)
}
