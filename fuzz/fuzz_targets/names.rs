//! Any text as an identity: what is accepted is spelled in one way only, and its two forms lead to each other.
#![no_main]

use heddle_policy::names::IdentityNaming;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let naming = IdentityNaming::default();
    if let Ok(name) = naming.parse(text) {
        assert!(name.dns() == text || name.spiffe() == text);
        assert_eq!(naming.parse_dns(name.dns()).as_ref(), Ok(&name));
        assert_eq!(naming.parse_spiffe(name.spiffe()).as_ref(), Ok(&name));
    }
});
