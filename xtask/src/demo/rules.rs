//! The policy of the demo, as a cluster's operator would write it.

/// The file of the Servers and who may reach them.
pub const SERVERS: &str = "rules.yaml";
/// The file that says who the clients are; step d edits it.
pub const CLIENTS: &str = "clients.yaml";
/// Whom [`CLIENTS`] names.
pub const CLIENT_IDENTITY: &str = "client.shop.serviceaccount.identity.linkerd.cluster.local";

pub fn clients() -> String {
    named("clients", CLIENT_IDENTITY)
}

/// The authentication `name` of this identity.
fn named(name: &str, identity: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata:
  name: {name}
  namespace: shop
spec:
  identities:
    - {identity}
"
    )
}

/// A Server for `app` on `port`, and the policy that lets this identity reach it under `name`.
pub fn server_for(app: &str, port: u16, name: &str, identity: &str) -> String {
    let opened = opened(app, name, "MeshTLSAuthentication", name);
    [closed(app, port, "unknown"), opened, named(name, identity)].concat()
}

/// A Server for `app` on `port`, and the policy that lets `clients` reach it.
fn server(app: &str, port: u16, protocol: &str) -> String {
    closed(app, port, protocol) + &opened(app, "clients", "MeshTLSAuthentication", "clients")
}

/// A Server for `app` on `port`, which nothing opens yet.
fn closed(app: &str, port: u16, protocol: &str) -> String {
    format!(
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
    )
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
