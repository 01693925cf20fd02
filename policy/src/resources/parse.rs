//! Files and documents into resources.

use std::sync::Arc;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    core::{Source, meta},
    gateway, heddle, limits,
    linkerd::{self, GATEWAY_GROUP, GROUP},
    meta::{Kind, Meta, ResourceId},
    outside,
    raw::{documents, has_content},
    resource::Resource,
    slices::EndpointSlice,
    tree::{self, Lines, NotYaml, nearest_line},
    typed::{Unreadable, typed},
    workload::{Pod, Service},
};
use crate::{
    names::{MAX_DNS_NAME, NameError},
    problems::{Origin, Problem, Severity},
};

/// What a file or a document holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    /// Its resources.
    pub resources: Vec<Resource>,
    /// What is wrong with it. A resource that could not be read at all is only here.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// Whether anything that was written is not in force.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }
}

/// Reads every document of a YAML file. A document that cannot be read does not take the others with it.
pub fn parse_file(file: &str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut document = 0;
    for (first_line, text) in documents(text) {
        if has_content(text) {
            document += 1;
            read_document(text, Origin::new(file, document), first_line, &mut parsed);
        }
    }
    parsed
}

/// Reads one resource (or list) in JSON's form, as the API server sends it.
pub fn parse_value(value: Value, origin: Origin) -> Parsed {
    let mut parsed = Parsed::default();
    let source = Source { origin, lines: Arc::default() };
    read_object(value, &source, &mut parsed);
    parsed
}

fn read_document(text: &str, origin: Origin, first_line: u32, parsed: &mut Parsed) {
    match tree::read(text, first_line) {
        Ok(None) => {}
        Ok(Some((value, lines))) => {
            let source = Source { origin, lines: Arc::new(lines) };
            read_object(value, &source, parsed);
        }
        Err(NotYaml { line, reason }) => parsed.problems.push(
            Problem::new(Severity::Error, &origin, format!("is not YAML: {reason}"))
                .field("", line)
                .remedy("correct the document; nothing of it is in force"),
        ),
    }
}

const WORKLOAD_GROUP: &str = "workload.linkerd.io";
/// Stands for a version that is not known: the spec is not read, and what it may have meant is closed.
const UNKNOWN_VERSION: &str = "unknown";

/// What a kind of an API group is here.
enum Known {
    Core(Kind),
    Policy(Kind, &'static str),
    /// A list, whose items are resources.
    List,
    /// Rules that are not in force here.
    NotInForce(&'static str),
    Nothing,
}

fn known(api_version: &str, kind: &str) -> Known {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match (group, version, kind) {
        ("", "v1", "Namespace") => Known::Core(Kind::Namespace),
        ("", "v1", "ServiceAccount") => Known::Core(Kind::ServiceAccount),
        ("", "v1", "Pod") => Known::Core(Kind::Pod),
        ("", "v1", "Service") => Known::Core(Kind::Service),
        ("discovery.k8s.io", "v1", "EndpointSlice") => Known::Core(Kind::EndpointSlice),
        ("discovery.k8s.io", _, "EndpointSlice") => {
            Known::NotInForce("this version is not read: no endpoint is taken from it")
        }
        (_, _, kind) if kind.ends_with("List") => Known::List,
        (GROUP, "v1beta1", "Server") => Known::Policy(Kind::Server, "v1beta1"),
        (GROUP, "v1beta2", "Server") => Known::Policy(Kind::Server, "v1beta2"),
        (GROUP, "v1beta3", "Server") => Known::Policy(Kind::Server, "v1beta3"),
        (GROUP, "v1alpha1", "AuthorizationPolicy") => Known::Policy(Kind::AuthorizationPolicy, "v1alpha1"),
        (GROUP, "v1alpha1", "MeshTLSAuthentication") => {
            Known::Policy(Kind::MeshTlsAuthentication, "v1alpha1")
        }
        (GROUP, "v1alpha1", "NetworkAuthentication") => {
            Known::Policy(Kind::NetworkAuthentication, "v1alpha1")
        }
        (GROUP, "v1beta1" | "v1alpha1", "ServerAuthorization") => {
            Known::Policy(Kind::ServerAuthorization, "v1beta1")
        }
        (GROUP, "v1alpha1" | "v1beta1" | "v1beta2" | "v1beta3", "HTTPRoute") => {
            Known::Policy(Kind::LinkerdHttpRoute, "")
        }
        (GATEWAY_GROUP, "v1alpha2" | "v1beta1" | "v1", "HTTPRoute") => Known::Policy(Kind::HttpRoute, ""),
        (GATEWAY_GROUP, "v1alpha2" | "v1", "GRPCRoute") => Known::Policy(Kind::GrpcRoute, ""),
        (GATEWAY_GROUP, "v1alpha2" | "v1alpha3" | "v1", "TLSRoute") => Known::Policy(Kind::TlsRoute, ""),
        (GATEWAY_GROUP, "v1alpha2" | "v1", "TCPRoute") => Known::Policy(Kind::TcpRoute, ""),
        (GATEWAY_GROUP, "v1alpha2" | "v1beta1" | "v1", "ReferenceGrant") => {
            Known::Policy(Kind::ReferenceGrant, "")
        }
        (GROUP, "v1alpha1", "HTTPLocalRateLimitPolicy") => Known::Policy(Kind::HttpLocalRateLimitPolicy, ""),
        (GROUP, "v1alpha1", "EgressNetwork") => Known::Policy(Kind::EgressNetwork, ""),
        (WORKLOAD_GROUP, "v1alpha1" | "v1beta1", "ExternalWorkload") => {
            Known::Policy(Kind::ExternalWorkload, "")
        }
        (heddle::GROUP, heddle::VERSION, "AccessRule") => Known::Policy(Kind::AccessRule, ""),
        (heddle::GROUP, heddle::VERSION, "ClusterAccessRule") => Known::Policy(Kind::ClusterAccessRule, ""),
        // A version that is not known yet may say what these do not know: closed, as far as it can be told.
        (GROUP, _, "HTTPRoute") => Known::Policy(Kind::LinkerdHttpRoute, UNKNOWN_VERSION),
        (GATEWAY_GROUP, _, "HTTPRoute") => Known::Policy(Kind::HttpRoute, UNKNOWN_VERSION),
        (GATEWAY_GROUP, _, "GRPCRoute") => Known::Policy(Kind::GrpcRoute, UNKNOWN_VERSION),
        (GROUP, _, "HTTPLocalRateLimitPolicy") => {
            Known::Policy(Kind::HttpLocalRateLimitPolicy, UNKNOWN_VERSION)
        }
        (GROUP, _, "Server") => Known::Policy(Kind::Server, UNKNOWN_VERSION),
        (GROUP, _, "EgressNetwork") => Known::Policy(Kind::EgressNetwork, UNKNOWN_VERSION),
        (WORKLOAD_GROUP, _, "ExternalWorkload") => Known::Policy(Kind::ExternalWorkload, UNKNOWN_VERSION),
        (heddle::GROUP, _, "AccessRule") => Known::Policy(Kind::AccessRule, UNKNOWN_VERSION),
        (heddle::GROUP, _, "ClusterAccessRule") => Known::Policy(Kind::ClusterAccessRule, UNKNOWN_VERSION),
        (GROUP | WORKLOAD_GROUP | heddle::GROUP, _, _) => {
            Known::NotInForce("this kind or version is not known here: nothing of it is in force")
        }
        ("linkerd.io", _, "ServiceProfile") => Known::NotInForce(
            "is not in force: write HTTPRoutes for its routes, and the annotations retry.linkerd.io/* and \
             timeout.linkerd.io/* for its retries and timeouts",
        ),
        ("split.smi-spec.io", _, "TrafficSplit") => {
            Known::NotInForce("is not in force: write an HTTPRoute with weighted backendRefs")
        }
        _ => Known::Nothing,
    }
}

#[derive(Deserialize)]
struct PolicyObject {
    metadata: ObjectMeta,
}

fn read_object(value: Value, source: &Source, parsed: &mut Parsed) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let problem = |severity, field: &str, reason: &str| {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
        let slash = if namespace.is_empty() { "" } else { "/" };
        Problem::new(severity, &source.origin, reason)
            .resource(format!("{kind} {namespace}{slash}{name}").trim())
            .field(field, nearest_line(&source.lines, field))
    };
    if api_version.is_empty() || kind.is_empty() {
        let field = if kind.is_empty() { "kind" } else { "apiVersion" };
        // Of no resource: whoever follows a folder must not take the document for one that it can do without.
        parsed.problems.push(
            Problem::new(Severity::Error, &source.origin, "is missing: this is not a resource")
                .field(field, nearest_line(&source.lines, field))
                .remedy("write it or remove the document"),
        );
        return;
    }
    match known(api_version, kind) {
        Known::List => read_list(value, source, parsed),
        Known::Core(kind) => read_resource(kind, None, &value, source, parsed),
        Known::Policy(kind, version) => read_resource(kind, Some(version), &value, source, parsed),
        Known::NotInForce(reason) => parsed.problems.push(problem(Severity::Error, "kind", reason)),
        Known::Nothing => {
            parsed.problems.push(problem(
                Severity::Note,
                "kind",
                "is a kind that policy is not made of: it is ignored",
            ));
        }
    }
}

fn read_list(mut value: Value, source: &Source, parsed: &mut Parsed) {
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        Some(Value::Null) | None => return,
        Some(_) => {
            parsed.problems.push(
                Problem::new(
                    Severity::Error,
                    &source.origin,
                    "is not a list of resources: nothing of it is in force",
                )
                .field("items", nearest_line(&source.lines, "items")),
            );
            return;
        }
    };
    for (i, item) in items.into_iter().enumerate() {
        let path = format!("items[{i}]");
        // Each item's lines, as if it were a document of its own.
        let prefix = format!("{path}.");
        let mut lines: Lines = source
            .lines
            .range(prefix.clone()..)
            .take_while(|(field, _)| field.starts_with(&prefix))
            .map(|(field, line)| (field[prefix.len()..].to_owned(), *line))
            .collect();
        lines.insert(String::new(), nearest_line(&source.lines, &path));
        let source = Source { origin: source.origin.clone(), lines: Arc::new(lines) };
        if item.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) {
            parsed.problems.push(Problem::new(
                Severity::Error,
                &source.origin,
                "is a list inside a list: it is ignored",
            ));
            continue;
        }
        read_object(item, &source, parsed);
    }
}

fn read_resource(
    kind: Kind,
    policy_version: Option<&str>,
    value: &Value,
    source: &Source,
    parsed: &mut Parsed,
) {
    let problems = &mut parsed.problems;
    let mut unknown = Vec::new();
    let mut read = Read { value, unknown: &mut unknown };
    let result = match (kind, policy_version) {
        (Kind::Namespace, _) => {
            read.typed::<v1::Namespace>().map(|it| Resource::Namespace(meta(source, it.metadata, false)))
        }
        (Kind::ServiceAccount, _) => read
            .typed::<v1::ServiceAccount>()
            .map(|it| Resource::ServiceAccount(meta(source, it.metadata, true))),
        (Kind::Pod, _) => read.typed().map(|it| Resource::Pod(Pod::from_k8s(source, it, problems))),
        (Kind::Service, _) => {
            read.typed().map(|it| Resource::Service(Service::from_k8s(source, it, problems)))
        }
        (Kind::EndpointSlice, _) => {
            read.typed().map(|it| Resource::EndpointSlice(EndpointSlice::from_k8s(source, it, problems)))
        }
        (kind, version) => match read.policy_meta(kind, source) {
            Ok(meta) => {
                let version = version.unwrap_or_default();
                if version == UNKNOWN_VERSION {
                    let reason = "this version is not known here: what it may have meant is closed";
                    let problem = meta.problem(kind, Severity::Error, "apiVersion", reason);
                    problems.push(problem.remedy("write a version that is known"));
                }
                Ok(policy(kind, version, meta, value, problems))
            }
            // A rule that narrows must not go with a label that is none.
            Err(error) => match read.own_name(kind, source) {
                Some(meta) => {
                    let reason = format!("{}: what the resource may have meant is closed", error.reason);
                    let problem = meta.problem(kind, Severity::Error, &error.path, reason);
                    problems.push(problem.remedy("correct it"));
                    Ok(policy(kind, UNKNOWN_VERSION, meta, value, problems))
                }
                None => Err(error),
            },
        },
    };
    let resource = match result {
        Ok(resource) => resource,
        Err(Unreadable { path, reason }) => {
            let text =
                |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let id =
                ResourceId { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") };
            problems.push(
                Problem::new(
                    Severity::Error,
                    &source.origin,
                    format!("{reason}: the resource is not in force"),
                )
                .resource(id)
                .field(&*path, nearest_line(&source.lines, &path))
                .remedy("correct it"),
            );
            return;
        }
    };
    let meta = resource.meta();
    if let Err(reason) = check_name(&meta.name) {
        problems.push(
            meta.problem(
                kind,
                Severity::Error,
                "metadata.name",
                format!("{reason}: the resource is not in force"),
            )
            .remedy("write a Kubernetes name"),
        );
        return;
    }
    let label = |text: &str| text.len() <= 63 && !text.contains('.') && check_name(text).is_ok();
    let namespaced = kind.namespaced();
    if namespaced && !label(&meta.namespace) || kind == Kind::Namespace && !label(&meta.name) {
        let field = if namespaced { "metadata.namespace" } else { "metadata.name" };
        problems.push(meta.problem(
            kind,
            Severity::Error,
            field,
            "is not the name of a namespace: the resource is not in force",
        ));
        return;
    }
    for field in unknown {
        problems.push(
            meta.problem(kind, Severity::Warning, &field, "is not a known field: it is ignored")
                .remedy("correct its name or remove it"),
        );
    }
    parsed.resources.push(resource);
}

/// Reads a resource that rules are made of.
fn policy(kind: Kind, version: &str, meta: Meta, value: &Value, problems: &mut Vec<Problem>) -> Resource {
    // Nothing of a version that is not known is believed but to what it is attached.
    let closed = version == UNKNOWN_VERSION;
    let spec = value.get("spec");
    let unknown = spec.filter(|_| closed).map(without_meaning);
    let spec = if closed { unknown.as_ref() } else { spec };
    match kind {
        Kind::Server => Resource::Server(linkerd::server(version, meta, spec, problems)),
        Kind::AuthorizationPolicy => {
            Resource::AuthorizationPolicy(linkerd::authorization_policy(meta, spec, problems))
        }
        Kind::MeshTlsAuthentication => {
            Resource::MeshTlsAuthentication(linkerd::mesh_tls(meta, spec, problems))
        }
        Kind::NetworkAuthentication => {
            Resource::NetworkAuthentication(linkerd::network(meta, spec, problems))
        }
        Kind::ServerAuthorization => {
            Resource::ServerAuthorization(outside::server_authorization(meta, spec, problems))
        }
        Kind::EgressNetwork => Resource::EgressNetwork(outside::egress_network(meta, spec, problems)),
        Kind::ExternalWorkload => {
            let status = value.get("status");
            Resource::ExternalWorkload(outside::external_workload(meta, spec, status, problems))
        }
        Kind::ReferenceGrant => Resource::ReferenceGrant(gateway::reference_grant(meta, spec, problems)),
        Kind::HttpLocalRateLimitPolicy => Resource::RateLimitPolicy(limits::rate_limit(meta, spec, problems)),
        Kind::AccessRule | Kind::ClusterAccessRule => {
            Resource::AccessRule(heddle::access_rule(kind, meta, spec, problems))
        }
        kind => Resource::Route(gateway::route(kind, meta, spec, problems)),
    }
}

/// A spec of which only what it is attached to can be read.
fn without_meaning(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Value::Object(fields) = &mut spec {
        fields.insert("(a version that is not known)".to_owned(), Value::Null);
    }
    spec
}

struct Read<'a> {
    value: &'a Value,
    unknown: &'a mut Vec<String>,
}

impl Read<'_> {
    fn typed<T: DeserializeOwned>(&mut self) -> Result<T, Unreadable> {
        let (it, unknown) = typed(self.value, "")?;
        self.unknown.extend(unknown);
        Ok(it)
    }

    /// The metadata of a kind, whose spec is read by itself.
    fn policy_meta(&mut self, kind: Kind, source: &Source) -> Result<Meta, Unreadable> {
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        let object = typed::<PolicyObject>(self.value, "")?;
        self.unknown.extend(object.1.into_iter().filter(|field| !known.contains(&field.as_str())));
        Ok(meta(source, object.0.metadata, kind.namespaced()))
    }

    /// Of metadata that cannot be read: whose it is. `None`: that neither.
    fn own_name(&self, kind: Kind, source: &Source) -> Option<Meta> {
        let metadata = self.value.get("metadata")?;
        let text = |field: &str| metadata.get(field).map(|it| it.as_str().map(str::to_owned));
        let namespace = text("namespace").unwrap_or(Some("default".to_owned()))?;
        let from =
            ObjectMeta { name: Some(text("name")??), namespace: Some(namespace), ..ObjectMeta::default() };
        Some(meta(source, from, kind.namespaced()))
    }
}

/// Checks a resource's name: lower-case letters, digits, dashes and dots, at most 253.
fn check_name(name: &str) -> Result<(), NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_DNS_NAME {
        return Err(NameError::TooLong);
    }
    if name.split('.').any(str::is_empty) {
        return Err(NameError::EmptyLabel);
    }
    let ends_fit = |label: &str| !label.starts_with('-') && !label.ends_with('-');
    if !name.bytes().all(|b| inner(b) || b == b'-' || b == b'.') || !name.split('.').all(ends_fit) {
        return Err(NameError::BadCharacter);
    }
    Ok(())
}
