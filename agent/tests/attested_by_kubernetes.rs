//! An agent proves itself by its service account's token, which a real API server reviews: a real kube-apiserver and etcd,
//! without nodes.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod peers;
    pub mod shop;
}

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use common::authority::{Asker, Asking};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic::Code;
use xtask::{api_server::ApiServer, lab::eventually};

const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle");
const AUDIENCE: &str = "--audience=ca.heddle.io";
/// The API server keeps what it knows of a token for ten seconds.
const SOON: Duration = Duration::from_secs(60);

/// What the authority may and no more, nodes, the agents' pods and the shop's.
const SCENE: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: Node, metadata: {name: node-a}}
- {apiVersion: v1, kind: Node, metadata: {name: node-b}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: heddle-ca, namespace: heddle-system}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: heddle-agent, namespace: heddle-system}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: client, namespace: shop}}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: heddle-ca}
  rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [""], resources: [pods], verbs: [list, watch]}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: heddle-ca}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: heddle-ca}
  subjects: [{kind: ServiceAccount, name: heddle-ca, namespace: heddle-system}]
"#;

fn pod(namespace: &str, name: &str, account: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "it", "image": "none"}]},
    })
    .to_string()
}

/// A token of an account, as `kubectl create token` makes it.
fn token(server: &ApiServer, namespace: &str, account: &str, more: &[&str]) -> Result<String> {
    let namespace = format!("--namespace={namespace}");
    let words = [&["create", "token", account, &namespace], more].concat();
    Ok(server.check(&words, "")?.trim().to_owned())
}

/// A token of an account's that is bound to a pod.
fn bound(server: &ApiServer, namespace: &str, account: &str, pod: &str, audience: &str) -> Result<String> {
    let name = format!("--bound-object-name={pod}");
    token(server, namespace, account, &[audience, "--bound-object-kind=Pod", &name])
}

/// The claims of a token, which nobody verifies here.
fn claims(token: &str) -> Result<Value> {
    Ok(jsonwebtoken::dangerous::insecure_decode::<Value>(token)?.claims)
}

/// A replica of the authority, gone with this value.
struct Authority(Child, std::path::PathBuf);

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Authority {
    fn serve(folder: &Path, kubeconfig: &Path, listen: SocketAddr) -> Result<Self> {
        let log = folder.join("authority.log");
        let file = std::fs::File::create(&log)?;
        let child = Command::new(HEDDLE)
            .args(["ca", "serve", "--kubernetes", "--log-format", "json", "--clock-skew", "1s", "--keys"])
            .arg(folder.join("issuer"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--listen", &listen.to_string()])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let it = Self(child, log);
        eventually("the authority to be ready", SOON, || Ok(it.log()?.contains("is ready")))
            .with_context(|| it.log().unwrap_or_default())?;
        Ok(it)
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.1)?)
    }

    /// How often the audit has this reason.
    fn recorded(&self, reason: &str) -> Result<usize> {
        let log = self.log()?;
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(records.filter(|it| it["target"] == "heddle::ca::audit" && it["reason"] == reason).count())
    }
}

#[test]
#[ignore = "starts a kube-apiserver and etcd, which `cargo xtask cluster` builds"]
fn what_a_real_api_server_says_of_a_token_is_what_counts() -> Result<()> {
    let Some(server) = ApiServer::start()? else { return Ok(()) };
    server.check(&["apply", "--filename=-"], SCENE)?;
    for (namespace, name, account, node) in [
        ("heddle-system", "agent-a", "heddle-agent", "node-a"),
        ("heddle-system", "agent-b", "heddle-agent", "node-b"),
        ("heddle-system", "other", "heddle-ca", "node-a"),
        ("shop", "client", "client", "node-a"),
    ] {
        server.check(&["create", "--filename=-"], &pod(namespace, name, account, node))?;
    }
    let folder = server.folder();
    let heddle = |words: &[&str]| -> Result<String> {
        let out = Command::new(HEDDLE).args(words).current_dir(folder).output()?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    };
    heddle(&["ca", "init", "--directory", "root"])?;
    heddle(&["ca", "issuer", "--root", "root", "--directory", "issuer"])?;
    heddle(&["ca", "agents-key", "--directory", "agents"])?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // With the rights of its own account, and no others.
    let kubeconfig = server.kubeconfig(Some("system:serviceaccount:heddle-system:heddle-ca"))?;
    let authority = Authority::serve(folder, &kubeconfig, listen)?;
    let asker = Asker::here(&folder.join("root/ca.crt"), listen);
    let agent = |pod: &str, audience: &str| bound(&server, "heddle-system", "heddle-agent", pod, audience);

    let own = agent("agent-a", AUDIENCE)?;
    let proper = |token: &str| Asking::properly(token, "node-a", "client");
    let issued = |token: &str| asker.ask(&proper(token)?);
    // The control for all that follows.
    eventually("the client to be certified", SOON, || Ok(issued(&own)?.is_ok()))?;

    // Of the server's own key, so that nothing but the one claim is wrong.
    let key = EncodingKey::from_ec_pem(&std::fs::read(folder.join("accounts.key"))?)?;
    let kid = jsonwebtoken::decode_header(&own)?.kid;
    let signed = |change: &dyn Fn(&mut Value)| -> Result<String> {
        let mut all = claims(&own)?;
        change(&mut all);
        Ok(encode(&Header { kid: kid.clone(), ..Header::new(Algorithm::ES256) }, &all, &key)?)
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    ensure!(issued(&signed(&|_| {})?)?.is_ok(), "control: signed anew, and nothing changed");
    let expired = signed(&|all| {
        for (claim, ago) in [("iat", 7200), ("nbf", 7200), ("exp", 600)] {
            all[claim] = json!(now - ago);
        }
    })?;
    let elsewhere = heddle(&["ca", "token", "--key", "agents/agents.key", "--node", "node-a"])?;
    let bearer = |token: String| -> Result<Asking> { proper(&token) };
    let far = agent("agent-b", AUDIENCE)?;
    let cases = [
        ("expired", bearer(expired)?, "token"),
        ("of another issuer", bearer(elsewhere)?, "token"),
        (
            "of another issuer's name",
            bearer(signed(&|all| all["iss"] = json!("https://elsewhere"))?)?,
            "token",
        ),
        ("for another audience", bearer(agent("agent-a", "--audience=elsewhere")?)?, "token"),
        (
            "for the API server",
            bearer(agent("agent-a", "--audience=https://kubernetes.default.svc")?)?,
            "token",
        ),
        ("bound to no pod", bearer(token(&server, "heddle-system", "heddle-agent", &[AUDIENCE])?)?, "token"),
        ("a pod's own, by hand", bearer(bound(&server, "shop", "client", "client", AUDIENCE)?)?, "token"),
        (
            "of another account on the node",
            bearer(bound(&server, "heddle-system", "heddle-ca", "other", AUDIENCE)?)?,
            "token",
        ),
        ("of another node", bearer(far.clone())?, "other_node"),
        ("of node-b, for a pod of node-a", Asking { node: "node-b".into(), ..bearer(far)? }, "not_scheduled"),
    ];
    for (what, asking, reason) in cases {
        let before = authority.recorded(reason)?;
        match asker.ask(&asking)? {
            Ok(_) => anyhow::bail!("{what}: was certified"),
            Err(status) => ensure!(
                matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
                "{what}: {status}"
            ),
        }
        eventually(&format!("{what} to be recorded as {reason}"), SOON, || {
            Ok(authority.recorded(reason)? > before)
        })?;
        ensure!(issued(&own)?.is_ok(), "control after {what}");
    }

    // The account's pod goes: nobody is certified for it. Another of its name is another pod, and of the account again.
    let remove = |namespace: &str, pod: &str| {
        let namespace = format!("--namespace={namespace}");
        server.check(&["delete", "pod", pod, &namespace, "--force", "--grace-period=0"], "")
    };
    remove("shop", "client")?;
    let refused = |reason: &str| -> Result<bool> {
        let before = authority.recorded(reason)?;
        Ok(issued(&own)?.is_err() && authority.recorded(reason)? > before)
    };
    eventually("nobody to be certified for a pod that is gone", SOON, || refused("not_scheduled"))?;
    server.check(&["create", "--filename=-"], &pod("shop", "client", "client", "node-a"))?;
    eventually("the new pod to be certified", SOON, || Ok(issued(&own)?.is_ok()))?;
    // The agent's own pod goes, and its token with it, though it has not expired; also where another bears its name.
    remove("heddle-system", "agent-a")?;
    server.check(&["create", "--filename=-"], &pod("heddle-system", "agent-a", "heddle-agent", "node-a"))?;
    eventually("a token to go with its pod", SOON, || refused("token"))?;
    // The authority looks at one token a second from an address that asked so often.
    let new = agent("agent-a", AUDIENCE)?;
    eventually("the new pod to be certified by its own", SOON, || Ok(issued(&new)?.is_ok()))?;
    ensure!(!authority.log()?.contains(&own), "no token is in the log");
    Ok(())
}
