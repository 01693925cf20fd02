//! Any text as a line of recorded flows: refused, or the same when it is written out again.
#![no_main]

#[path = "../../agent/src/observe/flows/hostile.rs"]
mod hostile;
#[allow(dead_code)]
#[path = "../../agent/src/observe/flows/record.rs"]
mod record;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    hostile::line(text);
});
