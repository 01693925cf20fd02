//! A small shop on two nodes: a client that may reach two echo servers on port 7000, near on its own node and far on the
//! other, a stranger that may not, and a pod in no mesh.

#![allow(dead_code, reason = "each test uses a part of it")]

use anyhow::Result;
use serde_json::Value;
use xtask::lab::{Lab, Pod, PodSpec};

/// The shop.
pub struct Shop {
    pub lab: Lab,
    pub client: Pod,
    pub stranger: Pod,
    pub plain: Pod,
    pub near: Pod,
    pub far: Pod,
}

/// A meshed pod of the shop's namespace, with a service account of its own name.
pub fn meshed(name: &str, node: &str) -> PodSpec {
    PodSpec::new(name, node).namespace("shop").account(name).meshed()
}

/// A Server for the pods `app` on port 7000, open to the MeshTLSAuthentication `clients`.
pub fn server(app: &str) -> String {
    format!(
        "---\n{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: {app}, namespace: shop}}, spec: \
         {{podSelector: {{matchLabels: {{app: {app}}}}}, port: 7000, proxyProtocol: opaque}}}}\n\
         ---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {app}, namespace: shop}}, \
         spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: {app}}}, requiredAuthenticationRefs: \
         [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: clients}}]}}}}\n"
    )
}

fn clients(account: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {{name: clients, namespace: shop}}, \
         spec: {{identityRefs: [{{kind: ServiceAccount, name: {account}}}]}}}}\n"
    )
}

impl Shop {
    /// Without agents.
    pub fn bare(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name)?.node("node-a")?.node("node-b")?;
        lab.binary(env!("CARGO_BIN_EXE_heddle"));
        let client = lab.pod(&meshed("client", "node-a"))?;
        let stranger = lab.pod(&meshed("stranger", "node-a"))?;
        let plain = lab.pod(&PodSpec::new("plain", "node-a"))?;
        let near = lab.pod(&meshed("near", "node-a"))?;
        let far = lab.pod(&meshed("far", "node-b"))?;
        let shop = Self { lab, client, stranger, plain, near, far };
        shop.lab.apply("servers.yaml", &(server("near") + &server("far")))?;
        shop.allow(true)?;
        Ok(shop)
    }

    /// With its agents, and every meshed pod attached.
    pub fn open(name: &str) -> Result<Self> {
        let shop = Self::bare(name)?;
        shop.start()?;
        Ok(shop)
    }

    pub fn start(&self) -> Result<()> {
        self.lab.start_agents()
    }

    /// Whether the client may reach the servers.
    pub fn allow(&self, allowed: bool) -> Result<()> {
        self.lab.apply("clients.yaml", &clients(if allowed { "client" } else { "nobody" }))
    }

    pub fn close(self) -> Result<()> {
        self.lab.close()
    }
}

/// The reason that an event gives.
pub fn reason_of(event: &Value) -> &str {
    event.get("reason").and_then(Value::as_str).unwrap_or_default()
}
