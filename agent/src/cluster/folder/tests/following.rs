use super::*;
use std::sync::{Arc, Mutex};

fn eventually<T: PartialEq + std::fmt::Debug>(
    within: Duration,
    expected: T,
    mut look: impl FnMut() -> T,
) -> Duration {
    let started = Instant::now();
    loop {
        let seen = look();
        if seen == expected {
            return started.elapsed();
        }
        assert!(started.elapsed() < within, "still {seen:?} instead of {expected:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What is in force and how often that was told.
type Seen = Arc<Mutex<(Vec<String>, usize)>>;

fn followed(folder: Folder<String>, pace: Pace) -> (Following, Seen) {
    let seen = Arc::new(Mutex::new((texts(&folder), 0)));
    let told = Arc::clone(&seen);
    let following = follow(folder, pace, move |folder, _| {
        let mut told = told.lock().unwrap();
        *told = (texts(folder), told.1 + 1);
        None
    })
    .unwrap();
    (following, seen)
}

#[test]
fn changes_are_followed_well_within_a_second() {
    let fixture = fixture();
    fixture.write("a.yaml", "one");
    let (following, seen) =
        followed(fixture.open(), Pace { rescan: Duration::from_secs(60), ..Pace::default() });
    std::thread::sleep(Duration::from_millis(100));
    let look = || seen.lock().unwrap().0.clone();
    fixture.write("a.yaml", "two");
    eventually(Duration::from_secs(1), vec!["two".to_owned()], look);
    // A new file in a new folder, and a file renamed into place.
    fixture.write("sub/b.yaml", "three");
    eventually(Duration::from_millis(1500), vec!["two".to_owned(), "three".to_owned()], look);
    fixture.write("draft", "four");
    fs::rename(fixture.dir.join("draft"), fixture.dir.join("a.yaml")).unwrap();
    eventually(Duration::from_secs(1), vec!["four".to_owned(), "three".to_owned()], look);
    fs::remove_file(fixture.dir.join("a.yaml")).unwrap();
    eventually(Duration::from_secs(1), vec!["three".to_owned()], look);
    drop(following);
    fixture.write("a.yaml", "five");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(look(), ["three"], "nobody follows any more");
}

#[test]
fn changes_without_end_are_taken_over_all_the_same() {
    let fixture = fixture();
    fixture.write("a.yaml", "start");
    let (_following, seen) =
        followed(fixture.open(), Pace { rescan: Duration::from_secs(60), ..Pace::default() });
    std::thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    let mut first = None;
    // Renamed into place every 10 ms: never 50 ms of quiet.
    for round in 0..100 {
        fixture.write("draft", &format!("{round}"));
        fs::rename(fixture.dir.join("draft"), fixture.dir.join("a.yaml")).unwrap();
        if first.is_none() && seen.lock().unwrap().0 != ["start"] {
            first = Some(started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(first.is_some_and(|first| first < Duration::from_secs(1)), "{first:?}");
    let looks = seen.lock().unwrap().1;
    assert!(looks < 50, "{looks} looks for 100 changes");
}

#[test]
fn a_folder_that_is_replaced_is_followed_on() {
    let fixture = fixture();
    fixture.write("a.yaml", "one");
    let pace = Pace { rescan: Duration::from_millis(100), ..Pace::default() };
    let (_following, seen) = followed(fixture.open(), pace);
    let next = fixture.dir.with_file_name("next");
    fs::create_dir(&next).unwrap();
    set_mode(&next, 0o755);
    fs::write(next.join("a.yaml"), "two").unwrap();
    fs::rename(&fixture.dir, fixture.dir.with_file_name("old")).unwrap();
    fs::rename(&next, &fixture.dir).unwrap();
    let look = || seen.lock().unwrap().0.clone();
    eventually(Duration::from_secs(2), vec!["two".to_owned()], look);
    fixture.write("a.yaml", "three");
    eventually(Duration::from_secs(2), vec!["three".to_owned()], look);
}
