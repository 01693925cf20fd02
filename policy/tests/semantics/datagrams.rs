//! Rules that name UDP.

use heddle_ebpf::codes::{Outcome, Reason, Verdict};
use heddle_policy::{
    ClusterSettings, Datagram, Decision, DefaultOutbound, SameNode, Sender,
    names::IdentityNaming,
    verdict::{self, Connect, TCP, UDP},
};

use crate::world::*;

fn ip(text: &str) -> heddle_ebpf::Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

impl World {
    /// What the kernel's tables say of what reaches a pod.
    fn arrives(&self, from: &str, to: &str, port: u16, protocol: u8) -> Verdict {
        let view = self.compiled.tables.with_captured(|at| self.compiled.workload(at).map(|it| it.digest));
        verdict::inbound(&view, &ip(from), &ip(to), port, protocol)
    }

    /// And of what leaves one.
    fn leaves(&self, from: &str, to: &str, port: u16, protocol: u8) -> Verdict {
        let view = self.compiled.tables.with_captured(|at| self.compiled.workload(at).map(|it| it.digest));
        let connect = Connect { source: ip(from), destination: ip(to), port, protocol, random: 0 };
        verdict::outbound(&view, &connect).verdict
    }

    /// A datagram between two pods of the node, at either's guard.
    fn passes(&self, from: &str, to: &str, port: u16) -> bool {
        let (out, into) = (self.leaves(from, to, port, UDP), self.arrives(from, to, port, UDP));
        assert_eq!(out, into, "{from} to {to}:{port}: both guards say the same");
        out.outcome == Outcome::Direct
    }

    fn datagram(&self, sender: Option<&str>, from: &str, server: &str, port: u16) -> Decision {
        let naming = IdentityNaming::default();
        let identity = sender.map(|it| {
            let (account, namespace) = it.split_once('.').unwrap();
            naming.name(namespace, account).unwrap()
        });
        let sender = identity.as_ref().map_or(Sender::Elsewhere, Sender::Here);
        self.compiled.decide_datagram(&Datagram {
            sender,
            address: from.parse().unwrap(),
            server: ip(server),
            port,
        })
    }
}

const WEB_MAY: &str = "{action: Allow, protocol: UDP, podSelector: {matchLabels: {app: db}}, ports: [8125, '9000-9010'], \
                       from: [{serviceAccounts: [{name: web}]}]}";

#[test]
fn a_rule_lets_pods_of_the_same_node_send_by_identity_on_its_ports_and_ranges() {
    let it = world(&rule("stats", WEB_MAY));
    assert!(it.problems.is_empty(), "{:?}", it.problems);
    for port in [8125, 9000, 9010] {
        assert!(it.passes(WEB, DB, port), "{port}");
        assert_eq!(&*it.datagram(Some("web.shop"), WEB, DB, port).rule, "AccessRule shop/stats");
    }
    for port in [8124, 8999, 9011] {
        assert!(!it.passes(WEB, DB, port), "{port}");
        assert_eq!(it.datagram(Some("web.shop"), WEB, DB, port).verdict.reason, Reason::Unauthorized);
    }
    assert!(!it.passes(TOOL, DB, 8125), "another identity");
    assert!(!it.passes(DB, WEB, 8125), "the other way");
    assert!(!it.allows("web.shop", OUTSIDE, DB, 8125), "it says nothing of TCP");
    let without = world("");
    assert!(!without.passes(WEB, DB, 8125), "the control");
}

#[test]
fn an_address_of_another_node_is_nobody_and_encryption_on_the_node_leaves_nothing() {
    let elsewhere =
        pods().replacen("nodeName: a, serviceAccountName: web", "nodeName: b, serviceAccountName: web", 1)
            + &rule("stats", WEB_MAY)
            + &rule(
                "near",
                "{action: Allow, protocol: UDP, from: [{networks: [{cidr: 10.1.0.1}]}, {anyone: true}]}",
            );
    let parsed = heddle_policy::resources::parse_file("rules.yaml", &elsewhere);
    let compiled = heddle_policy::Index::of([parsed]).compile(&ClusterSettings::default(), "a");
    let it = World { compiled, problems: Vec::new() };
    // WEB runs on b: neither by its identity, nor by its address, nor as anyone.
    assert_eq!(it.arrives(WEB, DB, 8125, UDP), Verdict::refuse(Reason::PlainToMeshed, 0));
    assert_eq!(it.leaves(DB, WEB, 8125, UDP), Verdict::refuse(Reason::PlainToMeshed, 0));
    assert_eq!(it.datagram(None, WEB, DB, 8125).verdict.reason, Reason::PlainToMeshed);
    assert!(it.passes(TOOL, DB, 8125), "the control: anyone on this node");
    let encrypt = ClusterSettings { same_node: SameNode::Encrypt, ..ClusterSettings::default() };
    let it = world_with(&rule("stats", WEB_MAY), &encrypt, 0);
    assert_eq!(it.leaves(WEB, DB, 8125, UDP).reason, Reason::PlainToMeshed);
    assert_eq!(it.arrives(WEB, DB, 8125, UDP).reason, Reason::PlainToMeshed);
    assert_eq!(it.datagram(Some("web.shop"), WEB, DB, 8125).verdict.reason, Reason::PlainToMeshed);
}

#[test]
fn servers_say_nothing_of_datagrams() {
    let server = server(
        "db",
        "{podSelector: {matchLabels: {app: db}}, port: 6379, accessPolicy: all-unauthenticated}",
    );
    let it = world(&server);
    assert!(it.allows("", OUTSIDE, DB, 6379), "the control");
    assert_eq!(it.arrives(OUTSIDE, DB, 6379, TCP).outcome, Outcome::Proxy, "the control");
    assert_eq!(it.arrives(OUTSIDE, DB, 6379, UDP).reason, Reason::NoIdentity);
    assert!(!it.passes(WEB, DB, 6379));
}

#[test]
fn a_default_policy_lets_in_whoever_has_no_identity_and_no_meshed_pod() {
    use heddle_policy::resources::DefaultPolicy::*;
    for (policy, outside, plain) in [
        (AllUnauthenticated, true, true),
        (Audit, true, true),
        (ClusterUnauthenticated, false, true),
        (AllAuthenticated, false, false),
        (ClusterAuthenticated, false, false),
        (Deny, false, false),
    ] {
        let settings = ClusterSettings { default_inbound_policy: policy, ..ClusterSettings::default() };
        let it = world_with("", &settings, 0);
        let open = |from: &str| it.arrives(from, DB, 8125, UDP).outcome == Outcome::Direct;
        assert_eq!((open(OUTSIDE), open(PLAIN)), (outside, plain), "{policy:?}");
        assert_eq!(it.datagram(None, OUTSIDE, DB, 8125).allowed(), outside, "{policy:?}");
        assert!(!it.passes(WEB, DB, 8125), "{policy:?}: between meshed pods a rule must name UDP");
    }
    // A port on which an identity is demanded has nobody who could show one.
    let demanded = pods().replace("annotations: {heddle.io/mesh: enabled}",
        "annotations: {heddle.io/mesh: enabled, config.linkerd.io/default-inbound-policy: all-unauthenticated, \
         config.linkerd.io/proxy-require-identity-inbound-ports: '8125'}");
    let parsed = heddle_policy::resources::parse_file("rules.yaml", &demanded);
    let compiled = heddle_policy::Index::of([parsed]).compile_cluster(&ClusterSettings::default(), 0);
    let it = World { compiled, problems: Vec::new() };
    assert_eq!(it.arrives(OUTSIDE, DB, 8125, UDP).reason, Reason::NoIdentity);
    assert_eq!(it.arrives(OUTSIDE, DB, 8126, UDP).outcome, Outcome::Direct, "the control");
}

#[test]
fn what_a_rule_leaves_out_does_not_open() {
    // A rule that allows and names no protocol is about TCP.
    let it = world(&rule("r", "{action: Allow, from: [{anyone: true}]}"));
    assert!(it.allows("", OUTSIDE, DB, 8125), "the control");
    assert_eq!(it.arrives(OUTSIDE, DB, 8125, UDP).reason, Reason::NoIdentity);
    // One that denies and names none is about both.
    let allow = rule("a", "{action: Allow, protocol: UDP, from: [{anyone: true}]}");
    assert!(world(&allow).passes(WEB, DB, 8125), "the control");
    for (protocol, denied) in [("", true), ("protocol: UDP, ", true), ("protocol: TCP, ", false)] {
        let deny =
            rule("d", &format!("{{action: Deny, {protocol}from: [{{serviceAccounts: [{{name: web}}]}}]}}"));
        let it = world(&(allow.clone() + &deny));
        assert_eq!(it.passes(WEB, DB, 8125), !denied, "{protocol:?}");
        assert!(it.passes(TOOL, DB, 8125), "{protocol:?}: the control");
    }
    let both = "{action: Deny, to: [{networks: [{cidr: 192.0.2.0/24}]}]}";
    for protocol in [TCP, UDP] {
        assert_eq!(world("").leaves(WEB, OUTSIDE, 9, protocol).outcome, Outcome::Direct, "the control");
        assert_eq!(world(&rule("d", both)).leaves(WEB, OUTSIDE, 9, protocol).reason, Reason::Denied);
    }
}

#[test]
fn what_leaves_is_allowed_and_denied_by_protocol() {
    let closed = ClusterSettings { default_outbound: DefaultOutbound::Deny, ..ClusterSettings::default() };
    for (written, allowed) in [("UDP", UDP), ("TCP", TCP)] {
        let text = format!(
            "{{action: Allow, protocol: {written}, ports: [123], to: [{{networks: [{{cidr: 192.0.2.7}}]}}]}}"
        );
        let it = world_with(&rule("time", &text), &closed, 0);
        for protocol in [TCP, UDP] {
            let verdict = it.leaves(WEB, OUTSIDE, 123, protocol);
            assert_eq!(verdict.outcome == Outcome::Direct, protocol == allowed, "{written}: {verdict:?}");
        }
        assert_eq!(it.leaves(WEB, OUTSIDE, 124, allowed).reason, Reason::OutboundDenied);
    }
    // Who may receive does not say who may send: a rule about what leaves wins.
    let deny = rule(
        "d",
        "{action: Deny, protocol: UDP, podSelector: {matchLabels: {app: web}}, to: [{serviceAccounts: [{name: db}]}]}",
    );
    let it = world(&(rule("stats", WEB_MAY) + &deny));
    assert_eq!(it.leaves(WEB, DB, 8125, UDP).reason, Reason::Denied);
}

#[test]
fn names_of_ports_are_those_of_the_protocol() {
    let named = |name: &str| {
        world(&rule(
            "r",
            &format!("{{action: Allow, protocol: UDP, ports: [{name}], from: [{{anyone: true}}]}}"),
        ))
    };
    assert!(named("dns").passes(WEB, DB, 8053));
    assert!(!named("http").passes(WEB, DB, 8080), "TCP's name is not UDP's");
}

#[test]
fn what_no_datagram_says_cannot_be_written() {
    let closed = ClusterSettings { default_outbound: DefaultOutbound::Deny, ..ClusterSettings::default() };
    let hosts = "{action: Allow, protocol: UDP, to: [{hosts: [a.example]}]}";
    let it = world_with(&rule("r", hosts), &closed, 0);
    assert!(it.tells("no datagram says"), "{:?}", it.problems);
    assert_eq!(it.leaves(WEB, OUTSIDE, 1, UDP).reason, Reason::OutboundDenied);
    for spec in [
        "{action: Deny, protocol: UDP, to: [{hosts: [a.example]}]}",
        "{action: Deny, protocol: SCTP, to: [{anywhere: true}]}",
        "{action: Deny, protocol: '', to: [{anywhere: true}]}",
    ] {
        let it = world(&rule("r", spec));
        assert_eq!(it.leaves(WEB, OUTSIDE, 1, UDP).reason, Reason::Denied, "{spec}");
        assert_eq!(it.leaves(WEB, OUTSIDE, 1, TCP).reason, Reason::Denied, "{spec}");
        assert!(it.tells("may have been meant to deny"), "{spec}");
    }
    // A rule that denies names, of whatever protocol, leaves no way around them.
    let it = world(&rule("r", "{action: Deny, to: [{hosts: [a.example]}]}"));
    assert_eq!(it.leaves(WEB, OUTSIDE, 443, UDP).reason, Reason::NeedsRequest);
}

#[test]
fn a_rule_that_is_tried_or_has_expired_lets_nothing_pass() {
    let tried = WEB_MAY.replace("action: Allow,", "action: Allow, mode: Audit,");
    let it = world(&rule("stats", &tried));
    assert!(!it.passes(WEB, DB, 8125));
    assert_eq!(it.datagram(Some("web.shop"), WEB, DB, 8125).tried.as_deref(), Some("AccessRule shop/stats"));
    let expires = WEB_MAY.replace("action: Allow,", "action: Allow, expires: '1970-01-01T00:00:01Z',");
    assert!(world(&rule("stats", &expires)).passes(WEB, DB, 8125), "the control");
    assert!(
        !world_with(&rule("stats", &expires), &ClusterSettings::default(), 1_000_000).passes(WEB, DB, 8125)
    );
}

#[test]
fn a_service_that_leads_to_a_meshed_pod_takes_no_datagrams() {
    let service = |app: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 10.96.0.7, \
                 selector: {{{app}}}, ports: [{{port: 8125, protocol: UDP}}]}}}}\n"
        )
    };
    let any = rule("r", "{action: Allow, protocol: UDP, from: [{anyone: true}]}");
    let it = world(&(service("app: db") + &any));
    assert_eq!(it.leaves(WEB, "10.96.0.7", 8125, UDP), Verdict::refuse(Reason::PlainToMeshed, 0));
    assert!(it.passes(WEB, DB, 8125), "the control: by the pod's own address");
    // Whatever the draw: one meshed endpoint among others is enough.
    let plain = service("app: plain").replace("namespace: shop", "namespace: bare");
    assert_eq!(world(&plain).leaves(WEB, "10.96.0.7", 8125, UDP).outcome, Outcome::Direct, "the control");
    let mixed = plain.replace("{app: plain}", "{}").replace("selector: {}", "selector: {mixed: all}");
    let text = pods().replace("{app: plain}", "{app: plain, mixed: all}")
        + &mixed
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: meshed, namespace: bare, labels: {mixed: all}, annotations: {heddle.io/mesh: enabled}}, \
           spec: {nodeName: b, serviceAccountName: m, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.99}}\n";
    let parsed = heddle_policy::resources::parse_file("rules.yaml", &text);
    let compiled = heddle_policy::Index::of([parsed]).compile(&ClusterSettings::default(), "a");
    let it = World { compiled, problems: Vec::new() };
    for random in 0..4 {
        let view = it.compiled.tables.with_captured(|at| it.compiled.workload(at).map(|it| it.digest));
        let connect =
            Connect { source: ip(WEB), destination: ip("10.96.0.7"), port: 8125, protocol: UDP, random };
        assert_eq!(verdict::outbound(&view, &connect).verdict.reason, Reason::PlainToMeshed, "{random}");
    }
}

#[test]
fn a_fragment_names_no_port_and_passes_by_no_rule() {
    let it = world(&rule("r", "{action: Allow, protocol: UDP, from: [{anyone: true}]}"));
    assert!(it.passes(WEB, DB, 1), "the control");
    assert_eq!(it.leaves(WEB, DB, 0, UDP).reason, Reason::Fragment);
}

#[test]
fn names_are_asked_of_the_clusters_dns_service_and_of_no_other_on_its_port() {
    let service = |namespace: &str, name: &str, port: u16| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{clusterIP: 10.96.0.7, \
             selector: {{app: db}}, ports: [{{port: {port}, targetPort: {port}, protocol: UDP}}]}}}}\n"
        )
    };
    let settings = ClusterSettings {
        dns_service: heddle_policy::resources::ObjectName::new("shop", "names"),
        ..ClusterSettings::default()
    };
    let dns = world_with(&service("shop", "names", 53), &settings, 0);
    assert_eq!(dns.leaves(WEB, "10.96.0.7", 53, UDP), Verdict::direct(Reason::PlainCluster, 0));
    assert!(dns.passes(WEB, DB, 53), "its pods, by their own addresses");
    assert_eq!(dns.arrives(OUTSIDE, DB, 53, UDP).outcome, Outcome::Direct);
    assert_eq!(dns.datagram(None, OUTSIDE, DB, 53).verdict.reason, Reason::PlainCluster);
    // Another Service on that port, another port of its pods, another protocol, other pods.
    let other = world_with(&service("shop", "others", 53), &settings, 0);
    assert_eq!(other.leaves(WEB, "10.96.0.7", 53, UDP).reason, Reason::PlainToMeshed);
    assert!(!other.passes(WEB, DB, 53));
    let elsewhere = world_with(&service("shop", "names", 54), &settings, 0);
    assert_eq!(elsewhere.leaves(WEB, "10.96.0.7", 54, UDP).reason, Reason::PlainToMeshed);
    assert!(!elsewhere.passes(WEB, DB, 54) && !dns.passes(TOOL, WEB, 53));
    assert_eq!(dns.arrives(OUTSIDE, DB, 53, TCP).outcome, Outcome::Refuse);
    assert!(
        !dns.datagram(None, OUTSIDE, DB, 54).allowed() && !dns.datagram(None, OUTSIDE, WEB, 53).allowed()
    );
}

#[test]
fn a_rule_that_denies_a_question_for_names_holds() {
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: names, namespace: shop}, spec: {clusterIP: 10.96.0.7, \
                   selector: {app: db}, ports: [{port: 53, targetPort: 53, protocol: UDP}]}}\n";
    let settings = ClusterSettings {
        dns_service: heddle_policy::resources::ObjectName::new("shop", "names"),
        ..ClusterSettings::default()
    };
    let with = |spec: &str| world_with(&format!("{service}{}", rule("r", spec)), &settings, 0);
    let passes = Verdict::direct(Reason::PlainCluster, 0);
    for (spec, to_service, to_pod) in [
        // The control: a rule that is about something else.
        ("{action: Deny, protocol: UDP, to: [{networks: [{cidr: 10.96.0.8}]}]}", true, true),
        ("{action: Deny, protocol: UDP, to: [{networks: [{cidr: 10.96.0.7}]}]}", false, true),
        ("{action: Deny, protocol: UDP, ports: [53], to: [{anywhere: true}]}", false, false),
        ("{action: Deny, to: [{anywhere: true}]}", false, false),
        ("{action: Deny, protocol: TCP, to: [{anywhere: true}]}", true, true),
        ("{action: Deny, protocol: UDP, ports: [54], to: [{anywhere: true}]}", true, true),
        ("{action: Deny, mode: Audit, protocol: UDP, to: [{anywhere: true}]}", true, true),
        ("{action: Allow, protocol: UDP, ports: [54], to: [{networks: [{cidr: 192.0.2.1}]}]}", true, true),
    ] {
        let it = with(spec);
        for (to, expected) in [("10.96.0.7", to_service), (DB, to_pod)] {
            let verdict = it.leaves(WEB, to, 53, UDP);
            assert_eq!(verdict == passes, expected, "{spec}: {to}: {verdict:?}");
            assert!(expected || verdict.reason == Reason::Denied, "{spec}: {to}: {verdict:?}");
        }
    }
    // At the pods that answer: of whoever is proven there, or has no identity, wherever that one is.
    let encrypt = ClusterSettings { same_node: SameNode::Encrypt, ..settings.clone() };
    for (spec, web, nobody) in [
        ("{action: Deny, from: [{serviceAccounts: [{name: web}]}]}", false, true),
        ("{action: Deny, from: [{serviceAccounts: [{name: tool}]}]}", true, true),
        ("{action: Deny, protocol: UDP, from: [{anyone: true}]}", false, false),
        ("{action: Deny, protocol: TCP, from: [{anyone: true}]}", true, true),
        (
            "{action: Allow, protocol: UDP, ports: [53], from: [{serviceAccounts: [{name: tool}]}]}",
            true,
            true,
        ),
        ("{action: Allow, protocol: UDP, ports: [53], from: [{serviceAccounts: [{name: web}]}]}", true, true),
        ("{action: Allow, protocol: UDP, from: [{anyone: true}]}", true, true),
    ] {
        for settings in [&settings, &encrypt] {
            let it = world_with(&format!("{service}{}", rule("r", spec)), settings, 0);
            let named = |verdict: Verdict| it.compiled.tables.rule(verdict.rule).to_owned();
            let own = it.leaves(WEB, DB, 53, UDP);
            assert_eq!(own.outcome == Outcome::Direct, web, "{spec}: {own:?}");
            assert_eq!(named(own), if web { "" } else { "AccessRule shop/r" }, "{spec}");
            assert_eq!(it.passes(WEB, DB, 53), web, "{spec}");
            assert_eq!(it.datagram(Some("web.shop"), WEB, DB, 53).allowed(), web, "{spec}");
            for from in [OUTSIDE, PLAIN] {
                let verdict = it.arrives(from, DB, 53, UDP);
                assert_eq!(verdict.outcome == Outcome::Direct, nobody, "{spec}: {from}: {verdict:?}");
                assert_eq!(it.datagram(None, from, DB, 53).allowed(), nobody, "{spec}: {from}");
            }
            // A pod that no veth of this node proves is nobody.
            let only = |at: &heddle_ebpf::Address| {
                it.compiled.workload(at).filter(|_| *at == ip(DB)).map(|it| it.digest)
            };
            let view = it.compiled.tables.with_captured(only);
            let far = verdict::inbound(&view, &ip(WEB), &ip(DB), 53, UDP);
            assert_eq!(far.outcome == Outcome::Direct, nobody, "{spec}: {far:?}");
            assert_eq!(it.datagram(None, WEB, DB, 53).allowed(), nobody, "{spec}");
        }
    }
}
