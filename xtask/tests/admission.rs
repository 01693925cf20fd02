//! What an API server takes and what it refuses, by a real kube-apiserver and etcd: the CRDs of `deploy/crds` and the
//! policies of `deploy/admission` are put into it, and every golden manifest is shown to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env, fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use xtask::lab::eventually;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const TOKEN: &str = "of-a-server-that-lives-for-one-test";
/// Patience with a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// An API server of its own on this machine's loopback, gone with this value.
struct ApiServer {
    folder: tempfile::TempDir,
    kubectl: PathBuf,
    port: u16,
    children: Vec<Child>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the newest Kubernetes in the cache is, and etcd: `cargo xtask cluster` puts them there.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    let folder = cache.join("heddle/kubernetes");
    let versions = fs::read_dir(&folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let kubernetes = versions.filter(|it| it.join("kube-apiserver").exists()).max()?;
    let etcd = [folder.join("debian/usr/bin/etcd"), PathBuf::from("/usr/bin/etcd")];
    Some((kubernetes, etcd.into_iter().find(|it| it.exists())?))
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl ApiServer {
    fn start(kubernetes: &Path, etcd: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(at("accounts.key"), key.serialize_pem()).unwrap();
        fs::write(at("accounts.pub"), key.public_key_pem()).unwrap();
        fs::write(at("tokens.csv"), format!("{TOKEN},test,test,system:masters\n")).unwrap();
        let (port, client, peer) = (free_port(), free_port(), free_port());
        let run = |program: &Path, log: &str, arguments: &[String]| {
            let log = fs::File::create(at(log)).unwrap();
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        };
        let etcd = run(
            etcd,
            "etcd.log",
            &[
                format!("--data-dir={}", at("etcd").display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        );
        let api = run(
            &kubernetes.join("kube-apiserver"),
            "api.log",
            &[
                format!("--etcd-servers=http://127.0.0.1:{client}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", at("certificates").display()),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("accounts.pub").display()),
                format!("--service-account-signing-key-file={}", at("accounts.key").display()),
                format!("--token-auth-file={}", at("tokens.csv").display()),
                "--authorization-mode=RBAC".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                // No controller makes the accounts that pods are given.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ],
        );
        let it = Self { kubectl: kubernetes.join("kubectl"), port, children: vec![etcd, api], folder };
        let ready = || Ok(it.kubectl(&["get", "--raw", "/readyz"], "").status.success());
        if let Err(error) = eventually("an API server that is ready", PATIENCE, ready) {
            let log = fs::read_to_string(it.folder.path().join("api.log")).unwrap_or_default();
            panic!("{error}: {}", log.lines().last().unwrap_or_default());
        }
        it
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(&self.kubectl)
            .arg(format!("--server=https://127.0.0.1:{}", self.port))
            .args(["--insecure-skip-tls-verify", "--token", TOKEN])
            .args(arguments)
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn must(&self, arguments: &[&str]) {
        let out = self.kubectl(arguments, "");
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Whether it would take a manifest, and what it says.
    fn takes(&self, manifest: &str) -> (bool, String) {
        let out = self.kubectl(&["create", "--dry-run=server", "--filename=-"], manifest);
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

fn golden(name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("{ROOT}/deploy/admission/golden/{name}.yaml")).unwrap();
    text.split("\n---\n").map(str::to_owned).collect()
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn an_api_server_takes_what_is_sound_and_refuses_the_rest() {
    let Some((kubernetes, etcd)) = programs() else {
        println!("not applicable: there is no kube-apiserver or no etcd in ~/.cache/heddle/kubernetes");
        return;
    };
    let server = ApiServer::start(&kubernetes, &etcd);
    for folder in ["crds", "crds/linkerd"] {
        let folder = format!("--filename={ROOT}/deploy/{folder}");
        server.must(&["apply", "--server-side", &folder]);
    }
    server.must(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]);
    server.must(&["create", "namespace", "shop"]);

    let rejected = golden("rejected");
    assert!(rejected.len() >= 40);
    let because = |manifest: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix("# refused: "));
        line.unwrap_or_else(|| panic!("no reason: {manifest}")).to_owned()
    };
    // Schemas alone do not know what the policies know.
    let taken = rejected.iter().filter(|manifest| server.takes(manifest).0).count();
    assert!(taken >= 15, "the policies would make no difference: {taken}");

    server.must(&["apply", "--server-side", &format!("--filename={ROOT}/deploy/admission")]);
    for manifest in &rejected {
        let mut said = String::new();
        // Policies come into force one after the other.
        let refused = eventually("a refusal", PATIENCE, || {
            let (taken, what) = server.takes(manifest);
            said = what;
            Ok(!taken && said.contains(&because(manifest)))
        });
        assert!(refused.is_ok(), "{manifest}\nis not refused as it should be: {said}");
    }
    for manifest in golden("accepted") {
        let (taken, said) = server.takes(&manifest);
        assert!(taken, "{manifest}\nis refused: {said}");
    }
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
    let Some((kubernetes, etcd)) = programs() else {
        println!("not applicable: there is no kube-apiserver or no etcd in ~/.cache/heddle/kubernetes");
        return;
    };
    let server = ApiServer::start(&kubernetes, &etcd);
    for folder in ["crds", "crds/linkerd"] {
        server.must(&["apply", "--server-side", &format!("--filename={ROOT}/deploy/{folder}")]);
    }
    server.must(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]);
    // Every manifest, roles among them: what the chart renders is sound to an API server.
    server.must(&["apply", "--server-side", &format!("--filename={ROOT}/deploy/kubernetes/heddle.yaml")]);
    for namespace in ["shop", "bank"] {
        server.must(&["create", "namespace", namespace]);
    }
    let of = |role: &str| format!("--clusterrole=heddle-{role}");
    server.must(&["create", "rolebinding", "t", "-n", "shop", &of("tenant-editor"), "--user=tenant"]);
    server.must(&["create", "clusterrolebinding", "v", &of("viewer"), "--user=viewer"]);
    server.must(&["create", "clusterrolebinding", "s", &of("security-admin"), "--user=security"]);

    let run = |user: &str, words: &[&str], input: &str| {
        let user = format!("--as={user}");
        let all: Vec<&str> = [&*user].into_iter().chain(words.iter().copied()).collect();
        let out = server.kubectl(&all, input);
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
    assert!(server.kubectl(&["create", "--filename=-"], denies).status.success());
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
