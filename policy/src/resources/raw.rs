//! Documents as they are written, for whoever looks at kinds that policy is not made of.

use serde_json::Value;

use super::tree::{self, Lines, nearest_line};
use crate::problems::{Origin, Problem, Severity};

/// One resource as it is written.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// Where it is written.
    pub origin: Origin,
    /// All of it.
    pub value: Value,
    /// The lines of the whole document's fields.
    lines: Lines,
    /// Where the resource stands in its document; empty: it is the document.
    prefix: String,
}

impl Document {
    /// A text of it, such as `/kind` or `/metadata/name`; empty: it has none.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Its namespace, as Kubernetes takes it where none is written.
    pub fn namespace(&self) -> &str {
        match self.text("/metadata/namespace") {
            "" => "default",
            namespace => namespace,
        }
    }

    /// Something worth knowing about one of its fields.
    pub fn problem(&self, severity: Severity, field: &str, reason: impl Into<String>) -> Problem {
        let at = match (self.prefix.as_str(), field) {
            (prefix, "") => prefix.to_owned(),
            ("", field) => field.to_owned(),
            (prefix, field) => format!("{prefix}.{field}"),
        };
        Problem::new(severity, &self.origin, reason)
            .resource(format!("{} {}/{}", self.text("/kind"), self.namespace(), self.text("/metadata/name")))
            .field(field, nearest_line(&self.lines, &at))
    }
}

/// Every resource of a file, the items of lists included, in the order in which they are written. What cannot be read is
/// left out: [`super::parse_file`] tells of it.
pub fn read_documents(file: &str, text: &str) -> Vec<Document> {
    let mut found = Vec::new();
    let mut number = 0;
    for (first_line, text) in documents(text) {
        if !has_content(text) {
            continue;
        }
        number += 1;
        let Ok(Some((value, lines))) = tree::read(text, first_line) else { continue };
        let origin = Origin::new(file, number);
        let items = value.get("items").and_then(Value::as_array).cloned();
        let list = value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
        match items {
            Some(items) if list => found.extend(items.into_iter().enumerate().map(|(i, value)| Document {
                origin: origin.clone(),
                value,
                lines: lines.clone(),
                prefix: format!("items[{i}]"),
            })),
            _ => found.push(Document { origin, value, lines, prefix: String::new() }),
        }
    }
    found
}

/// Divides a file where a line begins with `---`, as kubectl does, and says on which line each part begins.
pub(super) fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let separator = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if separator {
            parts.push((start_line, &text[start..at]));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

/// Whether a part of a file is more than separators and comments.
pub(super) fn has_content(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| !(line.is_empty() || line == "---" || line == "..." || line.starts_with('#')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_places_lists_included() {
        let text = "# nothing\n---\nkind: A\nmetadata: {name: a}\n---\n[\n---\nkind: List\nitems:\n- kind: B\n  metadata:\n    name: b\n    namespace: shop\n";
        let found = read_documents("x.yaml", text);
        let kinds: Vec<_> = found.iter().map(|it| (it.text("/kind"), it.origin.document)).collect();
        assert_eq!(kinds, [("A", 1), ("B", 3)], "the broken one between them is counted");
        let problem = found[1].problem(Severity::Note, "metadata.name", "is there");
        assert_eq!((problem.line, &*problem.resource), (12, "B shop/b"));
        assert_eq!(found[0].problem(Severity::Note, "", "is there").resource, "A default/a");
    }
}
