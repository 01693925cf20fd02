//! Any text as an identity: what is accepted is spelled in one way only, and its two forms lead to each other.
#![no_main]

#[allow(dead_code)]
#[path = "../../policy/tests/hostile/documents.rs"]
mod documents;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    documents::name(text);
});
