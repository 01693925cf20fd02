//! Every field at its limits.

use heddle_policy::{ClusterSettings, Compiler, resources::parse_file};

use crate::world::*;

/// Seconds that the processor has worked for this thread.
fn worked() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[test]
fn an_annotation_of_a_megabyte_refuses_and_is_told() {
    let huge = "1,".repeat(500_000);
    for key in
        ["config.linkerd.io/default-inbound-policy", "config.linkerd.io/opaque-ports", "heddle.io/mesh"]
    {
        let text =
            pods().replace("heddle.io/mesh: enabled", &format!("heddle.io/mesh: enabled, {key}: '{huge}'"));
        let text = if key == "heddle.io/mesh" {
            pods().replace("heddle.io/mesh: enabled", &format!("{key}: '{huge}'"))
        } else {
            text
        };
        let parsed = parse_file("r", &text);
        let open = ClusterSettings {
            default_inbound_policy: heddle_policy::resources::DefaultPolicy::AllUnauthenticated,
            ..ClusterSettings::default()
        };
        let compiled = heddle_policy::Index::of([parsed]).compile_cluster(&open, 0);
        assert!(!compiled.problems.is_empty(), "{key}");
        let it = World { compiled, problems: Vec::new() };
        if key.ends_with("policy") {
            assert!(!it.allows("", OUTSIDE, WEB, 80));
        }
        assert!(
            it.compiled.pods().filter(|pod| pod.meshed()).count() == 3,
            "{key}: what cannot be read is meshed"
        );
    }
}

#[test]
fn what_is_told_of_a_huge_value_is_not_huge() {
    let huge = "x".repeat(1_000_000);
    for key in [
        "config.linkerd.io/default-inbound-policy",
        "config.linkerd.io/opaque-ports",
        "config.linkerd.io/proxy-require-identity-inbound-ports",
        "heddle.io/mesh",
    ] {
        let text = pods()
            .replace("labels: {app: db}", &format!("labels: {{app: db}}, annotations: {{{key}: {huge}}}"));
        let compiled = heddle_policy::Index::of([parse_file("r", &text)])
            .compile_cluster(&ClusterSettings::default(), 0);
        assert!(!compiled.problems.is_empty(), "{key}");
        for problem in &compiled.problems {
            assert!(
                problem.reason.len() < 1_100 && problem.to_string().len() < 4_000,
                "{key}: {}",
                problem.reason.len()
            );
        }
    }
    let long = |spec: &str| {
        doc("policy.linkerd.io/v1alpha1", "NetworkAuthentication", "n", spec)
            + &mesh_tls("m", &format!("{{identities: ['{huge}']}}"))
            + &server(
                "s",
                &format!(
                    "{{podSelector: {{}}, port: '{huge}', proxyProtocol: {huge}, accessPolicy: {huge}}}"
                ),
            )
            + &rule(
                "r",
                &format!("{{action: {huge}, from: [{{networks: [{{cidr: '{huge}'}}]}}], expires: {huge}}}"),
            )
    };
    let it = world(&long(&format!("{{networks: [{{cidr: '{huge}', except: ['{huge}']}}]}}")));
    assert!(it.problems.len() >= 5, "{:?}", it.problems.len());
    for problem in &it.problems {
        assert!(problem.reason.len() < 2_000, "{}: {} bytes", problem.field, problem.reason.len());
    }
}

#[test]
fn a_block_that_names_a_host_is_the_block_it_lies_in_and_a_zone_is_refused() {
    let reference = "[{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}]";
    let with = |cidr: &str| {
        world(&(db() + &allow(reference) + &networks("n", &format!("{{networks: [{{cidr: '{cidr}'}}]}}"))))
    };
    let it = with("192.0.2.99/24");
    let (in_it, beside) = (it.allows("", OUTSIDE, DB, 6379), it.allows("", "192.0.3.1", DB, 6379));
    assert!(!beside && (in_it || !it.problems.is_empty()), "the block, or told: never another");
    for zone in ["fe80::1%eth0", "fe80::1%eth0/64", "fd00::%1/8", "fe80::/10%eth0"] {
        let it = with(zone);
        assert!(!it.allows("", "fe80::1", DB, 6379) && !it.allows("", "fd00::1", DB, 6379), "{zone}");
        assert!(
            it.problems.iter().any(|problem| problem.field.contains("networks[0]")),
            "{zone}: {:?}",
            it.problems
        );
    }
    assert!(with("fd00::/8").allows("", "fd00::1", DB, 6379), "the control");
}

#[test]
fn numbers_at_their_limits_are_what_they_say_or_refused() {
    for (port, holds) in
        [("0", false), ("-1", false), ("1", true), ("65535", true), ("65536", false), ("80.5", false)]
    {
        let it = world(&server(
            "s",
            &format!("{{podSelector: {{}}, port: {port}, accessPolicy: all-unauthenticated}}"),
        ));
        let number: u16 = port.parse().unwrap_or(80);
        assert_eq!(it.allows("", OUTSIDE, WEB, number.max(1)), holds, "{port}");
        assert_eq!(it.problems.is_empty(), holds, "{port}: {:?}", it.problems);
    }
    let http = server(
        "web",
        "{podSelector: {matchLabels: {app: web}}, port: 80, proxyProtocol: HTTP/1, accessPolicy: all-unauthenticated}",
    );
    for (rate, refuses) in [("-1", true), ("4294967296", true), ("1", false), ("4294967295", false)] {
        let limit = doc(
            "policy.linkerd.io/v1alpha1",
            "HTTPLocalRateLimitPolicy",
            "l",
            &format!(
                "{{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, total: {{requestsPerSecond: {rate}}}}}"
            ),
        );
        let it = world(&(http.clone() + &limit));
        let request = heddle_policy::Request { method: "GET", target: "/", host: "h", headers: &[] };
        assert_eq!(
            !it.request("", WEB, 80, &request).decision.allowed(),
            refuses,
            "{rate}: {:?}",
            it.problems
        );
    }
}

#[test]
fn a_hundred_thousand_rules_in_one_namespace_are_worked_out_in_bounded_time_and_asking_stays_flat() {
    let few = policies(10);
    let many = policies(100_000);
    let (few, many) = (world_of(few), world_of(many));
    let last = "sa99999.shop";
    assert!(many.allows(last, OUTSIDE, DB, 6379) && !many.allows("sa100000.shop", OUTSIDE, DB, 6379));
    // The processor's time, in turns and of each the best: whatever else the machine does is in neither.
    let work = |it: &World, who: &str| {
        let start = worked();
        for _ in 0..500 {
            std::hint::black_box(it.allows(who, OUTSIDE, DB, 6379));
        }
        worked() - start
    };
    let (mut a, mut b) = (f64::MAX, f64::MAX);
    for _ in 0..20 {
        (a, b) = (a.min(work(&few, "sa9.shop")), b.min(work(&many, last)));
    }
    assert!(b < a * 20.0, "{a} s for 10 rules, {b} s for 100,000");
}

/// Policies that were read already: reading a hundred thousand documents is another test's matter.
fn policies(count: usize) -> Vec<heddle_policy::resources::Resource> {
    let one = parse_file("r", &allow("[{kind: ServiceAccount, name: placeholder}]")).resources.remove(0);
    (0..count)
        .map(|i| {
            let mut it = one.clone();
            if let heddle_policy::resources::Resource::AuthorizationPolicy(policy) = &mut it {
                policy.meta.name = format!("p{i}");
                let account = heddle_policy::resources::ObjectName::new("shop", format!("sa{i}"));
                let rule = policy.rule.as_mut().unwrap();
                rule.identity = Some(heddle_policy::resources::IdentityRef::ServiceAccount(account));
            }
            it
        })
        .collect()
}

fn world_of(rules: Vec<heddle_policy::resources::Resource>) -> World {
    let mut compiler = Compiler::new(ClusterSettings::default(), None);
    for resource in parse_file("r", &(pods() + &db())).resources.into_iter().chain(rules) {
        compiler.apply(resource);
    }
    World { compiled: compiler.compile(0), problems: Vec::new() }
}

#[test]
fn hostile_expressions_are_bounded() {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    for pattern in ["(a{1000}){1000}", "((((((a*)*)*)*)*)*)*\\w{1000}", "(?:x{50}){50}{50}"] {
        let spec = format!(
            "{{{parents}, rules: [{{matches: [{{path: {{type: RegularExpression, value: '{pattern}'}}}}]}}]}}"
        );
        let parsed = parse_file("r", &doc("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &spec));
        assert!(parsed.has_errors(), "{pattern}");
    }
    // What is accepted is linear: a text that makes a backtracking engine stall.
    let spec = format!(
        "{{{parents}, rules: [{{matches: [{{path: {{type: RegularExpression, value: '/(a+)+b'}}}}]}}]}}"
    );
    let web = server("web", "{podSelector: {}, port: 80, proxyProtocol: HTTP/1}");
    let it = world(&(web + &doc("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &spec)));
    let target = format!("/{}", "a".repeat(60_000));
    let start = worked();
    let request = heddle_policy::Request { method: "GET", target: &target, host: "h", headers: &[] };
    let _ = it.request("web.shop", WEB, 80, &request);
    assert!(worked() - start < 5.0);
}

#[test]
fn expressions_are_bounded_in_number_and_all_together() {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    let errors = |rules: &str| {
        let spec = format!("{{{parents}, rules: [{rules}]}}");
        let parsed = parse_file("r", &doc("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &spec));
        parsed.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let named =
        |count: usize, test: &str| (0..count).map(|i| format!("{{name: h{i}, {test}}},")).collect::<String>();
    for field in ["headers", "queryParams"] {
        let some = |count| errors(&format!("{{matches: [{{{field}: [{}]}}]}}", named(count, "value: v")));
        assert!(some(16).is_empty(), "the control");
        assert!(some(17).concat().contains("has more than 16 entries"), "{:?}", some(17));
    }
    let expressions = |rules: usize, matches: usize, value: &str| {
        let headers = named(16, &format!("type: RegularExpression, value: '{value}'"));
        let matches = format!("{{headers: [{headers}]}},").repeat(matches);
        errors(&format!("{{matches: [{matches}]}},").repeat(rules))
    };
    assert!(expressions(1, 8, "[a-z]+").is_empty(), "the control");
    let start = worked();
    for found in [expressions(1, 9, "[a-z]+"), expressions(2, 64, "[a-z]{1200}")] {
        assert!(found.concat().contains("expressions"), "{found:?}");
        assert_eq!(found.len(), 1, "told once");
    }
    assert!(worked() - start < 5.0);
}

#[test]
fn identities_that_are_none_spoil_their_rule() {
    let reference = "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}]";
    let web = "web.shop.serviceaccount.identity.linkerd.cluster.local";
    for bad in [
        "Web.example",
        "a..b",
        ".a",
        "a.",
        "wéb.example",
        "*.*",
        "a*",
        "",
        "-a.b",
        "spiffe://",
        "spiffe://x",
        "spiffe://x/../y",
        "spiffe://x/%2e",
    ] {
        let it =
            world(&(db() + &allow(reference) + &mesh_tls("m", &format!("{{identities: [{web}, '{bad}']}}"))));
        assert!(!it.allows("web.shop", OUTSIDE, DB, 6379), "{bad}");
        assert!(
            it.problems.iter().any(|problem| problem.field.contains("identities[1]")),
            "{bad}: {:?}",
            it.problems
        );
    }
    let it = world(&(db() + &allow(reference) + &mesh_tls("m", &format!("{{identities: [{web}]}}"))));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379), "the control");
}
