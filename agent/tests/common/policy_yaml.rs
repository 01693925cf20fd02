//! Policy as a cluster's operator would write it.
#![allow(dead_code, reason = "each test uses its own share")]

/// Whom a Server lets in.
#[derive(Clone, Copy)]
pub enum Clients<'a> {
    /// These identities, in their DNS form.
    Identities(&'a [&'a str]),
    /// These networks, whoever is there.
    Networks(&'a [&'a str]),
}

fn list(name: &str, items: &[&str]) -> String {
    items.iter().map(|item| format!("    - {name}\"{item}\"\n")).collect()
}

/// A Server in namespace `shop` for the pods of `app` on `port`, and who may reach it.
pub fn server(app: &str, port: u16, protocol: &str, clients: &[Clients<'_>]) -> String {
    let mut yaml = format!(
        "apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: {app}-{port}, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  port: {port}
  proxyProtocol: {protocol}
---
"
    );
    for (index, clients) in clients.iter().enumerate() {
        let name = format!("{app}-{port}-{index}");
        let (kind, items) = match clients {
            Clients::Identities(names) => {
                ("MeshTLSAuthentication", format!("  identities:\n{}", list("", names)))
            }
            Clients::Networks(cidrs) => {
                ("NetworkAuthentication", format!("  networks:\n{}", list("cidr: ", cidrs)))
            }
        };
        yaml += &format!(
            "apiVersion: policy.linkerd.io/v1alpha1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec:
{items}---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: {app}-{port}}}
  requiredAuthenticationRefs:
    - {{group: policy.linkerd.io, kind: {kind}, name: {name}}}
---
"
        );
    }
    yaml
}

/// A rule that lets datagrams reach a port of the pods of `app` in namespace `shop`.
pub fn datagrams(app: &str, port: u16, clients: Clients<'_>) -> String {
    let quoted = |items: &[&str], before: &str, after: &str| {
        items.iter().map(|it| format!("{before}\"{it}\"{after}")).collect::<Vec<_>>().join(", ")
    };
    let from = match clients {
        Clients::Identities(names) => format!("identities: [{}]", quoted(names, "", "")),
        Clients::Networks(cidrs) => format!("networks: [{}]", quoted(cidrs, "{cidr: ", "}")),
    };
    format!(
        "apiVersion: heddle.io/v1alpha1
kind: AccessRule
metadata: {{name: {app}-{port}-udp, namespace: shop}}
spec:
  action: Allow
  protocol: UDP
  podSelector: {{matchLabels: {{app: {app}}}}}
  ports: [{port}]
  from: [{{{from}}}]
"
    )
}
