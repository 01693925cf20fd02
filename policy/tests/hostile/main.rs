//! Texts as nobody would write them, in every field that decides access: a bounded run of what the fuzz targets look at
//! for longer. `HEDDLE_CASES` asks for more of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod documents;
mod fields;
mod requests;

use fields::FIELDS;
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

/// Texts for each field.
const CASES: u32 = 100;

fn runner() -> TestRunner {
    let cases = std::env::var("HEDDLE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// What is written into a text somewhere.
const PIECES: [&str; 30] = [
    "0", "1", "8", "80", "-", "+", "/", ".", "..", "*", ":", "::", ",", " ", "%", "\\", "(", ")", "[", "|",
    "?", "{9}", "a", "A", "\u{430}", "\u{0}", "\n", "\u{2028}", "~", "65536",
];

/// A text that is usually written, changed in a few places; or any text.
fn text(written: &'static [&'static str]) -> impl Strategy<Value = String> {
    let edits = vec((any::<prop::sample::Index>(), 0..3_u8, select(&PIECES[..])), 0..4);
    let changed = (select(written), edits).prop_map(|(text, edits)| {
        let mut chars: Vec<String> = text.chars().map(String::from).collect();
        for (at, what, piece) in edits {
            let at = at.index(chars.len() + 1);
            match what {
                0 => chars.insert(at, piece.to_owned()),
                1 if at < chars.len() => drop(chars.remove(at)),
                _ if at < chars.len() => chars[at] = piece.to_owned(),
                _ => {}
            }
        }
        chars.concat()
    });
    prop_oneof![8 => changed, 1 => any::<String>(), 1 => Just(String::new())]
}

#[test]
fn no_text_in_a_field_gives_wider_access_than_it_means() {
    for field in &FIELDS {
        let let_in = field.written.iter().filter(|text| (field.holds)(text)).count();
        assert!(let_in > 0, "{}: some of what is usually written lets somebody in", field.name);
        assert!(let_in < field.written.len(), "{}: and some does not", field.name);
        let found = runner().run(&text(field.written), |text| {
            (field.holds)(&text);
            Ok(())
        });
        assert!(found.is_ok(), "{}: {}", field.name, found.unwrap_err());
    }
}

#[test]
fn no_document_breaks_reading_and_any_order_gives_the_same() {
    const DOCUMENTS: [&str; 2] = [
        include_str!("../../../deploy/admission/golden/accepted.yaml"),
        include_str!("../../../deploy/admission/golden/rejected.yaml"),
    ];
    let all: Vec<&'static str> = DOCUMENTS.iter().flat_map(|it| it.split("\n---\n")).collect();
    runner()
        .run(&vec(text(all.leak()), 1..4), |texts| {
            documents::read(&texts.join("\n---\n"));
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_text_is_two_identities() {
    const WRITTEN: [&str; 3] = [
        "web.shop.serviceaccount.identity.linkerd.cluster.local",
        "spiffe://cluster.local/ns/shop/sa/web",
        "a.b.shop.serviceaccount.identity.linkerd.cluster.local",
    ];
    assert!(WRITTEN.iter().all(|text| documents::name(text)));
    runner()
        .run(&text(&WRITTEN), |text| {
            documents::name(&text);
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_request_that_can_be_read_in_two_ways_is_allowed() {
    const TARGETS: [&str; 6] = ["/exact", "/r/7?q=ab", "/a/b/c", "/a/../exact", "/%2e%2e/exact", "//exact"];
    const HOSTS: [&str; 4] = ["shop.example", "SHOP.example.:80", "a b", "*.example"];
    const VALUES: [&str; 3] = ["v", "a, b", "1"];
    const NAMES: [&str; 4] = ["host", "X-Role", "x-role", "cookie"];
    let let_in = TARGETS.iter().filter(|target| requests::judge("GET", target, HOSTS[0], &[])).count();
    assert!(let_in > 0 && let_in < TARGETS.len(), "some are allowed, and some are not");
    let headers = vec((text(&NAMES), text(&VALUES)), 0..4);
    let any = (select(&["GET", "POST", "get", ""][..]), text(&TARGETS), text(&HOSTS), headers);
    runner()
        .run(&any, |(method, target, host, headers)| {
            let headers: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (&**n, v.as_bytes())).collect();
            requests::judge(method, &target, &host, &headers);
            Ok(())
        })
        .unwrap();
}

/// A target whose code nothing else compiles would rot.
#[test]
fn each_fuzz_target_runs_what_ordinary_tests_run() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read =
        |path: String| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let list = read(format!("{root}/fuzz/Cargo.toml"));
    let targets: Vec<&str> =
        list.lines().filter_map(|it| it.strip_prefix("path = \"fuzz_targets/")).collect();
    assert!(targets.len() >= 8, "{targets:?}");
    let manual = read(format!("{root}/fuzz/README.md"));
    for target in targets {
        let name = target.trim_end_matches(".rs\"");
        assert!(manual.contains(&format!("| `{name}` |")), "{name} is not in fuzz/README.md");
        let text = read(format!("{root}/fuzz/fuzz_targets/{name}.rs"));
        let entries = text.lines().filter_map(|it| it.strip_prefix("#[path = \"../../")?.strip_suffix("\"]"));
        let entries: Vec<&str> = entries.filter(|it| it.contains("hostile")).collect();
        assert_eq!(entries.len(), 1, "{name}: {entries:?}");
        // The folder's own tests run it.
        let (folder, file) = entries[0].rsplit_once('/').unwrap();
        let module = format!("mod {};", file.trim_end_matches(".rs"));
        let included = ["main.rs", "mod.rs"].iter().any(|it| {
            std::fs::read_to_string(format!("{root}/{folder}/{it}")).is_ok_and(|text| text.contains(&module))
        });
        assert!(included, "{name}: nothing includes {}", entries[0]);
    }
}
