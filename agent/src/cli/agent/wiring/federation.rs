//! The folder of other trust domains' bundles, followed as it changes: one file for each, named `TRUST-DOMAIN.pem`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use heddle_identity::Trust;

use super::{
    anchors::{AnchorsFile, Bundle},
    stale::Stale,
    twice::Twice,
};

/// How often it is looked whether something changed.
const LOOK: Duration = Duration::from_secs(1);
/// More trust domains than anybody federates with: more is a mistake.
const MOST: usize = 64;

/// What the folder holds, by trust domain.
type Found = BTreeMap<String, Result<Bundle, String>>;

/// Other trust domains' bundles on disk.
#[derive(Clone, Debug)]
pub(super) struct Federation {
    path: PathBuf,
    /// The content of each file that is in force.
    known: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// By file.
    stale: Arc<Mutex<BTreeMap<String, Stale>>>,
}

impl Federation {
    /// Puts what the folder holds in force, as far as it can be used.
    pub fn new(path: PathBuf, trust: &Trust) -> Self {
        let it = Self { path, known: Arc::default(), stale: Arc::default() };
        it.apply(it.read(), trust);
        it
    }

    /// Why something is not in force as it is now; empty: all is.
    pub fn stale(&self) -> Vec<Stale> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Goes along with what the folder holds, for ever. A file that is gone takes its trust domain along; what cannot be
    /// used leaves what was in force for its trust domain.
    pub async fn follow(self, trust: Arc<Trust>) {
        let mut looks = Twice::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let reading = self.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || reading.read()).await else { continue };
            if let Some(read) = looks.found(read) {
                self.apply(read.clone(), &trust);
            }
        }
    }

    fn read(&self) -> Result<Found, String> {
        let failed = |error: std::io::Error| format!("{}: cannot be read: {error}", self.path.display());
        let mut found = Found::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A mounted ConfigMap keeps its own accounts there.
            if name.starts_with('.') {
                continue;
            }
            if found.len() >= MOST {
                return Err(format!("{}: more than {MOST} trust domains", self.path.display()));
            }
            match name.strip_suffix(".pem") {
                Some(domain) => {
                    found.insert(domain.to_owned(), AnchorsFile::new(entry.path()).read());
                }
                None => {
                    let wrong =
                        format!("{}: name it by its trust domain, TRUST-DOMAIN.pem", entry.path().display());
                    found.insert(name, Err(wrong));
                }
            }
        }
        Ok(found)
    }

    fn apply(&self, read: Result<Found, String>, trust: &Trust) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = BTreeMap::new();
        match read {
            Err(error) => {
                wrong.insert(String::new(), error);
            }
            Ok(found) => {
                known.retain(|domain, _| {
                    let stays = found.contains_key(domain);
                    if !stays {
                        trust.separate(domain);
                        tracing::info!(domain, "this trust domain is believed no longer");
                    }
                    stays
                });
                for (domain, file) in found {
                    let federated = file.and_then(|Bundle { bytes, anchors, lists }| {
                        if known.get(&domain) == Some(&bytes) {
                            return Ok(());
                        }
                        let (count, revoking) = (anchors.len(), lists.len());
                        let within =
                            |error| format!("{}: {error}", self.path.join(format!("{domain}.pem")).display());
                        trust.federate(&domain, anchors, &lists).map_err(within)?;
                        tracing::info!(domain, count, revoking, "a trust domain's bundle is in force");
                        known.insert(domain.clone(), bytes);
                        Ok(())
                    });
                    if let Err(error) = federated {
                        wrong.insert(domain, error);
                    }
                }
            }
        }
        self.tell(wrong);
    }

    fn tell(&self, wrong: BTreeMap<String, String>) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        stale.retain(|file, _| wrong.contains_key(file));
        for (file, error) in wrong {
            let known = stale.get(&file);
            if known.is_some_and(|known| known.error == error) {
                continue;
            }
            tracing::error!(error, "a trust domain's bundle cannot be used; what was in force for it stays");
            let since = known.map_or_else(|| SystemTime::now().into(), |known| known.since);
            stale.insert(file, Stale { since, error });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use heddle_identity::{Authority, AuthoritySettings, IdentityNaming, pem, provider};

    use super::*;

    fn anchors(domain: &str) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        let naming = IdentityNaming::new("linkerd", domain).unwrap();
        let settings = AuthoritySettings::default();
        Authority::in_memory(naming, settings, SystemTime::now()).unwrap().anchors().to_vec()
    }

    fn domains(trust: &Trust) -> Vec<String> {
        trust.federated().into_iter().map(|(domain, _)| domain).collect()
    }

    fn put(folder: &Path, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    #[test]
    fn a_folder_is_gone_along_with_and_what_is_broken_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let own = anchors("cluster.local");
        let trust = Trust::new(IdentityNaming::default(), own.clone(), Arc::new(provider())).unwrap();
        let federation = Federation::new(folder.path().to_owned(), &trust);
        assert!(domains(&trust).is_empty() && federation.stale().is_empty());

        let east = anchors("east.example");
        put(folder.path(), "east.example.pem", &pem(&east));
        put(folder.path(), "..2026_data", "a ConfigMap's own");
        let look = || federation.apply(federation.read(), &trust);
        look();
        assert_eq!(domains(&trust), ["east.example"]);
        let generation = trust.generation();
        look();
        assert_eq!(trust.generation(), generation, "nothing changed");

        // One that is broken stands in nobody's way, and leaves what was in force for its domain.
        put(folder.path(), "east.example.pem", "no certificate");
        put(folder.path(), "west.example.pem", &pem(&anchors("west.example")));
        put(folder.path(), "notes.txt", "");
        put(folder.path(), "cluster.local.pem", &pem(&anchors("cluster.local")));
        put(folder.path(), "own.example.pem", &pem(&own));
        look();
        assert_eq!(domains(&trust), ["east.example", "west.example"]);
        assert_eq!(trust.federated()[0].1, east);
        let told: Vec<String> = federation.stale().into_iter().map(|stale| stale.error).collect();
        assert_eq!(told.len(), 4, "{told:#?}");
        for (part, of) in [
            ("cannot be told from", "cluster.local.pem"),
            ("no trust anchor", "east"),
            ("notes.txt", "TRUST-DOMAIN"),
            ("anchor in it is cluster.local's", "own.example.pem"),
        ] {
            assert!(told.iter().any(|error| error.contains(part) && error.contains(of)), "{part}: {told:#?}");
        }

        for gone in ["east.example.pem", "notes.txt", "cluster.local.pem", "own.example.pem"] {
            std::fs::remove_file(folder.path().join(gone)).unwrap();
        }
        look();
        assert_eq!(domains(&trust), ["west.example"]);
        assert!(federation.stale().is_empty());

        // A folder that cannot be read is not an empty one.
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
        look();
        assert_eq!(domains(&trust), ["west.example"]);
        assert_eq!(federation.stale().len(), 1);
    }
}
