//! A small cluster, and questions to it.

use std::net::IpAddr;

use heddle_ebpf::codes::Reason;
use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Connection, Decision, Index, Problem, Request,
    RequestDecision, resources::parse_file,
};

pub const WEB: &str = "10.1.0.1";
pub const DB: &str = "10.1.0.2";
pub const TOOL: &str = "10.1.0.3";
pub const PLAIN: &str = "10.1.0.9";
pub const OUTSIDE: &str = "192.0.2.7";

fn pod(namespace: &str, name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: u-{name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: a, serviceAccountName: {name}, containers: [{{name: c, image: i, ports: [{{name: http, containerPort: 8080}}, \
         {{name: dns, containerPort: 8053, protocol: UDP}}]}}], initContainers: [{{name: i, image: i, ports: [{{name: early, containerPort: 7001}}]}}]}}\n\
         status: {{phase: Running, podIP: {address}}}\n"
    )
}

/// The pods and namespaces.
pub fn pods() -> String {
    let mut text = String::new();
    for namespace in ["shop", "ops"] {
        text += &format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {namespace}}}, annotations: {{heddle.io/mesh: enabled}}}}\n"
        );
    }
    text + &pod("shop", "web", WEB)
        + &pod("shop", "db", DB)
        + &pod("ops", "tool", TOOL)
        + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bare}\n"
        + &pod("bare", "plain", PLAIN)
}

/// A document of Linkerd's or Heddle's.
pub fn doc(api: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

pub fn server(name: &str, spec: &str) -> String {
    doc("policy.linkerd.io/v1beta3", "Server", name, spec)
}

pub fn policy(name: &str, target: &str, references: &str) -> String {
    let spec = format!("{{targetRef: {target}, requiredAuthenticationRefs: {references}}}");
    doc("policy.linkerd.io/v1alpha1", "AuthorizationPolicy", name, &spec)
}

pub fn mesh_tls(name: &str, spec: &str) -> String {
    doc("policy.linkerd.io/v1alpha1", "MeshTLSAuthentication", name, spec)
}

pub fn networks(name: &str, spec: &str) -> String {
    doc("policy.linkerd.io/v1alpha1", "NetworkAuthentication", name, spec)
}

pub fn rule(name: &str, spec: &str) -> String {
    doc("heddle.io/v1alpha1", "AccessRule", name, spec)
}

/// The db pod's port 6379, opaque, without anybody who is allowed.
pub fn db() -> String {
    server("db", "{podSelector: {matchLabels: {app: db}}, port: 6379, proxyProtocol: opaque}")
}

/// Allows the named references on the Server `db`.
pub fn allow(references: &str) -> String {
    policy("allow", "{group: policy.linkerd.io, kind: Server, name: db}", references)
}

/// The service account `web` of the namespace.
pub const WEB_ACCOUNT: &str = "[{kind: ServiceAccount, name: web}]";

pub struct World {
    pub compiled: Compiled,
    pub problems: Vec<Problem>,
}

pub fn world_with(rules: &str, settings: &ClusterSettings, now: i64) -> World {
    let parsed = parse_file("rules.yaml", &(pods() + rules));
    let mut problems = parsed.problems.clone();
    let compiled = Index::of([parsed]).compile_cluster(settings, now);
    problems.extend(compiled.problems.iter().cloned());
    World { compiled, problems }
}

pub fn world(rules: &str) -> World {
    world_with(rules, &ClusterSettings::default(), 0)
}

pub fn identity(text: &str) -> ClientIdentity {
    match text {
        "" => ClientIdentity::None,
        "anonymous" => ClientIdentity::Anonymous,
        text if text.contains("://") => ClientIdentity::Mesh { dns: None, spiffe: Some(text.to_owned()) },
        text if text.contains("..") || text.matches('.').count() > 1 => {
            ClientIdentity::Mesh { dns: Some(text.to_owned()), spiffe: None }
        }
        text => ClientIdentity::Mesh {
            dns: Some(format!("{text}.serviceaccount.identity.linkerd.cluster.local")),
            spiffe: None,
        },
    }
}

impl World {
    /// Judges `who` ("web.shop", "anonymous" over mesh TLS, or "" without an identity) from an address.
    pub fn ask(&self, who: &str, from: &str, server: &str, port: u16) -> Decision {
        let client = identity(who);
        let (address, server): (IpAddr, IpAddr) = (from.parse().unwrap(), server.parse().unwrap());
        self.compiled.decide(&Connection { client: &client, address, server: server.into(), port })
    }

    pub fn request(&self, who: &str, server: &str, port: u16, request: &Request<'_>) -> RequestDecision<'_> {
        let client = identity(who);
        let (address, server): (IpAddr, IpAddr) = (OUTSIDE.parse().unwrap(), server.parse().unwrap());
        self.compiled
            .decide_request(&Connection { client: &client, address, server: server.into(), port }, request)
    }

    pub fn reason(&self, who: &str, from: &str, server: &str, port: u16) -> Reason {
        self.ask(who, from, server, port).verdict.reason
    }

    pub fn allows(&self, who: &str, from: &str, server: &str, port: u16) -> bool {
        self.ask(who, from, server, port).allowed()
    }

    pub fn tells(&self, text: &str) -> bool {
        self.problems.iter().any(|problem| problem.reason.contains(text))
    }
}
