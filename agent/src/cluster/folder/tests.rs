mod following;

use super::*;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Content is good unless it says `broken`.
fn parse(text: &str, _origin: &str) -> Result<String, Malformed> {
    match text.lines().position(|line| line.contains("broken")) {
        Some(line) => Err(Malformed { line: line as u64 + 1, message: "it says broken".into() }),
        None => Ok(text.to_owned()),
    }
}

struct Fixture {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
}

fn fixture() -> Fixture {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    set_mode(&dir, 0o755);
    Fixture { _temporary: temporary, dir }
}

impl Fixture {
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        set_mode(&path, 0o644);
        path
    }

    fn open(&self) -> Folder<String> {
        self.open_with(Limits::default()).unwrap()
    }

    fn open_with(&self, limits: Limits) -> Result<Folder<String>, Fault> {
        Folder::open(&self.dir, limits, parse)
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn contents<T: AsRef<str>>(folder: &Folder<T>) -> Vec<(String, String)> {
    let root = folder.path().to_owned();
    let short = |path: &str| Path::new(path).strip_prefix(&root).unwrap().display().to_string();
    folder.contents().map(|(path, text)| (short(&path), text.as_ref().as_ref().to_owned())).collect()
}

fn texts<T: AsRef<str>>(folder: &Folder<T>) -> Vec<String> {
    contents(folder).into_iter().map(|(_, text)| text).collect()
}

fn only_stale(folder: &Folder<String>) -> StaleFile {
    let mut stale = folder.status().stale;
    assert_eq!(stale.len(), 1, "{stale:?}");
    stale.remove(0)
}

#[test]
fn reads_manifests_of_every_folder_in_order_and_nothing_else() {
    let fixture = fixture();
    for (name, text) in [
        ("b.yaml", "b"),
        ("a.yml", "a"),
        ("sub/deep/c.json", "c"),
        ("notes.txt", "no"),
        (".draft.yaml", "no"),
        (".hidden/d.yaml", "no"),
        ("e.yaml~", "no"),
    ] {
        fixture.write(name, text);
    }
    let folder = fixture.open();
    let expected = [("a.yml", "a"), ("b.yaml", "b"), ("sub/deep/c.json", "c")];
    assert_eq!(contents(&folder), expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
    let status = folder.status();
    assert_eq!((status.files, status.stale.len(), status.alarms.len()), (3, 0, 0));
}

#[test]
fn takes_over_changes_and_deletions_and_tells_nothing_where_nothing_changed() {
    let fixture = fixture();
    let a = fixture.write("a.yaml", "one");
    fixture.write("b.yaml", "two");
    let mut folder = fixture.open();
    assert_eq!(folder.refresh(), Refreshed::default());
    fixture.write("a.yaml", "uno");
    assert_eq!(folder.refresh(), Refreshed { content: true, ..Refreshed::default() });
    assert_eq!(texts(&folder), ["uno", "two"]);
    fixture.write("a.yaml", "uno"); // Touched, not changed.
    assert_eq!(folder.refresh(), Refreshed::default());
    fs::remove_file(a).unwrap();
    assert!(folder.refresh().content);
    assert_eq!(texts(&folder), ["two"]);
}

#[test]
fn a_change_of_the_same_length_within_the_clocks_tick_is_seen() {
    let fixture = fixture();
    fixture.write("a.yaml", "aaa");
    let mut folder = fixture.open();
    for round in 0..50 {
        let text = if round % 2 == 0 { "bbb" } else { "aaa" };
        fixture.write("a.yaml", text);
        folder.refresh();
        assert_eq!(texts(&folder), [text], "round {round}");
    }
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_says_since_when() {
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    fixture.write("b.yaml", "other");
    let mut folder = fixture.open();
    let before = time::OffsetDateTime::now_utc();
    fixture.write("a.yaml", "fine\nbroken");
    let done = folder.refresh();
    assert!(done.status && !done.content);
    assert_eq!(texts(&folder), ["good", "other"]);
    let stale = only_stale(&folder);
    assert_eq!(stale.file, path.display().to_string());
    assert_eq!(stale.error, "line 2: it says broken");
    assert!(stale.last_good_in_force && !stale.insecure && stale.since >= before);
    // Still broken: the same moment, and nothing new to tell.
    assert_eq!(folder.refresh(), Refreshed::default());
    assert_eq!(only_stale(&folder).since, stale.since);
    // Others still change beside it.
    fixture.write("b.yaml", "another");
    assert!(folder.refresh().content);
    assert_eq!(texts(&folder), ["good", "another"]);
    // Restored to what is in force: nothing to publish, but the status is clean.
    fixture.write("a.yaml", "good");
    let done = folder.refresh();
    assert!(done.status && !done.content);
    assert_eq!(folder.status().stale, []);
    // Deleted while broken: a deletion is meant.
    fixture.write("a.yaml", "broken");
    folder.refresh();
    fs::remove_file(path).unwrap();
    let done = folder.refresh();
    assert!(done.status && done.content);
    assert_eq!((texts(&folder), folder.status().stale), (vec!["another".to_owned()], vec![]));
}

#[test]
fn a_file_that_was_never_good_has_no_rules_and_is_told() {
    let fixture = fixture();
    fixture.write("a.yaml", "broken");
    fixture.write("b.yaml", "good");
    let folder = fixture.open();
    assert_eq!(texts(&folder), ["good"]);
    assert!(!only_stale(&folder).last_good_in_force);
}

#[test]
fn bytes_that_are_no_text_are_told_by_their_place() {
    let fixture = fixture();
    fs::write(fixture.dir.join("a.yaml"), b"abc\xff").unwrap();
    assert_eq!(only_stale(&fixture.open()).error, "it is not UTF-8 at byte 3");
}

#[test]
fn a_file_that_others_may_write_is_not_read() {
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    for mode in [0o664, 0o646, 0o666] {
        fs::write(&path, "planted").unwrap();
        set_mode(&path, mode);
        folder.refresh();
        assert_eq!(texts(&folder), ["good"]);
        let stale = only_stale(&folder);
        assert!(stale.insecure && stale.error.contains(&format!("{mode:04o}")), "{stale:?}");
        assert!(stale.remedy.starts_with("chmod go-w"), "{stale:?}");
    }
    set_mode(&path, 0o600);
    assert!(folder.refresh().content);
    assert_eq!((texts(&folder), folder.status().stale), (vec!["planted".to_owned()], vec![]));
}

#[test]
fn a_folder_that_others_may_write_raises_an_alarm_and_keeps_everything() {
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    set_mode(&fixture.dir, 0o777);
    fs::write(&path, "planted").unwrap();
    fs::write(fixture.dir.join("b.yaml"), "planted").unwrap();
    let done = folder.refresh();
    assert!(done.status && !done.content);
    assert_eq!(texts(&folder), ["good"]);
    let alarm = folder.status().alarms.remove(0);
    assert!(alarm.insecure && alarm.error.contains("0777"), "{alarm:?}");
    fs::remove_file(&path).unwrap();
    assert_eq!(folder.refresh(), Refreshed::default());
    assert_eq!(texts(&folder), ["good"], "a deletion by anybody is not believed either");
    set_mode(&fixture.dir, 0o755);
    assert!(folder.refresh().content);
    assert_eq!((texts(&folder), folder.status().alarms), (vec!["planted".to_owned()], vec![]));
    // At the first start there is nothing to keep.
    set_mode(&fixture.dir, 0o775);
    assert_eq!(fixture.open_with(Limits::default()).err(), Some(Fault::Writable { mode: 0o775 }));
}

#[test]
fn a_folder_within_that_others_may_write_keeps_what_it_held() {
    let fixture = fixture();
    fixture.write("sub/a.yaml", "good");
    fixture.write("b.yaml", "top");
    let mut folder = fixture.open();
    set_mode(&fixture.dir.join("sub"), 0o777);
    fs::write(fixture.dir.join("sub/c.yaml"), "planted").unwrap();
    fs::remove_file(fixture.dir.join("sub/a.yaml")).unwrap();
    fixture.write("b.yaml", "changed");
    folder.refresh();
    assert_eq!(texts(&folder), ["changed", "good"]);
    assert!(folder.status().alarms[0].folder.ends_with("/sub"));
}

#[test]
fn a_path_in_which_others_could_put_another_folder_is_refused() {
    let fixture = fixture();
    let open = fixture.dir.join("open");
    fs::create_dir_all(open.join("manifests")).unwrap();
    set_mode(&open, 0o777);
    let fault = Folder::open(&open.join("manifests"), Limits::default(), parse).err().unwrap();
    assert!(matches!(&fault, Fault::PathWritable { mode: 0o777, .. }) && fault.is_insecure(), "{fault}");
    set_mode(&open, 0o1777);
    Folder::open(&open.join("manifests"), Limits::default(), parse).unwrap();
}

#[test]
fn a_missing_folder_is_an_error_at_the_start_and_an_alarm_later() {
    let fixture = fixture();
    fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    let aside = fixture.dir.with_extension("aside");
    fs::rename(&fixture.dir, &aside).unwrap();
    assert!(fixture.open_with(Limits::default()).is_err());
    folder.refresh();
    assert_eq!(texts(&folder), ["good"]);
    assert!(folder.status().alarms[0].error.contains("No such file"));
    fs::rename(aside, &fixture.dir).unwrap();
    folder.refresh();
    assert_eq!((texts(&folder), folder.status().alarms), (vec!["good".to_owned()], vec![]));
}

#[test]
fn pipes_sockets_and_folders_named_like_files_neither_block_nor_count() {
    let fixture = fixture();
    fixture.write("good.yaml", "good");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, fixture.dir.join("pipe.yaml"), rustix::fs::FileType::Fifo, mode, 0)
        .unwrap();
    let socket = fixture.dir.join("socket.yaml");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    set_mode(&socket, 0o600);
    fixture.write("folder.yaml/inner.yaml", "inner");
    let started = Instant::now();
    let folder = fixture.open();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(texts(&folder), ["inner", "good"]);
    let errors: Vec<_> = folder.status().stale.into_iter().map(|stale| stale.error).collect();
    assert_eq!(errors, ["it is a named pipe, not a regular file", "it is a socket, not a regular file"]);
}

#[test]
fn a_pipe_in_the_place_of_a_good_file_keeps_the_good_content() {
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    fs::remove_file(&path).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    folder.refresh();
    assert_eq!(texts(&folder), ["good"]);
    assert!(only_stale(&folder).last_good_in_force);
}

#[test]
fn too_long_too_many_and_too_deep_are_told_each() {
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    fs::write(&path, vec![b'#'; (8 << 20) + 1]).unwrap();
    folder.refresh();
    assert_eq!(texts(&folder), ["good"]);
    assert_eq!(only_stale(&folder).error, "it is 8388609 bytes long; at most 8388608 are read");

    let small = |limits: Limits| {
        let folder = fixture.open_with(limits).unwrap();
        let status = folder.status();
        let told = |errors: Vec<String>| errors.join("; ");
        (
            texts(&folder),
            told(status.stale.into_iter().map(|stale| stale.error).collect()),
            told(status.alarms.into_iter().map(|alarm| alarm.error).collect()),
        )
    };
    fixture.write("a.yaml", "aa");
    fixture.write("b.yaml", "bb");
    fixture.write("c/d/e.yaml", "ee");
    let limits = Limits::default();
    let (texts, stale, _) = small(Limits { files: 2, ..limits });
    assert_eq!(
        (texts.join(""), stale.as_str()),
        ("aabb".into(), "with it the folder holds more than 2 files")
    );
    let (texts, stale, _) = small(Limits { total_bytes: 5, ..limits });
    assert_eq!(
        (texts.join(""), stale.as_str()),
        ("aabb".into(), "with it the folder holds more than 5 bytes")
    );
    let (texts, _, alarms) = small(Limits { depth: 1, ..limits });
    assert_eq!(texts.join(""), "aabb");
    assert_eq!(alarms, "with it the folder holds more than 1 folders one in another");
    assert!(fixture.open_with(Limits { entries: 2, ..limits }).is_err());
}

/// The layout of a ConfigMap that Kubernetes mounts, and its update: a new folder, and `..data` renamed over.
#[test]
fn a_config_map_is_read_and_its_update_is_taken_over() {
    let fixture = fixture();
    fixture.write("..2026_01/a.yaml", "one");
    fixture.write("..2026_01/sub/b.yaml", "two");
    symlink("..2026_01", fixture.dir.join("..data")).unwrap();
    symlink("..data/a.yaml", fixture.dir.join("a.yaml")).unwrap();
    symlink("..data/sub", fixture.dir.join("sub")).unwrap();
    let mut folder = fixture.open();
    assert_eq!(
        contents(&folder),
        [("a.yaml", "one"), ("sub/b.yaml", "two")].map(|(a, b)| (a.into(), b.into()))
    );
    fixture.write("..2026_02/a.yaml", "uno");
    fixture.write("..2026_02/sub/b.yaml", "due");
    symlink("..2026_02", fixture.dir.join("..data_tmp")).unwrap();
    fs::rename(fixture.dir.join("..data_tmp"), fixture.dir.join("..data")).unwrap();
    assert!(folder.refresh().content);
    assert_eq!(texts(&folder), ["uno", "due"]);
    // The folder behind the link is judged as any other.
    set_mode(&fixture.dir.join("..2026_02"), 0o777);
    fs::write(fixture.dir.join("..2026_02/a.yaml"), "planted").unwrap();
    folder.refresh();
    assert_eq!(texts(&folder), ["uno", "due"]);
    assert!(folder.status().stale[0].insecure);
}

#[test]
fn links_that_lead_out_or_round_are_refused() {
    let fixture = fixture();
    let outside = fixture.dir.with_file_name("outside.yaml");
    fs::write(&outside, "outside").unwrap();
    symlink(&outside, fixture.dir.join("absolute.yaml")).unwrap();
    symlink("../outside.yaml", fixture.dir.join("above.yaml")).unwrap();
    symlink("sub/../../outside.yaml", fixture.dir.join("devious.yaml")).unwrap();
    symlink("round.yaml", fixture.dir.join("round.yaml")).unwrap();
    symlink("nowhere.txt", fixture.dir.join("dangling.yaml")).unwrap();
    symlink("..", fixture.dir.join("up")).unwrap();
    symlink(".", fixture.dir.join("itself")).unwrap();
    fixture.write("sub/a.yaml", "good");
    symlink("sub/a.yaml", fixture.dir.join("within.yaml")).unwrap();
    symlink("../sub/a.yaml", fixture.dir.join("sub/back.yaml")).unwrap();
    let folder = fixture.open();
    assert_eq!(
        contents(&folder),
        [("sub/a.yaml", "good"), ("sub/back.yaml", "good"), ("within.yaml", "good")]
            .map(|(a, b)| (a.into(), b.into()))
    );
    let stale = folder.status().stale;
    let insecure: Vec<_> = stale.iter().map(|stale| stale.insecure).collect();
    assert_eq!(insecure, [true, true, false, true, false], "{stale:?}");
    assert_eq!(folder.status().alarms.len(), 1, "the folder's parent is no part of it");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_belongs_to_somebody_else_is_refused() {
    use std::os::unix::fs::{chown, lchown};
    let fixture = fixture();
    let path = fixture.write("a.yaml", "good");
    let mut folder = fixture.open();
    fs::write(&path, "planted").unwrap();
    chown(&path, Some(12345), None).unwrap();
    folder.refresh();
    assert_eq!(texts(&folder), ["good"]);
    assert_eq!(only_stale(&folder).error, "it belongs to uid 12345, not to uid 0 that the agent runs as");
    chown(&path, Some(0), None).unwrap();
    symlink("a.yaml", fixture.dir.join("b.yaml")).unwrap();
    lchown(fixture.dir.join("b.yaml"), Some(12345), None).unwrap();
    folder.refresh();
    assert_eq!(texts(&folder), ["planted"]);
    chown(&fixture.dir, Some(12345), None).unwrap();
    folder.refresh();
    assert!(folder.status().alarms[0].insecure);
    chown(&fixture.dir, Some(0), None).unwrap();
    // Somebody else's folder above.
    chown(fixture.dir.parent().unwrap(), Some(12345), None).unwrap();
    let fault = fixture.open_with(Limits::default()).err().unwrap();
    assert!(matches!(fault, Fault::PathOwner { owner: 12345, .. }), "{fault}");
}
