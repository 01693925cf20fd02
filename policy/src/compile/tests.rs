use std::net::IpAddr;

use super::*;
use crate::{
    ClientIdentity, Standing,
    resources::{DefaultPolicy, parse_file},
    tables::Capacity,
    verdict::{self, Connect, TCP, UDP},
};
use crate::{Index, Severity};
use heddle_ebpf::{
    codes::{Outcome, Reason},
    policy::{PORT_DETECT, PORT_L4_ONLY, PORT_NEEDS_REQUEST, WORKLOAD_DNS},
};

pub(crate) const SHOP: &str = include_str!("shop.yaml");

pub(crate) fn compiled_with(text: &str, settings: &ClusterSettings) -> Compiled {
    let parsed = parse_file("shop.yaml", text);
    assert_eq!(parsed.problems, [], "the fixture itself is sound");
    Index::of([parsed]).compile(settings, "a")
}

pub(crate) fn compiled(text: &str) -> Compiled {
    compiled_with(text, &ClusterSettings::default())
}

pub(crate) fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn port(it: &Compiled, pod: &str, port: u16) -> (u8, String) {
    let view = it.tables.with_captured(|_| None);
    let policy = it.tables.workloads.get(&address(pod)).unwrap().policy;
    let row = verdict::port_policy(&view, policy, port, TCP).unwrap();
    (row.flags, it.tables.rules[&row.governs].clone())
}

fn connect(it: &Compiled, from: &str, to: &str, port: u16, protocol: u8) -> (Outcome, Reason, String) {
    let view = it.tables.with_captured(|address| it.workload(address).map(|info| info.digest));
    let connect = Connect { source: address(from), destination: address(to), port, protocol, random: 0 };
    let verdict = verdict::outbound(&view, &connect).verdict;
    (verdict.outcome, verdict.reason, it.tables.rule(verdict.rule).to_owned())
}

#[test]
fn the_shop_is_compiled() {
    let it = compiled(SHOP);
    assert_eq!(it.problems, []);
    let identities: Vec<&str> = it.tables.identities.values().map(String::as_str).collect();
    assert_eq!(
        identities,
        [
            "redis.shop.serviceaccount.identity.linkerd.cluster.local",
            "web.shop.serviceaccount.identity.linkerd.cluster.local",
        ]
    );
    assert_eq!(port(&it, "10.1.0.2", 6379), (PORT_L4_ONLY | PORT_MESH_CLIENTS, "Server shop/redis".into()));
    assert_eq!(port(&it, "10.1.0.2", 9999), (PORT_DETECT, "default policy deny (cluster)".into()));
    assert_eq!(it.tables.fits(&Capacity::default()), Ok(()));
}

#[test]
fn a_permitted_flow_on_one_node_is_direct_by_address_and_by_service() {
    let it = compiled(SHOP);
    let rule = "AuthorizationPolicy shop/allow-web".to_owned();
    for to in ["10.1.0.2", "10.96.0.2"] {
        assert_eq!(
            connect(&it, "10.1.0.1", to, 6379, TCP),
            (Outcome::Direct, Reason::Authorized, rule.clone())
        );
    }
    let encrypt = ClusterSettings { same_node: SameNode::Encrypt, ..ClusterSettings::default() };
    let it = compiled_with(SHOP, &encrypt);
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP), (Outcome::Proxy, Reason::Meshed, rule));
}

#[test]
fn what_stays_inside_the_pod_is_left_alone_and_neighbors_on_the_link_are_refused() {
    let it = compiled(SHOP);
    let inside = (Outcome::Direct, Reason::Loopback, String::new());
    for to in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.1.0.1"] {
        assert_eq!(connect(&it, "10.1.0.1", to, 6379, TCP), inside, "{to}");
    }
    for to in ["224.0.0.1", "ff02::1", "fe80::1"] {
        let refused = (Outcome::Refuse, Reason::Protocol, String::new());
        assert_eq!(connect(&it, "10.1.0.1", to, 6379, TCP), refused, "{to}");
    }
    assert_ne!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::Loopback, "the control");
}

#[test]
fn refusals_name_what_governs() {
    let it = compiled(SHOP);
    let refused = |from, to, port| connect(&it, from, to, port, TCP);
    assert_eq!(
        refused("10.1.0.2", "10.1.0.1", 80),
        (Outcome::Refuse, Reason::Unauthorized, "default policy deny (cluster)".into())
    );
    let other = compiled(&SHOP.replace("name: web}]", "name: other}]"));
    assert_eq!(
        connect(&other, "10.1.0.1", "10.1.0.2", 6379, TCP),
        (Outcome::Refuse, Reason::Unauthorized, "Server shop/redis".into())
    );
    assert_eq!(refused("10.1.0.1", "10.96.0.2", 1).1, Reason::NoServicePort);
}

#[test]
fn linkerds_wish_counts_where_the_installation_says_so_and_never_beside_a_proxy_of_linkerds() {
    let taken = ClusterSettings { linkerd_inject: true, ..ClusterSettings::default() };
    let wished = SHOP.replace("heddle.io/mesh: enabled", "linkerd.io/inject: enabled");
    let meshed = |text: &str, settings: &ClusterSettings| {
        compiled_with(text, settings).workload(&address("10.1.0.1")).unwrap().meshed()
    };
    assert!(!meshed(&wished, &ClusterSettings::default()));
    assert!(meshed(&wished, &taken));
    assert!(!meshed(&wished.replace("linkerd.io/inject: enabled", "linkerd.io/inject: disabled"), &taken));
    assert!(!meshed(&wished.replace("linkerd.io/inject: enabled", "example.com/note: enabled"), &taken));
    let own = "containers: [{name: web, image: x, ports: [{containerPort: 80, name: http}]}]";
    let proxy = own.replace("}]}]", "}]}, {name: linkerd-proxy, image: x}]");
    let beside = wished.replace(own, &proxy);
    assert_ne!(beside, wished);
    assert!(!meshed(&beside, &taken));
    assert!(meshed(&SHOP.replace(own, &proxy), &taken), "the mesh's own annotation is plain enough");
}

#[test]
fn dns_is_marked_and_passes_by_udp() {
    let it = compiled(SHOP);
    assert_eq!(connect(&it, "10.1.0.1", "10.96.0.10", 53, UDP).0, Outcome::Direct);
    assert_ne!(it.tables.workloads.get(&address("10.1.0.53")).unwrap().flags & WORKLOAD_DNS, 0);
    assert_eq!(it.tables.workloads.get(&address("10.1.0.2")).unwrap().flags & WORKLOAD_DNS, 0);
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 53, UDP).1, Reason::Unauthorized);
}

#[test]
fn a_pod_without_an_address_is_doubtful_once_its_start_has_ended() {
    let sandbox = |status| {
        format!("{{phase: Running, conditions: [{{type: PodReadyToStartContainers, status: '{status}'}}]}}")
    };
    for (status, severity) in [
        ("{phase: Pending}", Severity::Note),
        (&sandbox("False"), Severity::Note),
        (&sandbox("True"), Severity::Warning),
        ("{phase: Running}", Severity::Warning),
    ] {
        let it = compiled(&SHOP.replace("{phase: Running, podIP: 10.1.0.2}", status));
        let told: Vec<_> = it.problems.iter().filter(|it| it.field == "status.podIP").collect();
        assert_eq!(told.iter().map(|it| it.severity).collect::<Vec<_>>(), [severity], "{status}: {told:?}");
    }
}

#[test]
fn a_service_without_ready_endpoints_refuses() {
    let it = compiled(&SHOP.replace("phase: Running, podIP: 10.1.0.2", "phase: Pending, podIP: 10.1.0.2"));
    assert_eq!(connect(&it, "10.1.0.1", "10.96.0.2", 6379, TCP).1, Reason::NoEndpoints);
}

#[test]
fn routes_limits_and_http_servers_need_requests() {
    let route = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
                 spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: redis}]}\n";
    for text in [
        format!("{}{route}", SHOP.replace("proxyProtocol: opaque", "proxyProtocol: unknown")),
        SHOP.replace("proxyProtocol: opaque", "proxyProtocol: HTTP/1"),
        SHOP.replace("proxyProtocol: opaque", "proxyProtocol: gRPC"),
    ] {
        let it = compiled(&text);
        assert_ne!(port(&it, "10.1.0.2", 6379).0 & PORT_NEEDS_REQUEST, 0);
        assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::NeedsRequest);
        assert_eq!(port(&it, "10.1.0.2", 1).0 & PORT_NEEDS_REQUEST, 0, "other ports are not touched");
    }
    // As in Linkerd: an HTTPRoute has no effect on a port whose bytes nobody reads, and here that is told.
    let it = compiled(&format!("{SHOP}{route}"));
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::Authorized);
    assert!(it.problems[0].reason.contains("has no effect there"), "{:?}", it.problems);
}

#[test]
fn annotations_of_the_pod_beat_those_of_its_namespace() {
    let annotated = |pod: &str, namespace: &str| {
        SHOP.replace("# redis annotations", pod).replace("# shop annotations", namespace)
    };
    let policy = |value: &str| format!("config.linkerd.io/default-inbound-policy: {value}");
    for (pod, namespace, governs) in [
        ("", policy("all-authenticated"), "default policy all-authenticated (namespace)"),
        (&*policy("audit"), policy("all-authenticated"), "default policy audit (pod)"),
        (&*policy("everybody"), policy("all-unauthenticated"), "default policy deny (pod)"),
        ("", policy("everybody"), "default policy deny (namespace)"),
        ("", String::new(), "default policy cluster-unauthenticated (cluster)"),
    ] {
        let settings = ClusterSettings {
            default_inbound_policy: DefaultPolicy::ClusterUnauthenticated,
            ..ClusterSettings::default()
        };
        let it = compiled_with(&annotated(pod, &namespace), &settings);
        assert_eq!(port(&it, "10.1.0.2", 1).1, governs, "{pod:?} {namespace:?}");
        let unreadable = pod.contains("everybody") || namespace.contains("everybody");
        assert_eq!(!it.problems.is_empty(), unreadable, "{:?}", it.problems);
        if unreadable {
            assert_ne!(it.problems[0].line, 0);
        }
    }
}

#[test]
fn port_lists_are_read_and_fail_closed() {
    let open = ClusterSettings {
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        ..ClusterSettings::default()
    };
    let with = |annotation: &str| compiled_with(&SHOP.replace("# redis annotations", annotation), &open);
    let require = "config.linkerd.io/proxy-require-identity-inbound-ports";
    let demanded = "default policy all-authenticated (cluster, identity demanded)";
    let plain = "default policy all-unauthenticated (cluster)";
    let it = with(&format!("{require}: '80,100-102'"));
    assert_eq!((port(&it, "10.1.0.2", 101).1, port(&it, "10.1.0.2", 103).1), (demanded.into(), plain.into()));
    for list in ["80,what?", "1-65535", "1-40000"] {
        let it = with(&format!("{require}: '{list}'"));
        assert_eq!(port(&it, "10.1.0.2", 60000).1, demanded, "{list}");
        assert_eq!(it.problems.is_empty(), list == "1-65535", "{list}");
        assert!(it.tables.ports.len() < 10, "{list}");
    }
    // Of the default list only ports that the pod declares; an annotation replaces it; a Server beats both.
    let it = with("");
    assert_eq!(
        (port(&it, "10.1.0.2", 3306).0, port(&it, "10.1.0.2", 5432).0),
        (PORT_DETECT | PORT_MESH_CLIENTS, PORT_L4_ONLY | PORT_MESH_CLIENTS)
    );
    let it = with("config.linkerd.io/opaque-ports: '77'");
    assert_ne!(port(&it, "10.1.0.2", 77).0 & PORT_L4_ONLY, 0);
    assert_eq!(port(&it, "10.1.0.2", 5432).0 & PORT_L4_ONLY, 0);
    assert_ne!(port(&it, "10.1.0.2", 6379).0 & PORT_L4_ONLY, 0);
}

#[test]
fn of_two_servers_the_older_governs_and_the_other_is_told() {
    let with = |redis: &str, second: &str| {
        let text = SHOP.replace(
            "metadata: {name: redis, namespace: shop}\nspec:\n  podSelector",
            &format!("metadata: {{name: redis, namespace: shop{redis}}}\nspec:\n  podSelector"),
        );
        compiled(&format!(
            "{text}\n---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\n\
             metadata: {{name: a-redis, namespace: shop{second}}}\nspec: {{podSelector: {{}}, port: 6379}}\n"
        ))
    };
    let (old, young) =
        (", creationTimestamp: 2020-01-01T00:00:00Z", ", creationTimestamp: 2026-01-01T00:00:00Z");
    for (redis, second, winner, loser) in [
        ("", "", "a-redis", "redis"),
        (old, young, "redis", "a-redis"),
        (young, old, "a-redis", "redis"),
        (old, old, "a-redis", "redis"),
        // An unknown age is the youngest.
        (young, "", "redis", "a-redis"),
    ] {
        let it = compiled_port(with(redis, second), winner);
        let told: Vec<&str> = it.problems.iter().map(|problem| &*problem.resource).collect();
        assert_eq!(told, [format!("Server shop/{loser}")], "{:?}", it.problems);
        assert_eq!(it.problems[0].severity, Severity::Warning);
    }
}

fn compiled_port(it: Compiled, winner: &str) -> Compiled {
    assert_eq!(port(&it, "10.1.0.2", 6379).1, format!("Server shop/{winner}"));
    it
}

#[test]
fn a_server_that_cannot_be_read_closes_what_it_may_have_meant() {
    let open = ClusterSettings {
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        ..ClusterSettings::default()
    };
    let broken = |spec: &str| {
        let text = format!(
            "{SHOP}\n---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: broken, namespace: shop}}\nspec: {spec}\n"
        );
        let parsed = parse_file("shop.yaml", &text);
        assert!(parsed.has_errors());
        Index::of([parsed]).compile(&open, "a")
    };
    let allowed = |it: &Compiled, pod: &str, port| {
        it.authorize(&address(pod), port, &ClientIdentity::None, "192.0.2.1".parse().unwrap()).allowed()
    };
    let it = broken("{podSelector: {}, port: 80, accessPolicy: all-unauthenticated, only: friends}");
    assert_eq!((allowed(&it, "10.1.0.1", 80), allowed(&it, "10.1.0.1", 81)), (false, true));
    let it = broken("{podSelector: {matchLabels: {app: web}}, port: 99999}");
    assert_eq!((allowed(&it, "10.1.0.1", 81), allowed(&it, "10.1.0.2", 81)), (false, true));
    let it = broken("{podSelector: {matchLabel: {app: web}}, port: 81}");
    assert_eq!(
        (allowed(&it, "10.1.0.1", 81), allowed(&it, "10.1.0.2", 81), allowed(&it, "10.1.0.2", 82)),
        (false, false, true)
    );
    assert_eq!(port(&it, "10.1.0.2", 6379).1, "Server shop/redis", "a plain Server keeps its port");
}

#[test]
fn two_pods_at_one_address_are_nobody() {
    let it = compiled(&SHOP.replace("podIP: 10.1.0.3", "podIP: 10.1.0.2"));
    assert!(it.workload(&address("10.1.0.2")).is_none());
    assert!(!it.tables.workloads.contains_key(&address("10.1.0.2")));
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::UnknownClusterAddress);
    assert_eq!(it.pod("shop", "redis").unwrap().standing, Standing::Contested);
    let errors: Vec<_> = it.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    // One that has ended claims nothing.
    let ended = SHOP.replace("{phase: Running, podIP: 10.1.0.3}", "{phase: Failed, podIP: 10.1.0.2}");
    let it = compiled(&ended);
    assert_eq!(it.workload(&address("10.1.0.2")).unwrap().name, "redis");
    assert_eq!(it.pod("shop", "plain").unwrap().standing, Standing::Finished);
}

#[test]
fn a_pod_whose_identity_cannot_be_named_is_nobody() {
    let it = compiled(
        &SHOP.replace("serviceAccountName: redis", &format!("serviceAccountName: {}", "r".repeat(64))),
    );
    assert_eq!(it.pod("shop", "redis").unwrap().standing, Standing::NoIdentity);
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::UnknownClusterAddress);
}

#[test]
fn pods_on_the_nodes_network_have_no_row() {
    let it = compiled(&SHOP.replace("nodeName: a # redis", "nodeName: a\n  hostNetwork: true"));
    assert!(it.workload(&address("10.1.0.2")).is_none());
    assert_eq!(it.pod("shop", "redis").unwrap().standing, Standing::HostNetwork);
    assert_eq!(it.problems.len(), 1, "meant to be meshed, and told that it is not: {:?}", it.problems);
}

#[test]
fn references_that_lead_nowhere_grant_nothing_and_are_told() {
    let reference = "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: absent}]";
    let it = compiled(&SHOP.replace("[{kind: ServiceAccount, name: web}]", reference));
    assert_eq!(connect(&it, "10.1.0.1", "10.1.0.2", 6379, TCP).1, Reason::Unauthorized);
    let problem = &it.problems[0];
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(problem.reason, "there is no MeshTLSAuthentication shop/absent: the policy grants nothing");
    assert_ne!(problem.line, 0);
    assert_eq!(problem.document, 9, "{problem}");
}

#[test]
fn an_unmeshed_pod_is_spoken_to_as_default_outbound_says() {
    for (outbound, outcome) in [
        (crate::DefaultOutbound::Allow, Outcome::Direct),
        (crate::DefaultOutbound::Cluster, Outcome::Direct),
        (crate::DefaultOutbound::Deny, Outcome::Refuse),
    ] {
        let settings = ClusterSettings { default_outbound: outbound, ..ClusterSettings::default() };
        let it = compiled_with(SHOP, &settings);
        assert_eq!(connect(&it, "10.1.0.1", "10.1.0.3", 80, TCP).0, outcome);
    }
}

#[test]
fn a_big_cluster_is_compiled_in_time() {
    let mut text = String::from(SHOP);
    for i in 0..2_000 {
        let (a, b) = (i / 250, i % 250 + 1);
        text.push_str(&format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: shop, labels: {{app: a{}}}}}\n\
             spec: {{nodeName: n{}, serviceAccountName: s{}}}\nstatus: {{phase: Running, podIP: 10.3.{a}.{b}}}\n",
            i % 50,
            i % 20,
            i % 40,
        ));
    }
    let it = compiled(&text);
    assert_eq!(it.tables.workloads.len(), 2_004);
    assert_eq!(it.tables.identities.len(), 42);
    assert_eq!(it.tables.fits(&Capacity::default()), Ok(()));
}
