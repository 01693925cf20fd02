//! `heddle policy`: what rules mean and what a change of them would do.
//!
//! [`source`] reads, [`picture`] holds the whole cluster and answers the one question (who may reach what), and each command
//! is a way of asking it.

mod asked;
mod assertions;
mod check;
mod diff;
mod explain;
mod matrix;
mod observed;
mod parties;
mod picture;
mod port;
mod source;
mod suggest;
mod table;
mod templates;
#[cfg(test)]
mod testing;

use super::Failure;
use crate::cluster::kubernetes::whole::Look;
use heddle_policy::{ClusterSettings, Problem};
use std::process::ExitCode;

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
}

pub(super) const ABOUT: &str = "Looks at rules without putting them in force. Each command reads a folder of manifests, one file, standard input (`-`), \
the resources that a running agent has in force (`--socket PATH`) or the whole cluster's (`--cluster`).

  check     what is wrong with them
  explain   why one client may or may not reach one destination
  matrix    who may talk to whom
  diff      which flows a change would allow or refuse; with --observed, which flows that happened would break
  suggest   the least rules for what was recorded
  test      assertions, kept in git beside the rules

docs/policy.md has an example of each.";

/// The commands.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Say what is wrong with rules
    #[command(long_about = check::ABOUT)]
    Check(check::Arguments),
    /// Say why a client may or may not reach a destination
    #[command(long_about = explain::ABOUT)]
    Explain(explain::Arguments),
    /// Show who may talk to whom
    #[command(long_about = matrix::ABOUT)]
    Matrix(matrix::Arguments),
    /// Show which flows a change of rules would allow or refuse
    #[command(long_about = diff::ABOUT)]
    Diff(diff::Arguments),
    /// Write the least rules that allow what was recorded
    #[command(long_about = suggest::ABOUT)]
    Suggest(suggest::Arguments),
    /// Hold rules against assertions
    #[command(long_about = assertions::ABOUT)]
    Test(assertions::Arguments),
}

/// Runs a command.
pub(super) fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(arguments) => check::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Matrix(arguments) => matrix::run(arguments),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Suggest(arguments) => suggest::run(arguments),
        Command::Test(arguments) => assertions::run(arguments),
    }
}

/// What is wrong with a cluster's rules: the same as `heddle policy check --cluster` prints.
pub(super) fn problems(look: &Look, settings: ClusterSettings) -> Vec<Problem> {
    picture::Picture::of(source::of_look("the cluster", look, settings)).problems
}
