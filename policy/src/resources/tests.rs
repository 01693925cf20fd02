use std::net::IpAddr;

use super::*;
use crate::problems::{Origin, Problem, Severity};

fn one(text: &str) -> Resource {
    let parsed = parse_file("rules.yaml", text);
    assert_eq!(parsed.problems, [], "{text}");
    assert_eq!(parsed.resources.len(), 1, "{text}");
    parsed.resources.into_iter().next().unwrap()
}

/// The only resource and the only problem.
fn faulty(text: &str) -> (Resource, Problem) {
    let parsed = parse_file("rules.yaml", text);
    assert_eq!((parsed.resources.len(), parsed.problems.len()), (1, 1), "{text}\n{:#?}", parsed.problems);
    (parsed.resources.into_iter().next().unwrap(), parsed.problems.into_iter().next().unwrap())
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 11-22
  labels: {app: web}
  annotations: {heddle.io/mesh: enabled}
  creationTimestamp: 2026-01-02T03:04:05Z
spec:
  nodeName: a
  serviceAccountName: web
  initContainers:
  - name: warm
    image: x
    ports: [{containerPort: 9000, name: warm}]
  containers:
  - name: web
    image: x
    ports:
    - {containerPort: 8080, name: http}
    - {containerPort: 53, name: dns, protocol: UDP}
    livenessProbe: {httpGet: {path: '/live?x=1', port: http}}
    readinessProbe: {tcpSocket: {port: 8080}}
    startupProbe: {grpc: {port: 8080, service: s}}
status:
  phase: Running
  podIP: 10.1.0.5
  podIPs: [{ip: 10.1.0.5}, {ip: 'fd00::5'}]
  conditions: [{type: Ready, status: 'True'}]
";

#[test]
fn a_pod_is_read() {
    let Resource::Pod(pod) = one(POD) else { panic!("not a pod") };
    assert_eq!(pod.meta.object_name().to_string(), "shop/web");
    assert_eq!(pod.meta.created, Some(1_767_323_045_000_000));
    assert_eq!((&*pod.node, &*pod.service_account, &*pod.meta.uid), ("a", "web", "11-22"));
    let ips: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    assert_eq!(pod.addresses, ips);
    assert!(pod.ready && !pod.finished && !pod.host_network && !pod.meta.deleting);
    assert_eq!(pod.named_tcp_ports("warm").collect::<Vec<_>>(), [9000]);
    assert_eq!(pod.named_tcp_ports("dns").count(), 0);
    assert!(pod.declares_tcp(8080) && !pod.declares_tcp(53));
    let http = Check::Http { path: "/live".into(), query: Some("x=1".into()), https: false };
    let checks: Vec<Check> = pod.probes.iter().map(|probe| probe.check.clone()).collect();
    assert_eq!(checks, [http, Check::Tcp, Check::Grpc { service: "s".into() }]);
    assert!(pod.probes.iter().all(|probe| probe.port == 8080));
}

#[test]
fn a_pod_without_conditions_is_ready_when_it_runs() {
    let bare = POD.replace("  conditions: [{type: Ready, status: 'True'}]\n", "");
    for (phase, ready, finished) in [
        ("Running", true, false),
        ("Pending", false, false),
        ("Succeeded", false, true),
        ("Failed", false, true),
    ] {
        let Resource::Pod(pod) = one(&bare.replace("Running", phase)) else { panic!("not a pod") };
        assert_eq!((pod.ready, pod.finished), (ready, finished), "{phase}");
    }
}

#[test]
fn a_pod_is_ready_by_the_condition_of_that_name() {
    for (ready, other) in [("True", "False"), ("False", "True")] {
        let conditions = format!(
            "conditions: [{{type: PodScheduled, status: '{other}'}}, {{type: Ready, status: '{ready}'}}, {{type: Initialized, status: '{other}'}}]"
        );
        let text = POD.replace("conditions: [{type: Ready, status: 'True'}]", &conditions);
        let Resource::Pod(pod) = one(&text) else { panic!("not a pod") };
        assert_eq!(pod.ready, ready == "True");
    }
}

#[test]
fn what_a_pod_cannot_have_is_told_with_its_line() {
    for (from, to, field, line) in [
        ("containerPort: 8080", "containerPort: 70000", "spec.containers[0].ports[0].containerPort", 22),
        ("podIP: 10.1.0.5", "podIP: 127.0.0.1", "status.podIP", 29),
        ("protocol: UDP", "protocol: QUIC", "spec.containers[0].ports[1].protocol", 23),
        ("port: http}", "port: nope}", "spec.containers[0].livenessProbe", 24),
    ] {
        let parsed = parse_file("pods.yaml", &POD.replace(from, to));
        let found = parsed.problems.iter().find(|problem| problem.field == field);
        let found = found.unwrap_or_else(|| panic!("{to}: {:#?}", parsed.problems));
        assert_eq!((found.severity, found.line, &*found.file), (Severity::Error, line, "pods.yaml"), "{to}");
        assert_eq!(parsed.resources.len(), 1, "the rest of the pod stays");
    }
}

#[test]
fn a_pod_of_the_wrong_type_is_not_in_force() {
    let parsed = parse_file("pods.yaml", &POD.replace("labels: {app: web}", "labels: {app: 5}"));
    assert!(parsed.resources.is_empty());
    let problem = &parsed.problems[0];
    assert_eq!((&*problem.field, problem.line), ("metadata.labels.app", 8));
    assert_eq!(problem.resource, "Pod shop/web");
}

#[test]
fn unknown_fields_outside_rules_are_warned_of_and_kept() {
    let (pod, problem) = faulty(&POD.replace("  nodeName: a", "  nodeNam: b\n  nodeName: a"));
    assert!(matches!(pod, Resource::Pod(pod) if pod.node == "a"));
    assert_eq!((problem.severity, &*problem.field, problem.line), (Severity::Warning, "spec.nodeNam", 12));
    let (policy, problem) = faulty(&policy("[]").replace("metadata:", "metadata:\n  nam: x"));
    assert!(matches!(policy, Resource::AuthorizationPolicy(AuthorizationPolicy { rule: Some(_), .. })));
    assert_eq!((problem.severity, &*problem.field), (Severity::Warning, "metadata.nam"));
}

#[test]
fn a_service_is_read() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.2.0.1
  clusterIPs: [10.2.0.1, 'fd01::1']
  selector: {app: web}
  ports:
  - {port: 80, targetPort: http, name: a}
  - {port: 81, targetPort: 8081, name: b}
  - {port: 53, protocol: UDP, name: c}
";
    let Resource::Service(service) = one(text) else { panic!("not a Service") };
    assert_eq!(service.meta.namespace, "default");
    assert_eq!(service.addresses.len(), 2);
    let ports: Vec<_> =
        service.ports.iter().map(|port| (port.port, port.transport, port.target.clone())).collect();
    assert_eq!(
        ports,
        [
            (80, Transport::Tcp, TargetPort::Name("http".into())),
            (81, Transport::Tcp, TargetPort::Number(8081)),
            (53, Transport::Udp, TargetPort::Number(53)),
        ]
    );
    assert!(!service.publish_not_ready);
    let published = text.replace("selector:", "publishNotReadyAddresses: true\n  selector:");
    let Resource::Service(published) = one(&published) else { panic!("not a Service") };
    assert!(published.publish_not_ready);
    // The empty name and zero are how clients write none; what is no name is told, and the port is not there.
    for none in ["''", "0"] {
        let Resource::Service(service) =
            one(&text.replace("targetPort: http", &format!("targetPort: {none}")))
        else {
            panic!("not a Service")
        };
        assert_eq!(service.ports[0].target, TargetPort::Number(80), "{none}");
    }
    let (bad, _) = faulty(&text.replace("targetPort: http", "targetPort: Http_"));
    let Resource::Service(bad) = bad else { panic!("not a Service") };
    assert_eq!(bad.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81, 53]);
    let headless = text
        .replace("clusterIP: 10.2.0.1", "clusterIP: None")
        .replace("  clusterIPs: [10.2.0.1, 'fd01::1']\n", "");
    assert!(matches!(one(&headless), Resource::Service(service) if service.addresses.is_empty()));
}

fn server(version: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/{version}\nkind: Server\nmetadata: {{name: s, namespace: shop}}\nspec:\n{spec}"
    )
}

#[test]
fn servers_of_every_version_are_read() {
    for version in ["v1beta1", "v1beta2", "v1beta3"] {
        let text = server(
            version,
            "  podSelector: {matchLabels: {app: web}}\n  port: http\n  proxyProtocol: opaque\n",
        );
        let Resource::Server(it) = one(&text) else { panic!("not a Server") };
        assert!(it.readable);
        assert_eq!((it.port, it.protocol), (ServerPort::Name("http".into()), ProxyProtocol::Opaque));
    }
    let text = server("v1beta3", "  podSelector: {}\n  port: 80\n  accessPolicy: audit\n");
    assert!(matches!(one(&text), Resource::Server(it) if it.access == DefaultPolicy::Audit && it.readable));
    let text = server("v1beta2", "  externalWorkloadSelector: {}\n  port: 80\n");
    assert!(matches!(one(&text), Resource::Server(it) if it.scope == ServerScope::ExternalWorkloads));
}

#[test]
fn a_server_that_cannot_be_read_is_kept_to_close() {
    for (version, spec, field) in [
        ("v1beta3", "  podSelector: {}\n  port: 0\n", "spec.port"),
        ("v1beta3", "  podSelector: {}\n  port: 65536\n", "spec.port"),
        ("v1beta3", "  podSelector: {}\n  port: '80'\n", "spec.port"),
        ("v1beta3", "  podSelector: {}\n", "spec.port"),
        ("v1beta3", "  port: 80\n", "spec"),
        ("v1beta3", "  podSelector: ~\n  port: 80\n", "spec"),
        ("v1beta3", "  podSelector: {}\n  externalWorkloadSelector: {}\n  port: 80\n", "spec"),
        ("v1beta3", "  podSelector: {}\n  port: 80\n  proxyProtocol: http\n", "spec.proxyProtocol"),
        ("v1beta3", "  podSelector: {}\n  port: 80\n  accessPolicy: allow\n", "spec.accessPolicy"),
        ("v1beta1", "  podSelector: {}\n  port: 80\n  accessPolicy: audit\n", "spec.accessPolicy"),
        ("v1beta3", "  podSelector: {}\n  port: 80\n  portRange: x\n", "spec.portRange"),
        ("v1beta3", "  podSelector: {matchLabel: {a: b}}\n  port: 80\n", "spec.podSelector.matchLabel"),
        (
            "v1beta3",
            "  podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}\n  port: 80\n",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            "v1beta3",
            "  podSelector: {matchExpressions: [{key: a, operator: In}]}\n  port: 80\n",
            "spec.podSelector.matchExpressions[0].values",
        ),
        ("v1beta3", "  podSelector: {matchLabels: 5}\n  port: 80\n", "spec.podSelector.matchLabels"),
    ] {
        let (it, problem) = faulty(&server(version, spec));
        assert!(matches!(it, Resource::Server(it) if !it.readable), "{spec}");
        assert_eq!((problem.severity, &*problem.field), (Severity::Error, field), "{spec}");
        assert!(problem.line >= 3, "{spec}: {problem}");
    }
}

fn policy(references: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: allow
  namespace: shop
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}
  requiredAuthenticationRefs: {references}
"
    )
}

fn rule(text: &str) -> Authorization {
    match one(text) {
        Resource::AuthorizationPolicy(AuthorizationPolicy { rule: Some(rule), .. }) => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn policies_are_read() {
    let all = rule(&policy("[]"));
    assert_eq!(all, Authorization { target: Target::Server("web".into()), identity: None, network: None });
    let both = rule(&policy(
        "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m, namespace: auth}, \
         {group: policy.linkerd.io, kind: NetworkAuthentication, name: n}]",
    ));
    assert_eq!(both.identity, Some(IdentityRef::MeshTls(ObjectName::new("auth", "m"))));
    assert_eq!(both.network, Some(ObjectName::new("shop", "n")));
    for group in ["", "group: '', ", "group: core, "] {
        let account = rule(&policy(&format!("[{{{group}kind: ServiceAccount, name: web}}]")));
        assert_eq!(account.identity, Some(IdentityRef::ServiceAccount(ObjectName::new("shop", "web"))));
    }
    for (target, expected) in [
        ("{kind: Namespace, name: shop}", Target::Namespace),
        (
            "{group: policy.linkerd.io, kind: HTTPRoute, name: r}",
            Target::Route { kind: Kind::LinkerdHttpRoute, name: "r".into() },
        ),
        (
            "{group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}",
            Target::Route { kind: Kind::GrpcRoute, name: "r".into() },
        ),
    ] {
        let text = policy("[]").replace("{group: policy.linkerd.io, kind: Server, name: web}", target);
        assert_eq!(rule(&text).target, expected);
    }
}

#[test]
fn policies_that_cannot_be_read_grant_nothing() {
    let target = "{group: policy.linkerd.io, kind: Server, name: web}";
    for (text, field) in [
        (policy("~"), "spec.requiredAuthenticationRefs"),
        (policy("[]").replace("requiredAuthenticationRefs: []", ""), "spec"),
        (policy("[{group: policy.linkerd.io, kind: JWT, name: m}]"), "spec.requiredAuthenticationRefs[0]"),
        (policy("[{kind: MeshTLSAuthentication, name: m}]"), "spec.requiredAuthenticationRefs[0]"),
        (
            policy("[{kind: ServiceAccount, name: a}, {kind: ServiceAccount, name: b}]"),
            "spec.requiredAuthenticationRefs[1]",
        ),
        (policy("[{kind: ServiceAccount, name: a, not: b}]"), "spec.requiredAuthenticationRefs[0].not"),
        (policy("[]\n  ports: [80]"), "spec.ports"),
        (policy("[]").replace(target, "{kind: Server, name: web}"), "spec.targetRef"),
        (policy("[]").replace(target, "{kind: Namespace, name: other}"), "spec.targetRef"),
        (policy("[]").replace("name: web}", "name: web, namespace: other}"), "spec.targetRef"),
        (policy("[]").replace("spec:", "spc:"), "spec"),
    ] {
        let parsed = parse_file("rules.yaml", &text);
        let rule = parsed.resources.first();
        assert!(
            matches!(rule, Some(Resource::AuthorizationPolicy(AuthorizationPolicy { rule: None, .. }))),
            "{text}"
        );
        let error = parsed.problems.iter().find(|problem| problem.severity == Severity::Error).unwrap();
        assert_eq!(error.field, field, "{text}");
    }
}

fn authentication(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn mesh_authentications_are_read() {
    let text = authentication(
        "MeshTLSAuthentication",
        "{identities: ['*', '*.shop.local', a.b, 'spiffe://cluster.local/ns/a/sa/b']}",
    );
    let Resource::MeshTlsAuthentication(it) = one(&text) else { panic!("wrong kind") };
    assert_eq!(
        it.clients.unwrap(),
        [
            IdentityMatch::Any,
            IdentityMatch::Suffix(".shop.local".into()),
            IdentityMatch::Dns("a.b".into()),
            IdentityMatch::Spiffe("spiffe://cluster.local/ns/a/sa/b".into()),
        ]
    );
    let text = authentication(
        "MeshTLSAuthentication",
        "{identityRefs: [{kind: ServiceAccount, name: a}, {kind: Namespace, name: other}]}",
    );
    let Resource::MeshTlsAuthentication(it) = one(&text) else { panic!("wrong kind") };
    assert_eq!(
        it.clients.unwrap(),
        [
            IdentityMatch::ServiceAccount(ObjectName::new("shop", "a")),
            IdentityMatch::Namespace("other".into()),
        ]
    );
}

#[test]
fn mesh_authentications_that_cannot_be_read_match_nobody() {
    for spec in [
        "{}",
        "~",
        "5",
        "{identities: []}",
        "{identities: ['*'], identityRefs: [{kind: Namespace, name: a}]}",
        "{identities: ['*', 'a.*.b']}",
        "{identities: ['a.*']}",
        "{identities: ['**']}",
        "{identities: ['*a']}",
        "{identities: ['*.']}",
        "{identities: ['A.b']}",
        "{identities: ['a..b']}",
        "{identities: ['']}",
        "{identities: ['spiffe://']}",
        "{identities: ['spiffe://a/../b']}",
        "{identities: ['spiffe://a/%2e']}",
        "{identities: ['spiffe://a//b']}",
        "{identities: ['spiffe://A/b']}",
        "{identities: ['*'], notIdentities: [a]}",
        "{identityRefs: [{kind: Group, name: a}]}",
        "{identityRefs: [{group: rbac, kind: ServiceAccount, name: a}]}",
    ] {
        let (it, problem) = faulty(&authentication("MeshTLSAuthentication", spec));
        assert!(matches!(it, Resource::MeshTlsAuthentication(it) if it.clients.is_none()), "{spec}");
        assert_eq!(problem.severity, Severity::Error, "{spec}");
    }
}

#[test]
fn network_authentications_are_read() {
    let text = authentication(
        "NetworkAuthentication",
        "{networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.1]}, {cidr: 'fd00::1'}, {cidr: '::/0'}]}",
    );
    let Resource::NetworkAuthentication(it) = one(&text) else { panic!("wrong kind") };
    let networks = it.networks.unwrap();
    assert_eq!(networks[0].cidr.to_string(), "10.0.0.0/8");
    let holds = |text: &str| networks.iter().any(|net| net.contains(&text.parse().unwrap()));
    for (address, inside) in [
        ("10.3.0.1", true),
        ("10.1.2.3", false),
        ("10.2.0.1", false),
        ("10.2.0.2", true),
        ("11.0.0.1", false),
        ("fe::", true),
    ] {
        assert_eq!(holds(address), inside, "{address}");
    }
}

#[test]
fn network_authentications_that_cannot_be_read_match_nobody() {
    for spec in [
        "{networks: []}",
        "{}",
        "{networks: [{cidr: 10.0.0.0/33}]}",
        "{networks: [{cidr: 10.0.0}]}",
        "{networks: [{cidr: '::ffff:10.0.0.0/104'}]}",
        "{networks: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}",
        "{networks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]}",
        "{networks: [{cidr: 10.0.0.0/8, except: [0.0.0.0/0]}]}",
        "{networks: [{cidr: '::/0', except: [10.0.0.0/8]}]}",
        "{networks: [{cidr: 10.0.0.0/8, excepts: [10.1.0.0/16]}]}",
        "{networks: [{cidr: 10.0.0.0/8, except: 10.1.0.0/16}]}",
    ] {
        let (it, problem) = faulty(&authentication("NetworkAuthentication", spec));
        assert!(matches!(it, Resource::NetworkAuthentication(it) if it.networks.is_none()), "{spec}");
        assert_eq!(problem.severity, Severity::Error, "{spec}");
    }
}

#[test]
fn routes_and_limits_tell_their_servers() {
    let attached = |text: &str| match parse_file("r", text).resources.into_iter().next() {
        Some(Resource::Route(it)) => it.servers().map(|names| names.map(str::to_owned).collect::<Vec<_>>()),
        Some(Resource::RateLimitPolicy(it)) => it.server.map(|name| vec![name]),
        other => panic!("{other:?}"),
    };
    let parents = "[{group: policy.linkerd.io, kind: Server, name: web}, {name: gateway}, \
                   {group: policy.linkerd.io, kind: Server, name: far, namespace: other}]";
    for (group, kind) in [
        ("policy.linkerd.io/v1beta3", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ] {
        let text = format!(
            "apiVersion: {group}\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {{parentRefs: {parents}, rules: [{{}}]}}\n"
        );
        assert_eq!(attached(&text), Some(vec!["web".to_owned()]));
        assert_eq!(attached(&text.replace(parents, "5")), None);
        assert_eq!(attached(&text.replace(parents, "~")), Some(vec![]));
    }
    let kinds = |group: &str, kind: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: {group}, kind: {kind}, name: it}}], rules: [{{}}]}}\n"
        );
        match parse_file("r", &text).resources.into_iter().next() {
            Some(Resource::Route(Route { parents: Parents::These(mut these), .. })) => these.remove(0).kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kinds("policy.linkerd.io", "Server"), ParentKind::Server);
    assert_eq!(kinds("policy.linkerd.io", "EgressNetwork"), ParentKind::EgressNetwork);
    assert_eq!(kinds("core", "Service"), ParentKind::Service);
    assert_eq!(kinds("''", "Service"), ParentKind::Service);
    for (group, kind) in [
        ("policy.linkerd.io", "Service"),
        ("core", "Server"),
        ("core", "EgressNetwork"),
        ("gateway.networking.k8s.io", "Server"),
        ("gateway.networking.k8s.io", "EgressNetwork"),
        ("gateway.networking.k8s.io", "Service"),
    ] {
        assert_eq!(kinds(group, kind), ParentKind::Other(format!("{group}/{kind}").replace("''", "")));
    }
    let limit = "apiVersion: policy.linkerd.io/v1alpha1\nkind: HTTPLocalRateLimitPolicy\nmetadata: {name: r, namespace: shop}\n\
                 spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 5}}\n";
    assert_eq!(attached(limit), Some(vec!["web".to_owned()]));
}

#[test]
fn a_route_has_a_hundred_and_twenty_eight_rules_at_most() {
    let read = |count: usize| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: it}}], rules: [{}]}}\n",
            vec!["{}"; count].join(", ")
        );
        match parse_file("r", &text).resources.into_iter().next() {
            Some(Resource::Route(route)) => route.rules.map(|rules| rules.len()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((read(127), read(128), read(129)), (Some(127), Some(128), None));
}

#[test]
fn a_namespace_is_a_label_and_nothing_that_an_identity_could_be_read_in_two_ways_by() {
    let told = |text: &str| parse_file("r", text).has_errors();
    for (namespace, sound) in
        [("shop", true), ("a.b", false), ("Shop", false), ("a_b", false), ("'-a'", false)]
    {
        let server = format!(
            "{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: s, namespace: {namespace}}}, spec: {{podSelector: {{}}, port: 80}}}}\n"
        );
        assert_eq!(told(&server), !sound, "{server}");
        let own = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}\n");
        assert_eq!(told(&own), !sound, "{own}");
    }
    for (length, sound) in [(63, true), (64, false)] {
        let own =
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}\n", "a".repeat(length));
        assert_eq!(told(&own), !sound, "{length}");
    }
}

#[test]
fn one_resource_of_an_api_server_is_read_as_its_manifest() {
    let text = r#"{"apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": {"name": "s", "namespace": "shop"}, "spec": {"podSelector": {}, "port": 80}}"#;
    let sent = parse_value(serde_json::from_str(text).unwrap(), Origin::new("it", 0));
    assert_eq!((sent.resources.len(), sent.problems.len()), (1, 0));
    assert_eq!(sent.resources[0].id(), one(text).id());
}

#[test]
fn a_broken_document_leaves_the_others() {
    let text = format!("{POD}---\nkind: [\n---\n# nothing\n---\n{}", policy("[]"));
    let parsed = parse_file("all.yaml", &text);
    assert_eq!(parsed.resources.len(), 2);
    assert_eq!(parsed.problems.len(), 1);
    let problem = &parsed.problems[0];
    assert_eq!((problem.document, problem.severity), (2, Severity::Error));
    assert_eq!(problem.line, 33, "{problem}");
    assert!(problem.reason.contains("at line 33,"), "the words count within the file, too: {problem}");
    assert_eq!(parsed.resources[1].meta().origin, Origin::new("all.yaml", 3));
}

#[test]
fn lists_are_read_item_by_item() {
    let indented = |text: &str| {
        let lines: Vec<String> = text.trim().lines().map(|line| format!("  {line}")).collect();
        format!("-{}", &lines.join("\n")[1..])
    };
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}\n{}\n- {{kind: ConfigMap, apiVersion: v1, metadata: {{name: c}}}}\n",
        indented(POD),
        indented(&policy("5")),
    );
    let parsed = parse_file("list.yaml", &text);
    assert_eq!(parsed.resources.len(), 2, "{:#?}", parsed.problems);
    assert_eq!(parsed.problems.len(), 2);
    let error = &parsed.problems[0];
    assert_eq!(&*error.field, "spec.requiredAuthenticationRefs");
    let line = 1 + text.lines().position(|line| line.contains("requiredAuthenticationRefs")).unwrap();
    assert_eq!(error.line as usize, line);
    assert_eq!(parsed.problems[1].severity, Severity::Note);
}

#[test]
fn what_is_no_resource_is_told() {
    for (text, severity) in [
        ("a: 1", Severity::Error),
        ("- a", Severity::Error),
        ("text", Severity::Error),
        ("kind: Pod", Severity::Error),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: 'a/b'}", Severity::Error),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a, namespace: A}", Severity::Error),
        ("kind: Pod\napiVersion: v1\nmetadata: {}", Severity::Error),
        ("kind: Pod\napiVersion: v1", Severity::Error),
        ("kind: Deployment\napiVersion: apps/v1\nmetadata: {name: a}", Severity::Note),
        ("kind: Surprise\napiVersion: policy.linkerd.io/v1alpha1\nmetadata: {name: a}", Severity::Error),
        ("kind: ServiceProfile\napiVersion: linkerd.io/v1alpha2\nmetadata: {name: a}", Severity::Error),
        ("kind: AuthorizationPolicy\napiVersion: policy.linkerd.io/v9\nmetadata: {name: a}", Severity::Error),
        ("kind: List\napiVersion: v1\nitems: 5", Severity::Error),
    ] {
        let parsed = parse_file("x", text);
        assert!(parsed.resources.is_empty(), "{text}");
        assert_eq!(parsed.problems.len(), 1, "{text}");
        assert_eq!(parsed.problems[0].severity, severity, "{text}: {}", parsed.problems[0]);
    }
}

#[test]
fn workloads_outside_are_ready_by_the_condition_of_that_name() {
    let text = |status: &str, port: &str| {
        format!(
            "apiVersion: workload.linkerd.io/v1beta1\nkind: ExternalWorkload\nmetadata: {{name: vm, namespace: shop}}\n\
             spec: {{meshTLS: {{identity: vm.example, serverName: vm.example}}, workloadIPs: [{{ip: 192.0.2.1}}], ports: [{port}]}}\n{status}"
        )
    };
    for (conditions, ready) in [
        ("", true),
        ("status: {conditions: [{type: Ready, status: 'True'}]}", true),
        ("status: {conditions: [{type: Ready, status: 'False'}]}", false),
        ("status: {conditions: [{type: Other, status: 'False'}, {type: Ready, status: 'True'}]}", true),
        ("status: {conditions: [{type: Other, status: 'True'}, {type: Ready, status: 'False'}]}", false),
    ] {
        let Resource::ExternalWorkload(it) = one(&text(conditions, "{port: 80}")) else { panic!("not one") };
        assert_eq!(it.ready, ready, "{conditions}");
    }
    for (port, sound) in
        [("{port: 80, name: web}", true), ("{port: 0, name: web}", false), ("{port: 80, name: We_b}", false)]
    {
        assert_eq!(!parse_file("r", &text("", port)).has_errors(), sound, "{port}");
    }
}

#[test]
fn an_empty_list_of_networks_is_the_clusters_own() {
    let read = |networks: &str| {
        let text = format!(
            "apiVersion: policy.linkerd.io/v1beta1\nkind: ServerAuthorization\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{server: {{name: s}}, client: {{unauthenticated: true{networks}}}}}\n"
        );
        match one(&text) {
            Resource::ServerAuthorization(it) => it.rule.map(|rule| rule.networks),
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(read(""), Some(None)) && matches!(read(", networks: []"), Some(None)));
    assert!(matches!(read(", networks: [{cidr: 10.0.0.0/8}]"), Some(Some(list)) if list.len() == 1));
}

#[test]
fn a_destination_is_an_identity_or_an_address_or_a_host() {
    let sound = |to: &str| {
        let text = format!(
            "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {{name: r, namespace: shop}}\nspec: {{action: Allow, to: [{to}]}}\n"
        );
        !parse_file("r", &text).has_errors()
    };
    assert!(sound("{serviceAccounts: [{name: a}]}") && sound("{hosts: [h.example]}"));
    assert!(
        sound("{networks: [{cidr: 192.0.2.0/24}]}")
            && sound("{networks: [{cidr: 192.0.2.0/24}], hosts: [h.example]}")
    );
    assert!(!sound("{serviceAccounts: [{name: a}], hosts: [h.example]}"));
    assert!(!sound("{serviceAccounts: [{name: a}], networks: [{cidr: 192.0.2.0/24}]}"));
}

#[test]
fn port_lists() {
    let Resource::Pod(pod) = one(POD) else { panic!("not a pod") };
    let set = PortSet::parse("80, 100-102,http", &pod).unwrap();
    assert_eq!(set.size(), 5);
    let ports: Vec<u16> = set.iter().collect();
    assert_eq!(ports, [80, 100, 101, 102, 8080]);
    assert!(set.contains(101) && !set.contains(99) && !set.is_all());
    assert!(PortSet::parse("1-65535", &pod).unwrap().is_all());
    assert_eq!(PortSet::parse("", &pod).unwrap(), PortSet::default());
    assert_eq!(PortSet::parse("unknown-name", &pod).unwrap(), PortSet::default());
    for text in ["0", "65536", "5-4", "-5", "5-", "+5", "a b", "80;81", "1-2-3", "Http", "0-5"] {
        assert!(PortSet::parse(text, &pod).is_err(), "{text}");
    }
}

#[test]
fn a_sum_of_ports_beyond_every_number_is_more_than_any_limit() {
    let Resource::Pod(pod) = one(POD) else { panic!("not a pod") };
    // 65,541 times 65,534 is 2^32 + 198.
    let set = PortSet::parse(&"2-65535,".repeat(65_541), &pod).unwrap();
    assert_eq!(set.size(), u32::MAX);
}

#[test]
fn ten_megabytes_are_read_or_refused_in_time() {
    let text = format!("{POD}---\n").repeat(500);
    assert_eq!(parse_file("big.yaml", &text).resources.len(), 500);
    let long = format!("kind: ConfigMap\napiVersion: v1\ndata: {{a: {}}}\n", "x".repeat(10 << 20));
    assert!(parse_file("long.yaml", &long).resources.is_empty());
}
