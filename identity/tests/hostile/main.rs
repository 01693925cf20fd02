//! A bounded run of what the fuzz targets look at for longer. `HEDDLE_CASES` asks for more of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod bundles;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

fn runner() -> TestRunner {
    let cases = std::env::var("HEDDLE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[test]
fn a_bundle_is_in_force_whole_or_leaves_the_last_in_force() {
    assert!(bundles::changed(true, &[]) && bundles::changed(false, &[]), "the control");
    assert!(!bundles::changed(false, &[(0, 1)]) && !bundles::changed(true, &[(0, 1)]));
    assert!(!bundles::bundle(b"") && !bundles::bundle(b"-----BEGIN CERTIFICATE-----\n"));
    let edits = vec((any::<u16>(), any::<u8>()), 1..4);
    runner()
        .run(&(any::<bool>(), edits, vec(any::<u8>(), 0..200)), |(list, edits, raw)| {
            bundles::changed(list, &edits);
            bundles::bundle(&raw);
            Ok(())
        })
        .unwrap();
}
