use super::{attach::*, flows::*, policy::*, *};

/// No implicit padding: the sizes are the sums of the fields.
#[test]
fn layouts_have_no_padding() {
    assert_eq!(size_of::<Address>(), 16);
    assert_eq!(size_of::<Workload>(), 24);
    assert_eq!(size_of::<PortKey>(), 8);
    assert_eq!(size_of::<PortPolicy>(), 16);
    assert_eq!(size_of::<NetworkKey>(), 24);
    assert_eq!(size_of::<ServiceKey>(), 20);
    assert_eq!(size_of::<Service>(), 12);
    assert_eq!(size_of::<Backend>(), 20);
    assert_eq!(size_of::<Settings>(), 16);
    assert_eq!(size_of::<Pod>(), 8 + 32 + 16 + 256);
    assert_eq!(size_of::<Veth>(), 8 + 32 + 8);
    assert_eq!(size_of::<ListeningKey>(), 16);
    assert_eq!(size_of::<Limits>(), 24);
    assert_eq!(size_of::<Tuple>(), 36);
    assert_eq!(size_of::<FlowKey>(), 48);
    assert_eq!(size_of::<Origin>(), 32);
    assert_eq!(size_of::<DirectFlow>(), 24);
    assert_eq!(size_of::<SeenKey>(), 48);
    assert_eq!(size_of::<AgentMark>(), 24);
    assert_eq!(size_of::<DirectMark>(), 56);
    assert_eq!(size_of::<Asked>(), 56);
    assert_eq!(size_of::<PendingKey>(), 32);
    assert_eq!(size_of::<UdpFlow>(), 40);
    assert_eq!(size_of::<UdpSeen>(), 32);
    assert_eq!(size_of::<CounterKey>(), 24);
    assert_eq!(size_of::<Event>(), 24 + 36 + 28 + 16 + 8);
}

#[test]
fn addresses_of_both_families_round_trip() {
    let v4: std::net::IpAddr = "10.1.2.3".parse().unwrap();
    let v6: std::net::IpAddr = "fd00::1:2".parse().unwrap();
    assert_eq!(Address::from(v4).to_ip(), v4);
    assert_eq!(Address::from(v6).to_ip(), v6);
    assert_eq!(Address::from_v6(Address::from(v6).to_v6()), Address::from(v6));
    assert_eq!(Address::from_v4(Address::from(v4).to_v4()), Address::from(v4));
    assert!(Address::from(v4).is_v4() && !Address::from(v6).is_v4());
    for (text, loopback, unspecified, multicast) in [
        ("127.0.1.9", true, false, false),
        ("::1", true, false, false),
        ("::", false, true, false),
        ("0.0.0.0", false, true, false),
        ("224.0.0.1", false, false, true),
        ("ff02::1", false, false, true),
        ("128.0.0.1", false, false, false),
    ] {
        let address = Address::from(text.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(
            (address.is_loopback(), address.is_unspecified(), address.is_multicast()),
            (loopback, unspecified, multicast),
            "{text}"
        );
    }
}

#[test]
fn codes_round_trip() {
    for reason in codes::Reason::ALL {
        assert_eq!(codes::Reason::from_code(*reason as u32), Some(*reason));
    }
    for hook in codes::Hook::ALL {
        assert_eq!(codes::Hook::from_code(*hook as u32), Some(*hook));
    }
    assert_eq!(codes::Reason::from_code(9999), None);
}

#[test]
fn slots_do_not_overlap() {
    let mut seen = std::collections::HashSet::new();
    for direction in [Direction::Outbound, Direction::Inbound] {
        for v4 in [true, false] {
            for worker in 0..WORKERS {
                assert!(seen.insert(slot(32, direction, v4, worker)));
            }
        }
    }
    assert!(seen.iter().all(|slot| (32..32 + SLOTS_PER_POD).contains(slot)));
}
