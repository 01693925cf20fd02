//! Seven defects known in another mesh, and attacks on policy.

use std::net::IpAddr;

use heddle_ebpf::codes::{Outcome, Reason};
use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiler, Connection,
    resources::{Kind, ResourceId, parse_file},
};

use crate::world::*;

#[test]
fn an_unknown_reference_never_opens() {
    for kind in ["MeshTLSAuthentication", "NetworkAuthentication"] {
        let reference = format!("[{{group: policy.linkerd.io, kind: {kind}, name: absent}}]");
        let it = world(&(db() + &allow(&reference)));
        assert!(!it.allows("web.shop", OUTSIDE, DB, 6379) && it.tells("the policy grants nothing"), "{kind}");
        let both = format!(
            "[{{kind: ServiceAccount, name: web}}, {{group: policy.linkerd.io, kind: {kind}, name: absent}}]"
        );
        assert!(!world(&(db() + &allow(&both))).allows("web.shop", OUTSIDE, DB, 6379), "{kind}");
    }
    let it = world(&(db() + &allow("[{group: other.example, kind: Anything, name: x}]")));
    assert!(!it.allows("web.shop", OUTSIDE, DB, 6379));
    assert!(world(&(db() + &allow(WEB_ACCOUNT))).allows("web.shop", OUTSIDE, DB, 6379), "the control");
}

#[test]
fn malformed_addresses_spoil_their_rule_and_ports_are_never_truncated() {
    let reference = "[{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}]";
    let with = |spec: &str| world(&(db() + &allow(reference) + &networks("n", spec)));
    assert!(with("{networks: [{cidr: 192.0.2.0/24}]}").allows("", OUTSIDE, DB, 6379), "the control");
    for bad in [
        "300.0.0.1",
        "10.0.0.0/33",
        "10.0.0",
        "",
        "::ffff:10.0.0.0/104",
        "fe80::1%eth0",
        "0x0a000001",
        "10.0.0.0/-1",
    ] {
        let it = with(&format!("{{networks: [{{cidr: 192.0.2.0/24}}, {{cidr: '{bad}'}}]}}"));
        assert!(!it.allows("", OUTSIDE, DB, 6379), "{bad}: the rule is not what was written without it");
        let it = with(&format!("{{networks: [{{cidr: 192.0.2.0/24, except: ['{bad}']}}]}}"));
        assert!(!it.allows("", OUTSIDE, DB, 6379), "{bad}");
    }
    // 65616 = 65536 + 80.
    let text = server("s", "{podSelector: {}, port: 65616, accessPolicy: all-unauthenticated}");
    assert!(!world(&text).allows("", OUTSIDE, WEB, 80));
    assert!(world(&text.replace("65616", "80")).allows("", OUTSIDE, WEB, 80), "the control");
}

#[test]
fn an_empty_match_never_disarms_a_deny() {
    let open = db() + &allow("[]");
    for from in [
        "[]",
        "[{}]",
        "[{identities: []}]",
        "[{namespaces: []}]",
        "[{serviceAccounts: []}]",
        "[{networks: []}]",
    ] {
        let it = world(&(open.clone() + &rule("deny", &format!("{{action: Deny, from: {from}}}"))));
        assert_eq!(it.reason("web.shop", OUTSIDE, DB, 6379), Reason::Denied, "{from}");
    }
    assert!(world(&open).allows("web.shop", OUTSIDE, DB, 6379), "the control");
}

#[test]
fn a_certificate_with_names_that_disagree_is_nobodys() {
    let it = world(&(db() + &allow(WEB_ACCOUNT)));
    let web = "web.shop.serviceaccount.identity.linkerd.cluster.local";
    let tool = "tool.ops.serviceaccount.identity.linkerd.cluster.local";
    let ask = |dns: &str, spiffe: &str| {
        let client = ClientIdentity::Mesh { dns: Some(dns.to_owned()), spiffe: Some(spiffe.to_owned()) };
        let (address, server): (IpAddr, IpAddr) = (OUTSIDE.parse().unwrap(), DB.parse().unwrap());
        it.compiled
            .decide(&Connection { client: &client, address, server: server.into(), port: 6379 })
            .allowed()
    };
    assert!(ask(web, "spiffe://cluster.local/ns/shop/sa/web"), "the control");
    assert!(!ask(web, "spiffe://cluster.local/ns/ops/sa/tool"));
    assert!(!ask(tool, "spiffe://cluster.local/ns/shop/sa/web"));
    assert!(!ask(web, "spiffe://far.example/x"));
    assert!(!ask("vm.far.example", "spiffe://cluster.local/ns/shop/sa/web"));
    assert!(!ask(web, "spiffe://cluster.local/ns/shop/sa/web/") && !ask(web, ""));
}

#[test]
fn a_live_connection_is_judged_by_the_rules_in_force_now() {
    let mut compiler = Compiler::new(ClusterSettings::default(), None);
    for resource in parse_file("r", &(pods() + &db() + &allow(WEB_ACCOUNT))).resources {
        compiler.apply(resource);
    }
    let (address, server): (IpAddr, IpAddr) = (OUTSIDE.parse().unwrap(), DB.parse().unwrap());
    let client = identity("web.shop");
    let connection = Connection { client: &client, address, server: server.into(), port: 6379 };
    let before = compiler.compile(0);
    assert!(before.decide(&connection).allowed());
    let id = |kind, name: &str| ResourceId { kind, namespace: "shop".into(), name: name.into() };
    compiler.remove(&id(Kind::AuthorizationPolicy, "allow"));
    assert!(!compiler.compile(0).decide(&connection).allowed(), "a removed rule");
    assert!(before.decide(&connection).allowed(), "what was compiled before does not change under a reader");
    for resource in
        parse_file("r", &(allow(WEB_ACCOUNT) + &rule("deny", "{action: Deny, from: [{anyone: true}]}")))
            .resources
    {
        compiler.apply(resource);
    }
    assert_eq!(compiler.compile(0).decide(&connection).verdict.reason, Reason::Denied, "a new rule");
    compiler.remove(&id(Kind::AccessRule, "deny"));
    assert!(compiler.compile(0).decide(&connection).allowed());
}

/// The sixth defect, a broken revocation list that opens, is the identity crate's; what policy owes is that a client whose
/// names could not be verified has none.
#[test]
fn names_that_cannot_be_read_are_no_identity() {
    let it = world(&(db() + &allow("[]")));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379), "the control");
    for name in [
        "Web.shop.serviceaccount.identity.linkerd.cluster.local",
        "web..shop.serviceaccount.identity.linkerd.cluster.local",
        "wéb.shop.serviceaccount.identity.linkerd.cluster.local",
    ] {
        let client = ClientIdentity::Mesh { dns: Some(name.to_owned()), spiffe: None };
        let (address, server): (IpAddr, IpAddr) = (OUTSIDE.parse().unwrap(), DB.parse().unwrap());
        let found =
            it.compiled.decide(&Connection { client: &client, address, server: server.into(), port: 6379 });
        assert_eq!(found.verdict.reason, Reason::NoIdentity, "{name}");
    }
}

/// A refusal proves something only beside what is allowed: the seventh defect.
#[test]
fn every_refusal_here_has_its_control() {
    let it = world(&(db() + &allow(WEB_ACCOUNT)));
    assert!(it.allows("web.shop", OUTSIDE, DB, 6379));
    for (who, port) in [("tool.ops", 6379), ("", 6379), ("web.shop", 6380)] {
        assert_eq!(it.ask(who, OUTSIDE, DB, port).verdict.outcome, Outcome::Refuse, "{who} {port}");
    }
}

#[test]
fn attack_14_what_refuses_a_connection_refuses_its_requests() {
    let text = server(
        "web",
        "{podSelector: {matchLabels: {app: web}}, port: 80, proxyProtocol: unknown, accessPolicy: all-unauthenticated}",
    );
    let deny = rule(
        "deny",
        "{action: Deny, podSelector: {matchLabels: {app: web}}, from: [{serviceAccounts: [{name: db}]}, {networks: [{cidr: 192.0.2.0/24}]}]}",
    );
    let request = heddle_policy::Request { method: "GET", target: "/", host: "h", headers: &[] };
    let it = world(&(text.clone() + &deny));
    for who in ["", "db.shop", "tool.ops"] {
        assert_eq!(it.reason(who, OUTSIDE, WEB, 80), Reason::Denied, "{who}");
        assert_eq!(it.request(who, WEB, 80, &request).decision.verdict.reason, Reason::Denied, "{who}");
        let control = world(&text);
        assert!(
            control.allows(who, OUTSIDE, WEB, 80)
                && control.request(who, WEB, 80, &request).decision.allowed()
        );
    }
}

#[test]
fn attack_17_fields_that_are_not_known_close_and_are_told() {
    for (name, text) in [
        (
            "a Server",
            db().replace(
                "proxyProtocol: opaque",
                "proxyProtocol: opaque, accessPolicy: all-unauthenticated, only: friends",
            ),
        ),
        (
            "a policy",
            db() + &allow("[]")
                .replace("requiredAuthenticationRefs: []", "requiredAuthenticationRefs: [], unless: x"),
        ),
        ("a forgotten list", db() + &allow("[]").replace(", requiredAuthenticationRefs: []", "")),
        (
            "a rule",
            db() + &allow("[]")
                + &rule("r", "{action: Deny, from: [{serviceAccounts: [{name: nobody}]}], unless: x}"),
        ),
    ] {
        let it = world(&text);
        assert!(!it.allows("", OUTSIDE, DB, 6379), "{name}");
        assert!(it.problems.iter().any(|problem| problem.line != 0), "{name}: {:?}", it.problems);
    }
    assert!(world(&(db() + &allow("[]"))).allows("", OUTSIDE, DB, 6379), "the control");
}
