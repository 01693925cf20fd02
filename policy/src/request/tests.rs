use super::*;

#[test]
fn paths_that_can_be_read_in_two_ways_are_refused() {
    use BadPath::*;
    for (path, found) in [
        ("/", Ok(())),
        ("/a/b;c=1/", Ok(())),
        ("/a%20b", Ok(())),
        ("/caf%C3%A9", Ok(())),
        ("/.well-known", Ok(())),
        ("/a..b/...", Ok(())),
        ("*", Ok(())),
        ("", Err(NotAbsolute)),
        ("a", Err(NotAbsolute)),
        ("http://a/b", Err(NotAbsolute)),
        ("//", Err(EmptySegment)),
        ("/a//b", Err(EmptySegment)),
        ("/shop/a%20/../b", Err(DotSegment)),
        ("/shop/a%20//b", Err(EmptySegment)),
        ("/a/./b", Err(DotSegment)),
        ("/a/..", Err(DotSegment)),
        ("/a/..;x/b", Err(DotSegment)),
        ("/%2e%2e/b", Err(BadEscape)),
        ("/a%2Fb", Err(HiddenSlash)),
        ("/a%5cb", Err(HiddenSlash)),
        ("/a\\b", Err(HiddenSlash)),
        ("/a%00", Err(BadCharacter)),
        ("/a\u{0}", Err(BadCharacter)),
        ("/a b", Err(BadCharacter)),
        ("/é", Err(BadCharacter)),
        ("/a%252Fb", Err(BadEscape)),
        ("/%61", Err(BadEscape)),
        ("/a%", Err(BadEscape)),
        ("/a%2", Err(BadEscape)),
        ("/a%zz", Err(BadEscape)),
        ("/a%+1", Err(BadEscape)),
        ("/a/..%3Bx/b", Err(DotSegment)),
        ("/a/.%3b", Err(DotSegment)),
        ("/a/..%3A", Ok(())),
        ("/%F0%9F%A7%B5", Ok(())),
        ("/%E9", Err(BadEscape)),
        ("/%C3/%A9", Err(BadEscape)),
        ("/%A9", Err(BadEscape)),
        ("/%C0%AF", Err(BadEscape)),
        ("/%ED%A0%80", Err(BadEscape)),
    ] {
        assert_eq!(check_path(path), found, "{path:?}");
    }
}

#[test]
fn hosts_compare_without_case_port_and_dot() {
    for (text, host) in [
        ("Shop.Example", "shop.example"),
        ("shop.example.", "shop.example"),
        ("shop.example:8080", "shop.example"),
        ("shop.example.:443", "shop.example"),
        ("shop.example:", "shop.example"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[FD00::1]:80", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("", ""),
    ] {
        assert_eq!(Host::read(text).map(|it| it.as_str().to_owned()), Ok(host.to_owned()), "{text:?}");
    }
    for text in [
        "shop.example:80:90",
        "shop.example:http",
        "shop.example:99999",
        "a..b",
        ".a",
        "a b",
        "a@b",
        "a/b",
        "[fd00::1",
        "[fd00::1]x",
        "[fd00::1]80",
        "[fd00::1 x]",
        "[fd00::1%eth0]",
        "[fd00::1.]",
        "[shop.example]",
        "[]",
        "é",
        "shop.example..",
        "fd00::1",
    ] {
        assert!(Host::read(text).is_err(), "{text:?}");
    }
    assert_eq!(Host::read(&"a".repeat(254)).err(), Some(BadHost::TooLong));
}

proptest::proptest! {
    #[test]
    fn no_path_that_passes_has_a_segment_that_leads_elsewhere(rest in "[/.;a]{0,9}") {
        let path = format!("/{rest}");
        let dots = path.split('/').any(|it| matches!(it.split(';').next(), Some("." | "..")));
        let expected = match (path.contains("//"), dots) {
            (true, _) => Err(BadPath::EmptySegment),
            (false, true) => Err(BadPath::DotSegment),
            (false, false) => Ok(()),
        };
        proptest::prop_assert_eq!(check_path(&path), expected, "{}", path);
    }
}
