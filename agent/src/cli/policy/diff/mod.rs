//! `heddle policy diff`: what a change of rules would do to flows.

mod changes;
#[cfg(test)]
mod tests;

use self::changes::{Change, Group, grouped};
use super::{
    Failure, Output, observed,
    parties::shortened,
    picture::Picture,
    source::{self, SettingFlags},
    table::{table, width},
};
use crate::cli::render::print;
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

pub(super) const ABOUT: &str = "Says which flows between the actual workloads a change of rules would newly allow or newly refuse, and by which rule before \
and after. OLD and NEW are each a folder of manifests, a file, `-`, an agent's socket, or `cluster:` for what the API server has.

With --observed FILE, it says which of the flows that really happened would be refused under NEW.

Ends with 0; with 1 if something that happened would be refused; with 2 if it could not run.

  heddle policy diff ./main/manifests ./branch/manifests
  heddle policy diff cluster: ./manifests
  heddle policy diff /run/heddle/agent.sock ./manifests --observed flows.jsonl
  heddle policy diff ./manifests ./manifests --observed flows.jsonl   # would today's rules refuse what happened?";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The rules before
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The rules after
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Flows that were recorded (`flowLog`, or `heddle flows`)
    #[arg(long, value_name = "FILE")]
    observed: Option<PathBuf>,
    /// Show flows that stay allowed or refused too, where another rule decides about them
    #[arg(long)]
    all: bool,
    /// Show at most so many groups of each sort
    #[arg(long, value_name = "N", default_value_t = 40)]
    most: usize,
    #[command(flatten)]
    settings: SettingFlags,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What a change would do.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    old: String,
    new: String,
    newly_refused: Vec<Group>,
    newly_allowed: Vec<Group>,
    /// Flows about which another rule decides, or which only `audit` lets pass now.
    otherwise_decided: Vec<Group>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<Happened>,
}

/// What a change would do to flows that happened.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Happened {
    /// Sorts of flows that were allowed when they happened.
    flows: usize,
    /// Those that would be refused.
    broken: Vec<Group>,
    /// Those that were refused and would be allowed.
    opened: Vec<Group>,
    /// Those that lead to what NEW does not have.
    gone: Vec<String>,
    /// What is missing in the recording; empty: nothing.
    caveat: String,
}

fn difference(old: &Picture, new: &Picture, all: bool) -> Difference {
    let changes = changes::between(old, new);
    let sort = |wanted: fn(&Change) -> bool| {
        grouped(changes.iter().filter(|change| wanted(change)).cloned().collect())
    };
    let otherwise = |change: &Change| change.before.allowed() == change.after.allowed();
    Difference {
        old: old.name.clone(),
        new: new.name.clone(),
        newly_refused: sort(|it| it.before.allowed() && !it.after.allowed()),
        newly_allowed: sort(|it| !it.before.allowed() && it.after.allowed()),
        otherwise_decided: grouped(
            changes
                .iter()
                .filter(|it| otherwise(it) && (all || it.before.verdict != it.after.verdict))
                .cloned()
                .collect(),
        ),
        observed: None,
    }
}

fn happened(observed: &observed::Observed, old: &Picture, new: &Picture) -> Happened {
    let mut it = Happened {
        flows: observed.allowed().count(),
        broken: Vec::new(),
        opened: Vec::new(),
        gone: Vec::new(),
        caveat: observed.caveat(),
    };
    let (mut broken, mut opened) = (Vec::new(), Vec::new());
    for flow in &observed.flows {
        let allowed = flow.outcome == crate::observe::flows::record::FlowOutcome::Allowed;
        let Some((pod, port)) = observed::server(new, flow) else {
            if allowed {
                it.gone.push(format!(
                    "{}:{}",
                    observed::destination(flow),
                    flow.destination.port.unwrap_or(0)
                ));
            }
            continue;
        };
        let client = observed::client(new, flow);
        let after = changes::Side::of(&new.judge(&client, pod, port, None));
        let before = match observed::server(old, flow) {
            Some((pod, port)) => changes::Side::of(&old.judge(&observed::client(old, flow), pod, port, None)),
            None => changes::Side::absent(),
        };
        if allowed == after.allowed() {
            continue;
        }
        let change = Change {
            from: client.name,
            to: observed::named(pod),
            port: port.to_string(),
            before,
            after,
            count: flow.count,
        };
        if allowed { broken.push(change) } else { opened.push(change) }
    }
    it.broken = grouped(broken);
    it.opened = grouped(opened);
    it.gone.sort();
    it.gone.dedup();
    it
}

fn counted_as(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn section(title: &str, groups: &[Group], counted: bool, most: usize, width: Option<u16>) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let flows: usize = groups.iter().map(Group::flows).sum();
    let mut out =
        format!("{title}: {} in {}\n", counted_as(flows, "flow"), counted_as(groups.len(), "group"));
    let rows = groups
        .iter()
        .take(most)
        .map(|group| {
            let mut row = vec![
                shortened(&group.from, 3),
                shortened(&group.to, 3),
                group.port.clone(),
                group.before.to_string(),
                group.after.to_string(),
            ];
            if counted {
                row.insert(3, group.count.to_string());
            }
            row
        })
        .collect();
    let header: &[&str] = if counted {
        &["from", "to", "port", "times", "before", "after"]
    } else {
        &["from", "to", "port", "before", "after"]
    };
    out += &table(header, rows, width);
    if groups.len() > most {
        out += &format!("… and {} groups more: --most {}\n", groups.len() - most, groups.len());
    }
    out + "\n"
}

impl Difference {
    fn text(&self, most: usize, width: Option<u16>) -> String {
        let mut out = String::new();
        if let Some(observed) = &self.observed {
            out += &section("HAPPENED AND WOULD BE REFUSED", &observed.broken, true, most, width);
            out += &section("was refused and would be allowed", &observed.opened, true, most, width);
            if !observed.gone.is_empty() {
                out += &format!(
                    "leads to what {} does not have: {}\n\n",
                    self.new,
                    shortened(&observed.gone, 5)
                );
            }
        }
        out += &section("newly refused", &self.newly_refused, false, most, width);
        out += &section("newly allowed", &self.newly_allowed, false, most, width);
        out += &section("decided otherwise", &self.otherwise_decided, false, most, width);
        if self.newly_refused.is_empty() && self.newly_allowed.is_empty() {
            out += &format!("{} -> {}: no flow is newly allowed or refused\n", self.old, self.new);
        }
        if let Some(observed) = &self.observed {
            let broken: usize = observed.broken.iter().map(Group::flows).sum();
            out +=
                &format!("of {} sorts of flows that happened, {broken} would be refused\n", observed.flows);
            if !observed.caveat.is_empty() {
                out += &format!("note: {}\n", observed.caveat);
            }
        }
        out.trim_end().to_owned()
    }
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let old = Picture::of(source::read(&arguments.old, &arguments.settings)?);
    let new = Picture::of(source::read(&arguments.new, &arguments.settings)?);
    for picture in [&old, &new] {
        if picture.unread {
            return Err(miette::miette!(
                help = "`heddle policy check` names the file",
                "part of {} cannot be read, so that nothing can be said for certain",
                picture.name
            ));
        }
    }
    let mut difference = difference(&old, &new, arguments.all);
    if let Some(path) = &arguments.observed {
        difference.observed = Some(happened(&observed::read(path)?, &old, &new));
    }
    print(&match arguments.output {
        Output::Text => difference.text(arguments.most, width()),
        Output::Json => serde_json::to_string(&difference).map_err(|error| miette::miette!("{error}"))?,
    })?;
    Ok(ExitCode::from(u8::from(difference.observed.is_some_and(|it| !it.broken.is_empty()))))
}
