//! From a folder's files to what is in force.

use super::{
    folder::{Folder, FolderStatus, Following, Malformed, Pace, follow},
    rules::{Rules, now},
    snapshot::{PublishError, Publisher, Shared},
    view::View,
};
use heddle_policy::{
    Compiled, Problem, Severity,
    resources::{Parsed, parse_file},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// The manifests of a folder.
pub type Manifests = Folder<Manifest>;

/// A file in force.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// As it is written.
    pub text: Arc<str>,
    /// What it says.
    pub parsed: Parsed,
}

/// The text of every file in force, by path.
pub type Texts = Arc<[(String, Arc<str>)]>;

fn texts(folder: &Manifests) -> Texts {
    folder.contents().map(|(file, manifest)| (file, Arc::clone(&manifest.text))).collect()
}

/// Reads a file's documents. One that does not even show which resource it means, for it is no YAML or lacks its kind or
/// name, breaks the file: whatever it was to say, the file's last good content says it until it can be read. A resource
/// with a field that is wrong does not: it grants nothing and is told.
///
/// # Errors
/// The first such document.
pub fn parse(text: &str, file: &str) -> Result<Manifest, Malformed> {
    let parsed = parse_file(file, text);
    let nameless = |problem: &&Problem| problem.severity == Severity::Error && problem.resource.is_empty();
    match parsed.problems.iter().find(nameless) {
        Some(problem) => {
            let document = format!("document {}: {}", problem.document, problem.reason);
            Err(Malformed { line: problem.line.into(), message: document })
        }
        None => Ok(Manifest { text: text.into(), parsed }),
    }
}

/// What a folder holds, worked out: of a change only what it touches is worked out anew.
struct FolderRules {
    rules: Rules,
    files: BTreeMap<String, Arc<Manifest>>,
}

impl FolderRules {
    /// Takes over what changed in the folder.
    fn take(&mut self, folder: &Manifests) {
        let held: BTreeMap<String, Arc<Manifest>> =
            folder.contents().map(|(file, manifest)| (file, Arc::clone(manifest))).collect();
        let gone: Vec<&String> = self.files.keys().filter(|file| !held.contains_key(*file)).collect();
        for file in gone {
            self.rules.remove(file);
        }
        for (file, manifest) in &held {
            if !self.files.get(file).is_some_and(|before| Arc::ptr_eq(before, manifest)) {
                self.rules.put(file, &manifest.parsed);
            }
        }
        self.files = held;
    }
}

/// The one who publishes, shared between the folder's thread and whoever tries again.
pub type SharedPublisher = Arc<Mutex<Publisher<Compiled>>>;

/// Manifests that are in force and followed.
pub struct FollowedManifests {
    status: watch::Receiver<FolderStatus>,
    texts: watch::Receiver<Texts>,
    _following: Following,
}

impl FollowedManifests {
    /// Puts the folder's rules in force and follows its changes on a thread of its own. A kernel that cannot hold the
    /// first rules is told in the publication and tried again by whoever holds the publisher.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        folder: Manifests,
        pace: Pace,
        view: View,
        publisher: SharedPublisher,
    ) -> std::io::Result<Self> {
        let (told, status) = watch::channel(folder.status());
        let (kept, in_force) = watch::channel(texts(&folder));
        let mut own = FolderRules { rules: Rules::new(view), files: BTreeMap::new() };
        let publish = move |rules: &mut Rules| -> Result<Shared<Compiled>, PublishError> {
            let (compiled, problems) = rules.compile(now());
            publisher.lock().unwrap_or_else(PoisonError::into_inner).publish(compiled, problems)
        };
        // An error is in the publication and in the log already.
        own.take(&folder);
        let _ = publish(&mut own.rules);
        let following = follow(folder, pace, move |folder, brought| {
            told.send_replace(folder.status());
            if brought.content {
                own.take(folder);
                kept.send_replace(texts(folder));
            }
            if brought.content || own.rules.expired(now()) {
                let _ = publish(&mut own.rules);
            }
            own.rules.due(now())
        })?;
        Ok(Self { status, texts: in_force, _following: following })
    }

    /// Which files are in force and which are stale.
    pub fn status(&self) -> FolderStatus {
        self.status.borrow().clone()
    }

    /// The files in force, as they are written.
    pub fn texts(&self) -> Texts {
        Arc::clone(&self.texts.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::snapshot::{Change, Compare};
    use heddle_policy::{ClusterSettings, Index};

    const NAMESPACE: &str =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {heddle.io/mesh: enabled}}\n";

    fn pod(name: &str, address: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: a, serviceAccountName: {name}, containers: [{{name: c, image: i}}]}}\n\
             status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
        )
    }

    fn rules(clients: &str) -> String {
        format!(
            "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: s, namespace: shop}}\n\
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, port: 80, proxyProtocol: opaque}}\n\
             ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: s}}, requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}}]}}\n\
             ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {{name: m, namespace: shop}}\n\
             spec: {{identityRefs: [{clients}]}}\n"
        )
    }

    fn compiled(text: &str) -> Compiled {
        let parsed = parse(text, "a.yaml").unwrap().parsed;
        let compiled = Index::of([parsed]).compile(&ClusterSettings::default(), "a");
        assert_eq!(compiled.problems, []);
        compiled
    }

    #[test]
    fn a_document_that_is_nothing_breaks_its_file_and_a_wrong_field_does_not() {
        assert!(parse(NAMESPACE, "a.yaml").unwrap().parsed.problems.is_empty());
        let broken = parse(&format!("{NAMESPACE}---\n\nkind: [\n"), "a.yaml").unwrap_err();
        assert!(broken.line == 6 && broken.message.starts_with("document 2: is not YAML"), "{broken}");
        let wrong = rules("").replace("port: 80", "port: 70000");
        let parsed = parse(&wrong, "a.yaml").unwrap().parsed;
        assert!(parsed.has_errors() && parsed.problems.iter().all(|problem| !problem.resource.is_empty()));
    }

    #[test]
    fn what_is_not_shown_to_widen_alone_narrows() {
        let base = NAMESPACE.to_owned()
            + &pod("web", "10.0.0.1")
            + &pod("one", "10.0.0.2")
            + &pod("two", "10.0.0.3");
        let (one, two) = ("{kind: ServiceAccount, name: one}", "{kind: ServiceAccount, name: two}");
        let with = |clients: &str| compiled(&(base.clone() + &rules(clients)));
        let (first, both) = (with(one), with(&format!("{one}, {two}")));
        // Clients that rules treat alike are one class: another member changes the pods' rows, not the rules'.
        assert_eq!(both.change_since(&first), Change::Narrowed);
        assert_eq!(first.change_since(&both), Change::Narrowed);
        assert_eq!(with(two).change_since(&first), Change::Narrowed);
        assert_eq!(with(one).change_since(&first), Change::Widened, "the same takes nothing away");
        let more = compiled(&(base.clone() + &pod("new", "10.0.0.4") + &rules(one)));
        assert_eq!(more.change_since(&first), Change::Narrowed, "the address was one outside");
    }
}
