//! Any bytes as manifests: never a panic, never a table that does not hold together, and the same answer twice.
#![no_main]

use heddle_policy::{ClusterSettings, Compiler, resources::parse_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let parsed = parse_file("fuzz.yaml", text);
    let mut forward = Compiler::new(ClusterSettings::default(), None);
    let mut backward = forward.clone();
    for resource in &parsed.resources {
        forward.apply(resource.clone());
    }
    for resource in parsed.resources.iter().rev() {
        backward.apply(resource.clone());
    }
    let (a, b) = (forward.compile(0), backward.compile(0));
    assert_eq!(a.tables, b.tables);
    assert_eq!(a.problems, b.problems);
});
