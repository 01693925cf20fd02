use heddle_ebpf::codes::{Outcome, Reason};

use crate::{
    ClusterSettings, Compiled, Connection, DefaultOutbound, EndpointSource, Hop, Index, Route,
    compile::tests::{SHOP, address},
    resources::parse_file,
};

/// A tenant's own namespace, a Service without a selector, and what each test writes beside it.
const BANK: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, annotations: {heddle.io/mesh: enabled}}}
---
apiVersion: v1
kind: Pod
metadata: {name: teller, namespace: bank, uid: u9, labels: {app: teller}}
spec: {nodeName: a, serviceAccountName: teller, containers: [{name: c, image: x}]}
status: {phase: Running, podIP: 10.1.0.9}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: bank}
spec: {clusterIP: 10.96.0.90, ports: [{name: https, port: 443, targetPort: 6443}, {name: other, port: 81}]}
";
const OUTSIDE: &str = "10.96.0.90";
const TELLER: &str = "10.1.0.9";

fn slice(namespace: &str, service: &str, endpoints: &str) -> String {
    format!(
        "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-s, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{name: https, port: 6443}}, {{port: 6379}}]
"
    )
}

fn settings() -> ClusterSettings {
    ClusterSettings {
        pod_networks: vec!["10.1.0.0/16".parse().unwrap()],
        service_networks: vec!["10.96.0.0/12".parse().unwrap()],
        ..ClusterSettings::default()
    }
}

fn with(more: &str, settings: &ClusterSettings) -> Compiled {
    let parsed = parse_file("shop.yaml", &(SHOP.to_owned() + BANK + more));
    assert_eq!(parsed.problems, [], "the fixture itself is sound");
    Index::of([parsed]).compile(settings, "a")
}

fn route(it: &Compiled, from: &str, to: &str, port: u16) -> Route {
    let captured = |address: &_| it.workload(address).map(|info| info.digest);
    it.outbound(&address(from), &address(to), port, captured, 0)
}

fn endpoints(it: &Compiled, to: &str, port: u16) -> Vec<String> {
    match route(it, TELLER, to, port) {
        Route::To { endpoints, .. } => {
            endpoints.iter().map(|it| format!("{}:{}", it.address.to_ip(), it.port)).collect()
        }
        Route::Refuse(decision) => vec![decision.verdict.reason.as_str().to_owned()],
    }
}

#[test]
fn a_service_without_a_selector_leads_where_its_slice_says() {
    let it = with(&slice("bank", "outside", "{addresses: [192.168.7.1]}"), &settings());
    assert_eq!(it.problems, []);
    assert_eq!(endpoints(&it, OUTSIDE, 443), ["192.168.7.1:6443"]);
    assert_eq!(endpoints(&it, OUTSIDE, 81), ["no_endpoints"], "the slice has no port of that name");
    assert_eq!(endpoints(&it, OUTSIDE, 6443), ["no_service_port"]);
    let Route::To { service: Some(name), .. } = route(&it, TELLER, OUTSIDE, 443) else { panic!() };
    assert_eq!(name.to_string(), "bank/outside");
}

#[test]
fn without_a_slice_it_is_refused_and_told() {
    let it = with("", &settings());
    assert_eq!(endpoints(&it, OUTSIDE, 443), ["no_endpoints"]);
    assert_eq!(it.problems.len(), 1);
    assert!(it.problems[0].to_string().contains("neither a selector nor an EndpointSlice"));
}

#[test]
fn a_foreign_endpoint_is_judged_as_the_address_that_it_is() {
    for (endpoint, default, expected) in [
        ("192.168.7.1", DefaultOutbound::Allow, (Outcome::Direct, Reason::PlainOutside)),
        ("192.168.7.1", DefaultOutbound::Cluster, (Outcome::Direct, Reason::PlainCluster)),
        ("192.168.7.1", DefaultOutbound::Deny, (Outcome::Refuse, Reason::OutboundDenied)),
        ("203.0.113.1", DefaultOutbound::Allow, (Outcome::Direct, Reason::PlainOutside)),
        ("203.0.113.1", DefaultOutbound::Cluster, (Outcome::Refuse, Reason::OutboundOutsideCluster)),
        // An address of the pods' network that nobody is known to have, one of the Services', and a Service's, from
        // which it would be led on by others.
        ("10.1.0.200", DefaultOutbound::Allow, (Outcome::Refuse, Reason::UnknownClusterAddress)),
        ("10.96.0.200", DefaultOutbound::Allow, (Outcome::Refuse, Reason::UnknownClusterAddress)),
        ("10.96.0.2", DefaultOutbound::Allow, (Outcome::Refuse, Reason::NoEndpoints)),
        // A pod outside the mesh.
        ("10.1.0.3", DefaultOutbound::Cluster, (Outcome::Direct, Reason::PlainCluster)),
        ("10.1.0.3", DefaultOutbound::Deny, (Outcome::Refuse, Reason::OutboundDenied)),
    ] {
        let settings = ClusterSettings { default_outbound: default, ..settings() };
        let it = with(&slice("bank", "outside", &format!("{{addresses: [{endpoint}]}}")), &settings);
        let decision = match route(&it, TELLER, OUTSIDE, 443) {
            Route::To { endpoints, .. } => match &endpoints[0].hop {
                Hop::Plain(decision) => decision.clone(),
                other => panic!("{endpoint}: {other:?}"),
            },
            Route::Refuse(decision) => decision,
        };
        assert_eq!(
            (decision.verdict.outcome, decision.verdict.reason),
            expected,
            "{endpoint} under {default:?}"
        );
    }
}

#[test]
fn a_slice_that_points_at_another_tenants_pod_gains_nothing() {
    let own = slice("bank", "outside", "{addresses: [10.1.0.2]}").replace("name: https", "name: other");
    let it = with(&own.replace("port: 6443", "port: 6379"), &settings());
    // shop/redis keeps its own identity and its own rules.
    for to in [(OUTSIDE, 81), ("10.1.0.2", 6379)] {
        let Route::Refuse(decision) = route(&it, TELLER, to.0, to.1) else { panic!("{to:?}") };
        assert_eq!(
            (decision.verdict.reason, &*decision.rule),
            (Reason::Unauthorized, "Server shop/redis"),
            "{to:?}"
        );
    }
    let allowed = route(&it, "10.1.0.1", OUTSIDE, 81);
    let Route::To { endpoints, .. } = &allowed else { panic!("{allowed:?}") };
    let Hop::Mesh { identity, .. } = &endpoints[0].hop else { panic!("{allowed:?}") };
    assert_eq!(identity.dns(), "redis.shop.serviceaccount.identity.linkerd.cluster.local");
    let teller = it.workload(&address(TELLER)).and_then(|info| info.identity.clone()).unwrap();
    let (client, server) = ((&teller).into(), address("10.1.0.2"));
    let connection = Connection { client: &client, address: address(TELLER).to_ip(), server, port: 6379 };
    assert!(!it.decide(&connection).allowed(), "by its own node as well");
}

#[test]
fn a_slice_adds_no_endpoint_to_another_namespaces_service() {
    let it = with(&slice("bank", "redis", "{addresses: [10.1.0.9]}"), &settings());
    assert_eq!(endpoints(&it, "10.96.0.2", 6379), endpoints(&with("", &settings()), "10.96.0.2", 6379));
    let own = with(&slice("shop", "redis", "{addresses: [10.1.0.9]}"), &settings());
    assert_eq!(endpoints(&own, "10.96.0.2", 6379), ["10.1.0.9:6379"], "control: one of its own does");
}

#[test]
fn where_slices_are_written_by_a_controller_the_selector_is_its_affair() {
    let controlled = ClusterSettings { endpoints: EndpointSource::Slices, ..settings() };
    let from = |it: &Compiled| endpoints_of(it, "10.96.0.2", 6379);
    assert_eq!(from(&with("", &controlled)), Vec::<String>::new());
    assert_eq!(from(&with("", &settings())), ["10.1.0.2:6379"]);
    let empty = slice("shop", "redis", "");
    assert_eq!(from(&with(&empty, &settings())), Vec::<String>::new(), "a slice that names none is heard");
}

fn endpoints_of(it: &Compiled, to: &str, port: u16) -> Vec<String> {
    match route(it, "10.1.0.1", to, port) {
        Route::To { endpoints, .. } => {
            endpoints.iter().map(|it| format!("{}:{}", it.address.to_ip(), it.port)).collect()
        }
        Route::Refuse(decision) => {
            assert_eq!(decision.verdict.reason, Reason::NoEndpoints);
            Vec::new()
        }
    }
}

#[test]
fn whoever_ends_is_taken_only_where_nobody_is_ready() {
    let draining = "{addresses: [192.168.7.2], conditions: {ready: false, serving: true, terminating: true}}";
    let away = "{addresses: [192.168.7.3], conditions: {ready: false}}";
    let all = format!("{{addresses: [192.168.7.1]}}, {draining}, {away}");
    assert_eq!(
        endpoints(&with(&slice("bank", "outside", &all), &settings()), OUTSIDE, 443),
        ["192.168.7.1:6443"]
    );
    let ending = format!("{draining}, {away}");
    assert_eq!(
        endpoints(&with(&slice("bank", "outside", &ending), &settings()), OUTSIDE, 443),
        ["192.168.7.2:6443"]
    );
    assert_eq!(
        endpoints(&with(&slice("bank", "outside", away), &settings()), OUTSIDE, 443),
        ["no_endpoints"]
    );
}

#[test]
fn an_endpoint_that_was_a_pod_is_not_whoever_has_its_address_now() {
    let named = |name: &str, uid: &str| {
        let endpoint =
            format!("{{addresses: [{TELLER}], targetRef: {{kind: Pod, name: {name}, uid: {uid}}}}}");
        endpoints_of(&with(&slice("bank", "outside", &endpoint), &open()), OUTSIDE, 443)
    };
    let open = [format!("{TELLER}:6443")];
    assert_eq!(named("teller", "u9"), open, "control");
    assert_eq!(named("teller", "''"), open, "by its name alone, where nobody says more");
    assert_eq!(named("teller", "u8"), Vec::<String>::new(), "its predecessor of the same name");
    assert_eq!(named("clerk", "u8"), Vec::<String>::new(), "another, which is gone");
}

/// So that the teller's rules do not hide where a Service leads.
fn open() -> ClusterSettings {
    ClusterSettings {
        default_inbound_policy: crate::resources::DefaultPolicy::AllAuthenticated,
        ..settings()
    }
}
