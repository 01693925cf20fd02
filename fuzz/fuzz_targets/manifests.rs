//! Any bytes as manifests: never a panic, never a table that does not hold together, and the same answer twice.
#![no_main]

#[allow(dead_code)]
#[path = "../../policy/tests/hostile/documents.rs"]
mod documents;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| documents::read(text));
