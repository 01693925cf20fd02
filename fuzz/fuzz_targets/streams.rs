//! Two honest sides under a schedule of the fuzzer's: no rule is broken, and they can always be brought to rest.
#![no_main]

#[allow(dead_code)]
#[path = "../../agent/src/proxy/wire/hostile.rs"]
mod hostile;
#[allow(dead_code, unused_imports)]
#[path = "../../agent/src/proxy/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use wire::{Connection, Event, Open, Role};

fuzz_target!(|input: &[u8]| hostile::streams(input));
