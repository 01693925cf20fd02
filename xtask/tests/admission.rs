//! What an API server takes and what it refuses, by a real kube-apiserver and etcd: the CRDs of `deploy/crds` and the
//! policies of `deploy/admission` are put into it, and every golden manifest is shown to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::Value;
use xtask::{api_server::ApiServer, lab::eventually};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Patience with a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a changed expression may take to come into force.
const SOON: Duration = Duration::from_secs(20);

fn must(server: &ApiServer, arguments: &[&str]) {
    server.check(arguments, "").unwrap();
}

/// Whether it would take a manifest, and what it says.
fn takes(server: &ApiServer, manifest: &str) -> (bool, String) {
    let out = server.kubectl(&["create", "--dry-run=server", "--filename=-"], manifest).unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// Gives it the kinds, and the namespace of the golden manifests.
fn define(server: &ApiServer) {
    for folder in ["crds", "crds/linkerd"] {
        must(server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/{folder}")]);
    }
    must(server, &["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]);
    must(server, &["create", "namespace", "shop"]);
}

/// What it has of a kind, as JSON.
fn list(server: &ApiServer, kind: &str) -> Vec<Value> {
    let list: Value =
        serde_json::from_str(&server.check(&["get", kind, "--output=json"], "").unwrap()).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Why a manifest is to be refused: a part of what the API server says.
fn because(manifest: &str) -> &str {
    let line = manifest.lines().find_map(|line| line.strip_prefix("# refused: "));
    line.unwrap_or_else(|| panic!("no reason: {manifest}"))
}

fn golden(name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("{ROOT}/deploy/admission/golden/{name}.yaml")).unwrap();
    text.split("\n---\n").map(str::to_owned).collect()
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn an_api_server_takes_what_is_sound_and_refuses_the_rest() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    define(&server);

    let rejected = golden("rejected");
    assert!(rejected.len() >= 40);
    // Schemas alone do not know what the policies know.
    let taken = rejected.iter().filter(|manifest| takes(&server, manifest).0).count();
    assert!(taken >= 15, "the policies would make no difference: {taken}");

    must(&server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/admission")]);
    for manifest in &rejected {
        let mut said = String::new();
        // Policies come into force one after the other.
        let refused = eventually("a refusal", PATIENCE, || {
            let (taken, what) = takes(&server, manifest);
            said = what;
            Ok(!taken && said.contains(because(manifest)))
        });
        assert!(refused.is_ok(), "{manifest}\nis not refused as it should be: {said}");
    }
    for manifest in golden("accepted") {
        let (taken, said) = takes(&server, &manifest);
        assert!(taken, "{manifest}\nis refused: {said}");
    }
}

/// An expression that refuses, in a CRD or a policy.
struct Expression {
    /// Where it stands in its object.
    pointer: String,
    /// What it says when it refuses.
    message: String,
    /// In a CRD: the kind and version that it is about.
    about: Option<(String, String)>,
}

impl Expression {
    /// Whether a golden manifest is refused because of an expression with this message, about its kind and version.
    fn refuses(&self, manifest: &str) -> bool {
        let is = |field: &str, value: &str| manifest.lines().any(|line| line == format!("{field}: {value}"));
        let version = |it: &str| {
            manifest.lines().any(|line| line.starts_with("apiVersion: ") && line.ends_with(&format!("/{it}")))
        };
        match &self.about {
            Some((kind, name)) => {
                is("kind", kind) && version(name) && self.message.contains(because(manifest))
            }
            // An expression that cannot be evaluated refuses as well, in words of the API server's.
            None if because(manifest) == "resulted in error" => self.message.contains("cannot be read"),
            None => self.message.contains(because(manifest)),
        }
    }
}

/// The expressions of an object, wherever they are in it.
fn expressions(object: &Value) -> Vec<Expression> {
    fn walk(value: &Value, pointer: &str, about: Option<&(String, String)>, found: &mut Vec<Expression>) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    walk(inner, &format!("{pointer}/{key}"), about, found);
                }
            }
            Value::Array(list) => {
                for (i, inner) in list.iter().enumerate() {
                    let here = format!("{pointer}/{i}");
                    let field =
                        if pointer.ends_with("/x-kubernetes-validations") { "rule" } else { "expression" };
                    if pointer.ends_with("alidations") && inner[field].is_string() {
                        let message = inner["message"].as_str().unwrap_or_default().to_owned();
                        found.push(Expression {
                            pointer: format!("{here}/{field}"),
                            message,
                            about: about.cloned(),
                        });
                    } else {
                        walk(inner, &here, about, found);
                    }
                }
            }
            _ => {}
        }
    }
    let (mut found, spec) = (Vec::new(), &object["spec"]);
    match spec["versions"].as_array() {
        Some(versions) => {
            for (i, version) in versions.iter().enumerate().filter(|(_, it)| it["served"] == true) {
                let kind = spec["names"]["kind"].as_str().unwrap().to_owned();
                let about = (kind, version["name"].as_str().unwrap().to_owned());
                walk(&version["schema"], &format!("/spec/versions/{i}/schema"), Some(&about), &mut found);
            }
        }
        None => walk(&spec["validations"], "/spec/validations", None, &mut found),
    }
    found
}

/// The control of every golden refusal: an expression is taken out, and a manifest that only it refuses is taken.
#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn without_any_one_expression_something_is_taken_that_was_refused() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    define(&server);
    must(&server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/admission")]);
    let rejected = golden("rejected");
    for manifest in &rejected {
        let refused = eventually("a refusal", PATIENCE, || Ok(!takes(&server, manifest).0));
        assert!(refused.is_ok(), "{manifest}\nis not refused");
    }
    let mut objects = list(&server, "crds");
    let mut policies = list(&server, "validatingadmissionpolicies");
    // Where the mesh is required depends on the namespace and on who asks: no manifest alone shows it.
    policies.retain(|it| !it["metadata"]["name"].as_str().unwrap().starts_with("required-"));
    objects.extend(policies);
    let all: Vec<Vec<Expression>> = objects.iter().map(expressions).collect();
    assert!(all.iter().map(Vec::len).sum::<usize>() >= 40, "there are expressions to take out");

    // A manifest that two expressions refuse is taken without neither; so each speaks for one expression at most.
    let mut spoken: BTreeSet<usize> = BTreeSet::new();
    let mut silent = Vec::new();
    // One of every object at a time: each change takes the API server a second.
    for round in 0..all.iter().map(Vec::len).max().unwrap_or(0) {
        let mut waiting: Vec<(&str, &Expression)> = Vec::new();
        for (object, expressions) in objects.iter().zip(&all) {
            let Some(expression) = expressions.get(round) else { continue };
            let mut without = object.clone();
            *without.pointer_mut(&expression.pointer).unwrap() = Value::from("true");
            without["metadata"].as_object_mut().unwrap().retain(|key, _| key == "name");
            server.check(&["replace", "--filename=-"], &without.to_string()).unwrap();
            waiting.push((object["metadata"]["name"].as_str().unwrap(), expression));
        }
        let taken = eventually("manifests that are taken now", SOON, || {
            waiting.retain(|(_, expression)| {
                let speaks = (0..rejected.len()).find(|i| {
                    !spoken.contains(i)
                        && expression.refuses(&rejected[*i])
                        && takes(&server, &rejected[*i]).0
                });
                spoken.extend(speaks);
                speaks.is_none()
            });
            Ok(waiting.is_empty())
        });
        if taken.is_err() {
            silent.extend(waiting.iter().map(|(name, it)| format!("{name} {}: {}", it.pointer, it.message)));
        }
    }
    assert!(silent.is_empty(), "no golden manifest is refused by these alone:\n{}", silent.join("\n"));
}

const RULES: [(&str, &str); 3] = [
    (
        "accessrules.heddle.io",
        "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {name: tried, namespace: NAMESPACE}\n\
         spec: {action: Allow, podSelector: {}, ports: [80], from: [{serviceAccounts: [{name: client}]}]}\n",
    ),
    (
        "servers.policy.linkerd.io",
        "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: tried, namespace: NAMESPACE}\n\
         spec: {podSelector: {}, port: 80, proxyProtocol: opaque}\n",
    ),
    (
        "meshtlsauthentications.policy.linkerd.io",
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {name: tried, namespace: NAMESPACE}\n\
         spec: {identities: ['*']}\n",
    ),
];
/// What is no tenant's to write.
const WHOLE: [(&str, &str); 2] = [
    (
        "clusteraccessrules.heddle.io",
        "apiVersion: heddle.io/v1alpha1\nkind: ClusterAccessRule\nmetadata: {name: tried}\n\
         spec: {action: Deny, namespaceSelector: {}, podSelector: {}, ports: [80], from: [{serviceAccounts: [{name: client, namespace: shop}]}]}\n",
    ),
    (
        "externalworkloads.workload.linkerd.io",
        "apiVersion: workload.linkerd.io/v1beta1\nkind: ExternalWorkload\nmetadata: {name: tried, namespace: shop}\n\
         spec: {meshTLS: {identity: 'spiffe://cluster.local/vm', serverName: vm.example}, workloadIPs: [{ip: 192.0.2.1}]}\n",
    ),
];

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn a_tenant_edits_the_rules_of_its_own_namespace_and_nothing_else() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    define(&server);
    // Every manifest, roles among them: what the chart renders is sound to an API server.
    must(&server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/kubernetes/heddle.yaml")]);
    must(&server, &["create", "namespace", "bank"]);
    let of = |role: &str| format!("--clusterrole=heddle-{role}");
    must(&server, &["create", "rolebinding", "t", "-n", "shop", &of("tenant-editor"), "--user=tenant"]);
    must(&server, &["create", "clusterrolebinding", "v", &of("viewer"), "--user=viewer"]);
    must(&server, &["create", "clusterrolebinding", "s", &of("security-admin"), "--user=security"]);

    let run = |user: &str, words: &[&str], input: &str| {
        let user = format!("--as={user}");
        let all: Vec<&str> = [&*user].into_iter().chain(words.iter().copied()).collect();
        let out = server.kubectl(&all, input).unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        // Whatever else it says would be a mistake of the test.
        assert!(out.status.success() || said.contains("forbidden"), "{user} {words:?}: {said}");
        out.status.success()
    };
    let create =
        |user: &str, manifest: &str| run(user, &["create", "--dry-run=server", "--filename=-"], manifest);
    let own = |manifest: &str| manifest.replace("NAMESPACE", "shop");
    // Roles come into force a moment after they are written.
    for user in ["tenant", "security"] {
        eventually("a role in force", PATIENCE, || Ok(create(user, &own(RULES[0].1)))).unwrap();
    }
    eventually("a role in force", PATIENCE, || Ok(run("viewer", &["get", WHOLE[0].0], ""))).unwrap();
    for (resource, manifest) in RULES {
        let (own, other) = (own(manifest), manifest.replace("NAMESPACE", "bank"));
        assert!(create("tenant", &own), "{own}");
        assert!(!create("tenant", &other), "{other}");
        assert!(create("security", &own) && create("security", &other), "{resource}");
        assert!(!create("viewer", &own), "{resource}");
        assert!(run("viewer", &["get", resource, "--all-namespaces"], ""), "{resource}");
        assert!(run("tenant", &["get", resource, "-n", "shop"], ""), "{resource}");
        assert!(!run("tenant", &["get", resource, "-n", "bank"], ""), "{resource}");
        assert!(!run("tenant", &["get", resource, "--all-namespaces"], ""), "{resource}");
    }
    for (resource, manifest) in WHOLE {
        assert!(!create("tenant", manifest) && !create("viewer", manifest), "{resource}");
        assert!(create("security", manifest), "{resource}");
    }
    let (_, denies) = WHOLE[0];
    assert!(server.kubectl(&["create", "--filename=-"], denies).unwrap().status.success());
    assert!(!run("tenant", &["delete", "clusteraccessrule", "tried"], ""), "a tenant lifts a rule of all");
    for user in ["tenant", "viewer", "security"] {
        let leave = &["annotate", "namespace", "shop", "heddle.io/mesh=disabled"];
        assert!(!run(user, leave, ""), "{user}: whoever edits rules takes no namespace out of the mesh");
        assert!(!run(user, &["get", "secrets", "-n", "heddle-system"], ""), "{user}");
        assert!(!run(user, &["get", "secrets", "-n", "shop"], ""), "{user}");
    }
    let widen = &["create", "clusterrolebinding", "more", &of("security-admin"), "--user=tenant"];
    assert!(!run("tenant", widen, ""), "a tenant gives itself more");
    assert!(run("security", &["delete", "clusteraccessrule", "tried"], ""));
}

const REQUIRED: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: vault, annotations: {heddle.io/mesh: required}}}";

fn pod(namespace: &str, annotations: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: tried, namespace: {namespace}, annotations: {{{annotations}}}}}, \
         spec: {{{spec}}}}}"
    )
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn where_the_mesh_is_required_nobody_leaves_it_and_no_pod_owns_the_node() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    must(&server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/kubernetes/heddle.yaml")]);
    server.check(&["create", "--filename=-"], REQUIRED).unwrap();
    must(&server, &["create", "namespace", "shop"]);
    // A tenant to whom its namespace is as good as its own.
    let everything = ["create", "clusterrole", "owner", "--verb=*", "--resource=namespaces,pods"];
    must(&server, &everything);
    must(&server, &["create", "clusterrolebinding", "t", "--clusterrole=owner", "--user=tenant"]);
    must(&server, &["create", "clusterrolebinding", "o", "--clusterrole=owner", "--user=officer"]);
    let admin = "--clusterrole=heddle-security-admin";
    must(&server, &["create", "clusterrolebinding", "s", admin, "--user=officer"]);

    let annotate = |user: &str, namespace: &str, mesh: &str| {
        let user = format!("--as={user}");
        let words =
            [&*user, "annotate", "--overwrite", "--dry-run=server", "namespace", namespace, mesh].to_vec();
        let out = server.kubectl(&words, "").unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let create = |manifest: &str| {
        let words = ["--as=tenant", "create", "--dry-run=server", "--filename=-"];
        let out = server.kubectl(&words, manifest).unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let simple = "containers: [{name: c, image: i}]";
    let refused = |what: &str, because: &str, ask: &dyn Fn() -> (bool, String)| {
        let mut said = String::new();
        let seen = eventually("a refusal", PATIENCE, || {
            let (taken, what) = ask();
            said = what;
            Ok(!taken && said.contains(because))
        });
        assert!(seen.is_ok(), "{what} is not refused because of {because:?}: {said}");
    };
    for mesh in ["heddle.io/mesh=disabled", "heddle.io/mesh=enabled", "heddle.io/mesh-"] {
        refused(mesh, "the verb leave", &|| annotate("tenant", "vault", mesh));
        assert!(annotate("tenant", "shop", mesh).0, "control: {mesh} where it is not required");
        let (taken, said) = annotate("officer", "vault", mesh);
        assert!(taken, "who may: {said}");
    }
    assert!(annotate("tenant", "vault", "team=blue").0, "control: anything else");

    for (annotations, spec, because) in [
        ("heddle.io/mesh: disabled", simple, "cannot be annotated"),
        ("", "hostNetwork: true, containers: [{name: c, image: i}]", "host's network"),
        ("", "hostPID: true, containers: [{name: c, image: i}]", "pid or ipc"),
        ("", "containers: [{name: c, image: i, securityContext: {privileged: true}}]", "privileged"),
        (
            "",
            "containers: [{name: c, image: i}], \
             initContainers: [{name: d, image: i, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]",
            "CAP_SYS_ADMIN",
        ),
        ("", "containers: [{name: c, image: i}], volumes: [{name: v, hostPath: {path: /}}]", "hostPath"),
        ("", "containers: [{name: c, image: i}], volumes: [{name: v, hostPath: {path: /var}}]", "hostPath"),
        (
            "",
            "containers: [{name: c, image: i}], volumes: [{name: v, hostPath: {path: //sys/fs/bpf}}]",
            "hostPath",
        ),
        (
            "",
            "containers: [{name: c, image: i}], volumes: [{name: v, hostPath: {path: /run/containerd/containerd.sock}}]",
            "hostPath",
        ),
    ] {
        let bad = pod("vault", annotations, spec);
        refused(&bad, because, &|| create(&bad));
        let elsewhere = pod("shop", annotations, spec);
        let (taken, said) = create(&elsewhere);
        assert!(taken, "control: where the mesh is not required: {elsewhere}: {said}");
    }
    for (annotations, spec) in [
        ("", simple),
        ("heddle.io/mesh: enabled", simple),
        ("", "containers: [{name: c, image: i, securityContext: {capabilities: {add: [NET_RAW]}}}]"),
        ("", "containers: [{name: c, image: i}], volumes: [{name: v, hostPath: {path: /srv/data}}]"),
        ("", "containers: [{name: c, image: i}], volumes: [{name: v, emptyDir: {}}]"),
    ] {
        let good = pod("vault", annotations, spec);
        let (taken, said) = create(&good);
        assert!(taken, "control: {good}: {said}");
    }
    // What runs already may go on to end.
    server.check(&["create", "--filename=-"], &pod("vault", "", simple)).unwrap();
    must(&server, &["label", "pod", "tried", "-n", "vault", "team=blue"]);
    must(&server, &["delete", "pod", "tried", "-n", "vault", "--wait=false"]);
}

/// Every verb that an account has on a resource beyond reading, but for what anybody may ask of itself.
fn writes(server: &ApiServer, account: &str, namespace: &str) -> Vec<String> {
    let user = format!("--as=system:serviceaccount:heddle-system:{account}");
    let words = ["auth", "can-i", "--list", "--no-headers", &user, "--as-group=system:serviceaccounts"];
    let all: Vec<&str> =
        words.into_iter().chain(["--as-group=system:authenticated", "--namespace", namespace]).collect();
    let told = server.check(&all, "").unwrap();
    let mut found = Vec::new();
    for line in told.lines() {
        // RESOURCE, [PATHS], [NAMES], [VERBS]
        let (rest, verbs) = line.trim_end().rsplit_once('[').unwrap();
        let verbs = verbs.trim_end_matches(']').split(' ');
        let what = rest.split_whitespace().collect::<Vec<_>>().join(" ").replace(" [] []", "");
        let anybody = ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
        if anybody.iter().any(|it| what.starts_with(it)) {
            continue;
        }
        assert!(!what.starts_with("secrets") && !what.starts_with('*'), "{account}: {line}");
        let beyond = verbs.filter(|verb| !["get", "list", "watch"].contains(verb));
        found.extend(beyond.map(|verb| format!("{verb} {what}")));
    }
    assert!(told.contains("pods"), "control: {account} reads something: {told}");
    found.sort();
    found
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn no_account_of_heddles_writes_more_than_it_must_and_none_reads_a_secret() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    must(&server, &["apply", "--server-side", &format!("--filename={ROOT}/deploy/kubernetes/heddle.yaml")]);
    let controller = [
        "create events.events.k8s.io",
        "patch accessrules.heddle.io/status",
        "patch clusteraccessrules.heddle.io/status",
    ];
    let mut at_home = controller.to_vec();
    at_home.extend([
        "create leases.coordination.k8s.io",
        "update leases.coordination.k8s.io [] [heddle-controller]",
    ]);
    at_home.sort_unstable();
    // Roles come into force a moment after they are written.
    eventually(
        "the roles",
        PATIENCE,
        || Ok(writes(&server, "heddle-controller", "heddle-system") == at_home),
    )
    .unwrap_or_else(|error| panic!("{error}: {:?}", writes(&server, "heddle-controller", "heddle-system")));
    assert_eq!(writes(&server, "heddle-controller", "shop"), controller);
    for namespace in ["heddle-system", "kube-system", "shop"] {
        // An agent writes nothing at all, so that nothing of it needs to be bound to its node.
        assert_eq!(writes(&server, "heddle-agent", namespace), Vec::<String>::new(), "{namespace}");
        // Of a token it asks whose it is.
        assert_eq!(writes(&server, "heddle-ca", namespace), ["create tokenreviews.authentication.k8s.io"]);
    }
}
