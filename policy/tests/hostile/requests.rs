//! Any request against routes that look at everything: never a panic, and nothing that can be read in two ways is allowed. The fuzz
//! target `requests` runs the same.

use std::sync::LazyLock;

use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Connection, Index, Request,
    request::{Host, check_path},
    resources::parse_file,
};

static RULES: LazyLock<Compiled> = LazyLock::new(|| {
    let parsed = parse_file("routes.yaml", include_str!("routes.yaml"));
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    Index::of([parsed]).compile_cluster(&ClusterSettings::default(), 0)
});

/// Any request. Whether it is allowed.
pub fn judge(method: &str, target: &str, host: &str, headers: &[(&str, &[u8])]) -> bool {
    let client = ClientIdentity::None;
    let connection = Connection {
        client: &client,
        address: std::net::Ipv4Addr::new(192, 0, 2, 1).into(),
        server: std::net::IpAddr::from([10, 1, 0, 1]).into(),
        port: 80,
    };
    let request = Request { method, target, host, headers };
    let found = RULES.decide_request(&connection, &request);
    if found.decision.allowed() {
        assert!(check_path(request.split().0).is_ok());
        assert!(Host::read(host).is_ok());
        assert!(found.route.is_some());
    }
    let again = RULES.explain(&connection, Some(&request));
    assert_eq!(again.decision, found.decision);
    found.decision.allowed()
}
