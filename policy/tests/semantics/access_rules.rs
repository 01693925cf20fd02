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
    let named = |it: &World, host: &str| {
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
        it.compiled.by_name(&ip(WEB), &ip(OUTSIDE), 443, host).verdict.reason
    };
    assert_eq!(named(&it, "www.Evil.example."), Reason::Denied);
    assert_eq!(named(&it, "good.example"), Reason::PlainOutside);
    let closed = ClusterSettings { default_outbound: DefaultOutbound::Deny, ..ClusterSettings::default() };
    let it = world_with(&rule("r", "{action: Allow, to: [{hosts: [good.example]}]}"), &closed, 0);
    assert_eq!(
        (named(&it, "good.example"), named(&it, "evil.example")),
        (Reason::PlainOutside, Reason::OutboundDenied)
    );
    let it = world_with(&rule("r", "{action: Allow, to: [{networks: [{cidr: 192.0.2.7}]}]}"), &closed, 0);
    assert_eq!(leaves(&it, OUTSIDE, 1).0, Outcome::Direct);
    assert_eq!(leaves(&it, "192.0.2.8", 1), (Outcome::Refuse, Reason::OutboundDenied));
}

#[test]
fn egress_networks() {
    let egress = |name: &str, namespace: &str, spec: &str| {
        doc("policy.linkerd.io/v1alpha1", "EgressNetwork", name, spec)
            .replace("namespace: shop", &format!("namespace: {namespace}"))
    };
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
    let broken = egress("a", "shop", "{trafficPolicy: Maybe}");
    assert_eq!(leaves(&world(&broken), OUTSIDE, 1).0, Outcome::Refuse);
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
