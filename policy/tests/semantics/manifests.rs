//! How manifests are read, where a slip would widen what they allow: versions, selectors, ports, matches of requests.

use heddle_ebpf::codes::Reason;
use heddle_policy::{ClusterSettings, Request, names::IdentityNaming, resources::parse_file};

use crate::world::*;

const GATEWAY: &str = "gateway.networking.k8s.io";
const LINKERD: &str = "policy.linkerd.io";

fn read(api: &str, kind: &str, spec: &str) -> (usize, bool) {
    let parsed = parse_file("r", &doc(api, kind, "r", spec));
    (parsed.resources.len(), parsed.has_errors())
}

#[test]
fn every_published_version_is_read() {
    let route = "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]}";
    let grant = "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: ops}], to: [{group: '', kind: Service}]}";
    let server = "{podSelector: {}, port: 80}";
    for (group, kind, versions, spec) in [
        (LINKERD, "Server", &["v1beta1", "v1beta2", "v1beta3"][..], server),
        (LINKERD, "HTTPRoute", &["v1alpha1", "v1beta1", "v1beta2", "v1beta3"], route),
        (GATEWAY, "HTTPRoute", &["v1alpha2", "v1beta1", "v1"], route),
        (GATEWAY, "GRPCRoute", &["v1alpha2", "v1"], route),
        (GATEWAY, "TLSRoute", &["v1alpha2", "v1alpha3", "v1"], route),
        (GATEWAY, "TCPRoute", &["v1alpha2", "v1"], route),
        (GATEWAY, "ReferenceGrant", &["v1alpha2", "v1beta1", "v1"], grant),
    ] {
        for version in versions {
            assert_eq!(read(&format!("{group}/{version}"), kind, spec), (1, false), "{kind} {version}");
        }
    }
}

#[test]
fn a_version_that_is_not_known_is_kept_to_close_what_it_may_be_about() {
    let route = "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]}";
    let limit =
        "{targetRef: {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 5}}";
    for (api, kind, spec) in [
        ("policy.linkerd.io/v9", "HTTPRoute", route),
        ("gateway.networking.k8s.io/v9", "HTTPRoute", route),
        ("gateway.networking.k8s.io/v9", "GRPCRoute", route),
        ("policy.linkerd.io/v9", "HTTPLocalRateLimitPolicy", limit),
        ("policy.linkerd.io/v9", "Server", "{podSelector: {}, port: 80}"),
        ("heddle.io/v9", "AccessRule", "{action: Deny, from: [{anyone: true}]}"),
        ("heddle.io/v9", "ClusterAccessRule", "{action: Deny, from: [{anyone: true}]}"),
    ] {
        assert_eq!(read(api, kind, spec), (1, true), "{api} {kind}");
    }
    let told = parse_file("r", &doc("split.smi-spec.io/v1alpha2", "TrafficSplit", "r", "{}"));
    assert!(told.problems.iter().any(|it| it.reason.contains("weighted backendRefs")), "{:?}", told.problems);
}

#[test]
fn selectors_mean_what_kubernetes_means() {
    for (expression, selects) in [
        ("{key: app, operator: In, values: [web, x]}", true),
        ("{key: app, operator: In, values: [db]}", false),
        ("{key: none, operator: In, values: [web]}", false),
        ("{key: app, operator: NotIn, values: [db]}", true),
        ("{key: app, operator: NotIn, values: [web]}", false),
        ("{key: none, operator: NotIn, values: [web]}", true),
        ("{key: app, operator: Exists}", true),
        ("{key: none, operator: Exists}", false),
        ("{key: app, operator: DoesNotExist}", false),
        ("{key: none, operator: DoesNotExist}", true),
    ] {
        let spec = format!(
            "{{podSelector: {{matchExpressions: [{expression}]}}, port: 80, proxyProtocol: opaque, accessPolicy: all-unauthenticated}}"
        );
        let it = world(&server("s", &spec));
        assert!(it.problems.iter().all(|it| !it.reason.contains("operator")), "{:?}", it.problems);
        assert_eq!(it.allows("", OUTSIDE, WEB, 80), selects, "{expression}");
    }
    for bad in ["{key: app, operator: In}", "{key: app, operator: Exists, values: [web]}"] {
        let spec = format!("{{podSelector: {{matchExpressions: [{bad}]}}, port: 80}}");
        assert!(world(&server("s", &spec)).tells("does not go with the operator"), "{bad}");
    }
    let old = doc("policy.linkerd.io/v1beta1", "Server", "s", "{externalWorkloadSelector: {}, port: 80}");
    assert!(world(&old).tells("is not known in v1beta1"));
}

#[test]
fn ports_of_a_rule_are_numbers_ranges_and_names_and_a_thousand_at_most() {
    for (ports, sound) in [
        ("['8-x', http, 80, '80', '1-65535']", false),
        ("['8-x']", true),
        ("[http, 80, '80-80']", true),
        ("['1-65535']", true),
        ("['1-1024']", true),
        ("['1-1025']", false),
        ("['5000-6023']", true),
        ("['5000-6024']", false),
        ("['1-1000', '2001-2024']", true),
        ("['1-1000', '2001-2025']", false),
        ("['0-5']", false),
        ("['+80-90']", false),
        ("['80-+90']", false),
        ("['90-80']", false),
        ("['80-65536']", false),
    ] {
        let spec = format!("{{action: Allow, ports: {ports}, from: [{{anyone: true}}]}}");
        assert_eq!(!parse_file("r", &rule("r", &spec)).has_errors(), sound, "{ports}");
    }
}

fn web(protocol: &str) -> String {
    server(
        "web",
        &format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, port: 80, proxyProtocol: {protocol}, accessPolicy: all-unauthenticated}}"
        ),
    )
}

#[test]
fn a_route_of_a_version_that_is_not_known_closes_the_server_that_it_names_and_no_other() {
    let other = server("other", "{podSelector: {}, port: 81, accessPolicy: all-unauthenticated}");
    let spec = "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}], rules: [{}]}";
    for api in ["gateway.networking.k8s.io/v9", "policy.linkerd.io/v9"] {
        let it = world(&(web("HTTP/1") + &other + &doc(api, "HTTPRoute", "r", spec)));
        let request = Request { method: "GET", target: "/", host: "h", headers: &[] };
        assert_eq!(it.request("", WEB, 80, &request).decision.verdict.reason, Reason::InvalidPolicy, "{api}");
        assert!(it.allows("", OUTSIDE, WEB, 81), "{api} closes another Server");
    }
}

#[test]
fn a_parent_is_a_server_by_its_group_and_its_kind() {
    let ask = |group: &str, kind: &str| {
        let parents = format!("parentRefs: [{{group: {group}, kind: {kind}, name: web}}]");
        let spec = format!("{{{parents}, rules: [{{matches: [{{path: {{type: Exact, value: /only}}}}]}}]}}");
        let it = world(&(web("HTTP/1") + &doc("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &spec)));
        let request = Request { method: "GET", target: "/other", host: "h", headers: &[] };
        it.request("", WEB, 80, &request).decision.verdict.reason
    };
    assert_eq!(ask(LINKERD, "Server"), Reason::NoRoute, "attached");
    assert_eq!(ask("Policy.Linkerd.io", "server"), Reason::NoRoute, "attached");
    for (group, kind) in
        [(GATEWAY, "Server"), (LINKERD, "Service"), (LINKERD, "EgressNetwork"), ("''", "Server")]
    {
        assert_eq!(ask(group, kind), Reason::Unauthenticated, "{group} {kind}");
    }
}

#[test]
fn matches_that_cannot_be_read_close_the_server_and_others_take_what_they_say() {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    let ask = |kind: &str, matches: &str, headers: &[(&str, &[u8])]| {
        let protocol = if kind == "GRPCRoute" { "gRPC" } else { "HTTP/1" };
        let spec = format!("{{{parents}, rules: [{{matches: [{matches}]}}]}}");
        let it = world(&(web(protocol) + &doc("gateway.networking.k8s.io/v1", kind, "r", &spec)));
        let request = Request { method: "POST", target: "/s.S/M?a=v&b=w", host: "h", headers };
        it.request("", WEB, 80, &request).decision.verdict.reason
    };
    let (taken, not, closed) = (Reason::Unauthenticated, Reason::NoRoute, Reason::InvalidPolicy);
    let h = |name: &str, value: &str| format!("{{name: {name}, value: {value}}}");
    for (kind, matches, wanted) in [
        ("HTTPRoute", "{method: POST}".to_owned(), taken),
        ("HTTPRoute", "{method: GET}".to_owned(), not),
        ("HTTPRoute", "{method: 'P T'}".to_owned(), closed),
        ("HTTPRoute", "{method: ''}".to_owned(), closed),
        ("HTTPRoute", "{method: {service: s.S}}".to_owned(), closed),
        ("HTTPRoute", "{path: {type: PathPrefix, value: ''}}".to_owned(), closed),
        ("HTTPRoute", "{path: {type: PathPrefix, value: '/'}}".to_owned(), taken),
        ("HTTPRoute", "{path: {type: PathPrefix, value: '/s.S/'}}".to_owned(), taken),
        ("HTTPRoute", "{headers: [{name: 'h h', value: v}]}".to_owned(), closed),
        ("HTTPRoute", "{headers: [{name: '', value: v}]}".to_owned(), closed),
        ("HTTPRoute", format!("{{headers: [{}, {}]}}", h("h", "v"), h("H", "w")), taken),
        ("HTTPRoute", format!("{{headers: [{}, {}]}}", h("h", "v"), h("g", "w")), not),
        ("HTTPRoute", format!("{{queryParams: [{}, {}]}}", h("a", "v"), h("a", "w")), taken),
        ("HTTPRoute", format!("{{queryParams: [{}, {}]}}", h("a", "v"), h("b", "v")), not),
        ("GRPCRoute", "{method: POST}".to_owned(), closed),
        ("GRPCRoute", "{path: {value: /s.S}}".to_owned(), closed),
        ("GRPCRoute", format!("{{headers: [{}]}}", h("h", "v")), taken),
        ("GRPCRoute", format!("{{headers: [{}]}}", h("h", "w")), not),
        ("GRPCRoute", format!("{{queryParams: [{}]}}", h("a", "v")), closed),
        ("GRPCRoute", "{method: {service: s.S}}".to_owned(), taken),
        ("GRPCRoute", "{method: {service: s_1.S}}".to_owned(), not),
        ("GRPCRoute", "{method: {service: s/S}}".to_owned(), closed),
        ("GRPCRoute", "{method: {service: s..S}}".to_owned(), closed),
        ("GRPCRoute", "{method: {method: M}}".to_owned(), taken),
        ("GRPCRoute", "{method: {method: a.M}}".to_owned(), closed),
        ("GRPCRoute", "{method: {method: 'a/M'}}".to_owned(), closed),
        ("GRPCRoute", "{method: {}}".to_owned(), closed),
    ] {
        assert_eq!(ask(kind, &matches, &[("h", b"v")]), wanted, "{kind} {matches}");
    }
}

#[test]
fn a_name_is_as_long_as_kubernetes_lets_it() {
    let named = |name: &str| !parse_file("r", &server(name, "{podSelector: {}, port: 80}")).has_errors();
    assert!(named(&"a".repeat(253)) && !named(&"a".repeat(254)));
    assert!(named("a-b.c") && named("'0'"));
    for bad in ["A", "a_b", "'-a'", "'a-'", "a.-b", "a-.b", "a..b", "a."] {
        assert!(!named(bad), "{bad}");
    }
}

#[test]
fn an_address_that_two_claim_is_nobodys() {
    let external = |name: &str, ip: &str| {
        let spec = format!(
            "{{meshTLS: {{identity: {name}.example, serverName: {name}.example}}, workloadIPs: [{{ip: {ip}}}], ports: [{{port: 80}}]}}"
        );
        doc("workload.linkerd.io/v1beta1", "ExternalWorkload", name, &spec)
    };
    let known = |text: &str, ip: &str| {
        let it = world(text);
        it.compiled.external(&ip.parse::<std::net::IpAddr>().unwrap().into()).is_some()
    };
    assert!(known(&external("a", OUTSIDE), OUTSIDE), "the control");
    assert!(!known(&(external("a", OUTSIDE) + &external("b", OUTSIDE)), OUTSIDE));
    assert!(!known(&external("a", WEB), WEB));
}

#[test]
fn a_service_account_is_named_in_the_clusters_own_trust_domain() {
    let settings = ClusterSettings {
        naming: IdentityNaming::new("linkerd", "corp.example").unwrap(),
        ..ClusterSettings::default()
    };
    let it = world_with(&(db() + &allow(WEB_ACCOUNT)), &settings, 0);
    let dns = |domain: &str| format!("web.shop.serviceaccount.identity.linkerd.{domain}");
    assert!(it.allows(&dns("corp.example"), OUTSIDE, DB, 6379));
    assert!(!it.allows(&dns("cluster.local"), OUTSIDE, DB, 6379));
}

#[test]
fn metadata_that_cannot_be_read_takes_no_rule_that_narrows_away() {
    let spoilt = |text: &str| {
        let with = text.replacen("namespace: shop}", "namespace: shop, labels: {x: 1}}", 1);
        assert_ne!(with, text);
        with
    };
    let sound = db() + &allow(WEB_ACCOUNT);
    let deny = rule("no-web", "{action: Deny, from: [{serviceAccounts: [{name: web}]}]}");
    let tried = |it: &World| it.ask("web.shop", OUTSIDE, DB, 6379).allowed();
    assert!(tried(&world(&sound)) && !tried(&world(&(sound.clone() + &deny))), "the controls");
    let it = world(&(sound + &spoilt(&deny)));
    assert!(!tried(&it) && it.tells("what the resource may have meant is closed"));
    let narrow = "{podSelector: {matchLabels: {app: db}}, port: 6379, accessPolicy: deny}";
    let open = ClusterSettings {
        default_inbound_policy: heddle_policy::resources::DefaultPolicy::AllUnauthenticated,
        ..ClusterSettings::default()
    };
    let at = |text: &str| tried(&world_with(text, &open, 0));
    assert!(at("") && !at(&server("db", narrow)), "the controls");
    assert!(!at(&spoilt(&server("db", narrow))));
}

#[test]
fn a_route_whose_parents_are_misspelt_closes_what_it_may_be_attached_to() {
    let ask = |field: &str| {
        let spec = format!(
            "{{{field}: [{{group: {LINKERD}, kind: Server, name: web}}], rules: [{{matches: [{{path: {{type: Exact, value: /only}}}}]}}]}}"
        );
        let it = world(&(web("HTTP/1") + &doc("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &spec)));
        let request = Request { method: "GET", target: "/secret", host: "h", headers: &[] };
        it.request("", WEB, 80, &request).decision.verdict.reason
    };
    assert_eq!(ask("parentRefs"), Reason::NoRoute, "the control");
    assert_eq!(ask("parentRef"), Reason::InvalidPolicy);
}
