//! `heddle policy matrix`: who may talk to whom.

mod grid;
mod page;
#[cfg(test)]
mod tests;

use self::grid::Grid;
use super::{
    Failure,
    parties::shortened,
    picture::Picture,
    source::Rules,
    table::{table, width},
};
use crate::cli::render::print;
use std::{collections::BTreeMap, process::ExitCode};

pub(super) const ABOUT: &str = "Shows who may talk to whom: every workload and port, and who may reach it by which rule. As a table, as CSV (a line for each \
client, destination and port), as JSON, or as one HTML page that needs no network: filter it, move with the arrow keys, and press Enter \
(or click) on a cell to see the rule.

  heddle policy matrix ./manifests
  heddle policy matrix ./manifests --namespace shop
  heddle policy matrix --socket /run/heddle/agent.sock --output html > matrix.html";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    rules: Rules,
    /// Only destinations in this namespace; repeat for several
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// How the matrix is printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A line for each destination, port and rule
    Table,
    /// A line for each client, destination and port
    Csv,
    /// One self-contained page
    Html,
    /// One JSON object
    Json,
}

fn as_table(grid: &Grid, width: Option<u16>) -> String {
    let mut rows = Vec::new();
    for (end, cells) in grid.ends.iter().zip(&grid.cells) {
        let mut by_rule: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for (client, cell) in grid.clients.iter().zip(cells) {
            let judged = &grid.answers[*cell];
            if judged.verdict != "refused" {
                by_rule.entry((judged.verdict, &judged.rule)).or_default().push(client.clone());
            }
        }
        let mut first = true;
        let mut row = |who: String, by: String| {
            let (to, port) = if first { (end.to.clone(), end.port.clone()) } else { Default::default() };
            first = false;
            rows.push(vec![to, port, who, by]);
        };
        if by_rule.is_empty() {
            row("nobody".into(), end.governs.clone());
        }
        for ((verdict, rule), clients) in by_rule {
            let by = if rule.is_empty() { "nothing judges it: not meshed" } else { rule };
            let by = if verdict == "audit" { format!("audit: {by}") } else { by.to_owned() };
            let who = if clients.len() == grid.clients.len() {
                format!("everybody ({})", clients.len())
            } else {
                shortened(&clients, 4)
            };
            row(who, by);
        }
    }
    table(&["to", "port", "who may", "by"], rows, width)
}

fn as_csv(grid: &Grid) -> Result<String, csv::Error> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["from", "to", "port", "verdict", "reason", "rule"])?;
    for (end, cells) in grid.ends.iter().zip(&grid.cells) {
        for (client, cell) in grid.clients.iter().zip(cells) {
            let judged = &grid.answers[*cell];
            out.write_record([client, &end.to, &end.port, judged.verdict, judged.reason, &judged.rule])?;
        }
    }
    let bytes = out.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let picture = Picture::of(arguments.rules.read()?);
    let grid = Grid::of(&picture, &arguments.namespace);
    let failed = |error: &dyn std::fmt::Display| miette::miette!("cannot print: {error}");
    print(&match arguments.output {
        Form::Table => as_table(&grid, width()).trim_end().to_owned(),
        Form::Csv => as_csv(&grid).map_err(|error| failed(&error))?,
        Form::Json => serde_json::to_string(&grid).map_err(|error| failed(&error))?,
        Form::Html => page::write(&grid).map_err(|error| failed(&error))?,
    })?;
    if picture.unread {
        eprintln!("part of {} cannot be read: `heddle policy check` names the file", picture.name);
    }
    Ok(ExitCode::from(if picture.unread { 2 } else { 0 }))
}
