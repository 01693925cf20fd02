use super::*;
use crate::{ClusterSettings, compile::tests::SHOP, resources::parse_file};

fn found(text: &str) -> Vec<String> {
    let index = Index::of([parse_file("x.yaml", text)]);
    let compiled = index.compile(&ClusterSettings::default(), "a");
    lint(&index, &compiled).iter().map(ToString::to_string).collect()
}

fn with(more: &str) -> Vec<String> {
    found(&format!("{SHOP}\n---\n{more}"))
}

fn only(found: &[String], parts: &[&str]) {
    assert_eq!(found.len(), 1, "{found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "{part:?} is not in {found:#?}");
    }
}

#[test]
fn a_sound_shop_has_nothing_to_say() {
    // Of kube-dns nothing but the Service and its pod is there.
    assert_eq!(found(SHOP), [""; 0]);
}

#[test]
fn selectors_that_select_nothing_are_named_with_their_field() {
    let server = |selector: &str, port: &str| {
        with(&format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: s, namespace: shop}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: {selector}}}}}\n  port: {port}\n"
        ))
    };
    only(
        &server("wbe", "80"),
        &["warning: x.yaml:", "Server shop/s: spec.podSelector: selects none of the 3"],
    );
    only(&server("web", "htpp"), &["Server shop/s: spec.port: none of the 1 selected pods", "named htpp"]);
    assert_eq!(server("web", "http"), [""; 0], "the control");
    only(
        &with(
            "apiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: shop}\nspec: {clusterIP: 10.96.0.9, selector: {app: nobody}, ports: [{port: 1}]}\n",
        ),
        &["Service shop/t: spec.selector: selects none of the 3"],
    );
    only(
        &with(
            "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: kube-system}\nspec:\n  targetRef: {kind: Namespace, name: kube-system}\n  requiredAuthenticationRefs: []\n",
        ),
        &["AuthorizationPolicy kube-system/p: spec.targetRef: applies to every Server"],
    );
    let of_a_server = with(
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: kube-system}\nspec:\n  targetRef: {group: policy.linkerd.io, kind: Server, name: s}\n  requiredAuthenticationRefs: []\n",
    );
    assert!(!of_a_server.iter().any(|it| it.contains("applies to every Server")), "{of_a_server:#?}");
}

fn mesh(entries: &str) -> Vec<String> {
    let policy = "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                  spec:\n  targetRef: {group: policy.linkerd.io, kind: Server, name: redis}\n  \
                  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}]\n";
    with(&format!(
        "{policy}---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\n\
         metadata: {{name: m, namespace: shop}}\nspec:\n  {entries}\n"
    ))
}

#[test]
fn identities_that_nobody_has_are_named() {
    only(
        &mesh("identityRefs: [{kind: ServiceAccount, name: redis}, {kind: ServiceAccount, name: wbe}]"),
        &["spec.identityRefs[1]: no service account shop/wbe is known (known there: default, redis, web)"],
    );
    only(
        &mesh("identityRefs: [{kind: Namespace, name: nowhere}, {kind: ServiceAccount, name: redis}]"),
        &["spec.identityRefs[0]", "nowhere"],
    );
    only(
        &mesh(
            "identities: [redis.shop.serviceaccount.identity.linkerd.cluster.local, web.shop.serviceaccount.identity.linkerd.other.org]",
        ),
        &["spec.identities[1]", "in another trust domain"],
    );
    only(
        &mesh("identities: ['*.nowhere.serviceaccount.identity.linkerd.cluster.local']"),
        &["spec.identities[0]", "no known identity ends in"],
    );
    assert_eq!(mesh("identityRefs: [{kind: ServiceAccount, name: redis}]"), [""; 0], "the control");
}

#[test]
fn where_no_namespace_is_known_none_is_missed() {
    let alone = |entries: &str| {
        found(&format!(
            "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {{name: m, namespace: shop}}\n\
             spec: {entries}\n"
        ))
    };
    for entries in ["{identityRefs: [{kind: Namespace, name: ops}]}", "{identities: ['*.ops.example']}"] {
        only(&alone(entries), &["no AuthorizationPolicy refers to it"]);
    }
}

#[test]
fn rules_that_never_decide_are_named_with_those_that_do() {
    // Whoever is in the namespace may; web, whom another rule names, is in it.
    only(
        &mesh("identityRefs: [{kind: Namespace, name: shop}]"),
        &["AuthorizationPolicy shop/allow-web: spec: never decides", "AuthorizationPolicy shop/p allows all"],
    );
    let open =
        SHOP.replace("proxyProtocol: opaque", "proxyProtocol: opaque\n  accessPolicy: all-unauthenticated");
    only(&found(&open), &["shop/allow-web", "Server shop/redis (accessPolicy all-unauthenticated)"]);
    // Audit lets everybody in, and yet the rule decides who is told of.
    let audit = SHOP.replace("proxyProtocol: opaque", "proxyProtocol: opaque\n  accessPolicy: audit");
    assert_eq!(found(&audit), [""; 0]);
}

#[test]
fn no_rule_takes_in_what_only_its_whole_name_lets_in() {
    use crate::clients::Match;
    let far = Match::Spiffe("spiffe://east.example/ns/shop/sa/far".into());
    let its_dns = Match::Dns("far.shop.serviceaccount.identity.linkerd.east.example".into());
    let own = Match::Name("web.shop.serviceaccount.identity.linkerd.cluster.local".into());
    for (wide, covers) in [(Match::Any, true), (Match::Suffix(".cluster.local".into()), true)] {
        assert_eq!(redundant::includes(&wide, &own), covers, "the control");
        assert!(!redundant::includes(&wide, &far), "{}", wide.describe());
    }
    assert!(!redundant::includes(&Match::Suffix(".east.example".into()), &its_dns));
    assert!(redundant::includes(&far, &far) && redundant::includes(&its_dns, &its_dns));
}

#[test]
fn networks_cover_each_other_only_where_it_is_certain() {
    let net = |cidr: &str, except: &[&str]| NetworkMatch {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|it| it.parse().unwrap()).collect(),
    };
    use crate::resources::NetworkMatch;
    use redundant::holds;
    assert!(holds(&net("10.0.0.0/8", &[]), &net("10.1.0.0/16", &[])));
    assert!(!holds(&net("10.1.0.0/16", &[]), &net("10.0.0.0/8", &[])));
    assert!(!holds(&net("10.0.0.0/8", &["10.1.2.0/24"]), &net("10.1.0.0/16", &[])));
    assert!(holds(&net("10.0.0.0/8", &["10.1.2.0/24"]), &net("10.1.0.0/16", &["10.1.2.0/23"])));
    assert!(holds(&net("10.0.0.0/8", &["10.9.0.0/16"]), &net("10.1.0.0/16", &[])));
}

const NEIGHBORS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: front, namespace: shop}, spec: {clusterIP: 10.96.0.70, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: back, namespace: ops}, spec: {clusterIP: 10.96.0.71, ports: [{port: 80}]}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: EgressNetwork, metadata: {name: out, namespace: shop}, spec: {trafficPolicy: Deny}}
";
const GRANT: &str = "
---
{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: ops}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service, name: back}]}}
";

fn route(parents: &str, backends: &str, more: &str) -> Vec<String> {
    let text = format!(
        "{NEIGHBORS}---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, \
         spec: {{parentRefs: {parents}, rules: [{{backendRefs: {backends}}}]}}}}\n{more}"
    );
    let index = Index::of([parse_file("x.yaml", &text)]);
    let mut problems = Vec::new();
    routes::look(&index, &mut problems);
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_route_whose_parent_is_no_server_is_named() {
    let out = "[{group: policy.linkerd.io, kind: EgressNetwork, name: out, port: 443}]";
    assert_eq!(route(out, "[]", ""), [""; 0], "the control");
    assert_eq!(
        route("[{group: policy.linkerd.io, kind: Server, name: web}]", "[{name: nobody}]", ""),
        [""; 0]
    );
    for (parents, parts) in [
        ("[]", ["spec.parentRefs: is attached to nothing", "name a Server"]),
        (
            "[{name: public}]",
            ["spec.parentRefs[0].kind: gateway.networking.k8s.io/Gateway shop/public is neither", ""],
        ),
        (
            "[{group: apps, kind: Deployment, name: web}]",
            ["apps/Deployment shop/web is neither a Server", ""],
        ),
        (
            "[{group: '', kind: Service, name: nobody}]",
            ["there is no Service shop/nobody", "write the Service"],
        ),
        (
            "[{group: core, kind: Service, name: front, port: 81}]",
            ["spec.parentRefs[0].port: Service shop/front has no port 81", ""],
        ),
        ("[{group: '', kind: Service, name: front, port: 80}]", ["are not routed", "to a Server"]),
        (
            "[{group: policy.linkerd.io, kind: EgressNetwork, name: nowhere, port: 443}]",
            ["there is no EgressNetwork", ""],
        ),
        (
            "[{group: policy.linkerd.io, kind: EgressNetwork, name: out}]",
            ["spec.parentRefs[0].port: is missing", ""],
        ),
    ] {
        only(&route(parents, "[]", ""), &parts);
    }
}

#[test]
fn a_backend_that_answers_nobody_is_named() {
    let out = "[{group: policy.linkerd.io, kind: EgressNetwork, name: out, port: 443}]";
    assert_eq!(route(out, "[{name: front, port: 80}]", ""), [""; 0], "the control");
    for (backends, parts) in [
        (
            "[{name: nobody, port: 80}]",
            ["spec.rules[0].backendRefs[0].name: there is no Service shop/nobody", ""],
        ),
        ("[{name: front}]", ["backendRefs[0].port: is missing", "write a port"]),
        ("[{name: front, port: 81}]", ["Service shop/front has no port 81", ""]),
        (
            "[{group: apps, kind: Deployment, name: front, port: 80}]",
            ["is a Deployment", "refer to a Service"],
        ),
        (
            "[{name: back, namespace: ops, port: 80}]",
            ["no ReferenceGrant there lets a HTTPRoute of shop", "write a ReferenceGrant"],
        ),
    ] {
        only(&route(out, backends, ""), &parts);
    }
    assert_eq!(route(out, "[{name: back, namespace: ops, port: 80}]", GRANT), [""; 0], "granted");
    let others = GRANT.replace("namespace: shop", "namespace: bank");
    assert_eq!(route(out, "[{name: back, namespace: ops, port: 80}]", &others).len(), 1, "granted to others");
    let another = GRANT.replace("name: back}]", "name: other}]");
    assert_eq!(
        route(out, "[{name: back, namespace: ops, port: 80}]", &another).len(),
        1,
        "for another Service"
    );
}

#[test]
fn what_rules_about_datagrams_cannot_do_is_told() {
    let rule = |action: &str, from: &str| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {{name: u, namespace: shop}}\n\
             spec: {{action: {action}, protocol: UDP, podSelector: {{matchLabels: {{app: redis}}}}, from: [{from}]}}\n"
        )
    };
    let web = "{serviceAccounts: [{name: web}]}";
    only(
        &with(&rule("Allow", web)),
        &["note: x.yaml:", "AccessRule shop/u: spec.protocol: passes between pods of one node"],
    );
    assert_eq!(with(&rule("Deny", web)), [""; 0], "it denies wherever it can");
    assert_eq!(with(&rule("Allow", "{networks: [{cidr: 192.0.2.0/24}]}")), [""; 0], "clients outside");
    let apart = SHOP.replacen("nodeName: a", "nodeName: b", 1);
    assert_ne!(apart, SHOP);
    only(
        &found(&format!("{apart}\n---\n{}", rule("Allow", web))),
        &["warning: x.yaml:", "spec.protocol: lets nobody in"],
    );
    let index = Index::of([parse_file("x.yaml", &format!("{SHOP}\n---\n{}", rule("Allow", web)))]);
    let encrypt = ClusterSettings { same_node: crate::SameNode::Encrypt, ..ClusterSettings::default() };
    let told = lint(&index, &index.compile(&encrypt, "a"));
    assert!(told.iter().any(|it| it.reason.contains("sameNode is encrypt")), "{told:?}");
    let service = "{apiVersion: v1, kind: Service, metadata: {name: t, namespace: shop}, spec: {clusterIP: 10.96.0.9, \
                   selector: {app: redis}, ports: [{port: 8125, protocol: UDP}]}}\n";
    only(
        &with(service),
        &["warning: x.yaml:", "Service shop/t: spec.ports: leads datagrams to meshed pods (port 8125)"],
    );
    assert_eq!(
        with(&service.replace("clusterIP: 10.96.0.9", "clusterIP: None")),
        [""; 0],
        "a headless one is the way"
    );
    assert_eq!(with(&service.replace(", protocol: UDP", "")), [""; 0]);
    assert_eq!(with(&service.replace("app: redis", "app: plain")), [""; 0], "no pod of it is meshed");
    let elsewhere = with(&service.replace("namespace: shop", "namespace: kube-system"));
    assert!(!elsewhere.iter().any(|it| it.contains("leads datagrams")), "{elsewhere:?}");
    // A client that has ended shares a node with nobody.
    let ended = "{apiVersion: v1, kind: Pod, metadata: {name: was, namespace: shop, labels: {app: was}}, spec: {nodeName: a, \
                 serviceAccountName: web}, status: {phase: Succeeded, podIP: 10.1.0.77}}\n";
    let told = found(&format!("{apart}\n---\n{}---\n{ended}", rule("Allow", web)));
    assert!(told.iter().any(|it| it.contains("spec.protocol: lets nobody in")), "{told:?}");
    // Two that are still to be scheduled share nothing yet.
    let pending = |app: &str, account: &str, number: u8| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: late-{app}, namespace: shop, labels: {{app: {app}}}}}, \
             spec: {{serviceAccountName: {account}}}, status: {{phase: Running, podIP: 10.1.0.{number}}}}}\n"
        )
    };
    let late = pending("web", "web", 80) + &pending("redis", "redis", 81);
    let told = found(&format!("{apart}\n---\n{}{late}", rule("Allow", web)));
    assert!(told.iter().any(|it| it.contains("spec.protocol: lets nobody in")), "{told:?}");
    let running = ended.replace("Succeeded", "Running");
    let told = found(&format!("{apart}\n---\n{}---\n{running}", rule("Allow", web)));
    assert!(!told.iter().any(|it| it.contains("lets nobody in")), "the control: {told:?}");
}

fn access(kind: &str, spec: &str) -> Vec<String> {
    let namespace = if kind == "AccessRule" { ", namespace: shop" } else { "" };
    with(&format!(
        "apiVersion: heddle.io/v1alpha1\nkind: {kind}\nmetadata: {{name: r{namespace}}}\nspec: {spec}\n"
    ))
}

#[test]
fn an_access_rule_about_no_pod_is_named() {
    let redis = "podSelector: {matchLabels: {app: redis}}";
    let from = "from: [{serviceAccounts: [{name: redis}]}]";
    assert_eq!(access("AccessRule", &format!("{{action: Allow, {redis}, {from}}}")), [""; 0], "the control");
    only(
        &access(
            "AccessRule",
            &format!("{{action: Deny, podSelector: {{matchLabels: {{app: reddis}}}}, {from}}}"),
        ),
        &[
            "warning: x.yaml:",
            "AccessRule shop/r: spec.podSelector: selects none of the 3 known pods of its namespace",
        ],
    );
    only(
        &access("AccessRule", &format!("{{action: Allow, {redis}, ports: [rediss], {from}}}")),
        &["spec.ports: none of the 1 selected pods declares such a port"],
    );
    assert_eq!(access("AccessRule", &format!("{{action: Allow, {redis}, ports: [redis], {from}}}")), [""; 0]);
    assert_eq!(
        access("AccessRule", &format!("{{action: Allow, {redis}, ports: [rediss, 80], {from}}}")),
        [""; 0]
    );
    // What leaves goes to others' ports.
    let leaves =
        format!("{{action: Deny, {redis}, ports: [rediss], to: [{{networks: [{{cidr: 192.0.2.0/24}}]}}]}}");
    assert_eq!(access("AccessRule", &leaves), [""; 0]);
    let far = "from: [{serviceAccounts: [{name: redis, namespace: shop}]}]";
    let wide = |namespaces: &str, pods: &str| {
        access(
            "ClusterAccessRule",
            &format!("{{action: Allow, namespaceSelector: {namespaces}, podSelector: {pods}, {far}}}"),
        )
    };
    assert_eq!(wide("{}", "{matchLabels: {app: redis}}"), [""; 0]);
    only(
        &wide("{matchLabels: {team: nobody}}", "{}"),
        &["spec.namespaceSelector: selects none of the 2 known namespaces"],
    );
    only(
        &wide("{}", "{matchLabels: {app: x}}"),
        &["spec.podSelector: selects none of the 4 known pods of the namespaces"],
    );
    // Where no pod is known it proves little.
    let alone = "{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: r, namespace: x}, spec: {action: Allow, from: [{anyone: true}]}}";
    only(&found(alone), &["note: x.yaml:", "spec.podSelector"]);
}

#[test]
fn an_access_rule_about_nobody_is_named() {
    let of = |from: &str| {
        access(
            "AccessRule",
            &format!("{{action: Deny, podSelector: {{matchLabels: {{app: redis}}}}, {from}}}"),
        )
    };
    assert_eq!(of("from: [{serviceAccounts: [{name: redis}]}]"), [""; 0], "the control");
    only(
        &of("from: [{serviceAccounts: [{name: redis}]}, {serviceAccounts: [{name: wbe}]}]"),
        &["warning: x.yaml:", "spec.from[1].serviceAccounts: no service account shop/wbe is known"],
    );
    only(
        &of("from: [{namespaces: [nowhere]}]"),
        &["spec.from[0].namespaces: no service account of namespace nowhere"],
    );
    only(
        &of("from: [{identities: ['*.nowhere.example']}]"),
        &["spec.from[0].identities: no known identity ends in"],
    );
    only(
        &of("from: [{namespaceSelector: {matchLabels: {team: nobody}}}]"),
        &["spec.from[0].namespaceSelector: picks none"],
    );
    only(
        &of("to: [{serviceAccounts: [{name: wbe}]}]"),
        &["spec.to[0].serviceAccounts: no service account shop/wbe"],
    );
}

#[test]
fn whom_another_trust_domain_has_is_its_own_affair_where_it_is_federated() {
    let text = |names: &str| {
        format!(
            "{SHOP}\n---\napiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{action: Deny, podSelector: {{matchLabels: {{app: redis}}}}, from: [{{identities: [{names}]}}]}}\n"
        )
    };
    let told = |names: &str, federated: &[&str]| -> Vec<String> {
        let index = Index::of([parse_file("x.yaml", &text(names))]);
        let federated = federated.iter().map(|it| (*it).to_owned()).collect();
        let settings = ClusterSettings { federated, ..ClusterSettings::default() };
        lint(&index, &index.compile(&settings, "a")).iter().map(ToString::to_string).collect()
    };
    for name in [
        "web.shop.serviceaccount.identity.linkerd.east.example",
        "'spiffe://east.example/ns/shop/sa/web'",
        "'spiffe://east.example/vm'",
        "'*.shop.serviceaccount.identity.linkerd.east.example'",
        "'*.example'",
    ] {
        assert_eq!(told(name, &["west.example", "east.example"]), [""; 0], "{name}");
        assert_eq!(told(name, &[]).len(), 1, "{name}: nobody is federated");
    }
    for name in [
        "web.shop.serviceaccount.identity.linkerd.northeast.example",
        "'spiffe://east.example.org/ns/shop/sa/web'",
        "'*.northeast.example'",
    ] {
        assert_eq!(told(name, &["east.example"]).len(), 1, "{name}: another's");
    }
    let own = "ghost.shop.serviceaccount.identity.linkerd.cluster.local";
    only(&told(own, &["cluster.local"]), &["no service account shop/ghost is known"]);
}

#[test]
fn a_rule_under_one_that_denies_all_of_it_is_named() {
    let deny = |from: &str| {
        access(
            "AccessRule",
            &format!("{{action: Deny, podSelector: {{matchLabels: {{app: redis}}}}, from: [{from}]}}"),
        )
    };
    let told = "AuthorizationPolicy shop/allow-web: spec: never decides: wherever it applies, AccessRule shop/r denies or allows";
    only(&deny("{serviceAccounts: [{name: web}]}"), &[told]);
    only(&deny("{anyone: true}"), &[told]);
    only(&deny("{namespaces: [shop]}"), &[told]);
    assert_eq!(deny("{serviceAccounts: [{name: redis}]}"), [""; 0], "the control");
    assert_eq!(
        deny("{serviceAccounts: [{name: web}], networks: [{cidr: 10.0.0.0/8}]}"),
        [""; 0],
        "a part of it"
    );
    // Heddle's own rules are named as well.
    only(
        &access(
            "AccessRule",
            "{action: Allow, podSelector: {matchLabels: {app: redis}}, ports: [6379], from: [{serviceAccounts: [{name: web}]}]}",
        ),
        &["AccessRule shop/r: spec: never decides", "AuthorizationPolicy shop/allow-web allows all"],
    );
}

#[test]
fn a_match_that_another_route_has_taken_is_named() {
    let route = |name: &str, created: &str, spec: &str| {
        format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
             spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: web}}], {spec}}}\n---\n"
        )
    };
    let shadowed = |text: &str| {
        let index = Index::of([parse_file("x.yaml", text)]);
        let mut problems = Vec::new();
        shadowed::look(&index, &mut problems);
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let cart =
        "rules: [{matches: [{path: {value: /cart}, headers: [{name: a, value: x}, {name: b, value: y}]}]}]";
    let turned =
        "rules: [{matches: [{path: {value: /cart}, headers: [{name: b, value: y}, {name: a, value: x}]}]}]";
    let both = |spec: &str| shadowed(&(route("b", old, cart) + &route("a", new, spec)));
    let found = both(turned);
    only(
        &found,
        &[
            "HTTPRoute shop/a: spec.rules[0].matches[0]: never takes a request",
            "HTTPRoute shop/b asks the same",
        ],
    );
    assert_eq!(both(&turned.replace("value: y", "value: z")), [""; 0], "another header");
    assert_eq!(both(&turned.replace("/cart", "/carts")), [""; 0], "another path");
    assert_eq!(both(&format!("hostnames: [shop.example], {turned}")), [""; 0], "a host comes before none");
    let elsewhere = route("a", new, turned).replace("name: web}", "name: other}");
    assert_eq!(shadowed(&(route("b", old, cart) + &elsewhere)), [""; 0], "another Server");
    let twice = cart.replace(
        "rules: [",
        "rules: [{matches: [{path: {value: /pay}}]}, {matches: [{path: {value: /pay}}]}, ",
    );
    only(
        &shadowed(&route("a", old, &twice)),
        &["spec.rules[1].matches[0]", "rules[0].matches[0] of this route"],
    );
    let hosts = |list: &str| format!("hostnames: [{list}], {cart}");
    let of = |first: &str, second: &str| {
        shadowed(&(route("b", old, &hosts(first)) + &route("a", new, &hosts(second))))
    };
    assert_eq!(of("x.example, y.example", "y.example").len(), 1);
    assert_eq!(of("y.example", "x.example, y.example"), [""; 0], "one of its hosts is its own");
}
