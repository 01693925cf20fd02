//! A YAML document as a tree that knows the line of every field.
//!
//! Documents are read into this first and into their types afterwards, so that whatever is said about a field can
//! say where the field is. The one module that knows the YAML library.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{
    DefaultMessageFormatter, Error, Localizer, Location, MessageFormatter, Spanned,
    options::DuplicateKeyPolicy,
};

/// Deeper documents are refused: no Kubernetes resource comes near, and an unoptimized build reads this deep on a
/// thread's usual stack of 2 MiB.
const MAX_DEPTH: usize = 32;
/// More nodes in one document are refused.
const MAX_NODES: usize = 1_000_000;
/// More anchors or aliases in one document are refused.
const MAX_ALIASES: usize = 256;
/// More nodes that aliases stand for are refused.
const MAX_REPLAYED: usize = 10_000;

/// Lines by field path (`spec.ports[0].name`), counted from 1.
pub type Lines = BTreeMap<String, u32>;

/// A document that is not YAML, or not YAML that is accepted.
#[derive(Debug)]
pub struct NotYaml {
    /// The line, counted from 1; 0: unknown.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
}

/// Reads one document. `None`: it is empty.
pub fn read(text: &str, first_line: u32) -> Result<Option<(Value, Lines)>, NotYaml> {
    let mut options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: MAX_REPLAYED,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        // Else a namespace called `n` would be `false`.
        strict_booleans: true,
        with_snippet: false,
    };
    options.alias_limits.max_total_replayed_events = MAX_REPLAYED;
    let node: Spanned<Node> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| NotYaml {
            line: error.location().map_or(0, |at| line(&at, first_line)),
            reason: error.render_with_formatter(&Within { first_line }),
        })?;
    if matches!(node.value, Node::Scalar(Value::Null)) {
        return Ok(None);
    }
    let mut lines = Lines::new();
    let value = flatten(node, String::new(), first_line, &mut lines);
    Ok(Some((value, lines)))
}

/// The library's words, with lines counted within the file and not within the document.
struct Within {
    first_line: u32,
}

impl Within {
    fn place(&self, at: &Location) -> String {
        format!("line {}, column {}", line(at, self.first_line), at.column())
    }
}

impl Localizer for Within {
    fn attach_location<'a>(&self, base: Cow<'a, str>, at: Location) -> Cow<'a, str> {
        if at == Location::UNKNOWN { base } else { format!("{base} at {}", self.place(&at)).into() }
    }

    fn alias_defined_at(&self, at: Location) -> String {
        format!(" (defined at {})", self.place(&at))
    }

    fn alias_used_at(&self, at: Location) -> String {
        if at == Location::UNKNOWN { String::new() } else { format!(" (used at {})", self.place(&at)) }
    }
}

impl MessageFormatter for Within {
    fn localizer(&self) -> &dyn Localizer {
        self
    }

    fn format_message<'a>(&self, error: &'a Error) -> Cow<'a, str> {
        DefaultMessageFormatter.format_message(error)
    }
}

fn line(at: &Location, first_line: u32) -> u32 {
    match u32::try_from(at.line()) {
        Ok(0) | Err(_) => 0,
        Ok(line) => first_line + line - 1,
    }
}

/// The path of `key` under `path`, as every problem spells it.
pub fn key_path(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The line of `path`, or of the nearest field around it.
pub fn nearest_line(lines: &Lines, path: &str) -> u32 {
    let mut path = path;
    loop {
        if let Some(line) = lines.get(path) {
            return *line;
        }
        match path.rfind(['.', '[']) {
            Some(end) => path = &path[..end],
            None => return lines.get("").copied().unwrap_or(0),
        }
    }
}

fn flatten(node: Spanned<Node>, path: String, first_line: u32, lines: &mut Lines) -> Value {
    let at = line(&node.referenced, first_line);
    let value = match node.value {
        Node::Scalar(value) => value,
        Node::List(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(i, item)| flatten(item, format!("{path}[{i}]"), first_line, lines))
                .collect(),
        ),
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, item) in entries {
                let path = key_path(&path, &key.value);
                let key_line = line(&key.referenced, first_line);
                let value = flatten(item, path.clone(), first_line, lines);
                lines.insert(path, key_line);
                map.insert(key.value, value);
            }
            Value::Object(map)
        }
    };
    lines.entry(path).or_insert(at);
    value
}

enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a sequence or a scalar")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        match serde_json::Number::from_f64(value) {
            Some(number) => Ok(Node::Scalar(number.into())),
            None => Err(E::custom("a number must be finite")),
        }
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_knows_its_line() {
        let text = "---\nkind: Pod\nspec:\n  ports:\n  - name: web\n    port: 80\n  labels: {a: b}\n";
        let (value, lines) = read(text, 10).unwrap().unwrap();
        assert_eq!(value["spec"]["ports"][0]["port"], 80);
        for (path, line) in [
            ("kind", 11),
            ("spec", 12),
            ("spec.ports[0]", 14),
            ("spec.ports[0].port", 15),
            ("spec.labels.a", 16),
        ] {
            assert_eq!(lines[path], line, "{path}");
        }
        assert_eq!(nearest_line(&lines, "spec.ports[0].missing.deeper"), 14);
    }

    #[test]
    fn scalars_keep_their_types() {
        let (value, _) =
            read("a: 80\nb: '80'\nc: true\nd: ~\ne: 1.5\nf: yes\n80: x\ng: 18446744073709551615\n", 1)
                .unwrap()
                .unwrap();
        assert_eq!(value["a"], 80);
        assert_eq!(value["b"], "80");
        assert_eq!(value["c"], true);
        assert_eq!(value["d"], Value::Null);
        assert_eq!(value["e"], 1.5);
        assert_eq!(value["80"], "x");
        assert_eq!(value["g"], u64::MAX);
        assert_eq!(value["f"], "yes");
    }

    #[test]
    fn empty_documents_are_nothing() {
        for text in ["", "---\n", "# only a comment\n", "~"] {
            assert!(read(text, 1).unwrap().is_none(), "{text:?}");
        }
    }

    #[test]
    fn malformed_documents_are_refused_with_a_line() {
        for (text, line) in
            [("a: 1\nb: [1, 2\n", 2), ("a: 1\na: 2\n", 2), ("a:\n\t- b\n", 2), ("a: .nan\n", 1)]
        {
            let error = read(text, 1).unwrap_err();
            assert!(error.line >= line, "{text:?}: {error:?}");
            assert!(!error.reason.is_empty());
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let before = i - 1;
            let refs = vec![format!("*a{before}"); 9].join(", ");
            laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(read(&laughs, 1).is_err());
        assert!(read(&"[".repeat(5_000), 1).is_err());
        assert!(read(&format!("{}{}", "[".repeat(500), "]".repeat(500)), 1).is_err());
        let deep: String = (0..500).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        assert!(read(&deep, 1).is_err());
    }
}
