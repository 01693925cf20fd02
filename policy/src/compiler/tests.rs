use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::{
    compile::Compiled,
    resources::{Pod, Resource, parse_file},
};

const RULES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}, {port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, selector: {app: dns}, ports: [{port: 53, protocol: UDP}]}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: web, namespace: shop}, spec: {podSelector: {}, port: 8080, accessPolicy: all-authenticated, proxyProtocol: opaque}}
---
{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: none, namespace: shop}, spec: {action: Deny, to: [{serviceAccounts: [{name: bad}]}]}}
";

/// What becomes of a pod.
type Change = fn(&mut Pod);

fn pod(number: u8) -> Pod {
    let (app, account) = match number % 5 {
        0 => ("web", "web"),
        1 => ("web", "bad"),
        2 => ("db", "web"),
        3 => ("dns", "web"),
        _ => ("web", "other"),
    };
    let namespace = if number % 5 == 3 { "kube-system" } else { "shop" };
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: {namespace}, uid: u{number}, labels: {{app: {app}}}}}, \
         spec: {{nodeName: n{}, serviceAccountName: {account}, containers: [{{name: c, image: i}}]}}, \
         status: {{phase: Running, podIP: 10.1.0.{number}}}}}",
        number % 3
    );
    match parse_file("p", &text).resources.remove(0) {
        Resource::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn compiler() -> Compiler {
    let mut it = Compiler::new(ClusterSettings::default(), Some("n0".to_owned()));
    let parsed = parse_file("r", RULES);
    assert!(!parsed.has_errors(), "{:?}", parsed.problems);
    parsed.resources.into_iter().for_each(|resource| it.apply(resource));
    (0..40).for_each(|number| it.apply(Resource::Pod(pod(number))));
    it.compile(0);
    it
}

/// Compiles, and compares with what is worked out of the same resources anew. Tells whether the base was only changed.
fn follow(it: &mut Compiler, what: &str) -> bool {
    let before = it.base.clone().unwrap();
    let followed = it.compile(0);
    let anew = Compiler::new(ClusterSettings::default(), it.node.clone()).with(it.index.clone()).compile(0);
    let pods = |it: &Compiled| it.pods().cloned().collect::<Vec<_>>();
    assert_eq!(followed.tables, anew.tables, "{what}");
    assert_eq!(followed.problems, anew.problems, "{what}");
    assert_eq!(pods(&followed), pods(&anew), "{what}");
    for info in anew.pods() {
        for address in info.addresses.iter().map(|ip| heddle_ebpf::Address::from(*ip)) {
            assert_eq!(followed.workload(&address), anew.workload(&address), "{what}");
        }
        assert_eq!(followed.pod(&info.namespace, &info.name), Some(info), "{what}");
    }
    for address in anew.tables.services.keys().map(|key| key.address) {
        assert_eq!(followed.service(&address), anew.service(&address), "{what}");
    }
    // Networks are worked out again only where everything is.
    it.base.as_ref().is_some_and(|now| Arc::ptr_eq(&before.networks, &now.networks))
}

#[test]
fn pods_that_come_go_and_change_are_followed_one_by_one() {
    let mut it = compiler();
    for number in [0, 1, 2, 4, 5, 6] {
        let old = pod(number);
        let id = Resource::Pod(old.clone()).id();
        it.remove(&id);
        assert!(follow(&mut it, "gone"), "{number}");
        it.apply(Resource::Pod(old.clone()));
        assert!(follow(&mut it, "back"), "{number}");
        let changes: [(&str, Change); 7] = [
            ("not ready", |pod| pod.ready = false),
            ("elsewhere", |pod| pod.addresses = vec![IpAddr::from([10, 1, 1, 1])]),
            ("without an address", |pod| pod.addresses.clear()),
            ("finished", |pod| pod.finished = true),
            ("other labels", |pod| pod.meta.labels = Arc::default()),
            ("another account", |pod| pod.service_account = "other".to_owned()),
            ("not meshed", |pod| {
                pod.meta.annotations.insert("heddle.io/mesh".to_owned(), "disabled".to_owned());
            }),
        ];
        for (what, change) in changes {
            let mut new = old.clone();
            change(&mut new);
            it.apply(Resource::Pod(new));
            assert!(follow(&mut it, what), "{number} {what}");
            it.apply(Resource::Pod(old.clone()));
            assert!(follow(&mut it, what), "{number} no longer {what}");
        }
    }
    // A roll: one goes and another takes its address, within one turn.
    it.remove(&Resource::Pod(pod(0)).id());
    let mut next = pod(0);
    next.meta.name = "next".to_owned();
    it.apply(Resource::Pod(next));
    assert!(follow(&mut it, "a roll"));
}

/// A slice of a Service of the shop's, with pods of these numbers.
fn slice(name: &str, service: &str, pods: &[u8]) -> Resource {
    let named = |number: &u8| {
        format!("{{addresses: [10.1.0.{number}], targetRef: {{kind: Pod, name: p{number}, uid: u{number}}}}}")
    };
    let endpoints = pods.iter().map(named).collect::<Vec<_>>().join(", ");
    let text = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, endpoints: [{endpoints}], \
         ports: [{{port: 8080}}]}}"
    );
    let parsed = parse_file(name, &text);
    assert_eq!(parsed.problems, []);
    parsed.resources.into_iter().next().unwrap()
}

#[test]
fn slices_that_come_go_and_change_are_followed_one_by_one() {
    let mut it = compiler();
    let service = "{apiVersion: v1, kind: Service, metadata: {name: made, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}";
    parse_file("made", service).resources.into_iter().for_each(|it_| it.apply(it_));
    it.compile(0);
    let backends = |it: &Compiler| it.base.as_ref().unwrap().backends.len();
    let selected = backends(&it);
    let mut counts = Vec::new();
    let mut step = |it: &mut Compiler, what: &str| {
        assert!(follow(it, what), "{what} works out everything");
        counts.push(backends(it));
    };
    it.apply(slice("a", "web", &[0, 1]));
    step(&mut it, "the first slice of a Service that selects");
    it.apply(slice("b", "web", &[5, 99]));
    step(&mut it, "another, with a pod that is not there");
    it.apply(slice("m", "made", &[2]));
    step(&mut it, "one of a Service that selects none");
    it.apply(slice("b", "made", &[5]));
    step(&mut it, "one that changes its Service");
    it.remove(&Resource::Pod(pod(2)).id());
    step(&mut it, "a pod that a slice names is gone");
    let mut again = pod(2);
    again.meta.uid = "another".to_owned();
    it.apply(Resource::Pod(again));
    step(&mut it, "another pod of its name and address");
    it.apply(Resource::Pod(pod(2)));
    step(&mut it, "itself");
    it.remove_file("b");
    step(&mut it, "a file gone");
    it.remove(&slice("m", "made", &[]).id());
    step(&mut it, "the last slice of a Service that selects none, which is told");
    it.remove_file("a");
    step(&mut it, "the last of one that selects");
    it.apply(slice("x", "nobody", &[1]));
    step(&mut it, "one of a Service that is not there");
    // Both ports of `web`, and eight of the DNS.
    assert_eq!(counts, [12, 14, 15, 14, 13, 13, 14, 13, 12, selected, selected]);
}

fn apply(it: &mut Compiler, text: &str) {
    let parsed = parse_file("later", text);
    assert!(!parsed.has_errors(), "{:?}", parsed.problems);
    parsed.resources.into_iter().for_each(|resource| it.apply(resource));
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n---\n"
    )
}

#[test]
fn services_that_come_go_and_stand_elsewhere_are_followed_one_by_one() {
    let mut it = compiler();
    let id = |name: &str| ResourceId { kind: Kind::Service, namespace: "shop".into(), name: name.into() };
    let (web, ports) = ("selector: {app: web}", "ports: [{port: 80}, {port: 53, protocol: UDP}]");
    let at = |address: u8, more: &str| format!("clusterIP: 10.96.0.{address}, {ports}{more}");
    let mut counts = Vec::new();
    let mut step = |it: &mut Compiler, what: &str| {
        assert!(follow(it, what), "{what} works out everything");
        let base = it.base.as_ref().unwrap();
        counts.push((base.services.len(), base.backends.len()));
    };
    step(&mut it, "as it was");
    apply(&mut it, &service("a", &(at(0, ", ") + web)));
    step(&mut it, "one before all others");
    apply(&mut it, &service("z", &(at(99, ", ") + web)));
    step(&mut it, "one after all others");
    apply(&mut it, &service("a", &at(0, "")));
    step(&mut it, "one that selects nobody any more, which is told");
    apply(&mut it, &service("a", &(at(50, ", ") + web)));
    step(&mut it, "one at another address");
    apply(&mut it, &service("a", &format!("clusterIP: 10.96.0.50, {web}, ports: [{{port: 81}}]")));
    step(&mut it, "other ports");
    apply(&mut it, &service("a", &(at(99, ", ") + web)));
    apply(&mut it, &service("z", &(at(50, ", ") + web)));
    step(&mut it, "two that change places");
    apply(&mut it, &slice_of("z"));
    step(&mut it, "a slice");
    apply(&mut it, &service("a", &format!("clusterIP: None, {web}, {ports}")));
    step(&mut it, "headless");
    apply(&mut it, &(service("b", &at(98, ""))));
    step(&mut it, "one that leads nowhere");
    ["a", "b", "z"].iter().for_each(|name| it.remove(&id(name)));
    step(&mut it, "all gone");
    apply(&mut it, &service("b", &(at(98, ", ") + web)));
    it.remove(&id("b"));
    step(&mut it, "come and gone");
    assert_eq!(counts[0], counts[10]);
    assert_eq!((counts[1].0, counts[1].1), (counts[0].0 + 3, counts[0].1 + 2 * (counts[0].1 - 8) / 2));

    // What touches others.
    apply(&mut it, &service("c", &(at(1, ", ") + web)));
    assert!(!follow(&mut it, "another's address"));
    apply(&mut it, &service("c", &(at(97, ", ") + web)));
    assert!(!follow(&mut it, "no longer another's"));
    apply(&mut it, &service("c", "clusterIP: 10.1.0.5, ports: [{port: 80}]"));
    assert!(!follow(&mut it, "a pod's address"));
    it.remove(&id("c"));
    assert!(!follow(&mut it, "no longer a pod's"));
    let named = slice_of("web")
        .replace("10.1.0.0", "10.96.0.77")
        .replace(", targetRef: {kind: Pod, name: p0, uid: u0}", "");
    apply(&mut it, &named);
    assert!(follow(&mut it, "an endpoint outside"));
    apply(&mut it, &service("c", &(at(77, ", ") + web)));
    assert!(!follow(&mut it, "the address of an endpoint"));
    let dns = RULES.split("---").find(|it| it.contains("kube-dns")).unwrap();
    apply(&mut it, &dns.replace("port: 53", "port: 54"));
    assert!(!follow(&mut it, "the cluster's DNS"));
}

fn slice_of(service: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: of-{service}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, endpoints: \
         [{{addresses: [10.1.0.0], targetRef: {{kind: Pod, name: p0, uid: u0}}}}], ports: [{{port: 8080}}]}}"
    )
}

fn namespace(name: &str, labels: &str, annotations: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}}}\n---\n"
    )
}

#[test]
fn namespaces_that_change_are_followed_with_the_pods_that_they_concern() {
    let mut it = compiler();
    let mesh = "heddle.io/mesh: enabled";
    let open = format!("{mesh}, config.linkerd.io/default-inbound-policy: all-unauthenticated");
    let from = Kind::Namespace;
    let id = |name: &str| ResourceId { kind: from, namespace: String::new(), name: name.into() };
    apply(
        &mut it,
        "{apiVersion: heddle.io/v1alpha1, kind: ClusterAccessRule, metadata: {name: all}, spec: {action: Allow, \
         namespaceSelector: {}, from: [{namespaceSelector: {matchLabels: {team: a}}}]}}",
    );
    assert!(follow(&mut it, "a rule about labels"));
    let answer = |it: &mut Compiler, port: u16| {
        let compiled = it.compile(0);
        let client = crate::ClientIdentity::Mesh {
            dns: Some("web.ops.serviceaccount.identity.linkerd.cluster.local".to_owned()),
            spiffe: None,
        };
        let (address, server) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([10, 1, 0, 0]).into());
        compiled.decide(&crate::Connection { client: &client, address, server, port }).allowed()
    };
    assert!(!answer(&mut it, 9));
    apply(&mut it, &namespace("shop", "", &open));
    assert!(follow(&mut it, "a default policy") && answer(&mut it, 9));
    apply(&mut it, &namespace("shop", "", mesh));
    assert!(follow(&mut it, "and back") && !answer(&mut it, 9));
    apply(&mut it, &namespace("ops", "team: a", ""));
    assert!(follow(&mut it, "one that a rule picks by its labels") && answer(&mut it, 9));
    apply(&mut it, &namespace("ops", "team: b", ""));
    assert!(follow(&mut it, "other labels") && !answer(&mut it, 9));
    apply(&mut it, &namespace("ops", "team: a", ""));
    it.remove(&id("ops"));
    assert!(follow(&mut it, "gone") && !answer(&mut it, 9));
    // What cannot be read is told of every pod.
    apply(&mut it, &namespace("shop", "", "heddle.io/mesh: perhaps"));
    assert!(follow(&mut it, "an annotation that cannot be read"));
    assert!(it.compile(0).problems.iter().any(|it| it.reason.contains("counts as enabled")));
    apply(&mut it, &namespace("shop", "", mesh));
    assert!(follow(&mut it, "and that can"));
    let mut host = pod(1);
    (host.meta.name, host.host_network) = ("host".to_owned(), true);
    it.apply(Resource::Pod(host));
    assert!(!follow(&mut it, "one on the node's network"));
    // All of its identities go.
    apply(&mut it, &namespace("shop", "", "heddle.io/mesh: disabled"));
    assert!(!follow(&mut it, "meshed no more"));
    it.remove(&id("shop"));
    assert!(follow(&mut it, "gone, which is the same to its pods"));
    apply(&mut it, &namespace("shop", "", mesh));
    assert!(!follow(&mut it, "meshed again"));
}

#[test]
fn a_pod_shares_its_labels_with_the_pod_beside_it() {
    let it = compiler();
    let labels = |number: u8| {
        let name =
            ObjectName::new(if number % 5 == 3 { "kube-system" } else { "shop" }, format!("p{number}"));
        match it.index.get(Kind::Pod, &name) {
            Some(Resource::Pod(pod)) => Arc::clone(&pod.meta.labels),
            other => panic!("{other:?}"),
        }
    };
    assert!(Arc::ptr_eq(&labels(0), &labels(1)) && Arc::ptr_eq(&labels(3), &labels(8)));
    assert!(!Arc::ptr_eq(&labels(1), &labels(2)), "the control: others");
    let info = it.base.as_ref().unwrap().pod("shop", "p0").unwrap();
    assert!(Arc::ptr_eq(&info.labels, &labels(0)));
}

#[test]
fn a_pod_that_is_meshed_is_told_to_every_service_for_udp_that_leads_to_its_address() {
    let mut it = compiler();
    let made = "{apiVersion: v1, kind: Service, metadata: {name: made, namespace: shop}, spec: {clusterIP: 10.96.0.2, \
                ports: [{port: 80, protocol: UDP}]}}\n---\n\
                {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: m, namespace: shop, labels: \
                {kubernetes.io/service-name: made}}, addressType: IPv4, endpoints: [{addresses: [10.1.0.2]}], \
                ports: [{port: 80, protocol: UDP}]}";
    parse_file("made", made).resources.into_iter().for_each(|resource| it.apply(resource));
    let told = |it: &Compiler| {
        let services = &it.base.as_ref().unwrap().services;
        services
            .iter()
            .any(|(key, row)| key.port == 80 && row.flags & heddle_ebpf::policy::SERVICE_MESHED != 0)
    };
    let mut plain = pod(2);
    plain.meta.annotations.insert("heddle.io/mesh".to_owned(), "disabled".to_owned());
    it.apply(Resource::Pod(plain));
    it.compile(0);
    assert!(!told(&it), "the control");
    it.apply(Resource::Pod(pod(2)));
    assert!(follow(&mut it, "meshed") && told(&it));
}

#[test]
fn what_touches_more_than_the_pod_works_out_everything() {
    let changes: [(&str, u8, Change); 7] = [
        ("an address twice", 0, |pod| pod.addresses = vec![IpAddr::from([10, 1, 0, 1])]),
        ("an account that nobody had", 0, |pod| pod.service_account = "new".to_owned()),
        ("the cluster's DNS", 3, |pod| pod.ready = false),
        ("on the node's network", 0, |pod| pod.host_network = true),
        ("one address, written twice", 0, |pod| pod.addresses = vec![IpAddr::from([10, 9, 9, 9]); 2]),
        ("a name that makes no identity", 0, |pod| pod.service_account = "UPPER".to_owned()),
        ("an address in another spelling", 0, |pod| {
            pod.addresses = vec![std::net::Ipv4Addr::new(10, 9, 9, 9).to_ipv6_mapped().into()];
        }),
    ];
    for (what, number, change) in changes {
        let mut it = compiler();
        let mut new = pod(number);
        change(&mut new);
        it.apply(Resource::Pod(new));
        assert!(!follow(&mut it, what), "{what}");
        it.apply(Resource::Pod(pod(number)));
        assert!(!follow(&mut it, what), "no longer {what}");
    }
    // The last who has an identity.
    let mut it = compiler();
    let mut alone = pod(0);
    alone.service_account = "alone".to_owned();
    it.apply(Resource::Pod(alone));
    assert!(!follow(&mut it, "the first"));
    it.remove(&Resource::Pod(pod(0)).id());
    assert!(!follow(&mut it, "the last"));
}

#[test]
fn what_is_told_again_unchanged_works_out_nothing() {
    let mut it = compiler();
    let before = it.compile(0);
    for resource in parse_file("r", RULES).resources {
        it.apply(resource);
    }
    let again = it.compile(0);
    assert!(Arc::ptr_eq(&before.base, &again.base));
    let changed = RULES.replace("name: shop, annotations", "name: shop, labels: {a: b}, annotations");
    for resource in parse_file("r", &changed).resources {
        it.apply(resource);
    }
    assert!(!Arc::ptr_eq(&before.base, &it.compile(0).base), "the control: a namespace's label");
}

#[test]
fn rules_about_identities_that_leave_follow_the_pods() {
    let mut it = compiler();
    let denied = |it: &mut Compiler| {
        let compiled = it.compile(0);
        let from = heddle_ebpf::Address::from(IpAddr::from([10, 1, 0, 0]));
        let to = heddle_ebpf::Address::from(IpAddr::from([10, 1, 1, 7]));
        match compiled.outbound(&from, &to, 8080, |at| compiled.workload(at).map(|it| it.digest), 0) {
            crate::outbound::Route::Refuse(decision) => {
                decision.verdict.reason == heddle_ebpf::codes::Reason::Denied
            }
            crate::outbound::Route::To { .. } => false,
        }
    };
    let mut new = pod(1);
    (new.meta.name, new.addresses) = ("late".to_owned(), vec![IpAddr::from([10, 1, 1, 7])]);
    assert!(!denied(&mut it), "nobody is there yet");
    it.apply(Resource::Pod(new.clone()));
    assert!(denied(&mut it), "whom the rule forbids came");
    new.service_account = "other".to_owned();
    it.apply(Resource::Pod(new));
    assert!(!denied(&mut it), "the control: somebody else is there");
}

#[test]
fn a_namespace_of_which_nothing_is_left_leaves_nothing_behind() {
    let mut it = compiler();
    // Its namespace is not known, and no pod stands in it: all that there is of it is a rule.
    let rule = "{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: r, namespace: gone}, \
                spec: {action: Deny, from: [{networks: []}]}}";
    let resource = parse_file("g", rule).resources.remove(0);
    it.apply(resource.clone());
    follow(&mut it, "come");
    assert_eq!(it.parts.namespaces().filter(|name| *name == "gone").count(), 1);
    it.remove(&resource.id());
    follow(&mut it, "gone");
    assert_eq!(it.parts.namespaces().filter(|name| *name == "gone").count(), 0);
}

#[test]
fn a_service_that_had_anothers_address_and_lost_it_before_anybody_saw_takes_nothing_with_it() {
    let service = |name: &str, address: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{clusterIP: {address}, selector: {{app: web}}, ports: [{{port: 80}}]}}}}"
        );
        parse_file("s", &text).resources.remove(0)
    };
    let mut it = compiler();
    for own in ["10.96.0.1", "10.96.0.77"] {
        // `web` has 10.96.0.1; `late` claims it and goes, or has another in the end.
        it.apply(service("late", "10.96.0.1"));
        match own {
            "10.96.0.1" => it.remove(&service("late", "10.96.0.1").id()),
            own => it.apply(service("late", own)),
        }
        follow(&mut it, own);
        let web = "10.96.0.1".parse::<IpAddr>().unwrap().into();
        assert!(it.compile(0).tables.services.keys().any(|key| key.address == web), "{own}");
    }
}
