//! Any bytes as a bundle of trust anchors and revocation lists, and a sound one of which some bytes are others.
#![no_main]

#[path = "../../identity/tests/hostile/bundles.rs"]
mod bundles;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (which, edits, file) = input;
    match which % 3 {
        0 => bundles::bundle(file),
        list => bundles::changed(list == 1, &edits),
    };
});
