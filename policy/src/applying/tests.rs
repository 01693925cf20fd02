use super::*;

#[test]
fn ports_of_rules_are_kept_up_to_a_number_and_one_more_is_told() {
    let about = |ranges: &[std::ops::RangeInclusive<u16>]| {
        let about: Vec<About> = ranges.iter().map(|range| (0, Some(range.clone().collect()))).collect();
        Applying::of(&about)
    };
    let added = |ranges: &[std::ops::RangeInclusive<u16>]| {
        let mut listed = BTreeSet::new();
        let overfull = add_listed(&mut listed, &about(ranges));
        (overfull, listed.len() > MAX_PORTS, listed.last().copied())
    };
    assert_eq!(added(&[]), (false, false, None));
    assert_eq!(added(&[1..=10, 20..=30]), (false, false, Some(30)));
    assert_eq!(added(&[1..=8192]), (false, false, Some(8192)));
    assert_eq!(added(&[1..=8193]), (true, true, Some(8193)));
    assert_eq!(added(&[1..=8192, 9000..=9000]), (true, true, Some(9000)));
    // Those that hold on every port list none.
    let mut listed = BTreeSet::from([7]);
    assert!(!add_listed(&mut listed, &Applying::of(&[(0, None)])));
    assert_eq!(listed, BTreeSet::from([7]));
}
