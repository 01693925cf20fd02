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
    Authority, AuthorityServer, AuthoritySettings, IdentityName, IssuerFiles, TlsSettings, is_set_back,
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
    pub authority: Arc<Authority>,
    /// Answers.
    pub server: AuthorityServer,
    /// Since when the server's certificate is.
    since: SystemTime,
}

impl Issuing {
    /// Whether whoever asks would believe the server, and get a certificate of an issuer that has not expired.
    pub fn is_ready(&self, now: SystemTime) -> bool {
        now < self.authority.not_after() && now < self.server.not_after && !is_set_back(self.since, now)
    }

    /// Whether the server's certificate is to be made anew: half of its time is over, or it is from a future that the clock
    /// was set back from.
    fn is_due(&self, now: SystemTime) -> bool {
        let half = self.server.not_after.duration_since(self.since).unwrap_or_default() / 2;
        now >= self.since + half || is_set_back(self.since, now)
    }
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
        self.serve(Arc::new(authority), now)
    }

    /// An authority with a certificate of its own, from now on. Needs no file.
    ///
    /// # Errors
    /// What it signs would not be believed.
    fn serve(&self, authority: Arc<Authority>, now: SystemTime) -> Result<Issuing, String> {
        let server = AuthorityServer::new(&authority, &self.own, &TlsSettings::default(), now)
            .map_err(|error| format!("what they sign would not be believed: {error}"))?;
        Ok(Issuing { authority, server, since: now })
    }

    /// What the files look like: other files look otherwise.
    fn look(&self) -> Look {
        use std::os::linux::fs::MetadataExt;
        let IssuerFiles { certificate, key, anchors } = IssuerFiles::in_directory(&self.directory);
        [certificate, key, anchors].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            // The time of the change: another mode or owner is one, too.
            Some((meta.st_ino(), meta.st_ctime(), meta.st_ctime_nsec(), meta.len()))
        })
    }
}

/// Inode, time of change and length of each file.
type Look = [Option<(u64, i64, i64, u64)>; 3];

/// Puts other keys in force when there are some, and renews the authority's own certificate. What cannot be used leaves the
/// last in force, is told, and is tried again.
#[derive(Debug)]
pub struct Keeping {
    source: Source,
    issuing: Arc<ArcSwap<Issuing>>,
    /// What is in the files cannot be used.
    stale: Arc<AtomicBool>,
    seen: Look,
    /// When the end of the issuer, and that there is no certificate for the server, was told.
    warned: [SystemTime; 2],
}

impl Keeping {
    /// Keeps `issuing`, which is what `source` held.
    pub fn new(source: Source, issuing: Arc<ArcSwap<Issuing>>, stale: Arc<AtomicBool>) -> Self {
        let seen = source.look();
        Self { source, issuing, stale, seen, warned: [SystemTime::UNIX_EPOCH; 2] }
    }

    /// Goes on for ever.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let looked = tokio::task::spawn_blocking(move || {
                self.look(SystemTime::now());
                self
            });
            match looked.await {
                Ok(keeping) => self = keeping,
                Err(error) => {
                    tracing::error!(%error, "the keys are no longer followed: start the authority again");
                    return;
                }
            }
        }
    }

    fn look(&mut self, now: SystemTime) {
        let found = self.source.look();
        let changed = found != self.seen;
        self.seen = found;
        let keys = self.source.directory.display();
        if changed || self.stale.load(Ordering::Relaxed) {
            match self.source.read(now) {
                Ok(fresh) => {
                    tracing::info!(%keys, "other keys are in force");
                    self.issuing.store(Arc::new(fresh));
                    self.stale.store(false, Ordering::Relaxed);
                }
                Err(error) => {
                    let was = self.stale.swap(true, Ordering::Relaxed);
                    if changed || !was {
                        tracing::error!(%keys, %error, "the keys cannot be used; the last ones stay in force");
                    }
                }
            }
        }
        let current = self.issuing.load_full();
        if current.is_due(now) {
            match self.source.serve(Arc::clone(&current.authority), now) {
                Ok(fresh) => self.issuing.store(Arc::new(fresh)),
                Err(error) if self.is_to_be_told(1, now) => {
                    tracing::error!(%error, "the authority has no new certificate for itself");
                }
                Err(_) => {}
            }
        }
        let left = current.authority.not_after().duration_since(now).unwrap_or_default();
        if left < WARN && self.is_to_be_told(0, now) {
            tracing::warn!(
                hours = left.as_secs() / 3600,
                "the issuer's certificate expires: make another (`heddle ca issuer`) and put it into its place"
            );
        }
    }

    /// Once an hour.
    fn is_to_be_told(&mut self, what: usize, now: SystemTime) -> bool {
        let Some(told) = self.warned.get_mut(what) else { return false };
        let due = now.duration_since(*told).map_or(true, |since| since > Duration::from_secs(3600));
        if due {
            *told = now;
        }
        due
    }
}

#[cfg(test)]
pub(super) mod tests;
