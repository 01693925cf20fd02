//! What Heddle does at an API server: a real kube-apiserver and etcd, without nodes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};
use xtask::{api_server::ApiServer, chart, lab::eventually};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle");
/// Patience with a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const SYSTEM: &str = "--namespace=heddle-system";

fn heddle(kubeconfig: &Path, words: &[&str]) -> Output {
    Command::new(HEDDLE).args(words).arg("--kubeconfig").arg(kubeconfig).output().unwrap()
}

fn all(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

fn json(server: &ApiServer, words: &[&str]) -> Value {
    let words: Vec<&str> =
        ["get", "--output=json", "--show-managed-fields"].iter().chain(words).copied().collect();
    serde_json::from_str(&server.check(&words, "").unwrap()).unwrap()
}

fn there(server: &ApiServer, words: &[&str]) -> bool {
    let words: Vec<&str> =
        ["get", "--ignore-not-found", "--output=name"].iter().chain(words).copied().collect();
    !server.check(&words, "").unwrap().is_empty()
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn it_is_installed_changed_and_removed_and_what_is_another_s_stays_as_it_is() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    let config = server.kubeconfig(None).unwrap();
    let run = |words: &[&str]| {
        let out = heddle(&config, words);
        (out.status.code(), all(&out))
    };
    let seen = |(code, said): (Option<i32>, String), expected: i32, parts: &[&str]| {
        // Lines are wrapped for the terminal.
        let flat = said.split_whitespace().filter(|it| *it != "│").collect::<Vec<_>>().join(" ");
        assert_eq!(code, Some(expected), "{said}");
        parts.iter().for_each(|part| assert!(flat.contains(part), "{part:?} is not in {said}"));
    };

    // A kind of another release's, and not as ours is.
    let foreign =
        fs::read_to_string(format!("{ROOT}/deploy/crds/linkerd/servers.policy.linkerd.io.yaml")).unwrap();
    let foreign = foreign.replace("shortNames: [srv]", "shortNames: [theirs]");
    assert!(foreign.contains("theirs"));
    let theirs = ["apply", "--server-side", "--field-manager=linkerd", "--filename=-"];
    server.check(&theirs, &foreign).unwrap();
    let version = || {
        let crd = json(&server, &["crd", "servers.policy.linkerd.io"]);
        let managers: Vec<String> = crd["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["manager"].as_str().unwrap().to_owned())
            .collect();
        assert!(!managers.contains(&"heddle".to_owned()), "{managers:?}");
        (crd["metadata"]["generation"].clone(), crd["spec"].clone())
    };
    let before = version();

    // Nothing is done where something is in the way.
    let missing = ["Secret heddle-system/heddle-issuer", "heddle-trust-roots", "--issuer"];
    seen(run(&["install", "--timeout=0s"]), 2, &missing);
    seen(run(&["upgrade"]), 2, &["nothing is installed"]);
    seen(run(&["uninstall"]), 2, &["nothing was installed"]);
    let keys = server.folder().join("keys");
    let folder = |name: &str| keys.join(name).display().to_string();
    let (root, issuer) = (folder("root"), folder("issuer"));
    for words in [
        &["ca", "init", "--directory", &root][..],
        &["ca", "issuer", "--root", &root, "--directory", &issuer],
    ] {
        assert!(Command::new(HEDDLE).args(words).status().unwrap().success());
    }
    let values = server.folder().join("values.yaml");
    let write = |text: &str| {
        fs::write(&values, text).unwrap();
        values.display().to_string()
    };
    let file = write("agent: {config: {serviceNetworks: [172.16.0.0/16]}}");
    let install = ["install", "--timeout=0s", "--issuer", &issuer, "--values", &file];
    seen(run(&install), 2, &["10.96.0.1", "serviceNetworks"]);
    write("agents: {}");
    seen(run(&install), 2, &["agents"]);
    write("agent: {config: {defaultOutbound: sometimes}}");
    seen(run(&install), 2, &["defaultOutbound"]);
    assert!(!there(&server, &["namespace", "heddle-system"]), "something was made");

    write("ca: {replicas: 3}");
    let dry: Vec<&str> = install.into_iter().chain(["--dry-run"]).collect();
    seen(run(&dry), 0, &["DaemonSet heddle-system/heddle would be made", "nothing was changed"]);
    assert!(!there(&server, &["namespace", "heddle-system"]), "something was made");
    let left = "servers.policy.linkerd.io is of linkerd: left as it is";
    seen(run(&install), 0, &[left, "DaemonSet heddle-system/heddle made", "installed"]);
    assert_eq!(version(), before);
    seen(run(&install), 2, &["installed already", "upgrade"]);
    let replicas = || json(&server, &[SYSTEM, "deployment", "heddle-ca"])["spec"]["replicas"].clone();
    assert_eq!(replicas(), 3);
    let secret = json(&server, &[SYSTEM, "secret", "heddle-issuer"]);
    assert_eq!(secret["data"].as_object().unwrap().len(), 3);

    // The values of before hold; what is gone from them is removed.
    seen(run(&["upgrade", "--timeout=0s"]), 0, &["DaemonSet heddle-system/heddle kept"]);
    assert_eq!(replicas(), 3);
    write("controller: {replicas: 0}");
    let upgrade = ["upgrade", "--timeout=0s", "--values", &file];
    seen(run(&upgrade), 0, &["Deployment heddle-system/heddle-controller removed"]);
    assert!(!there(&server, &[SYSTEM, "deployment", "heddle-controller"]));
    assert!(there(&server, &[SYSTEM, "deployment", "heddle-ca"]), "control");
    assert_eq!(replicas(), 2);

    // Somebody's own object of the same name is not taken over.
    server.check(&[SYSTEM, "create", "serviceaccount", "heddle-controller"], "").unwrap();
    write("");
    seen(run(&upgrade), 2, &["ServiceAccount heddle-system/heddle-controller", "--adopt"]);
    let adopt: Vec<&str> = upgrade.into_iter().chain(["--adopt"]).collect();
    seen(run(&adopt), 0, &["Deployment heddle-system/heddle-controller made"]);

    let required =
        "{apiVersion: v1, kind: Namespace, metadata: {name: vault, annotations: {heddle.io/mesh: required}}}";
    server.check(&["create", "--filename=-"], required).unwrap();
    seen(run(&["uninstall", "--kinds"]), 2, &["vault", "--even-where-required"]);
    let remove = ["uninstall", "--kinds", "--even-where-required"];
    let dry: Vec<&str> = remove.into_iter().chain(["--dry-run"]).collect();
    seen(run(&dry), 0, &["would be removed", "nothing was changed"]);
    assert!(there(&server, &[SYSTEM, "daemonset", "heddle"]));
    seen(run(&remove), 0, &["DaemonSet heddle-system/heddle removed", "uninstalled"]);
    for gone in [
        &[SYSTEM, "serviceaccount", "heddle-agent"][..],
        &["clusterrole", "heddle-agent"],
        &["validatingadmissionpolicy", "required-pods.heddle.io"],
        &["crd", "accessrules.heddle.io"],
        &["crd", "authorizationpolicies.policy.linkerd.io"],
    ] {
        eventually("it to be gone", PATIENCE, || Ok(!there(&server, gone)))
            .unwrap_or_else(|error| panic!("{error}: {gone:?}"));
    }
    assert!(!there(&server, &[SYSTEM, "daemonset", "heddle"]));
    assert_eq!(version(), before, "another's stays as it is");
    assert!(there(&server, &[SYSTEM, "secret", "heddle-issuer"]), "the keys stay");
}

/// The objects of manifests, without what Helm and `heddle install` each mark theirs by.
fn objects(text: &str) -> std::collections::BTreeMap<String, Value> {
    let documents = heddle_policy::resources::read_documents("", text);
    let named = documents.into_iter().map(|it| {
        let mut object = it.value;
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = [text("/kind"), text("/metadata/namespace"), text("/metadata/name")].join(" ");
        let metadata = object["metadata"].as_object_mut().unwrap();
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("app.kubernetes.io/managed-by");
            if labels.is_empty() {
                metadata.remove("labels");
            }
        }
        if let Some(mark) = object.pointer_mut("/spec/template/metadata/annotations/heddle.io~1configuration")
        {
            *mark = "a mark of the configuration".into();
        }
        if let Some(text) = object.pointer("/data/heddle.yaml").and_then(Value::as_str) {
            let config = heddle_policy::resources::read_documents("", text).pop().unwrap().value;
            object["data"]["heddle.yaml"] = config;
        }
        (name, object)
    });
    named.collect()
}

#[test]
#[ignore = "runs helm, which `cargo xtask cluster` builds"]
fn what_is_installed_without_helm_is_what_helm_installs() {
    let Some(helm) = chart::installed() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    let name = file.display().to_string();
    let config =
        "podNetworks: [10.1.0.0/16, 10.2.0.0/16], handOver: {drainSeconds: 9}, cni: {exempt: [kube-system]}";
    for values in [
        "{}",
        "{crds: false, admission: false, roles: false}",
        "{image: {repository: registry.example/heddle, tag: '2', pullPolicy: Always}}",
        &format!("{{agent: {{hostCgroup: /run/cgroup, priorityClassName: mine, config: {{{config}}}}}}}"),
        "{agent: {federationConfigMap: others, config: {workloadApi: /run/heddle-workloads}}}",
        "{agent: {resources: {requests: {memory: 1Gi}, limits: {cpu: '2'}}}}",
        "{ca: {replicas: 3, priorityClassName: mine, networkPolicy: false, resources: {requests: {cpu: 20m}}}}",
        "{agent: {config: {trustDomain: east.example, identityNamespace: mesh}}}",
        "{controller: {replicas: 0}}",
        "{controller: {replicas: 1, networkPolicy: false, resources: {limits: {memory: 1Gi}}}}",
    ] {
        fs::write(&file, values).unwrap();
        let by_helm = chart::render(&helm, Path::new(ROOT), &["--values", &name]).unwrap();
        let words = ["install", "--print-manifests", "--values", &name];
        let own = Command::new(HEDDLE).args(words).output().unwrap();
        assert!(own.status.success(), "{values}: {}", all(&own));
        let (helms, own) = (objects(&by_helm), objects(&String::from_utf8(own.stdout).unwrap()));
        assert!(helms.len() > 15, "{values}: {:?}", helms.keys());
        assert_eq!(helms.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>(), "{values}");
        for (name, object) in &helms {
            assert_eq!(own.get(name), Some(object), "{values}: {name}");
        }
    }
}

/// A controller, gone with this value.
struct Replica(Child);

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ACCOUNT: &str = "system:serviceaccount:heddle-system:heddle-controller";

const RULES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {serviceAccountName: web, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}}
---
{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: sound, namespace: shop},
 spec: {action: Allow, podSelector: {matchLabels: {app: web}}, ports: [80], from: [{serviceAccounts: [{name: web}]}]}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: web, namespace: shop},
 spec: {podSelector: {matchLabels: {app: web}}, port: http, proxyProtocol: opaque}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: dangling, namespace: shop},
 spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: nowhere},
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: nobody}]}}
";

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn what_a_rule_lacks_is_told_on_its_object_by_one_of_two_controllers() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    for file in ["deploy/kubernetes/heddle.yaml", "deploy/crds/linkerd"] {
        server.check(&["apply", "--server-side", &format!("--filename={ROOT}/{file}")], "").unwrap();
    }
    server.check(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"], "").unwrap();
    server.check(&["apply", "--server-side", "--filename=-"], RULES).unwrap();

    // What a person is told, and with which exit code.
    let whole = server.kubeconfig(None).unwrap();
    let check = |more: &[&str]| {
        let words: Vec<&str> = ["policy", "check", "--cluster"].iter().chain(more).copied().collect();
        heddle(&whole, &words)
    };
    let out = check(&["--output=json"]);
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", all(&out)));
    let problems = found["problems"].as_array().unwrap();
    let file = "authorizationpolicies.policy.linkerd.io/shop/dangling";
    let dangling: Vec<&Value> = problems.iter().filter(|it| it["file"] == file).collect();
    assert!(!dangling.is_empty(), "{found}");
    for problem in &dangling {
        let text = |field: &str| problem[field].as_str().unwrap();
        assert!(!text("field").is_empty() && !text("reason").is_empty(), "{problem}");
    }
    let errors = problems.iter().filter(|it| it["severity"] == "error").count();
    assert_eq!(out.status.code(), Some(i32::from(errors > 0)));
    assert_eq!(check(&["--deny-warnings"]).status.code(), Some(1));
    let none = heddle(&server.kubeconfig(Some("nobody")).unwrap(), &["policy", "check", "--cluster"]);
    assert_eq!(none.status.code(), Some(2), "{}", all(&none));
    assert!(all(&none).contains("forbidden"), "{}", all(&none));

    // Two replicas, with just what their account may.
    let own = server.kubeconfig(Some(ACCOUNT)).unwrap();
    let agents = json(&server, &[SYSTEM, "configmap", "heddle-agent"]);
    let config = server.folder().join("heddle.yaml");
    fs::write(&config, agents["data"]["heddle.yaml"].as_str().unwrap()).unwrap();
    let start = |name: &str| {
        let log = fs::File::create(server.folder().join(name)).unwrap();
        Command::new(HEDDLE)
            .args(["controller", "--instance", name, "--config"])
            .arg(&config)
            .arg("--kubeconfig")
            .arg(&own)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map(Replica)
            .unwrap()
    };
    let log = |name: &str| fs::read_to_string(server.folder().join(name)).unwrap();
    let mut first = start("first");
    let holder = || {
        let words = [
            SYSTEM,
            "get",
            "lease",
            "heddle-controller",
            "--ignore-not-found",
            "--output=jsonpath={.spec.holderIdentity}",
        ];
        server.check(&words, "").unwrap()
    };
    eventually("one to be elected", PATIENCE, || Ok(holder() == "first"))
        .unwrap_or_else(|error| panic!("{error}: {}", log("first")));
    let _second = start("second");

    let events = |name: &str| -> Vec<Value> {
        let all = json(&server, &["events.events.k8s.io", "-n", "shop"]);
        let all = all["items"].as_array().unwrap().iter();
        all.filter(|it| it["regarding"]["name"] == name).cloned().collect()
    };
    let warned = dangling.iter().filter(|it| it["severity"] != "note").count();
    eventually("Events", PATIENCE, || Ok(events("dangling").len() == warned))
        .unwrap_or_else(|error| panic!("{error}: {:?} {}", events("dangling"), log("first")));
    for event in events("dangling") {
        let note = event["note"].as_str().unwrap();
        let said = dangling.iter().any(|it| note.contains(it["reason"].as_str().unwrap()));
        assert!(said && event["reportingInstance"] == "first" && event["type"] == "Warning", "{event}");
    }
    assert!(events("sound").is_empty() && events("web").iter().all(|it| it["regarding"]["kind"] != "Server"));
    let condition = |name: &str| {
        let rule = json(&server, &["-n", "shop", "accessrule", name]);
        let it = rule["status"]["conditions"][0].clone();
        (
            it["status"].clone(),
            it["reason"].clone(),
            it["observedGeneration"] == rule["metadata"]["generation"],
        )
    };
    eventually("a condition", PATIENCE, || Ok(condition("sound").0 == "True")).unwrap();
    assert_eq!(condition("sound"), ("True".into(), "Accepted".into(), true));

    // Nothing is told again while nothing changes, nor by the other when it takes over.
    let generation = |name: &str| {
        json(&server, &["-n", "shop", "accessrule", name])["metadata"]["resourceVersion"].clone()
    };
    let untouched = generation("sound");
    let pid = rustix::process::Pid::from_child(&first.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(first.0.wait().unwrap().success());
    eventually("the other to be elected", PATIENCE, || Ok(holder() == "second")).unwrap();
    // It tells what is new from here on, so that it has looked at everything.
    // What admission would refuse is let in, as by an API server without it.
    server.check(&["delete", "validatingadmissionpolicybinding", "networks.heddle.io"], "").unwrap();
    let bad = "{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: bad, namespace: shop},
        spec: {action: Allow, podSelector: {}, ports: [80], from: [{networks: [{cidr: 10.0.0.300/8}]}]}}";
    let apply = ["apply", "--filename=-"];
    eventually("it to be let in", PATIENCE, || Ok(server.kubectl(&apply, bad)?.status.success())).unwrap();
    eventually("Events of the other", PATIENCE, || {
        Ok(events("bad").iter().any(|it| it["reportingInstance"] == "second" && it["reason"] == "NotInForce"))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", log("second")));
    eventually("a condition of the other", PATIENCE, || Ok(condition("bad").0 == "False"))
        .unwrap_or_else(|error| panic!("{error}: {:?}", condition("bad")));
    assert_eq!(condition("bad").1, "NotInForce");
    assert_eq!(events("dangling").len(), warned, "told once, whoever tells it");
    assert_eq!(generation("sound"), untouched, "nothing is written that is there already");

    // What is put right is told as right.
    server.check(&apply, &bad.replace("10.0.0.300/8", "10.0.0.0/8")).unwrap();
    eventually("the condition to follow", PATIENCE, || {
        Ok(condition("bad") == ("True".into(), "Accepted".into(), true))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {}", condition("bad"), log("second")));
    assert!(!log("second").contains("forbidden"), "{}", log("second"));
}
