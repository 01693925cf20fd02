//! Whole documents and names. The fuzz targets `manifests` and `names` run the same.

use heddle_policy::{ClusterSettings, Compiler, names::IdentityNaming, resources::parse_file};

/// Any text as manifests: never a panic, and the same tables and problems in whatever order the resources came.
pub fn read(text: &str) {
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
}

/// Any text as an identity: what is accepted is spelled in one way only, and its two forms lead to each other. Whether it
/// is one.
pub fn name(text: &str) -> bool {
    let naming = IdentityNaming::default();
    let Ok(name) = naming.parse(text) else { return false };
    assert!(name.dns() == text || name.spiffe() == text);
    assert_eq!(naming.parse_dns(name.dns()).as_ref(), Ok(&name));
    assert_eq!(naming.parse_spiffe(name.spiffe()).as_ref(), Ok(&name));
    true
}
