//! `heddle policy test`: what rules are to do, kept beside them and held against them.

use super::{
    Failure,
    asked::Asked,
    explain::judge_all,
    parties,
    picture::{Judged, Picture},
    source::Rules,
};
use crate::cli::render::print;
use miette::miette;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;
use std::{path::PathBuf, process::ExitCode};

pub(super) const ABOUT: &str =
    "Holds rules against assertions that are kept in git beside them. FILE is YAML:

  tests:
    - name: the web shop reaches its database    # optional
      from: shop/web                             # as --from of `heddle policy explain`
      to: shop/redis:6379                        # as --to
      expect: allowed                            # allowed, refused, or audit (allowed by audit alone)
      rule: AuthorizationPolicy shop/allow-web   # optional: the rule that decides
    - from: 203.0.113.7
      to: shop/redis:6379
      expect: refused
      reason: no_identity                        # optional
    - from: shop/web
      to: shop/api:8080
      request: {method: GET, path: /items/7, host: api.shop, headers: {x-tenant: a}}   # where requests are judged
      expect: allowed

Ends with 0 if each holds, 1 if one does not, 2 if it could not run or a test names what is not there.

  heddle policy test policy-tests.yaml ./manifests
  heddle policy test policy-tests.yaml --socket /run/heddle/agent.sock";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The file of assertions
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    rules: Rules,
    /// How to print
    #[arg(long, value_enum, default_value_t = super::Output::Text)]
    output: super::Output,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tests: Vec<Spanned<Assertion>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Assertion {
    #[serde(default)]
    name: String,
    from: String,
    to: String,
    request: Option<Asked>,
    expect: Expected,
    reason: Option<String>,
    rule: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allowed,
    Refused,
    Audit,
}

impl Expected {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Audit => "audit",
        }
    }

    fn holds(self, judged: &Judged) -> bool {
        match self {
            Self::Allowed => judged.allowed && !judged.audited,
            Self::Audit => judged.allowed && judged.audited,
            Self::Refused => !judged.allowed,
        }
    }
}

/// How one assertion went.
#[derive(Serialize)]
struct Went {
    line: u64,
    name: String,
    passed: bool,
    /// What is wrong; empty: nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
    /// Whether the test itself cannot be run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    broken: bool,
}

fn hold(picture: &Picture, test: &Assertion) -> Result<String, Failure> {
    let from = parties::from(picture, &test.from)?;
    let to = parties::to(picture, &test.to)?;
    let mut wrong = Vec::new();
    let judged = match &test.request {
        Some(asked) => asked.with(|it| judge_all(picture, &from.client, &to, Some(it))),
        None => judge_all(picture, &from.client, &to, None),
    };
    for (place, judged) in judged {
        let mut differs = Vec::new();
        if !test.expect.holds(&judged) {
            differs.push(format!(
                "expected {}, is {} ({})",
                test.expect.as_str(),
                judged.word(),
                judged.why()
            ));
        } else {
            if let Some(reason) = test.reason.as_ref().filter(|it| **it != judged.reason.as_str()) {
                differs.push(format!("expected reason {reason}, is {}", judged.reason.as_str()));
            }
            if let Some(rule) = test.rule.as_ref().filter(|it| **it != judged.rule) {
                let is = if judged.rule.is_empty() { "none" } else { &judged.rule };
                differs.push(format!("expected rule {rule:?}, is {is:?}"));
            }
        }
        wrong.extend(differs.into_iter().map(|it| format!("{} -> {place}: {it}", from.client.name)));
    }
    Ok(wrong.join("\n"))
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let file = arguments.file.display().to_string();
    let text = std::fs::read_to_string(&arguments.file)
        .map_err(|error| miette!(help = "name a file of assertions", "{file} cannot be read: {error}"))?;
    let picture = Picture::of(arguments.rules.read()?);
    let went = run_tests(&picture, &file, &text)?;
    let broken = picture.unread || went.iter().any(|it| it.broken);
    let failed = went.iter().filter(|it| !it.passed).count();
    print(&match arguments.output {
        super::Output::Text => report(&file, &arguments.rules.name(), &went),
        super::Output::Json => serde_json::json!({
            "file": file, "passed": went.len() - failed, "failed": failed, "tests": went,
        })
        .to_string(),
    })?;
    Ok(ExitCode::from(if broken { 2 } else { u8::from(failed > 0) }))
}

fn run_tests(picture: &Picture, file: &str, text: &str) -> Result<Vec<Went>, Failure> {
    let options = serde_saphyr::options! { with_snippet: false };
    let tests: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or_else(String::new, |at| format!(":{}", at.line()));
        miette!(help = "`heddle policy test --help` shows the form", "{file}{line}: {error}")
    })?;
    let one = |test: Spanned<Assertion>| {
        let (line, test) = (test.referenced.line(), test.value);
        let name = match test.name.as_str() {
            "" => format!("{} -> {} is {}", test.from, test.to, test.expect.as_str()),
            name => name.to_owned(),
        };
        let (failure, broken) = match hold(picture, &test) {
            Ok(failure) => (failure, false),
            Err(error) => (format!("cannot be run: {error}"), true),
        };
        Went { line, name, passed: failure.is_empty(), failure, broken }
    };
    Ok(tests.tests.into_iter().map(one).collect())
}

fn report(file: &str, rules: &str, went: &[Went]) -> String {
    let mut out = String::new();
    for test in went.iter().filter(|test| !test.passed) {
        out += &format!("FAILED {file}:{} {}\n", test.line, test.name);
        out += &test.failure.lines().map(|line| format!("       {line}\n")).collect::<String>();
        if !test.broken {
            out += "       `heddle policy explain` with the same --from and --to shows every rule that was considered\n";
        }
    }
    let failed = went.iter().filter(|test| !test.passed).count();
    out + &format!("{} assertions over {rules}: {} hold, {failed} do not", went.len(), went.len() - failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::testing;

    #[test]
    fn each_assertion_holds_or_says_what_is_instead() {
        let picture = testing::shop();
        let went = run_tests(
            &picture,
            "t.yaml",
            "tests:\n\
             - {name: as it should be, from: shop/web, to: 'shop/redis:6379', expect: allowed, rule: AuthorizationPolicy shop/allow-web}\n\
             - {from: shop/plain, to: 'shop/redis:redis', expect: refused, reason: no_identity}\n\
             - {from: shop/web, to: 'svc/shop/redis:6379', expect: refused}\n\
             - {from: shop/web, to: 'shop/redis:6379', expect: allowed, rule: Server shop/redis}\n\
             - {from: shop/nobody, to: 'shop/redis:6379', expect: allowed}\n",
        )
        .unwrap();
        let passed: Vec<bool> = went.iter().map(|it| it.passed).collect();
        assert_eq!(passed, [true, true, false, false, false]);
        insta::assert_snapshot!(report("t.yaml", "manifests", &went));
    }

    #[test]
    fn a_file_of_another_form_is_told_with_its_line() {
        let picture = testing::shop();
        for (text, part) in [
            ("tests:\n- {from: a, to: b, expected: refused}\n", "t.yaml:2"),
            ("tests:\n- {from: a, to: b, expect: maybe}\n", "maybe"),
            ("[", "t.yaml"),
        ] {
            let error = run_tests(&picture, "t.yaml", text).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
