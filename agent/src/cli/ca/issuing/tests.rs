use super::*;
use heddle_identity::authority::{intermediate, offline_root};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn put(path: &Path, text: &str, mode: u32) {
    let _ = fs::remove_file(path);
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A new root's issuer's files in `directory`, as `heddle ca` makes them.
fn issuer(directory: &Path, now: SystemTime) {
    let root = offline_root("test", 100 * DAY, now).unwrap();
    let files = IssuerFiles::in_directory(directory);
    put(&files.key, &root.key, 0o400);
    put(&files.certificate, &root.certificate, 0o444);
    put(&files.anchors, &root.certificate, 0o444);
    let naming = IdentityNaming::default();
    let made = intermediate(files.read().unwrap(), &naming, 90 * DAY, now).unwrap();
    put(&files.key, &made.key, 0o400);
    put(&files.certificate, &made.certificate, 0o444);
}

pub(in super::super) fn source(directory: &Path, now: SystemTime) -> Source {
    issuer(directory, now);
    let naming = IdentityNaming::default();
    let own = naming.name("heddle-system", "heddle-ca").unwrap();
    let settings = AuthoritySettings { lifetime: DAY, clock_skew: Duration::from_secs(20) };
    Source { directory: directory.to_owned(), naming, settings, own }
}

struct Kept {
    keeping: Keeping,
    issuing: Arc<ArcSwap<Issuing>>,
    stale: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl Kept {
    fn since(now: SystemTime) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = source(directory.path(), now);
        let issuing = Arc::new(ArcSwap::from_pointee(source.read(now).unwrap()));
        let stale = Arc::new(AtomicBool::new(false));
        let keeping = Keeping::new(source, Arc::clone(&issuing), Arc::clone(&stale));
        Self { keeping, issuing, stale, directory }
    }

    fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    fn anchors(&self) -> Vec<Vec<u8>> {
        self.issuing.load().authority.anchors().iter().map(|anchor| anchor.to_vec()).collect()
    }
}

#[test]
fn keys_that_turn_bad_are_told_and_taken_as_soon_as_they_are_good() {
    let now = SystemTime::now();
    let mut kept = Kept::since(now);
    let before = kept.anchors();
    kept.keeping.look(now);
    assert!(!kept.is_stale());

    issuer(kept.directory.path(), now);
    let key = kept.directory.path().join("tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    for _ in 0..3 {
        kept.keeping.look(now);
        assert!(kept.is_stale());
        assert_eq!(kept.anchors(), before, "the last stay in force");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    kept.keeping.look(now);
    assert!(!kept.is_stale());
    assert_ne!(kept.anchors(), before, "the new are in force");
}

#[test]
fn a_key_that_others_may_suddenly_read_is_told() {
    let now = SystemTime::now();
    let mut kept = Kept::since(now);
    let key = kept.directory.path().join("tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    kept.keeping.look(now);
    assert!(kept.is_stale());
}

#[test]
fn keys_whose_time_comes_are_taken_though_no_file_changes() {
    let now = SystemTime::now();
    let mut kept = Kept::since(now);
    let before = kept.anchors();
    issuer(kept.directory.path(), now + DAY);
    kept.keeping.look(now);
    assert!(kept.is_stale());
    assert_eq!(kept.anchors(), before);
    kept.keeping.look(now + DAY);
    assert!(!kept.is_stale());
    assert_ne!(kept.anchors(), before);
}

#[test]
fn the_server_has_a_certificate_as_long_as_the_issuer_has_one_whatever_becomes_of_the_files() {
    let now = SystemTime::now();
    let mut kept = Kept::since(now);
    for name in ["tls.key", "tls.crt", "ca.crt"] {
        fs::remove_file(kept.directory.path().join(name)).unwrap();
    }
    let mut hours = 0;
    let mut at = now;
    while at < now + 89 * DAY {
        kept.keeping.look(at);
        assert!(kept.is_stale());
        let issuing = kept.issuing.load();
        assert!(issuing.is_ready(at), "after {hours} hours");
        assert!(issuing.server.not_after > at + DAY / 3, "after {hours} hours");
        hours += 5;
        at = now + Duration::from_secs(hours * 3600);
    }
    let after = now + 91 * DAY;
    kept.keeping.look(after);
    assert!(!kept.issuing.load().is_ready(after), "the issuer has expired");
}

#[test]
fn a_server_whose_certificate_has_expired_or_is_of_the_future_is_not_ready_and_has_a_new_one_soon() {
    let now = SystemTime::now();
    let mut kept = Kept::since(now);
    assert!(kept.issuing.load().is_ready(now));
    let late = now + 2 * DAY;
    assert!(!kept.issuing.load().is_ready(late));
    kept.keeping.look(late);
    assert!(kept.issuing.load().is_ready(late));
    // The clock was two days ahead at the start, and is set.
    assert!(!kept.issuing.load().is_ready(now));
    kept.keeping.look(now);
    assert!(kept.issuing.load().is_ready(now));
}
