//! The keys in force, and what follows from them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use heddle_identity::{
    Authority, AuthorityServer, AuthoritySettings, IdentityName, IssuerFiles, TlsSettings,
    names::IdentityNaming,
};

/// How often it is looked whether there are other keys.
const LOOK: Duration = Duration::from_secs(1);
/// How long before its end an issuer is warned of.
const WARN: Duration = Duration::from_secs(14 * 24 * 3600);

/// An authority and the server that it is reached by.
#[derive(Debug)]
pub struct Issuing {
    /// Signs.
    pub authority: Authority,
    /// Answers.
    pub server: AuthorityServer,
    /// Since when.
    since: SystemTime,
}

/// Where the keys come from and what is made of them.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where they are.
    pub directory: PathBuf,
    /// Whose identities are issued.
    pub naming: IdentityNaming,
    /// What is put into certificates.
    pub settings: AuthoritySettings,
    /// The authority's own identity.
    pub own: IdentityName,
}

impl Source {
    /// Reads the keys and proves that what they sign is believed.
    ///
    /// # Errors
    /// Keys that are missing, unsafe or unusable.
    pub fn read(&self, now: SystemTime) -> Result<Issuing, String> {
        let keys = IssuerFiles::in_directory(&self.directory).read().map_err(|error| error.to_string())?;
        let authority = Authority::with_keys(self.naming.clone(), self.settings, keys)
            .map_err(|error| error.to_string())?;
        let server = AuthorityServer::new(&authority, &self.own, &TlsSettings::default(), now)
            .map_err(|error| format!("what they sign would not be believed: {error}"))?;
        Ok(Issuing { authority, server, since: now })
    }

    /// What the files look like: other files look otherwise.
    fn look(&self) -> Vec<Option<(u64, SystemTime, u64)>> {
        use std::os::linux::fs::MetadataExt;
        let IssuerFiles { certificate, key, anchors } = IssuerFiles::in_directory(&self.directory);
        [certificate, key, anchors]
            .iter()
            .map(|path| {
                let meta = std::fs::metadata(path).ok()?;
                Some((meta.st_ino(), meta.modified().ok()?, meta.len()))
            })
            .collect()
    }
}

/// Puts other keys in force when there are some, and renews the authority's own certificate, for ever. What cannot be used
/// leaves the last in force; `stale` says so.
pub async fn keep(source: Source, issuing: Arc<ArcSwap<Issuing>>, stale: Arc<AtomicBool>) {
    let mut seen = source.look();
    let mut warned = SystemTime::UNIX_EPOCH;
    loop {
        tokio::time::sleep(LOOK).await;
        let (now, found) = (SystemTime::now(), source.look());
        let current = issuing.load_full();
        let half = current.server.not_after.duration_since(current.since).unwrap_or_default() / 2;
        let changed = found != seen;
        if changed || stale.load(Ordering::Relaxed) || now >= current.since + half {
            let reading = source.clone();
            let read = tokio::task::spawn_blocking(move || reading.read(now)).await;
            match read.map_err(|error| error.to_string()).and_then(|read| read) {
                Ok(fresh) => {
                    if changed {
                        tracing::info!(keys = %source.directory.display(), "other keys are in force");
                    }
                    issuing.store(Arc::new(fresh));
                    stale.store(false, Ordering::Relaxed);
                }
                Err(error) => {
                    if changed || !stale.swap(true, Ordering::Relaxed) {
                        tracing::error!(keys = %source.directory.display(), %error, "the keys cannot be used; the last ones stay in force");
                    }
                }
            }
            seen = found;
        }
        let left = issuing.load().authority.not_after().duration_since(now).unwrap_or_default();
        if left < WARN && now.duration_since(warned).unwrap_or_default() > Duration::from_secs(3600) {
            warned = now;
            tracing::warn!(
                hours = left.as_secs() / 3600,
                "the issuer's certificate expires: make another (`heddle ca issuer`) and put it into its place"
            );
        }
    }
}
