//! From a folder's files to what is in force.

use super::{
    folder::{Folder, FolderStatus, Following, Malformed, Pace, follow},
    snapshot::{PublishError, Publisher, Shared},
};
use heddle_policy::{
    ClusterSettings, Compiled, Index, Problem, Severity,
    resources::{Parsed, parse_file},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The manifests of a folder.
pub type Manifests = Folder<Parsed>;

/// Reads a file's documents. One that does not even show which resource it means, for it is no YAML or lacks its kind or
/// name, breaks the file: whatever it was to say, the file's last good content says it until it can be read. A resource
/// with a field that is wrong does not: it grants nothing and is told.
///
/// # Errors
/// The first such document.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Malformed> {
    let parsed = parse_file(file, text);
    let nameless = |problem: &&Problem| problem.severity == Severity::Error && problem.resource.is_empty();
    match parsed.problems.iter().find(nameless) {
        Some(problem) => {
            let document = format!("document {}: {}", problem.document, problem.reason);
            Err(Malformed { line: problem.line.into(), message: document })
        }
        None => Ok(parsed),
    }
}

/// Works out what `node` needs from everything that is in force in the folder, and everything that is wrong with it.
pub fn compile(folder: &Manifests, settings: &ClusterSettings, node: &str) -> (Compiled, Vec<Problem>) {
    let files = || folder.contents().map(|(_, parsed)| parsed.as_ref());
    let compiled = Index::of(files().cloned()).compile(settings, node);
    let mut problems: Vec<Problem> = files().flat_map(|parsed| parsed.problems.iter().cloned()).collect();
    problems.extend(compiled.problems.iter().cloned());
    problems.sort_by(|a, b| (&a.file, a.line, a.severity).cmp(&(&b.file, b.line, b.severity)));
    (compiled, problems)
}

/// The one who publishes, shared between the folder's thread and whoever tries again.
pub type SharedPublisher = Arc<Mutex<Publisher<Compiled>>>;

/// Manifests that are in force and followed.
pub struct FollowedManifests {
    status: watch::Receiver<FolderStatus>,
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
        settings: ClusterSettings,
        node: String,
        publisher: SharedPublisher,
    ) -> std::io::Result<Self> {
        let (told, status) = watch::channel(folder.status());
        let publish = move |folder: &Manifests| -> Result<Shared<Compiled>, PublishError> {
            let (compiled, problems) = compile(folder, &settings, &node);
            for problem in &problems {
                tell(problem);
            }
            publisher.lock().unwrap_or_else(PoisonError::into_inner).publish(compiled, problems)
        };
        // An error is in the publication and in the log already.
        let _ = publish(&folder);
        let following = follow(folder, pace, move |folder, brought| {
            told.send_replace(folder.status());
            if brought.content {
                let _ = publish(folder);
            }
        })?;
        Ok(Self { status, _following: following })
    }

    /// Which files are in force and which are stale.
    pub fn status(&self) -> FolderStatus {
        self.status.borrow().clone()
    }
}

fn tell(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!(%problem, "a resource is not in force as it is written"),
        Severity::Warning => tracing::warn!(%problem, "a resource is in force, but probably not as meant"),
        Severity::Note => tracing::debug!(%problem, "a note on a resource"),
    }
}
