//! Servers, default policies, authorizations.

use heddle_ebpf::codes::Reason;
use heddle_policy::{ClusterSettings, resources::DefaultPolicy};

use crate::world::*;

const ANYONE: &str = "[]";

#[test]
fn a_server_needs_exactly_one_selector_and_an_empty_one_selects_all() {
    let it = world(&server("s", "{podSelector: {}, port: 80, accessPolicy: all-unauthenticated}"));
    assert!(it.allows("", OUTSIDE, WEB, 80) && it.allows("", OUTSIDE, DB, 80));
    assert!(!it.allows("", OUTSIDE, TOOL, 80), "the same namespace only");
    for selectors in ["", "podSelector: {}, externalWorkloadSelector: {}, "] {
        let it = world(&server("s", &format!("{{{selectors}port: 80, accessPolicy: all-unauthenticated}}")));
        assert!(!it.allows("", OUTSIDE, WEB, 80) && it.tells("needs exactly one of"), "{selectors:?}");
    }
    let outside = "{externalWorkloadSelector: {}, port: 80, accessPolicy: all-unauthenticated}";
    assert!(!world(&server("s", outside)).allows("", OUTSIDE, WEB, 80), "it is about no pod");
}

#[test]
fn a_port_by_name_is_every_tcp_port_of_that_name_init_containers_included() {
    let by = |name: &str| {
        world(&server(
            "s",
            &format!("{{podSelector: {{}}, port: {name}, accessPolicy: all-unauthenticated}}"),
        ))
    };
    assert!(by("http").allows("", OUTSIDE, WEB, 8080) && by("early").allows("", OUTSIDE, WEB, 7001));
    assert!(!by("dns").allows("", OUTSIDE, WEB, 8053), "UDP's name is not TCP's");
    assert!(by("1234").allows("", OUTSIDE, WEB, 1234), "a number, declared or not");
}

#[test]
fn linkerd_admin_is_a_port_of_every_pod_at_which_the_agent_answers_unless_the_pod_declares_it() {
    let admin = "{podSelector: {}, port: linkerd-admin, proxyProtocol: HTTP/1}";
    let allow = policy("scrape", "{group: policy.linkerd.io, kind: Server, name: admin}", WEB_ACCOUNT);
    let it = world(&(server("admin", admin) + &allow));
    assert!(it.allows("web.shop", OUTSIDE, DB, 4191), "no request can turn what is decided");
    assert!(!it.allows("tool.ops", OUTSIDE, DB, 4191) && !it.allows("", OUTSIDE, DB, 4191));
    assert!(!it.allows("web.shop", OUTSIDE, TOOL, 4191), "the same namespace only");
    let answers = |it: &World, server: &str, port| {
        it.compiled.agent_answers(&server.parse::<std::net::IpAddr>().unwrap().into(), port)
    };
    assert!(answers(&it, DB, 4191) && answers(&it, TOOL, 4191) && !answers(&it, DB, 8080));
    // What says more of requests than that they are HTTP/1 is read by nobody.
    let route = doc(
        "policy.linkerd.io/v1beta3",
        "HTTPRoute",
        "r",
        "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: admin}], rules: [{}]}",
    );
    let with_route = world(&(server("admin", admin) + &allow + &route));
    assert_eq!(with_route.reason("web.shop", OUTSIDE, DB, 4191), Reason::NeedsRequest);
    for protocol in ["HTTP/2", "gRPC"] {
        let it = world(&(server("admin", &admin.replace("HTTP/1", protocol)) + &allow));
        assert_eq!(it.reason("web.shop", OUTSIDE, DB, 4191), Reason::NeedsRequest, "{protocol}");
    }
    // A pod that declares the port, or another of that name, has it itself.
    for port in ["{name: own, containerPort: 4191}", "{name: linkerd-admin, containerPort: 4000}"] {
        let own = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: own, namespace: shop, uid: u-own}}\n\
             spec: {{nodeName: a, serviceAccountName: own, containers: [{{name: c, image: i, ports: [{port}]}}]}}\n\
             status: {{phase: Running, podIP: 10.1.0.4}}\n"
        );
        let it = world(&(server("admin", &admin.replace("HTTP/1", "opaque")) + &allow + &own));
        assert!(!answers(&it, "10.1.0.4", 4191) && answers(&it, DB, 4191), "{port}");
        assert!(it.allows("web.shop", OUTSIDE, "10.1.0.4", 4000) == port.contains("linkerd-admin"), "{port}");
        assert!(!it.allows("web.shop", OUTSIDE, "10.1.0.4", 4191), "{port}");
    }
    // A probe there says that the application listens, though nothing declares the port.
    let probed = |port: u16| {
        world(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: own, namespace: shop, uid: u-own}}\n\
             spec: {{nodeName: a, serviceAccountName: own, containers: [{{name: c, image: i, readinessProbe: {{httpGet: {{path: /up, port: {port}}}}}}}]}}\n\
             status: {{phase: Running, podIP: 10.1.0.4}}\n"
        ))
    };
    assert!(!answers(&probed(4191), "10.1.0.4", 4191) && answers(&probed(4190), "10.1.0.4", 4191));
    // A datagram at that number is no affair of the agent's.
    let udp = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: own, namespace: shop, uid: u-own}\n\
               spec: {nodeName: a, serviceAccountName: own, containers: [{name: c, image: i, ports: [{name: own, containerPort: 4191, protocol: UDP}]}]}\n\
               status: {phase: Running, podIP: 10.1.0.4}\n";
    assert!(answers(&world(udp), "10.1.0.4", 4191));
}

#[test]
fn access_policy_is_deny_by_default_and_additive() {
    let spec = |access: &str| {
        db().replace("proxyProtocol: opaque", &format!("proxyProtocol: opaque{access}")) + &allow(WEB_ACCOUNT)
    };
    let it = world(&spec(""));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379) && !it.allows("tool.ops", OUTSIDE, DB, 6379));
    let it = world(&spec(", accessPolicy: all-authenticated"));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379) && it.allows("tool.ops", OUTSIDE, DB, 6379));
    assert!(!it.allows("", OUTSIDE, DB, 6379));
}

#[test]
fn an_access_policy_means_what_the_default_policy_of_that_name_does() {
    for policy in [
        "deny",
        "all-unauthenticated",
        "all-authenticated",
        "cluster-unauthenticated",
        "cluster-authenticated",
        "audit",
    ] {
        let settings =
            ClusterSettings { default_inbound_policy: policy.parse().unwrap(), ..ClusterSettings::default() };
        let by_default = world_with("", &settings, 0);
        let spec =
            format!("{{podSelector: {{}}, port: 6379, proxyProtocol: opaque, accessPolicy: {policy}}}");
        let by_server = world(&server("s", &spec));
        for (who, from) in [
            ("", OUTSIDE),
            ("", "10.9.9.9"),
            ("web.shop", OUTSIDE),
            ("web.shop", "10.9.9.9"),
            ("anonymous", "10.9.9.9"),
        ] {
            let (a, b) = (by_default.ask(who, from, DB, 6379), by_server.ask(who, from, DB, 6379));
            assert_eq!((a.allowed(), a.audited), (b.allowed(), b.audited), "{policy} {who} {from}");
        }
    }
    let unknown = "{podSelector: {}, port: 6379, proxyProtocol: opaque, accessPolicy: everybody}";
    assert!(!world(&server("s", unknown)).allows("web.shop", OUTSIDE, DB, 6379));
}

#[test]
fn a_protocol_says_who_reads_the_bytes() {
    use heddle_ebpf::policy::{PORT_DETECT, PORT_L4_ONLY, PORT_NEEDS_REQUEST};
    for (protocol, flags) in [
        ("", PORT_DETECT),
        ("unknown", PORT_DETECT),
        ("HTTP/1", PORT_DETECT | PORT_NEEDS_REQUEST),
        ("HTTP/2", PORT_DETECT | PORT_NEEDS_REQUEST),
        ("gRPC", PORT_DETECT | PORT_NEEDS_REQUEST),
        ("opaque", PORT_L4_ONLY),
        ("TLS", PORT_L4_ONLY),
    ] {
        let said = if protocol.is_empty() { String::new() } else { format!(", proxyProtocol: {protocol}") };
        let it = world(&server("s", &format!("{{podSelector: {{}}, port: 81{said}}}")));
        let ours = PORT_DETECT | PORT_NEEDS_REQUEST | PORT_L4_ONLY;
        let found: Vec<u8> = it
            .compiled
            .tables
            .ports
            .iter()
            .filter(|(key, _)| key.port == 81 && key.protocol == heddle_policy::verdict::TCP)
            .map(|(_, row)| row.flags & ours)
            .collect();
        assert!(!found.is_empty() && found.iter().all(|it| *it == flags), "{protocol}: {found:?}");
    }
    let it = world(&server(
        "s",
        "{podSelector: {}, port: 81, proxyProtocol: HTTP/3, accessPolicy: all-unauthenticated}",
    ));
    assert!(!it.allows("", OUTSIDE, WEB, 81) && !it.problems.is_empty());
}

#[test]
fn of_two_servers_on_a_port_the_older_wins_then_the_name() {
    let two = |older: &str| {
        let text = server("a", "{podSelector: {}, port: 80, accessPolicy: all-unauthenticated}")
            + &server("b", "{podSelector: {}, port: 80}");
        text.replace(
            &format!("name: {older}, namespace"),
            &format!("name: {older}, creationTimestamp: '2020-01-01T00:00:00Z', namespace"),
        )
    };
    assert!(world(&two("a")).allows("", OUTSIDE, WEB, 80));
    assert!(!world(&two("b")).allows("", OUTSIDE, WEB, 80));
    let it = world(&two("neither"));
    assert!(it.allows("", OUTSIDE, WEB, 80), "by name");
    assert!(it.tells("does not govern port 80"), "the loser is told");
}

#[test]
fn a_server_replaces_the_default_policy_for_its_port() {
    let open = ClusterSettings {
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        ..ClusterSettings::default()
    };
    let it = world_with(&db(), &open, 0);
    assert!(!it.allows("", OUTSIDE, DB, 6379) && it.allows("", OUTSIDE, DB, 6380));
}

#[test]
fn default_policies_mean_what_they_say() {
    for (policy, nobody_far, nobody_near, known_far, known_near) in [
        (DefaultPolicy::Deny, false, false, false, false),
        (DefaultPolicy::AllUnauthenticated, true, true, true, true),
        (DefaultPolicy::AllAuthenticated, false, false, true, true),
        (DefaultPolicy::ClusterUnauthenticated, false, true, false, true),
        (DefaultPolicy::ClusterAuthenticated, false, false, false, true),
        (DefaultPolicy::Audit, true, true, true, true),
    ] {
        let settings = ClusterSettings { default_inbound_policy: policy, ..ClusterSettings::default() };
        let it = world_with("", &settings, 0);
        let asked = [("", OUTSIDE), ("", "10.9.9.9"), ("web.shop", OUTSIDE), ("web.shop", "10.9.9.9")];
        let found = asked.map(|(who, from)| it.allows(who, from, DB, 1));
        assert_eq!(found, [nobody_far, nobody_near, known_far, known_near], "{policy:?}");
        assert_eq!(it.ask("", OUTSIDE, DB, 1).audited, policy == DefaultPolicy::Audit);
    }
}

#[test]
fn without_a_word_about_it_everybody_is_refused() {
    assert_eq!(ClusterSettings::default().default_inbound_policy, DefaultPolicy::Deny);
    let it = world("");
    for who in ["", "anonymous", "web.shop"] {
        assert!(!it.allows(who, OUTSIDE, DB, 1) && !it.allows(who, "10.9.9.9", DB, 1), "{who}");
    }
}

#[test]
fn the_cluster_is_its_networks_and_these_are_the_private_ones_where_nobody_says_more() {
    let settings = ClusterSettings {
        default_inbound_policy: DefaultPolicy::ClusterUnauthenticated,
        ..ClusterSettings::default()
    };
    let it = world_with("", &settings, 0);
    for (from, inside) in [
        ("10.9.0.0", true),
        ("10.255.255.255", true),
        ("11.0.0.0", false),
        ("172.15.255.255", false),
        ("172.16.0.0", true),
        ("172.31.255.255", true),
        ("172.32.0.0", false),
        ("192.168.0.0", true),
        ("192.169.0.0", false),
        ("100.63.255.255", false),
        ("100.64.0.0", true),
        ("100.127.255.255", true),
        ("100.128.0.0", false),
        ("fd00::1", true),
        ("fdff:ffff::1", true),
        ("fc00::1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(it.allows("", from, DB, 1), inside, "{from}");
    }
    let own = ClusterSettings { cluster_networks: vec!["192.0.2.0/24".parse().unwrap()], ..settings };
    let it = world_with("", &own, 0);
    assert!(it.allows("", OUTSIDE, DB, 1) && !it.allows("", "10.9.9.9", DB, 1), "a setting");
}

/// The db pod with an annotation of its own, in a cluster that lets everybody in.
fn annotated(annotation: &str) -> World {
    let open = ClusterSettings {
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        ..ClusterSettings::default()
    };
    let text =
        pods().replace("labels: {app: db}", &format!("labels: {{app: db}}, annotations: {{{annotation}}}"));
    let parsed = heddle_policy::resources::parse_file("rules.yaml", &text);
    let compiled = heddle_policy::Index::of([parsed]).compile_cluster(&open, 0);
    let problems = compiled.problems.clone();
    World { compiled, problems }
}

#[test]
fn a_demanded_identity_upgrades_what_allows_and_audit_stays_as_it_is() {
    let demand = "config.linkerd.io/proxy-require-identity-inbound-ports: '6379,7000-7002'";
    let with =
        |policy: &str| annotated(&format!("{demand}, config.linkerd.io/default-inbound-policy: {policy}"));
    for (policy, demanded, other) in [
        ("all-unauthenticated", false, true),
        ("cluster-unauthenticated", false, true),
        ("all-authenticated", false, false),
        ("deny", false, false),
        ("audit", true, true),
    ] {
        let it = with(policy);
        let found = [6379, 7001, 6380].map(|port| it.allows("", "10.9.9.9", DB, port));
        assert_eq!(found, [demanded, demanded, other], "{policy}");
    }
    assert!(with("all-unauthenticated").allows("web.shop", "10.9.9.9", DB, 6379), "whoever has one");
    assert!(!with("cluster-unauthenticated").allows("web.shop", OUTSIDE, DB, 6379), "and is in the cluster");
    assert!(!with("deny").allows("web.shop", "10.9.9.9", DB, 6379), "it widens nothing");
}

#[test]
fn what_cannot_be_read_on_a_pod_is_deny_and_every_port_and_is_told() {
    let it = annotated("config.linkerd.io/default-inbound-policy: everybody");
    assert!(!it.allows("web.shop", OUTSIDE, DB, 1) && it.tells("the default policy is deny"));
    let it = annotated("config.linkerd.io/proxy-require-identity-inbound-ports: '80;81'");
    assert!(!it.allows("", OUTSIDE, DB, 9) && it.allows("web.shop", OUTSIDE, DB, 9));
    assert!(it.tells("every port demands an identity"));
    assert!(annotated("other: x").allows("", OUTSIDE, DB, 9), "the control");
}

#[test]
fn a_policy_is_about_what_stands_in_its_own_namespace() {
    let server = "{group: policy.linkerd.io, kind: Server, name: db}";
    let far = |text: String| text.replace("namespace: shop", "namespace: ops");
    for text in [
        far(policy("p", server, ANYONE)),
        policy("p", "{group: policy.linkerd.io, kind: Server, name: db, namespace: ops}", ANYONE),
        policy("p", "{kind: Namespace, name: ops}", ANYONE),
        policy("p", "{kind: Namespace, name: shop, namespace: ops}", ANYONE),
        policy("p", "{kind: Service, name: db}", ANYONE),
        policy("p", "{group: apps, kind: Server, name: db}", ANYONE),
        far(policy("p", "{kind: Namespace, name: shop}", ANYONE)),
    ] {
        let it = world(&(db() + &text));
        assert!(!it.allows("", OUTSIDE, DB, 6379) && !it.allows("", OUTSIDE, TOOL, 6379), "{text}");
        assert!(!it.problems.is_empty(), "{text}");
    }
    assert!(world(&(db() + &policy("p", server, ANYONE))).allows("", OUTSIDE, DB, 6379), "the control");
}

#[test]
fn of_each_sort_of_reference_a_policy_takes_one() {
    let account = "{kind: ServiceAccount, name: web}";
    let network = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}";
    let all = networks("n", "{networks: [{cidr: 0.0.0.0/0}]}");
    for (references, holds) in [
        (format!("[{account}, {network}]"), true),
        (format!("[{account}, {account}]"), false),
        (format!("[{network}, {network}]"), false),
        (format!("[{account}, {{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}}]"), false),
    ] {
        let it = world(&(db() + &all + &mesh_tls("m", "{identities: ['*']}") + &allow(&references)));
        assert_eq!(it.allows("web.shop", OUTSIDE, DB, 6379), holds, "{references}: {:?}", it.problems);
    }
}

#[test]
fn a_namespace_target_is_every_server_and_no_port_without_one() {
    let it = world(&(db() + &policy("all", "{kind: Namespace, name: shop}", ANYONE)));
    assert!(it.allows("", OUTSIDE, DB, 6379) && !it.allows("", OUTSIDE, DB, 6380));
}

#[test]
fn references_are_anded_policies_are_ored_and_an_empty_list_is_everybody() {
    let both = "[{kind: ServiceAccount, name: web}, {group: policy.linkerd.io, kind: NetworkAuthentication, name: near}]";
    let near =
        networks("near", "{networks: [{cidr: 10.0.0.0/8, except: [10.7.0.0/16]}, {cidr: 192.0.2.99}]}");
    let text = db() + &near + &allow(both);
    let it = world(&text);
    assert!(it.allows("web.shop", "10.9.9.9", DB, 6379) && it.allows("web.shop", "192.0.2.99", DB, 6379));
    for (who, from) in
        [("web.shop", OUTSIDE), ("web.shop", "10.7.1.1"), ("tool.ops", "10.9.9.9"), ("", "10.9.9.9")]
    {
        assert!(!it.allows(who, from, DB, 6379), "{who} {from}");
    }
    let second =
        allow("[{kind: ServiceAccount, name: tool, namespace: ops}]").replace("name: allow", "name: second");
    let it = world(&(text + &second));
    assert!(it.allows("tool.ops", OUTSIDE, DB, 6379), "ored, and a reference may name another namespace");
    assert!(world(&(db() + &allow(ANYONE))).allows("", OUTSIDE, DB, 6379));
}

#[test]
fn a_service_account_reference_is_its_identity_whether_or_not_it_exists() {
    let it = world(&(db() + &allow("[{kind: ServiceAccount, name: ghost}]")));
    assert!(it.allows("ghost.shop", OUTSIDE, DB, 6379) && !it.allows("ghost.ops", OUTSIDE, DB, 6379));
}

#[test]
fn mesh_tls_identities() {
    let reference = "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}]";
    let own_uri = "spiffe://cluster.local/ns/shop/sa/web";
    let far_uri = "spiffe://far.example/vm";
    let far_dns = "vm.host.far.example";
    for (entries, who, holds) in [
        ("identities: ['*']", "web.shop", true),
        ("identities: ['*']", "spiffe://cluster.local/vm", true),
        // Another trust domain's must be named, and whole.
        ("identities: ['*']", far_uri, false),
        ("identities: ['*']", "web.shop.serviceaccount.identity.linkerd.far.example", false),
        ("identities: ['*.far.example']", "web.shop.serviceaccount.identity.linkerd.far.example", false),
        (
            "identities: [web.shop.serviceaccount.identity.linkerd.far.example]",
            "web.shop.serviceaccount.identity.linkerd.far.example",
            true,
        ),
        ("identities: ['*']", "", false),
        ("identities: ['*.far.example']", far_dns, true),
        ("identities: ['*.example']", far_dns, true),
        ("identities: ['*.vm.host.far.example']", far_dns, false),
        ("identities: ['*.shop.serviceaccount.identity.linkerd.cluster.local']", "web.shop", true),
        ("identities: ['*.shop.serviceaccount.identity.linkerd.cluster.local']", own_uri, true),
        ("identities: ['*.shop.serviceaccount.identity.linkerd.cluster.local']", "tool.ops", false),
        ("identities: ['spiffe://far.example/vm']", far_uri, true),
        ("identities: ['spiffe://far.example/vm']", "spiffe://far.example/vm2", false),
        ("identities: ['spiffe://cluster.local/ns/shop/sa/web']", "web.shop", true),
        (
            "identities: [vm.host.far.example, web.shop.serviceaccount.identity.linkerd.cluster.local]",
            own_uri,
            true,
        ),
        ("identityRefs: [{kind: ServiceAccount, name: web}]", "web.shop", true),
        ("identityRefs: [{kind: ServiceAccount, name: web, namespace: ops}]", "web.shop", false),
        ("identityRefs: [{kind: Namespace, name: shop}]", "anything.shop", true),
        ("identityRefs: [{kind: Namespace, name: shop}]", own_uri, true),
        ("identityRefs: [{kind: Namespace, name: shop}]", far_uri, false),
        ("identities: ['web.*']", "web.shop", false),
        ("identities: ['*web']", "web.shop", false),
        ("{identities: ['*'], identityRefs: [{kind: Namespace, name: shop}]}", "web.shop", false),
    ] {
        let spec = if entries.starts_with('{') { entries.to_owned() } else { format!("{{{entries}}}") };
        let it = world(&(db() + &allow(reference) + &mesh_tls("m", &spec)));
        assert_eq!(it.allows(who, OUTSIDE, DB, 6379), holds, "{entries} {who}");
    }
}

#[test]
fn network_authentications_that_are_refused_match_nobody() {
    let reference = "[{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}]";
    for (spec, holds) in [
        ("{networks: [{cidr: 0.0.0.0/0}]}", true),
        ("{networks: []}", false),
        ("{networks: [{cidr: 0.0.0.0/0, except: ['fd00::/8']}]}", false),
        ("{networks: [{cidr: 192.0.0.0/8, except: [0.0.0.0/0]}]}", false),
    ] {
        let it = world(&(db() + &allow(reference) + &networks("n", spec)));
        assert_eq!(it.allows("", OUTSIDE, DB, 6379), holds, "{spec}");
    }
}

#[test]
fn server_authorizations_of_the_older_form() {
    let of = |client: &str, by: &str| {
        let spec = format!("{{server: {by}, client: {client}}}");
        let labeled = db().replace("name: db, namespace", "name: db, labels: {tier: data}, namespace");
        world(&(labeled + &doc("policy.linkerd.io/v1beta1", "ServerAuthorization", "o", &spec)))
    };
    let near = "10.9.9.9";
    for by in ["{name: db}", "{selector: {matchLabels: {tier: data}}}"] {
        let it = of("{unauthenticated: true}", by);
        assert!(
            it.allows("", near, DB, 6379) && !it.allows("", OUTSIDE, DB, 6379),
            "no networks: the cluster's"
        );
        let it = of("{unauthenticated: true, networks: []}", by);
        assert!(!it.allows("", OUTSIDE, DB, 6379), "an empty list too");
        let it = of("{unauthenticated: true, networks: [{cidr: 192.0.2.0/24}]}", by);
        assert!(it.allows("", OUTSIDE, DB, 6379) && !it.allows("", near, DB, 6379));
        let it = of("{meshTLS: {serviceAccounts: [{name: web}]}}", by);
        assert!(it.allows("web.shop", near, DB, 6379) && !it.allows("tool.ops", near, DB, 6379));
        let it = of("{meshTLS: {identities: ['*.ops.serviceaccount.identity.linkerd.cluster.local']}}", by);
        assert!(it.allows("tool.ops", near, DB, 6379) && !it.allows("web.shop", near, DB, 6379));
    }
    assert!(
        !of("{unauthenticated: true}", "{selector: {matchLabels: {tier: web}}}").allows("", near, DB, 6379)
    );
    assert!(!of("{}", "{name: db}").allows("web.shop", near, DB, 6379));
}

#[test]
fn a_client_without_a_certificate_completes_mesh_tls_only_where_a_rule_says_so() {
    let older = |client: &str| {
        let spec = format!("{{server: {{name: db}}, client: {client}}}");
        world(&(db() + &doc("policy.linkerd.io/v1beta1", "ServerAuthorization", "o", &spec)))
    };
    let it = older("{meshTLS: {unauthenticatedTLS: true}}");
    assert!(it.allows("anonymous", "10.9.9.9", DB, 6379) && it.allows("web.shop", "10.9.9.9", DB, 6379));
    assert!(!it.allows("", "10.9.9.9", DB, 6379), "in the clear it is nobody");
    let db_address = DB.parse::<std::net::IpAddr>().unwrap().into();
    assert!(
        it.compiled.admits_anonymous(&db_address, 6379) && !it.compiled.admits_anonymous(&db_address, 6380)
    );
    let it = older("{meshTLS: {identities: ['*']}}");
    assert!(
        !it.allows("anonymous", "10.9.9.9", DB, 6379) && !it.compiled.admits_anonymous(&db_address, 6379)
    );
}

#[test]
fn the_most_specific_rule_is_credited_then_the_oldest_then_the_name_and_audit_last() {
    let open = db().replace("proxyProtocol: opaque", "proxyProtocol: opaque, accessPolicy: audit");
    let target = "{group: policy.linkerd.io, kind: Server, name: db}";
    let named = |name: &str, target: &str| policy(name, target, ANYONE);
    let old = named("z-old", target)
        .replace("namespace: shop", "namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'");
    let text = open.clone() + &named("wide", "{kind: Namespace, name: shop}");
    let credited = |text: &str| world(text).ask("", OUTSIDE, DB, 6379).rule.to_string();
    assert_eq!(credited(&open), "Server shop/db (accessPolicy audit)");
    assert_eq!(credited(&text), "AuthorizationPolicy shop/wide");
    let text = text + &named("b", target) + &named("c", target);
    assert_eq!(credited(&text), "AuthorizationPolicy shop/b");
    assert_eq!(credited(&(text + &old)), "AuthorizationPolicy shop/z-old");
}

#[test]
fn a_raw_stream_to_a_port_declared_http_is_refused() {
    for protocol in ["HTTP/1", "HTTP/2", "gRPC"] {
        let text = server(
            "s",
            &format!(
                "{{podSelector: {{}}, port: 80, proxyProtocol: {protocol}, accessPolicy: all-unauthenticated}}"
            ),
        );
        assert_eq!(world(&text).reason("", OUTSIDE, WEB, 80), Reason::NeedsRequest, "{protocol}");
    }
    let text =
        server("s", "{podSelector: {}, port: 80, proxyProtocol: TLS, accessPolicy: all-unauthenticated}");
    assert!(world(&text).allows("", OUTSIDE, WEB, 80));
}

#[test]
fn an_address_of_a_meshed_pod_is_not_believed_without_a_certificate() {
    let it = world(&(db() + &allow(ANYONE)));
    assert_eq!(it.reason("", WEB, DB, 6379), Reason::NoIdentity);
    assert!(it.allows("", PLAIN, DB, 6379), "an unmeshed pod's is");
}

#[test]
fn a_workload_outside_is_a_client_by_its_own_name_and_never_spoken_to_in_the_clear() {
    let vm = doc(
        "workload.linkerd.io/v1beta1",
        "ExternalWorkload",
        "vm",
        "{meshTLS: {identity: vm.host.far.example, serverName: vm.host.far.example}, workloadIPs: [{ip: 10.5.0.1}], ports: [{port: 80}]}",
    );
    let reference = "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}]";
    let it = world(
        &(vm.clone() + &db() + &allow(reference) + &mesh_tls("m", "{identities: [vm.host.far.example]}")),
    );
    assert!(it.problems.is_empty(), "{:?}", it.problems);
    assert!(it.allows("vm.host.far.example", "10.5.0.1", DB, 6379));
    let it = world(&(vm + &db() + &allow(ANYONE)));
    assert_eq!(
        it.reason("", "10.5.0.1", DB, 6379),
        Reason::NoIdentity,
        "at its address a certificate is demanded"
    );
    assert!(it.allows("", "10.5.0.2", DB, 6379), "the control");
}
