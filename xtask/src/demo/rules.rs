//! The policy of the demo, as a cluster's operator would write it.

/// The file of the Servers and who may reach them.
pub const SERVERS: &str = "rules.yaml";
/// The file that says who the clients are; step d edits it.
pub const CLIENTS: &str = "clients.yaml";
/// Whom [`CLIENTS`] names.
pub const CLIENT_IDENTITY: &str = "client.shop.serviceaccount.identity.linkerd.cluster.local";

pub fn clients() -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata:
  name: clients
  namespace: shop
spec:
  identities:
    - {CLIENT_IDENTITY}
"
    )
}

/// A Server for `app` on `port`, and the policy that lets `clients` reach it.
fn server(app: &str, port: u16, protocol: &str) -> String {
    let server = format!(
        "apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata:
  name: {app}
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: {app}
  port: {port}
  proxyProtocol: {protocol}
---
"
    );
    server + &opened(app, "clients", "MeshTLSAuthentication", "clients")
}

/// The policy that lets whom the authentication `name` names reach the Server of `app`.
fn opened(app: &str, whom: &str, kind: &str, name: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: {app}-for-{whom}
  namespace: shop
spec:
  targetRef:
    group: policy.linkerd.io
    kind: Server
    name: {app}
  requiredAuthenticationRefs:
    - group: policy.linkerd.io
      kind: {kind}
      name: {name}
---
"
    )
}

/// Lets `office` reach a Server, whoever it is.
fn for_office(app: &str) -> String {
    opened(app, "the-office", "NetworkAuthentication", "office")
}

pub fn servers(outside: std::net::IpAddr) -> String {
    let office = format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata:
  name: office
  namespace: shop
spec:
  networks:
    - cidr: {outside}/32
"
    );
    [
        server("web", 8080, "unknown"),
        server("echo", 7000, "opaque"),
        server("near", 7000, "opaque"),
        for_office("web"),
        for_office("echo"),
        office,
    ]
    .concat()
}
