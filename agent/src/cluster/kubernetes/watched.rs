//! What is known of one kind while it is listed and watched: which objects there are, and whether that is all.

use super::kinds::Kind;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The API server does not serve the kind.
    Absent,
    /// A list begins: what it does not hold at its end is gone.
    Listing,
    /// An object of the list.
    Listed(Value),
    /// The list's end.
    Complete,
    /// An object is new or another.
    Applied(Value),
    /// An object is gone.
    Gone(Value),
    /// The kind cannot be watched now; what is known of it stays in force.
    Broken(String),
    /// It can be again.
    Resumed,
}

/// How a kind stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is known yet.
    Unknown,
    /// Not served.
    Absent,
    /// Listed and watched.
    Watched,
}

/// `pods/shop/web`, as problems and `heddle policy` name it.
fn file(kind: &Kind, object: &Value) -> String {
    let text = |field: &str| {
        object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (namespace, name) = (text("namespace"), text("name"));
    if namespace.is_empty() {
        format!("{}/{name}", kind.resource())
    } else {
        format!("{}/{namespace}/{name}", kind.resource())
    }
}

/// A kind, with what is kept of each of its objects, by their files.
pub(super) struct Watched<T> {
    pub kind: &'static Kind,
    pub standing: Standing,
    /// Why it cannot be watched now.
    pub error: Option<String>,
    pub objects: BTreeMap<String, T>,
    listed: Option<BTreeSet<String>>,
}

/// What a watch's word changes.
pub(super) enum Change {
    /// How the kind stands.
    Standing,
    /// An object is this now.
    Put(String, Value),
    /// An object is gone.
    Gone(String),
}

impl<T> Watched<T> {
    pub(super) fn new(kind: &'static Kind) -> Self {
        Self { kind, standing: Standing::Unknown, error: None, objects: BTreeMap::new(), listed: None }
    }

    /// Takes what the watch tells. Whoever keeps the objects makes the changes.
    pub(super) fn take(&mut self, told: Told) -> Vec<Change> {
        match told {
            Told::Absent => {
                self.error = None;
                // What was known before stays: a server that starts anew does not know its own kinds for a moment.
                if self.standing == Standing::Unknown {
                    self.standing = Standing::Absent;
                    return vec![Change::Standing];
                }
                Vec::new()
            }
            Told::Broken(error) => {
                self.error = Some(error);
                Vec::new()
            }
            Told::Resumed => {
                self.error = None;
                Vec::new()
            }
            Told::Listing => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Told::Listed(object) => {
                let file = file(self.kind, &object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(file.clone());
                }
                vec![Change::Put(file, object)]
            }
            Told::Complete => {
                self.error = None;
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.objects.keys().filter(|file| !listed.contains(*file));
                let mut changes: Vec<Change> = gone.cloned().map(Change::Gone).collect();
                if self.standing != Standing::Watched {
                    self.standing = Standing::Watched;
                    changes.push(Change::Standing);
                }
                changes
            }
            Told::Applied(object) => {
                self.error = None;
                vec![Change::Put(file(self.kind, &object), object)]
            }
            Told::Gone(object) => vec![Change::Gone(file(self.kind, &object))],
        }
    }
}
