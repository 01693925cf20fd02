//! Any text as a line of recorded flows: it is refused, or means the same when it is written out again. The fuzz target `flows` runs the
//! same.

use super::record::FlowLine;

/// Any text as a line. Whether it is one.
pub fn line(text: &str) -> bool {
    let Ok(read) = FlowLine::parse(text) else { return false };
    let again = read.to_json();
    assert!(!again.contains('\n'), "one line: {again}");
    assert_eq!(FlowLine::parse(&again).as_ref(), Ok(&read), "{again}");
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const FLOW: &str = r#"{"version":1,"node":"a","first":"2026-11-22T05:00:00.1Z","last":"2026-11-22T05:00:00.9Z","count":3,"protocol":"tcp","source":{"address":"10.1.0.1","pod":"shop/web-1"},"destination":{"address":"10.1.0.2","port":6379},"outcome":"allowed","reason":"authorized","rule":"r"}"#;
    const GAP: &str = r#"{"version":1,"node":"a","time":"2026-11-22T05:00:00Z","leftOut":7,"why":"full"}"#;

    #[test]
    fn what_is_no_record_is_refused_and_what_is_one_round_trips() {
        assert!(super::line(FLOW) && super::line(GAP), "the control");
        for (was, wrong) in [
            ("\"version\":1", "\"version\":2"),
            ("\"count\":3", "\"count\":-3"),
            ("\"port\":6379", "\"port\":65536"),
            ("10.1.0.1", "10.1.0.256"),
            ("\"allowed\"", "\"maybe\""),
            ("\"rule\"", "\"rules\""),
            ("05:00:00.1Z", "25:00:00.1Z"),
        ] {
            assert!(FLOW.contains(was) && !super::line(&FLOW.replace(was, wrong)), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_line_is_refused_or_means_the_same_again(
            gap in any::<bool>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), "[0-9a-z\"{}:,\\\\]"), 0..4),
        ) {
            let mut text = if gap { GAP } else { FLOW }.to_owned();
            for (at, piece) in edits {
                let at = at.index(text.len());
                text.replace_range(at..=at, &piece);
            }
            super::line(&text);
        }
    }
}
