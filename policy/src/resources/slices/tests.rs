use super::*;
use crate::resources::{Parsed, Resource, parse_file};

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- addresses: [10.1.0.1, 10.1.0.9]
  conditions: {ready: true}
  targetRef: {kind: Pod, namespace: shop, name: web, uid: u1}
- addresses: [10.1.0.2]
  conditions: {ready: false, serving: true, terminating: true}
- addresses: [10.1.0.3]
  conditions: {ready: false}
- addresses: [10.1.0.4]
  targetRef: {kind: Pod, namespace: bank, name: web, uid: u1}
ports:
- {name: http, port: 8080}
- {port: 53, protocol: UDP}
";

fn read(text: &str) -> (EndpointSlice, Vec<Problem>) {
    let Parsed { mut resources, problems } = parse_file("s.yaml", text);
    assert_eq!(resources.len(), 1, "{problems:?}");
    match resources.remove(0) {
        Resource::EndpointSlice(slice) => (slice, problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_endpoint_that_is_not_ready_serves_only_while_it_ends() {
    let state = |conditions: &str| {
        let text = SLICE.replace("{ready: false, serving: true, terminating: true}", conditions);
        read(&text).0.endpoints.iter().find(|it| it.address.to_string() == "10.1.0.2").map(|it| it.state)
    };
    for (conditions, wanted) in [
        ("{}", EndpointState::Ready),
        ("{ready: true, terminating: true}", EndpointState::Ready),
        ("{ready: false}", EndpointState::Away),
        ("{ready: false, serving: true}", EndpointState::Away),
        ("{ready: false, terminating: true}", EndpointState::Away),
        ("{ready: false, serving: false, terminating: true}", EndpointState::Away),
        ("{ready: false, serving: true, terminating: true}", EndpointState::Draining),
    ] {
        assert_eq!(state(conditions), Some(wanted), "{conditions}");
    }
}

#[test]
fn a_slice_is_read() {
    let (slice, problems) = read(SLICE);
    assert_eq!(problems, []);
    assert_eq!((&*slice.meta.namespace, &*slice.service), ("shop", "web"));
    let endpoints: Vec<_> =
        slice.endpoints.iter().map(|it| (it.address.to_string(), it.state, it.pod.is_some())).collect();
    assert_eq!(
        endpoints,
        [
            ("10.1.0.1".to_owned(), EndpointState::Ready, true),
            ("10.1.0.2".to_owned(), EndpointState::Draining, false),
            ("10.1.0.3".to_owned(), EndpointState::Away, false),
            ("10.1.0.4".to_owned(), EndpointState::Ready, false),
        ]
    );
    assert_eq!(slice.endpoints[0].pod, Some(PodReference { name: "web".into(), uid: "u1".into() }));
    let ports: Vec<_> = slice.ports.iter().map(|it| (&*it.name, it.number, it.transport)).collect();
    assert_eq!(ports, [("http", 8080, Transport::Tcp), ("", 53, Transport::Udp)]);
}

#[test]
fn a_slice_without_endpoints_and_one_for_nobody_are_none_to_complain_of() {
    // As controllers write the one of a Service that has no pods.
    let empty = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x, labels: {}}, addressType: IPv6, endpoints: null, ports: null}";
    let (slice, problems) = read(empty);
    assert_eq!((problems, slice.endpoints.len(), &*slice.service), (Vec::new(), 0, ""));
}

#[test]
fn addresses_that_no_endpoint_can_have_are_told_and_lead_nowhere() {
    for wrong in [
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "fd00::1",
        "::1",
        "10.1.0.256",
        "web.shop",
    ] {
        let (slice, problems) = read(&SLICE.replace("10.1.0.2", &format!("'{wrong}'")));
        assert_eq!(slice.endpoints.len(), 3, "{wrong}");
        let told: Vec<_> = problems.iter().map(|it| (it.severity, &*it.field)).collect();
        assert_eq!(told, [(Severity::Error, "endpoints[1].addresses[0]")], "{wrong}");
    }
    let v6 = SLICE.replace("IPv4", "IPv6");
    for wrong in ["::", "::1", "fe80::1", "ff02::1", "::ffff:10.1.0.2", "10.1.0.2"] {
        let (slice, problems) =
            read(&v6.replace("10.1.0.2", &format!("'{wrong}'")).replace("[10.1", "['fd00::1', 10.1"));
        assert!(slice.endpoints.iter().all(|it| it.address.to_string() == "fd00::1"), "{wrong}");
        assert!(problems.iter().any(|it| it.field == "endpoints[1].addresses[0]"), "{wrong}: {problems:?}");
    }
}

#[test]
fn names_for_addresses_are_no_endpoints() {
    let (slice, problems) = read(&SLICE.replace("IPv4", "FQDN"));
    assert_eq!(slice.endpoints, []);
    assert_eq!((problems.len(), &*problems[0].field), (1, "addressType"));
}

#[test]
fn a_port_that_cannot_be_read_is_told_and_is_none() {
    for (wrong, field) in [
        ("{name: http, port: 0}", "ports[0].port"),
        ("{name: http}", "ports[0].port"),
        ("{name: http, port: 80, protocol: QUIC}", "ports[0].protocol"),
    ] {
        let (slice, problems) = read(&SLICE.replace("{name: http, port: 8080}", wrong));
        assert_eq!(slice.ports.len(), 1, "{wrong}");
        assert_eq!((problems.len(), &*problems[0].field), (1, field));
    }
}

#[test]
fn what_is_no_slice_adds_nothing_and_is_told() {
    for (from, to) in [
        ("addressType: IPv4", "addressType: 4"),
        ("ports:\n", "ports: many\nother:\n"),
        ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"),
        ("addresses: [10.1.0.3]", "addresses: 10.1.0.3"),
    ] {
        let parsed = parse_file("s.yaml", &SLICE.replace(from, to));
        assert!(parsed.resources.is_empty() && parsed.has_errors(), "{to}: {parsed:?}");
    }
}
