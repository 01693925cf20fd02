//! Heddle's own rules.

use heddle_ebpf::codes::{Outcome, Reason};
use heddle_policy::{
    ClusterSettings, DefaultOutbound,
    verdict::{self, Connect, TCP},
};

use crate::world::*;

fn cluster(name: &str, spec: &str) -> String {
    rule(name, spec).replace("kind: AccessRule", "kind: ClusterAccessRule").replace(", namespace: shop", "")
}

fn open() -> String {
    db() + &allow("[]")
}

fn leaves(it: &World, to: &str, port: u16) -> (Outcome, Reason) {
    let view =
        it.compiled.tables.with_captured(|address| it.compiled.workload(address).map(|info| info.digest));
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    let connect = Connect { source: ip(WEB), destination: ip(to), port, protocol: TCP, random: 0 };
    let verdict = verdict::outbound(&view, &connect).verdict;
    (verdict.outcome, verdict.reason)
}

/// What is said of a name that the pod `web` asks for.
fn named(it: &World, host: &str) -> Reason {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    it.compiled.by_name(&ip(WEB), &ip(OUTSIDE), 443, host).verdict.reason
}

fn egress(name: &str, namespace: &str, spec: &str) -> String {
    doc("policy.linkerd.io/v1alpha1", "EgressNetwork", name, spec)
        .replace("namespace: shop", &format!("namespace: {namespace}"))
}

fn closed() -> ClusterSettings {
    ClusterSettings { default_outbound: DefaultOutbound::Deny, ..ClusterSettings::default() }
}

#[test]
fn a_rule_that_denies_wins_over_any_that_allows() {
    let deny = rule("no-web", "{action: Deny, from: [{serviceAccounts: [{name: web}]}]}");
    let it = world(&(open() + &deny));
    let refused = it.ask("web.shop", OUTSIDE, DB, 6379);
    assert_eq!((refused.verdict.reason, &*refused.rule), (Reason::Denied, "AccessRule shop/no-web"));
    assert_eq!(it.compiled.tables.rule(refused.verdict.rule), "AccessRule shop/no-web");
    assert!(it.allows("tool.ops", OUTSIDE, DB, 6379), "the control");
    // The kernel's tables say the same of a client on the node.
    assert_eq!(leaves(&it, DB, 6379), (Outcome::Refuse, Reason::Denied));
    assert_eq!(leaves(&world(&open()), DB, 6379), (Outcome::Direct, Reason::Authorized));
}

#[test]
fn one_policy_for_several_namespaces_and_port_ranges() {
    let spec = "{action: Allow, namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [shop, ops]}]}, \
                ports: [80, '9000-9010', http], from: [{namespaceSelector: {matchLabels: {team: ops}}}]}";
    let it = world(&cluster("ops", spec));
    assert!(it.problems.is_empty(), "{:?}", it.problems);
    for (server, port, holds) in [
        (WEB, 80, true),
        (TOOL, 80, true),
        (WEB, 9000, true),
        (WEB, 9010, true),
        (WEB, 8080, true),
        (WEB, 8999, false),
        (WEB, 9011, false),
    ] {
        assert_eq!(it.allows("tool.ops", OUTSIDE, server, port), holds, "{server}:{port}");
        assert!(!it.allows("web.shop", OUTSIDE, server, port));
    }
    let one = cluster(
        "one",
        "{action: Allow, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, from: [{anyone: true}]}",
    );
    let it = world(&one);
    assert!(it.allows("", OUTSIDE, WEB, 80) && !it.allows("", OUTSIDE, TOOL, 80));
}

#[test]
fn attack_17_a_reserved_label_that_a_tenant_sets_is_ignored() {
    let one = cluster(
        "one",
        "{action: Allow, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, from: [{anyone: true}]}",
    );
    let parsed = pods().replace(
        "name: ops, labels: {team: ops}",
        "name: ops, labels: {team: ops, kubernetes.io/metadata.name: shop}",
    ) + &one;
    let parsed = heddle_policy::resources::parse_file("rules.yaml", &parsed);
    let compiled = heddle_policy::Index::of([parsed]).compile_cluster(&ClusterSettings::default(), 0);
    let it = World { compiled, problems: Vec::new() };
    assert!(!it.allows("", OUTSIDE, TOOL, 80) && it.allows("", OUTSIDE, WEB, 80));
}

#[test]
fn a_rule_ends_when_it_expires() {
    let text = rule("guest", "{action: Allow, expires: '2026-01-01T00:00:00Z', from: [{anyone: true}]}");
    let at = 1_767_225_600_000_000;
    let before = world_with(&text, &ClusterSettings::default(), at - 1);
    assert!(before.allows("", OUTSIDE, WEB, 80));
    assert_eq!(before.compiled.next_expiry, Some(at));
    let after = world_with(&text, &ClusterSettings::default(), at);
    assert!(!after.allows("", OUTSIDE, WEB, 80) && after.tells("has expired"));
    assert_eq!(after.compiled.next_expiry, None);
    let spoiled = world(&text.replace("2026-01-01T00:00:00Z", "soon"));
    assert!(!spoiled.allows("", OUTSIDE, WEB, 80) && spoiled.tells("is not a time"));
}

#[test]
fn a_rule_that_is_tried_changes_nothing_and_tells_what_it_would() {
    let deny = rule("try", "{action: Deny, mode: Audit, from: [{serviceAccounts: [{name: web}]}]}");
    let it = world(&(open() + &deny));
    let decision = it.ask("web.shop", OUTSIDE, DB, 6379);
    assert!(decision.allowed());
    assert_eq!(decision.tried.as_deref(), Some("AccessRule shop/try"));
    assert_eq!(it.ask("tool.ops", OUTSIDE, DB, 6379).tried, None);
    let permit = rule("try", "{action: Allow, mode: Audit, from: [{serviceAccounts: [{name: web}]}]}");
    let decision = world(&(db() + &permit)).ask("web.shop", OUTSIDE, DB, 6379);
    assert!(!decision.allowed());
    assert_eq!(decision.tried.as_deref(), Some("AccessRule shop/try"));
}

#[test]
fn attack_16_no_identity_together_with_not_x_is_refused() {
    let except = "from: [{exceptIdentities: ['*.shop.serviceaccount.identity.linkerd.cluster.local']}]";
    let it = world(&(db() + &rule("r", &format!("{{action: Allow, {except}}}"))));
    assert!(it.allows("tool.ops", OUTSIDE, DB, 6379), "the control");
    assert!(!it.allows("web.shop", OUTSIDE, DB, 6379) && !it.allows("", OUTSIDE, DB, 6379));
    assert!(!it.allows("anonymous", OUTSIDE, DB, 6379));
    let it = world(&(open() + &rule("r", &format!("{{action: Deny, {except}}}"))));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379), "the control");
    assert_eq!(it.reason("tool.ops", OUTSIDE, DB, 6379), Reason::Denied);
    assert_eq!(it.reason("", OUTSIDE, DB, 6379), Reason::Denied);
    assert_eq!(it.reason("anonymous", OUTSIDE, DB, 6379), Reason::Denied);
}

#[test]
fn what_leaves_is_denied_by_identity_by_network_and_by_name() {
    assert_eq!(leaves(&world(&open()), OUTSIDE, 443), (Outcome::Direct, Reason::PlainOutside), "the control");
    let it = world(
        &(open()
            + &rule(
                "r",
                "{action: Deny, podSelector: {matchLabels: {app: web}}, to: [{serviceAccounts: [{name: db}]}]}",
            )),
    );
    assert_eq!(leaves(&it, DB, 6379), (Outcome::Refuse, Reason::Denied));
    assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Direct);
    let it =
        world(&rule("r", "{action: Deny, ports: ['440-450'], to: [{networks: [{cidr: 192.0.2.0/24}]}]}"));
    assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied));
    assert_eq!(leaves(&it, OUTSIDE, 451).0, Outcome::Direct);
    let it = world(&rule("r", "{action: Deny, to: [{hosts: ['*.evil.example']}]}"));
    assert_eq!(
        leaves(&it, OUTSIDE, 443),
        (Outcome::Refuse, Reason::NeedsRequest),
        "the name is not read by the kernel"
    );
    assert_eq!(named(&it, "www.Evil.example."), Reason::Denied);
    for other in ["good.example", "evil.example", "notevil.example", "www.evil.example.com", ""] {
        assert_eq!(named(&it, other), Reason::PlainOutside, "{other:?}");
    }
    let it = world_with(&rule("r", "{action: Allow, to: [{hosts: [good.example]}]}"), &closed(), 0);
    assert_eq!(
        (named(&it, "good.example"), named(&it, "evil.example")),
        (Reason::PlainOutside, Reason::OutboundDenied)
    );
    let it = world_with(&rule("r", "{action: Allow, to: [{networks: [{cidr: 192.0.2.7}]}]}"), &closed(), 0);
    assert_eq!(leaves(&it, OUTSIDE, 1).0, Outcome::Direct);
    assert_eq!(leaves(&it, "192.0.2.8", 1), (Outcome::Refuse, Reason::OutboundDenied));
}

#[test]
fn egress_networks() {
    let it = world(&egress("all", "shop", "{trafficPolicy: Deny}"));
    assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied));
    assert_eq!(leaves(&it, PLAIN, 80).0, Outcome::Direct, "everything outside the cluster, and no more");
    let it = world(&egress("all", "linkerd-egress", "{trafficPolicy: Deny}"));
    assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Refuse, "for whoever has none of its own");
    let both = egress("all", "linkerd-egress", "{trafficPolicy: Deny}")
        + &egress("own", "shop", "{trafficPolicy: Allow, networks: [{cidr: 198.51.100.0/24}]}");
    assert_eq!(leaves(&world(&both), OUTSIDE, 443).0, Outcome::Direct, "only where it has none");
    let smaller = egress("a", "shop", "{trafficPolicy: Deny, networks: [{cidr: 192.0.0.0/8}]}")
        + &egress("b", "shop", "{trafficPolicy: Allow, networks: [{cidr: 192.0.2.0/24}]}");
    let it = world(&smaller);
    assert_eq!(
        (leaves(&it, OUTSIDE, 1).0, leaves(&it, "192.1.0.1", 1).0),
        (Outcome::Direct, Outcome::Refuse)
    );
    // Alike: the older, then the name.
    let alike = |older: &str| {
        let text =
            egress("a", "shop", "{trafficPolicy: Deny}") + &egress("b", "shop", "{trafficPolicy: Allow}");
        text.replace(
            &format!("name: {older}, namespace"),
            &format!("name: {older}, creationTimestamp: '2020-01-01T00:00:00Z', namespace"),
        )
    };
    for (older, way) in [("b", Outcome::Direct), ("a", Outcome::Refuse), ("neither", Outcome::Refuse)] {
        assert_eq!(leaves(&world(&alike(older)), OUTSIDE, 443).0, way, "{older}");
    }
    // Before it is asked whether the destination is inside the cluster.
    let inside = egress("a", "shop", "{trafficPolicy: Deny, networks: [{cidr: 10.1.0.0/16}]}");
    assert_eq!(leaves(&world(&inside), PLAIN, 80), (Outcome::Refuse, Reason::Denied));
    let closed = ClusterSettings { default_outbound: DefaultOutbound::Deny, ..ClusterSettings::default() };
    let it = world_with(&egress("a", "shop", "{trafficPolicy: Allow}"), &closed, 0);
    assert_eq!((leaves(&it, OUTSIDE, 443).0, leaves(&it, PLAIN, 80).0), (Outcome::Direct, Outcome::Refuse));
    let broken = egress("a", "shop", "{trafficPolicy: Maybe}");
    assert_eq!(leaves(&world(&broken), OUTSIDE, 1).0, Outcome::Refuse);
}

#[test]
fn an_egress_network_that_cannot_be_read_whole_denies_whatever_it_may_have_meant() {
    let inside = "{trafficPolicy: Deny, networks: [{cidr: 10.1.0.0/16}, {cidr: 192.0.2/24}]}";
    for spec in [
        "{trafficPolicy: Deny, networks: [{cidr: 192.0.2.0/240}]}",
        "{trafficPolicy: Allow, networks: [{cidr: 192.0.2.0/240}]}",
        "{trafficPolicy: Deny, networks: []}",
        "{trafficPolicy: Deny, networks: [{cidr: 192.0.2.0/24, but: 192.0.2.1}]}",
        inside,
    ] {
        let it = world(&egress("a", "shop", spec));
        assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied), "{spec}");
        // Not even where another allows it, which it may have cut a smaller block out of.
        let other = egress("b", "shop", "{trafficPolicy: Allow, networks: [{cidr: 192.0.2.0/24}]}");
        let it = world(&(egress("a", "shop", spec) + &other));
        assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied), "{spec} beside another");
        // The cluster's own deny is not lifted by one that says nothing.
        let it =
            world(&(egress("a", "shop", spec) + &egress("all", "linkerd-egress", "{trafficPolicy: Deny}")));
        assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Refuse, "{spec} beside the cluster's");
    }
    assert_eq!(
        leaves(&world(&egress("a", "shop", inside)), PLAIN, 80).0,
        Outcome::Refuse,
        "what could be read"
    );
    let sound = "{trafficPolicy: Deny, networks: [{cidr: 198.51.100.0/24}]}";
    assert_eq!(leaves(&world(&egress("a", "shop", sound)), OUTSIDE, 443).0, Outcome::Direct, "the control");
    let version = egress("a", "shop", sound).replace("/v1alpha1", "/v9");
    let it = world(&version);
    assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Refuse, "a version that is not known");
    assert!(it.tells("this version is not known here"));
}

#[test]
fn an_external_workload_that_cannot_be_read_whole_is_not_spoken_to_as_nobody_s() {
    let external = |spec: &str| doc("workload.linkerd.io/v1beta1", "ExternalWorkload", "vm", spec);
    let sound = format!(
        "{{meshTLS: {{identity: vm.example, serverName: vm.example}}, workloadIPs: [{{ip: {OUTSIDE}}}]}}"
    );
    assert_eq!(leaves(&world(""), OUTSIDE, 443), (Outcome::Direct, Reason::PlainOutside), "the control");
    assert_eq!(leaves(&world(&external(&sound)), OUTSIDE, 443).1, Reason::Meshed);
    for (right, wrong) in [
        (", serverName: vm.example", ""),
        ("identity: vm.example", "identity: VM.example"),
        ("workloadIPs", "ports: [{port: 70000}], workloadIPs"),
        ("workloadIPs", "surprise: 1, workloadIPs"),
        ("{ip: ", "{name: x, ip: "),
        (&format!("ip: {OUTSIDE}"), &format!("ip: \"::ffff:{OUTSIDE}\"")),
        (&format!("ip: {OUTSIDE}"), &format!("ip: \" {OUTSIDE}\"")),
    ] {
        let spec = sound.replace(right, wrong);
        assert_ne!(spec, sound);
        let it = world(&external(&spec));
        assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Refuse, "{spec}");
        assert!(!it.problems.is_empty(), "{spec} is told");
    }
    let it = world(&external(&sound).replace("/v1beta1", "/v9"));
    assert_eq!(leaves(&it, OUTSIDE, 443).0, Outcome::Refuse, "a version that is not known");
}

#[test]
fn what_an_egress_network_denies_is_denied_where_the_whole_family_is_the_clusters() {
    let settings = |networks: &[&str]| ClusterSettings {
        cluster_networks: networks.iter().map(|it| it.parse().unwrap()).collect(),
        ..ClusterSettings::default()
    };
    let all = egress("all", "shop", "{trafficPolicy: Deny}");
    for networks in [&["10.0.0.0/8"][..], &["0.0.0.0/0", "::/0"]] {
        let it = world_with(&all, &settings(networks), 0);
        assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied), "{networks:?}");
        let control = world_with("", &settings(networks), 0);
        assert_eq!(leaves(&control, OUTSIDE, 443).0, Outcome::Direct, "the control");
    }
}

#[test]
fn routes_of_an_egress_network_make_the_name_decide_and_those_of_others_do_not() {
    let route = |kind: &str, name: &str| {
        let parents =
            format!("parentRefs: [{{group: policy.linkerd.io, kind: {kind}, name: {name}, port: 443}}]");
        doc(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "r",
            &format!("{{{parents}, hostnames: [a.example]}}"),
        )
    };
    let networks = egress("all", "shop", "{trafficPolicy: Deny}")
        + &egress("other", "shop", "{trafficPolicy: Deny, networks: [{cidr: 198.51.100.0/24}]}");
    let attached = world(&(networks.clone() + &route("EgressNetwork", "all")));
    assert_eq!(leaves(&attached, OUTSIDE, 443), (Outcome::Refuse, Reason::NeedsRequest));
    assert_eq!(named(&attached, "b.example"), Reason::Denied, "the routes let nothing else pass");
    for (kind, name) in [("EgressNetwork", "other"), ("EgressNetwork", "none"), ("Server", "all")] {
        let it = world(&(networks.clone() + &route(kind, name)));
        assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied), "{kind} {name}");
    }
}

#[test]
fn a_rule_about_names_lets_no_other_name_pass_that_was_refused_without_it() {
    let evil = rule("evil", "{action: Deny, to: [{hosts: [evil.example]}]}");
    assert_eq!(named(&world(&evil), "good.example"), Reason::PlainOutside, "the control");
    let it = world(&(evil.clone() + &egress("all", "shop", "{trafficPolicy: Deny}")));
    assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::NeedsRequest));
    assert_eq!((named(&it, "evil.example"), named(&it, "good.example")), (Reason::Denied, Reason::Denied));
    let allow = rule("net", "{action: Allow, to: [{networks: [{cidr: 192.0.2.0/24}]}]}");
    let it = world_with(&(evil.clone() + &allow), &closed(), 0);
    assert_eq!(
        (named(&it, "evil.example"), named(&it, "good.example")),
        (Reason::Denied, Reason::PlainOutside)
    );
    let it = world_with(&(evil + &egress("all", "shop", "{trafficPolicy: Allow}")), &closed(), 0);
    assert_eq!(
        (named(&it, "evil.example"), named(&it, "good.example")),
        (Reason::Denied, Reason::PlainOutside)
    );
}

#[test]
fn a_name_that_no_rule_is_about_is_left_to_the_default_for_what_leaves() {
    let settings =
        ClusterSettings { default_outbound: DefaultOutbound::Cluster, ..ClusterSettings::default() };
    let it = world_with(&rule("r", "{action: Deny, to: [{hosts: [evil.example]}]}"), &settings, 0);
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    let named = |to: &str| it.compiled.by_name(&ip(WEB), &ip(to), 443, "good.example").verdict.reason;
    assert_eq!((named(PLAIN), named(OUTSIDE)), (Reason::PlainCluster, Reason::OutboundOutsideCluster));
}

#[test]
fn a_name_that_is_allowed_has_the_request_decide_where_nothing_else_lets_it_pass() {
    let good = rule("good", "{action: Allow, to: [{hosts: [good.example]}]}");
    let by = |default_outbound| {
        let it = world_with(&good, &ClusterSettings { default_outbound, ..ClusterSettings::default() }, 0);
        (leaves(&it, PLAIN, 443), leaves(&it, OUTSIDE, 443))
    };
    let (inside, outside) =
        ((Outcome::Direct, Reason::PlainCluster), (Outcome::Direct, Reason::PlainOutside));
    let asked = (Outcome::Refuse, Reason::NeedsRequest);
    assert_eq!(by(DefaultOutbound::Allow), (inside, outside));
    assert_eq!(by(DefaultOutbound::Cluster), (inside, asked));
    assert_eq!(by(DefaultOutbound::Deny), (asked, asked));
}

#[test]
fn a_rule_of_the_namespace_is_credited_before_one_of_the_cluster() {
    let of_all = cluster("a", "{action: Allow, namespaceSelector: {}, from: [{anyone: true}]}");
    let own = rule("z", "{action: Allow, from: [{anyone: true}]}");
    let credited = |text: &str| world(text).ask("", OUTSIDE, WEB, 80).rule.to_string();
    assert_eq!(credited(&of_all), "ClusterAccessRule a", "the control");
    assert_eq!(credited(&(of_all.clone() + &own)), "AccessRule shop/z");
}

#[test]
fn a_rule_about_names_that_is_tried_changes_nothing() {
    let good = rule("good", "{action: Allow, to: [{hosts: [good.example]}]}");
    let deny = rule("try", "{action: Deny, mode: Audit, to: [{hosts: [good.example]}]}");
    assert_eq!(
        named(&world_with(&(good.clone() + &deny), &closed(), 0), "good.example"),
        Reason::PlainOutside
    );
    let inforce = deny.replace("mode: Audit, ", "");
    assert_eq!(named(&world_with(&(good.clone() + &inforce), &closed(), 0), "good.example"), Reason::Denied);
    let tried = good.replace("action: Allow", "action: Allow, mode: Audit");
    assert_eq!(leaves(&world_with(&tried, &closed(), 0), OUTSIDE, 443).1, Reason::OutboundDenied);
}

#[test]
fn a_rule_that_cannot_be_read_and_may_have_denied_closes_what_it_may_be_about() {
    for spec in [
        "{action: Deny, from: []}",
        "{action: Deny, from: [{}]}",
        "{action: Deny, from: [{identities: []}]}",
        "{action: Deny, from: [{networks: []}]}",
        "{action: Deny, from: [{networks: [{cidr: 10.0.0.0/33}]}]}",
        "{action: Deny, from: [{unless: x}]}",
        "{action: Refuse, from: [{anyone: true}]}",
        "{action: Deny}",
        "{action: Deny, ports: [0], from: [{anyone: true}]}",
        "{action: Deny, ports: ['9-1'], from: [{anyone: true}]}",
        "{action: Deny, ports: [70000], from: [{anyone: true}]}",
        "{action: Deny, ports: ['1-2000'], from: [{anyone: true}]}",
        "{action: Deny, protocol: SCTP, from: [{anyone: true}]}",
        "{action: Deny, to: [{networks: [{cidr: 10.0.0.0/8}], hosts: []}]}",
    ] {
        let it = world(&(open() + &rule("r", spec)));
        assert_eq!(it.reason("tool.ops", OUTSIDE, DB, 6379), Reason::Denied, "{spec}");
        assert!(it.tells("may have been meant to deny"), "{spec}: {:?}", it.problems);
    }
    let narrow =
        world(&(open() + &rule("r", "{action: Deny, podSelector: {matchLabels: {app: web}}, from: []}")));
    assert!(narrow.allows("tool.ops", OUTSIDE, DB, 6379), "as far as it can be told what it was about");
    let allows = world(&(open() + &rule("r", "{action: Allow, from: []}")));
    assert!(allows.allows("tool.ops", OUTSIDE, DB, 6379) && !allows.allows("", OUTSIDE, WEB, 1));
}

#[test]
fn routes_of_the_clusters_egress_networks_count_for_every_namespace_whenever_they_come() {
    let deny = egress("all", "linkerd-egress", "{trafficPolicy: Deny}");
    let route = doc(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "r",
        "{parentRefs: [{group: policy.linkerd.io, kind: EgressNetwork, name: all, port: 443}], hostnames: [a.example]}",
    )
    .replace("namespace: shop", "namespace: linkerd-egress");
    let mut compiler = heddle_policy::Compiler::new(ClusterSettings::default(), None);
    let read = |text: &str| heddle_policy::resources::parse_file("rules.yaml", text).resources;
    read(&(pods() + &deny)).into_iter().for_each(|it| compiler.apply(it));
    let mut now = |change: &mut dyn FnMut(&mut heddle_policy::Compiler)| {
        change(&mut compiler);
        let it = World { compiled: compiler.compile(0), problems: Vec::new() };
        leaves(&it, OUTSIDE, 443).1
    };
    assert_eq!(now(&mut |_| {}), Reason::Denied);
    let route = read(&route).pop().unwrap();
    assert_eq!(now(&mut |compiler| compiler.apply(route.clone())), Reason::NeedsRequest);
    assert_eq!(now(&mut |compiler| compiler.remove(&route.id())), Reason::Denied);
}

#[test]
fn a_deny_by_identity_reaches_a_workload_outside_that_has_the_name_of_an_account() {
    let external = |identity: &str| {
        let spec = format!(
            "{{meshTLS: {{identity: \"{identity}\", serverName: vm.example}}, workloadIPs: [{{ip: {OUTSIDE}}}]}}"
        );
        doc("workload.linkerd.io/v1beta1", "ExternalWorkload", "vm", &spec)
    };
    let (dns, spiffe) =
        ("vm.shop.serviceaccount.identity.linkerd.cluster.local", "spiffe://cluster.local/ns/shop/sa/vm");
    for identity in [dns, spiffe] {
        assert_eq!(leaves(&world(&external(identity)), OUTSIDE, 443).1, Reason::Meshed, "the control");
        for to in [
            format!("identities: ['{dns}']"),
            format!("identities: ['{spiffe}']"),
            "serviceAccounts: [{name: vm}]".to_owned(),
            "namespaces: [shop]".to_owned(),
        ] {
            let deny = rule("r", &format!("{{action: Deny, to: [{{{to}}}]}}"));
            let it = world(&(external(identity) + &deny));
            assert_eq!(leaves(&it, OUTSIDE, 443), (Outcome::Refuse, Reason::Denied), "{identity} by {to}");
        }
    }
    let other = rule("r", "{action: Deny, to: [{serviceAccounts: [{name: web}]}]}");
    assert_eq!(leaves(&world(&(external(dns) + &other)), OUTSIDE, 443).1, Reason::Meshed, "nobody else's");
}
