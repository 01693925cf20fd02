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

#[test]
fn rules_are_found_by_port_in_their_order_and_weigh_by_the_ports_that_they_name() {
    let ports = |range: std::ops::RangeInclusive<u16>| Some(range.collect::<Vec<u16>>());
    let it = Applying::of(&[(3, ports(1..=100)), (5, None), (7, ports(50..=109)), (9, None)]);
    assert_eq!(
        (it.listed(10), it.listed(50), it.listed(109), it.listed(110)),
        (&[3][..], &[3, 7][..], &[7][..], &[][..])
    );
    assert_eq!(it.with(it.listed(50)), [3, 5, 7, 9]);
    assert_eq!(it.with(&[]), [5, 9]);
    assert_eq!(it.weight(), 10, "a sixteenth of the ports, each as often as it is named");
}
