//! docs/linkerd-semantics.md names tests that there are.

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn every_test_that_the_page_names_exists() {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/linkerd-semantics.md")).unwrap();
    let mut named = 0;
    for row in page.lines().filter(|row| row.starts_with("| ") && !row.contains("shown by")) {
        let tests = row.split('`').filter_map(|it| it.split_once('#'));
        let mut of_row = 0;
        for (file, test) in tests {
            let text = std::fs::read_to_string(format!("{ROOT}/{file}")).unwrap_or_default();
            let there = text.split(&format!("fn {test}(")).next().filter(|before| before.len() < text.len());
            let before = there.unwrap_or_else(|| panic!("{file} has no test {test}"));
            // An attribute of a test stands above it: a mere function shows nothing.
            let above: Vec<&str> =
                before.lines().rev().skip_while(|it| it.trim().is_empty()).take(6).collect();
            assert!(above.iter().any(|it| it.contains("test]")), "{file}: {test} is no test");
            of_row += 1;
        }
        assert!(of_row > 0, "names no test: {row}");
        named += of_row;
    }
    assert!(named > 80, "{named}");
}
