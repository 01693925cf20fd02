//! Findings in the form that code hosts show beside a change: SARIF 2.1.0.

use super::Finding;
use heddle_policy::Severity;
use serde::Serialize;
use std::collections::BTreeMap;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

#[derive(Serialize)]
struct Log<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'a> {
    tool: Tool,
    column_kind: &'static str,
    results: Vec<Outcome<'a>>,
}

#[derive(Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Driver {
    name: &'static str,
    version: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: String,
    short_description: Text,
}

#[derive(Serialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome<'a> {
    rule_id: String,
    rule_index: usize,
    level: &'static str,
    message: Text,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locations: Vec<Location<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    physical_location: Option<Physical>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logical_locations: Vec<Logical<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Physical {
    artifact_location: Artifact,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
}

#[derive(Serialize)]
struct Artifact {
    uri: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Logical<'a> {
    fully_qualified_name: String,
    kind: &'a str,
}

/// A path as a URI reference: relative ones stay so, absolute ones are `file:` URIs.
fn uri(path: &str) -> String {
    let mut out = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                out.push(byte.into())
            }
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn outcome<'a>(finding: &'a Finding, rules: &BTreeMap<String, usize>) -> Outcome<'a> {
    let problem = &finding.problem;
    let mut text = [problem.resource.as_str(), problem.field.as_str()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| format!("{part}: "))
        .collect::<String>();
    text += &problem.reason;
    if !problem.remedy.is_empty() {
        text += &format!("\n{}", problem.remedy);
    }
    if let Some(equivalent) = &finding.equivalent {
        text += &format!("\n{equivalent}");
    }
    let region = (problem.line != 0).then_some(Region { start_line: problem.line });
    let physical = (!problem.file.is_empty())
        .then(|| Physical { artifact_location: Artifact { uri: uri(&problem.file) }, region });
    let named = !problem.resource.is_empty() || physical.is_some();
    let name = if problem.field.is_empty() {
        problem.resource.clone()
    } else {
        format!("{}: {}", problem.resource, problem.field)
    };
    let logical = if problem.resource.is_empty() {
        Vec::new()
    } else {
        vec![Logical { fully_qualified_name: name, kind: "resource" }]
    };
    let rule_id = finding.rule();
    Outcome {
        rule_index: rules.get(&rule_id).copied().unwrap_or(0),
        rule_id,
        level: level(problem.severity),
        message: Text { text },
        locations: if named {
            vec![Location { physical_location: physical, logical_locations: logical }]
        } else {
            Vec::new()
        },
    }
}

/// The findings as a SARIF log.
pub(super) fn write(findings: &[Finding]) -> Result<String, serde_json::Error> {
    let ids: std::collections::BTreeSet<String> = findings.iter().map(Finding::rule).collect();
    let index: BTreeMap<String, usize> = ids.iter().cloned().zip(0..).collect();
    let describe = |id: &String| Rule {
        id: id.clone(),
        short_description: Text { text: format!("What `heddle policy check` says of {id}") },
    };
    let driver = Driver {
        name: "heddle policy check",
        version: env!("CARGO_PKG_VERSION"),
        rules: ids.iter().map(describe).collect(),
    };
    let results = findings.iter().map(|finding| outcome(finding, &index)).collect();
    let run = Run { tool: Tool { driver }, column_kind: "unicodeCodePoints", results };
    serde_json::to_string_pretty(&Log { schema: SCHEMA, version: "2.1.0", runs: [run] })
}
