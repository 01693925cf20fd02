//! `heddle policy` over a cluster: each command asks a real kube-apiserver.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use xtask::api_server::ApiServer;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: redis, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: stranger, namespace: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-7d9f-x2x4z, namespace: shop, labels: {app: web, pod-template-hash: 7d9f}},
 spec: {serviceAccountName: web, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: redis-0, namespace: shop, labels: {app: redis, apps.kubernetes.io/pod-index: '0'}},
 spec: {serviceAccountName: redis, containers: [{name: c, image: i, ports: [{name: redis, containerPort: 6379}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: shop, labels: {app: stranger}},
 spec: {serviceAccountName: stranger, containers: [{name: c, image: i}]}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: redis, namespace: shop},
 spec: {podSelector: {matchLabels: {app: redis}}, port: redis, proxyProtocol: opaque}}
---
";
const POLICY: &str = "
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: allow-web, namespace: shop},
 spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: redis}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: web}]}}
";
/// A rule that names another trust domain's account.
const FAR: &str = "
---
{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: far, namespace: shop},
 spec: {action: Deny, podSelector: {matchLabels: {app: redis}}, from: [{identities: [spiffe://east.example/ns/shop/sa/web]}]}}
";
/// The stranger reached the database, as long as nobody minded.
const FLOW: &str = r#"{"version":1,"node":"a","first":"2026-11-22T05:00:00Z","last":"2026-11-22T05:00:00Z","count":3,"protocol":"tcp","source":{"address":"10.1.0.3","pod":"shop/stranger","workload":"shop/stranger","identity":"stranger.shop.serviceaccount.identity.linkerd.cluster.local"},"destination":{"address":"10.1.0.2","port":6379,"pod":"shop/redis-0","workload":"shop/redis"},"outcome":"allowed","reason":"authorized","audit":"unauthorized"}"#;

struct Asked<'a> {
    server: &'a ApiServer,
    whole: &'a Path,
}

impl Asked<'_> {
    fn by(&self, kubeconfig: &Path, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_heddle"))
            .current_dir(self.server.folder())
            .arg("policy")
            .args(words)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .env_remove("HEDDLE_CONFIG")
            .env_remove("HEDDLE_SOCKET")
            .env_remove("COLUMNS")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ends(&self, words: &[&str], code: i32, parts: &[&str]) -> String {
        let out = self.by(self.whole, words);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let all = format!("{said}\n{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{words:?}: {all}");
        parts.iter().for_each(|part| assert!(all.contains(part), "{words:?}: {part:?} is not in {all}"));
        said
    }
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn each_command_asks_the_api_server_and_answers_as_over_a_folder() {
    let Some(server) = ApiServer::start().unwrap() else { return };
    for folder in ["deploy/crds", "deploy/crds/linkerd"] {
        server.check(&["apply", "--server-side", &format!("--filename={ROOT}/{folder}")], "").unwrap();
    }
    server.check(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"], "").unwrap();
    server.check(&["apply", "--server-side", "--filename=-"], &format!("{SHOP}{POLICY}")).unwrap();
    let whole = server.kubeconfig(None).unwrap();
    let asked = Asked { server: &server, whole: &whole };
    let write = |name: &str, text: &str| {
        let path = server.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let assertion = |from: &str| {
        format!(
            "tests:\n- {{from: shop/{from}, to: 'shop/redis:6379', expect: allowed, rule: AuthorizationPolicy shop/allow-web}}\n"
        )
    };
    write("good.yaml", &assertion("web"));
    write("bad.yaml", &assertion("stranger"));
    write("flows.jsonl", &format!("{FLOW}\n"));
    write("same/shop.yaml", &format!("{SHOP}{POLICY}"));
    write("closed/shop.yaml", SHOP);

    let (web, stranger) = (
        ["--from", "shop/web", "--to", "shop/redis:6379"],
        ["--from", "shop/stranger", "--to", "shop/redis:6379"],
    );
    let with = |first: &str, more: &[&str]| -> Vec<String> {
        [first].iter().chain(more).chain(&["--cluster"]).map(|it| (*it).to_owned()).collect()
    };
    let ends = |all: Vec<String>, code: i32, parts: &[&str]| {
        asked.ends(&all.iter().map(String::as_str).collect::<Vec<_>>(), code, parts)
    };
    ends(with("explain", &web), 0, &["ALLOWED", "AuthorizationPolicy shop/allow-web"]);
    ends(with("explain", &stranger), 0, &["REFUSED"]);
    let matrix = ends(with("matrix", &["--output", "csv"]), 0, &["from,to,port,verdict,reason,rule"]);
    let row = |from: &str| {
        matrix.lines().find(|it| it.starts_with(&format!("{from},shop/redis")) && it.contains("6379"))
    };
    assert!(row("shop/web").is_some_and(|it| it.contains("allowed") && it.contains("allow-web")), "{matrix}");
    assert!(row("shop/stranger").is_some_and(|it| it.contains("refused")), "{matrix}");
    ends(with("test", &["good.yaml"]), 0, &["1 hold, 0 do not"]);
    ends(with("test", &["bad.yaml"]), 1, &["FAILED bad.yaml:2"]);
    let suggested =
        ends(with("suggest", &["--observed", "flows.jsonl"]), 0, &["stranger", "AuthorizationPolicy"]);

    asked.ends(&["diff", "same", "cluster:"], 0, &["no flow is newly allowed or refused"]);
    asked.ends(&["diff", "cluster:", "closed"], 0, &["newly refused: 1 flow in 1 group"]);
    asked.ends(&["diff", "closed", "cluster:"], 0, &["newly allowed: 1 flow in 1 group"]);
    let happened = ["diff", "closed", "cluster:", "--observed", "flows.jsonl"];
    asked.ends(&happened, 1, &["HAPPENED AND WOULD BE REFUSED"]);
    server.check(&["apply", "--server-side", "--filename=-"], &suggested).unwrap();
    asked.ends(&happened, 0, &["0 would be refused"]);
    ends(with("explain", &stranger), 0, &["ALLOWED"]);

    // Which trust domains are federated, the cluster tells as well.
    server.check(&["apply", "--server-side", "--filename=-"], FAR).unwrap();
    ends(with("check", &["--deny-warnings"]), 1, &["east.example/ns/shop/sa/web", "none that is federated"]);
    server.check(&["create", "namespace", "heddle-system"], "").unwrap();
    let bundle = "--from-literal=east.example.pem=x";
    server
        .check(&["create", "configmap", "heddle-federation", "--namespace=heddle-system", bundle], "")
        .unwrap();
    ends(with("check", &["--deny-warnings"]), 0, &["0 errors, 0 warnings"]);

    // Whoever may not read everything is told so, and gets no answer about a part.
    let nobody = server.kubeconfig(Some("nobody")).unwrap();
    for words in [
        with("explain", &web),
        with("matrix", &[]),
        with("test", &["good.yaml"]),
        with("suggest", &["--observed", "flows.jsonl"]),
    ] {
        let out = asked.by(&nobody, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(2) && said.contains("forbidden"), "{words:?}: {said}");
    }
}
