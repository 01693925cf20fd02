//! Printing for people.

use super::Failure;
use heddle_policy::{Problem, Severity};
use miette::{LabeledSpan, MietteDiagnostic, NamedSource, Report};
use std::io::Write;

/// Prints a line. Whoever reads may leave early (`heddle status | head`): that is no failure worth a word.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(miette::miette!("cannot print: {error}")),
    }
}

/// A problem with the line that it is about, if the file's text is at hand.
pub(super) fn problem(problem: &Problem, text: Option<&str>) -> Report {
    let about = [problem.resource.as_str(), problem.field.as_str()];
    let about: Vec<_> = about.into_iter().filter(|part| !part.is_empty()).collect();
    let mut message = about.join(": ");
    if !message.is_empty() {
        message += ": ";
    }
    message += &problem.reason;
    let mut shown = MietteDiagnostic::new(message).with_severity(match problem.severity {
        Severity::Error => miette::Severity::Error,
        Severity::Warning => miette::Severity::Warning,
        Severity::Note => miette::Severity::Advice,
    });
    if !problem.remedy.is_empty() {
        shown = shown.with_help(problem.remedy.clone());
    }
    match text.and_then(|text| Some((text, line(text, problem.line)?))) {
        Some((text, (start, length))) => {
            let label = if problem.document > 1 {
                format!("here, in document {}", problem.document)
            } else {
                "here".into()
            };
            let shown = shown.with_label(LabeledSpan::new(Some(label), start, length));
            Report::new(shown).with_source_code(NamedSource::new(&problem.file, text.to_owned()))
        }
        None => {
            if !problem.file.is_empty() {
                let line = if problem.line == 0 { String::new() } else { format!(":{}", problem.line) };
                shown = shown.with_code(format!("{}{line}", problem.file));
            }
            Report::new(shown)
        }
    }
}

/// Where a line's text starts, and its length.
fn line(text: &str, line: u32) -> Option<(usize, usize)> {
    let index = usize::try_from(line.checked_sub(1)?).ok()?;
    let mut start = 0;
    for (number, content) in text.split_inclusive('\n').enumerate() {
        if number == index {
            let trimmed = content.trim();
            let indent = content.len() - content.trim_start().len();
            return Some((start + indent, trimmed.len()));
        }
        start += content.len();
    }
    None
}

/// Takes the control characters out of what somebody else wrote, so that it cannot play with the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_policy::Origin;

    #[test]
    fn a_problem_shows_its_line_and_its_remedy() {
        let text = "a: 1\n  port: 70000 \nb: 2\n";
        let found = Problem::new(Severity::Error, &Origin::new("x.yaml", 2), "is out of range")
            .resource("Server shop/web")
            .field("spec.port", 2)
            .remedy("write 1 to 65535");
        let shown = format!("{:?}", problem(&found, Some(text)));
        for expected in
            ["Server shop/web: spec.port: is out of range", "x.yaml:2", "port: 70000", "write 1 to 65535"]
        {
            assert!(shown.contains(expected), "{expected} is not in {shown}");
        }
        let without = format!("{:?}", problem(&found, None));
        assert!(without.contains("x.yaml:2") && without.contains("is out of range"), "{without}");
        assert_eq!(line(text, 2), Some((7, 11)));
        assert_eq!((line(text, 0), line(text, 9)), (None, None));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
