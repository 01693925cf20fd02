//! Any text in a field that decides access: never a panic, never a wider access than what is written there means.
#![no_main]

#[allow(dead_code)]
#[path = "../../policy/tests/hostile/fields.rs"]
mod fields;

use fields::FIELDS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (which, text) = input;
    (FIELDS[usize::from(which) % FIELDS.len()].holds)(text);
});
