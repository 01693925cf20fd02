//! Any request against routes that look at everything: never a panic, and nothing that can be read in two ways is allowed.
#![no_main]

use std::sync::LazyLock;

use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Connection, Index, Request,
    request::{Host, check_path},
    resources::parse_file,
};
use libfuzzer_sys::fuzz_target;

static RULES: LazyLock<Compiled> = LazyLock::new(|| {
    let parsed = parse_file("routes.yaml", include_str!("routes.yaml"));
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    Index::of([parsed]).compile_cluster(&ClusterSettings::default(), 0)
});

fuzz_target!(|input: (&str, &str, &str, Vec<(&str, &[u8])>)| {
    let (method, target, host, headers) = input;
    let client = ClientIdentity::None;
    let connection = Connection {
        client: &client,
        address: std::net::Ipv4Addr::new(192, 0, 2, 1).into(),
        server: std::net::IpAddr::from([10, 1, 0, 1]).into(),
        port: 80,
    };
    let request = Request { method, target, host, headers: &headers };
    let found = RULES.decide_request(&connection, &request);
    if found.decision.allowed() {
        assert!(check_path(request.split().0).is_ok());
        assert!(Host::read(host).is_ok());
        assert!(found.route.is_some());
    }
    let again = RULES.explain(&connection, Some(&request));
    assert_eq!(again.decision, found.decision);
});
