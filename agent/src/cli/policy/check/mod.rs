//! `heddle policy check`: what is wrong with rules, before an agent reads them.

mod legacy;
mod sarif;
#[cfg(test)]
mod tests;

use super::{Failure, picture::Picture, source::Rules};
use crate::cli::render::{self, print};
use heddle_policy::{Problem, Severity};
use serde::Serialize;
use std::process::ExitCode;

pub(super) const ABOUT: &str = "Says what is wrong with rules before they are put in force, each with file, line, field and what to do: what cannot be \
read, references to what is not there, selectors that select nothing, two Servers on one port, identities that no service account has, \
rules that never decide, and the older kinds (ServiceProfile, TrafficSplit) with the routes that say the same.

Ends with 0: nothing wrong (notes and, without --deny-warnings, warnings may be told); 1: errors; 2: it could not run, or a file \
could not be read.

  heddle policy check ./manifests
  heddle policy check ./manifests --deny-warnings --output sarif > policy.sarif
  kubectl get pods,serviceaccounts,servers,authorizationpolicies -A -o yaml | heddle policy check -
  heddle policy check --socket /run/heddle/agent.sock
  heddle policy check --cluster";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    rules: Rules,
    /// Warnings count as errors for the exit code
    #[arg(long)]
    deny_warnings: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
    /// The same as --output json
    #[arg(long, hide = true, conflicts_with = "output")]
    json: bool,
}

/// How findings are printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For people, with the lines in question
    Text,
    /// One JSON object
    Json,
    /// SARIF 2.1.0, for code hosts and editors
    Sarif,
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Finding {
    #[serde(flatten)]
    pub problem: Problem,
    /// What to write in its place, as YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equivalent: Option<String>,
}

impl Finding {
    /// What kind of finding it is: stable, so that one can be silenced. The kind of resource and the field, without places
    /// in lists.
    pub fn rule(&self) -> String {
        let kind = self.problem.resource.split(' ').next().filter(|kind| !kind.is_empty()).unwrap_or("file");
        let mut field = String::new();
        let mut inside = false;
        for c in self.problem.field.chars() {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                c if !inside => field.push(c),
                _ => {}
            }
        }
        if field.is_empty() { kind.to_owned() } else { format!("{kind}/{field}") }
    }
}

/// What a look found.
struct Findings {
    picture: Picture,
    findings: Vec<Finding>,
}

impl Findings {
    fn of(picture: Picture) -> Self {
        let legacy = legacy::look(&picture);
        let mut findings: Vec<Finding> = picture
            .problems
            .iter()
            // Of the older kinds the parser says only that they are not in force.
            .filter(|it| {
                let same = |old: &legacy::Legacy| {
                    old.problem.file == it.file
                        && old.problem.document == it.document
                        && old.problem.line == it.line
                };
                !(it.field == "kind" && legacy.iter().any(same))
            })
            .map(|problem| Finding { problem: problem.clone(), equivalent: None })
            .collect();
        findings.extend(
            legacy.into_iter().map(|it| Finding { problem: it.problem, equivalent: Some(it.equivalent) }),
        );
        findings.sort_by(|a, b| {
            let key = |it: &Finding| (it.problem.file.clone(), it.problem.line, it.problem.severity);
            key(a).cmp(&key(b)).then_with(|| a.cmp(b))
        });
        Self { picture, findings }
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|it| it.problem.severity == severity).count()
    }

    fn code(&self, deny_warnings: bool) -> u8 {
        let bad = self.count(Severity::Error) + if deny_warnings { self.count(Severity::Warning) } else { 0 };
        if self.picture.unread { 2 } else { u8::from(bad > 0) }
    }

    fn summary(&self) -> String {
        format!(
            "{} resources in {} files: {} errors, {} warnings, {} notes",
            self.picture.index.len(),
            self.picture.files,
            self.count(Severity::Error),
            self.count(Severity::Warning),
            self.count(Severity::Note)
        )
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let text = self.picture.texts.get(&finding.problem.file).map(String::as_str);
            out += &format!("{:?}\n", render::problem(&finding.problem, text));
            if let Some(equivalent) = &finding.equivalent {
                out += &equivalent.lines().map(|line| format!("    {line}\n")).collect::<String>();
                out.push('\n');
            }
        }
        out + &self.summary()
    }

    fn json(&self) -> String {
        serde_json::json!({
            "folder": self.picture.name,
            "files": self.picture.files,
            "resources": self.picture.index.len(),
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "notes": self.count(Severity::Note),
            "problems": self.findings,
        })
        .to_string()
    }
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let found = Findings::of(Picture::of(arguments.rules.read()?));
    let form = if arguments.json { Form::Json } else { arguments.output };
    print(&match form {
        Form::Text => found.text(),
        Form::Json => found.json(),
        Form::Sarif => {
            sarif::write(&found.findings).map_err(|error| miette::miette!("cannot print: {error}"))?
        }
    })?;
    Ok(ExitCode::from(found.code(arguments.deny_warnings)))
}
