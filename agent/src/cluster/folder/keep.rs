//! What is in force: each file's last good content, whatever became of the file since.

use super::{
    Fault, Limits, Malformed,
    read::{Entry, Fingerprint, Root},
    scan::{Scan, scan},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};
use time::{OffsetDateTime, serde::rfc3339};

/// A file whose present state is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaleFile {
    /// Its path.
    pub file: String,
    /// Since when it is not taken as it is.
    #[serde(with = "rfc3339")]
    pub since: OffsetDateTime,
    /// Why.
    pub error: String,
    /// Whether somebody else than the agent's user could have written it.
    pub insecure: bool,
    /// What to do.
    pub remedy: String,
    /// Whether its last good content is in force. If not, there never was one, and its rules do not exist.
    pub last_good_in_force: bool,
}

/// The folder itself is not taken as it is: everything that it held last stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// The folder, or the part of it that cannot be looked into.
    pub folder: String,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: OffsetDateTime,
    /// Why.
    pub error: String,
    /// Whether somebody else than the agent's user could have changed it.
    pub insecure: bool,
    /// What to do.
    pub remedy: String,
}

/// What is in force from the folder, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FolderStatus {
    /// The folder.
    pub folder: String,
    /// Files in force.
    pub files: usize,
    /// Files that are not in force as they are now.
    pub stale: Vec<StaleFile>,
    /// Folders that are not in force as they are now.
    pub alarms: Vec<Alarm>,
    /// Why changes are seen late; absent while they are seen at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<String>,
}

/// What a look at the folder brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Refreshed {
    /// Other content is in force than before.
    pub content: bool,
    /// Something else is stale than before, or for another reason.
    pub status: bool,
    /// A file changed while it was read: it is worth looking again soon.
    pub again: bool,
}

struct Kept<T> {
    good: Option<Arc<T>>,
    /// Digest of the text that `good` was parsed from.
    digest: u64,
    stale: Option<(Fault, OffsetDateTime)>,
    /// What was read last, if a look at the file shows whether it changed since.
    read: Option<Fingerprint>,
}

type Parse<T> = Box<dyn Fn(&str, &str) -> Result<T, Malformed> + Send>;

/// A folder of manifests and what of it is in force; `T` is a file's parsed content.
pub struct Folder<T> {
    path: PathBuf,
    uid: Option<u32>,
    limits: Limits,
    parse: Parse<T>,
    files: BTreeMap<PathBuf, Kept<T>>,
    alarms: BTreeMap<PathBuf, (Fault, OffsetDateTime)>,
    pub(super) slow: Option<String>,
}

impl<T> Folder<T> {
    /// Reads the folder for the first time, as the user that runs the process. `parse` takes a file's text and the path
    /// to name in problems.
    ///
    /// # Errors
    /// If the folder itself is missing, unreadable or insecure: nothing would be in force. A broken *file* is no error
    /// but is told by [`Self::status`].
    pub fn open(
        path: &Path,
        limits: Limits,
        parse: impl Fn(&str, &str) -> Result<T, Malformed> + Send + 'static,
    ) -> Result<Self, Fault> {
        Self::open_as(path, Some(rustix::process::geteuid().as_raw()), limits, parse)
    }

    /// Reads the folder whoever may have written it: to look at it, never to put it in force.
    ///
    /// # Errors
    /// If the folder itself is missing or unreadable.
    pub fn inspect(
        path: &Path,
        limits: Limits,
        parse: impl Fn(&str, &str) -> Result<T, Malformed> + Send + 'static,
    ) -> Result<Self, Fault> {
        Self::open_as(path, None, limits, parse)
    }

    fn open_as(
        path: &Path,
        uid: Option<u32>,
        limits: Limits,
        parse: impl Fn(&str, &str) -> Result<T, Malformed> + Send + 'static,
    ) -> Result<Self, Fault> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (files, alarms, slow) = (BTreeMap::new(), BTreeMap::new(), None);
        let mut folder = Self { path, uid, limits, parse: Box::new(parse), files, alarms, slow };
        folder.refresh();
        match folder.alarms.remove(Path::new("")) {
            Some((fault, _)) => Err(fault),
            None => Ok(folder),
        }
    }

    /// The folder's path, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every file's content in force, by path.
    pub fn contents(&self) -> impl Iterator<Item = (String, &Arc<T>)> {
        self.files.iter().filter_map(|(path, kept)| Some((self.name(path), kept.good.as_ref()?)))
    }

    /// What is in force and what is not.
    pub fn status(&self) -> FolderStatus {
        let stale = self.files.iter().filter_map(|(path, kept)| {
            let (fault, since) = kept.stale.as_ref()?;
            let file = self.name(path);
            Some(StaleFile {
                remedy: fault.remedy(&file),
                file,
                since: *since,
                error: fault.to_string(),
                insecure: fault.is_insecure(),
                last_good_in_force: kept.good.is_some(),
            })
        });
        let alarms = self.alarms.iter().map(|(path, (fault, since))| {
            let folder = self.name(path);
            Alarm {
                remedy: fault.remedy(&folder),
                folder,
                since: *since,
                error: fault.to_string(),
                insecure: fault.is_insecure(),
            }
        });
        FolderStatus {
            folder: self.path.display().to_string(),
            files: self.files.values().filter(|kept| kept.good.is_some()).count(),
            stale: stale.collect(),
            alarms: alarms.collect(),
            slow: self.slow.clone(),
        }
    }

    fn name(&self, path: &Path) -> String {
        if path.as_os_str().is_empty() {
            return self.path.display().to_string();
        }
        self.path.join(path).display().to_string()
    }

    /// Looks at the folder and takes over what changed.
    pub fn refresh(&mut self) -> Refreshed {
        let root = Root::open(&self.path, self.uid);
        let scanned = root.and_then(|root| scan(&root, &self.limits).map(|scan| (root, scan)));
        let (root, Scan { files, blind, .. }) = match scanned {
            Ok(found) => found,
            Err(fault) => {
                let status = self.alarm(BTreeMap::from([(PathBuf::new(), fault)]));
                return Refreshed { status, ..Refreshed::default() };
            }
        };
        let mut done = Refreshed::default();
        let in_sight = |path: &Path| !blind.keys().any(|folder| path.starts_with(folder));
        self.files.retain(|path, kept| {
            let keep = files.contains_key(path) || !in_sight(path);
            if !keep {
                tracing::info!(file = %self.path.join(path).display(), "file is gone: its rules are taken away");
                done.content |= kept.good.is_some();
                done.status |= kept.stale.is_some();
            }
            keep
        });
        for (path, found) in files {
            self.file(&root, path, found, &mut done);
        }
        done.status |= self.alarm(blind);
        done
    }

    fn alarm(&mut self, faults: BTreeMap<PathBuf, Fault>) -> bool {
        let before = std::mem::take(&mut self.alarms);
        let mut changed = before.len() != faults.len();
        for (path, fault) in faults {
            let since = match before.get(&path) {
                Some((known, since)) if *known == fault => *since,
                known => {
                    changed = true;
                    let folder = self.name(&path);
                    tracing::error!(
                        folder, error = %fault, remedy = fault.remedy(&folder),
                        "folder cannot be taken as it is: what it held last stays in force"
                    );
                    known.map_or_else(OffsetDateTime::now_utc, |(_, since)| *since)
                }
            };
            self.alarms.insert(path, (fault, since));
        }
        for path in before.keys().filter(|path| !self.alarms.contains_key(*path)) {
            tracing::info!(folder = self.name(path), "folder is in order again");
        }
        changed
    }

    fn file(&mut self, root: &Root, path: PathBuf, found: Result<Entry, Fault>, done: &mut Refreshed) {
        let name = self.name(&path);
        let kept = self.files.entry(path).or_insert(Kept { good: None, digest: 0, stale: None, read: None });
        let outcome = found.and_then(|entry| {
            // The same file as was read last: its content, good or not, is known. Whoever may write it was looked at
            // anew by `resolve`.
            let known = kept.read == Some(Fingerprint::of(&entry.stat));
            match &kept.stale {
                None if known => return Ok(None),
                Some((fault, _)) if known && fault.is_of_content() => return Err(fault.clone()),
                _ => {}
            }
            let (text, fingerprint) = entry.read(root, &self.limits)?;
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
            let now = (now.tv_sec as i64, now.tv_nsec as u64);
            kept.read = (!fingerprint.may_hide_a_change(now)).then_some(fingerprint);
            let digest = digest(&text);
            if kept.good.is_some() && kept.digest == digest {
                return Ok(None); // Touched, or restored to what is in force.
            }
            let parsed = (self.parse)(&text, &name).map_err(Fault::Malformed)?;
            kept.digest = digest;
            Ok(Some(parsed))
        });
        match outcome {
            Ok(parsed) => {
                if kept.stale.take().is_some() {
                    done.status = true;
                    tracing::info!(file = name, "file is in order again");
                }
                if let Some(parsed) = parsed {
                    kept.good = Some(Arc::new(parsed));
                    done.content = true;
                }
            }
            Err(fault) => {
                done.again |= matches!(fault, Fault::Unsettled { .. });
                let since = match &kept.stale {
                    Some((known, since)) if *known == fault => *since,
                    known => {
                        done.status = true;
                        let in_force =
                            if kept.good.is_some() { "its last good content" } else { "nothing of it" };
                        tracing::error!(
                            file = name, in_force, error = %fault, remedy = fault.remedy(&name),
                            "file cannot be taken as it is"
                        );
                        known.as_ref().map_or_else(OffsetDateTime::now_utc, |(_, since)| *since)
                    }
                };
                kept.stale = Some((fault, since));
            }
        }
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
