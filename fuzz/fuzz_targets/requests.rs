//! Any request against routes that look at everything: never a panic, and nothing that can be read in two ways is allowed.
#![no_main]

#[path = "../../policy/tests/hostile/requests.rs"]
mod requests;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &str, Vec<(&str, &[u8])>)| {
    let (method, target, host, headers) = input;
    requests::judge(method, target, host, &headers);
});
