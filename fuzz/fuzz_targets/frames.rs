//! Bytes from a hostile peer, in every state: an error or an event, never a panic, never a range outside the record.
#![no_main]

#[allow(dead_code)]
#[path = "../../agent/src/proxy/wire/hostile.rs"]
mod hostile;
#[allow(dead_code, unused_imports)]
#[path = "../../agent/src/proxy/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use wire::{Connection, Event, Open, Role};

fuzz_target!(|input: &[u8]| hostile::frames(input));
