//! Routes of the Gateway API and of Linkerd, and ReferenceGrants.
//!
//! A field that decides which requests a rule is about and cannot be read makes the whole route unreadable: what it is
//! attached to is then closed, since another route could take over its requests.

use serde::Deserialize;
use serde_json::Value;

use super::{
    access::ReferenceGrant,
    checks::Checks,
    linkerd::{GATEWAY_GROUP, GROUP},
    meta::{Kind, Meta, ObjectName},
    pattern::{Pattern, PatternBudget},
    routes::{
        BackendRef, HostMatch, NamedMatch, Parent, ParentKind, Parents, PathMatch, RequestMatch, Route,
        RouteRule, TextMatch,
    },
    typed::typed,
};
use crate::{
    names::check_dns_name,
    path::check_path,
    problems::{Problem, Severity},
};

/// More of anything in a route is refused: the Gateway API allows 16 hosts, 16 rules and 64 matches.
const MAX_ITEMS: usize = 128;
/// The most headers, and the most query parameters, of one match: the Gateway API's own limit.
const MAX_NAMED: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawParents {
    parent_refs: Option<Vec<RawParent>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawParent {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
    section_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRoute {
    #[serde(rename = "parentRefs")]
    _parent_refs: Option<Value>,
    /// The Gateway API's experimental channel; says where a route should be attached, not what it does.
    #[serde(rename = "useDefaultGateways")]
    _use_default_gateways: Option<Value>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<RawRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    matches: Option<Vec<RawMatch>>,
    filters: Option<Vec<RawFilter>>,
    backend_refs: Option<Vec<RawBackend>>,
    timeouts: Option<Value>,
    retry: Option<Value>,
    #[serde(rename = "sessionPersistence")]
    _session_persistence: Option<Value>,
}

#[derive(Deserialize)]
struct RawFilter {
    r#type: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct RawBackend {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMatch {
    path: Option<RawValue>,
    headers: Option<Vec<RawNamed>>,
    query_params: Option<Vec<RawNamed>>,
    method: Option<RawMethod>,
}

#[derive(Deserialize)]
struct RawValue {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
struct RawNamed {
    r#type: Option<String>,
    name: String,
    value: String,
}

/// An HTTPRoute's is a text, a GRPCRoute's names a service and a method.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawMethod {
    Http(String),
    Grpc(RawGrpcMethod),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpcMethod {
    r#type: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

pub(super) fn route(kind: Kind, meta: Meta, spec: Option<&Value>, problems: &mut Vec<Problem>) -> Route {
    let parents = parents(kind, &meta, spec, problems);
    let mut checks =
        Checks::new(kind, &meta, "every request to what the route is attached to is refused", problems);
    let mut hosts = Vec::new();
    let rules = checks.read::<RawRoute>("spec", spec).and_then(|raw| {
        hosts = hostnames(&mut checks, raw.hostnames.unwrap_or_default());
        let written = raw.rules.unwrap_or_default();
        limit(&mut checks, "spec.rules", written.len(), MAX_ITEMS);
        let mut budget = PatternBudget::default();
        // No rules is one rule for everything, as in the Gateway API.
        let written = if written.is_empty() {
            vec![(0, None)]
        } else {
            (0..).zip(written.into_iter().map(Some)).collect()
        };
        let rules = written
            .into_iter()
            .map(|(i, raw)| match raw {
                Some(raw) => rule(&mut checks, &mut budget, &format!("spec.rules[{i}]"), raw),
                None => RouteRule { matches: vec![RequestMatch::default()], ..RouteRule::default() },
            })
            .collect();
        checks.sound.then_some(rules)
    });
    Route { kind, meta, parents, hosts, rules }
}

fn limit(checks: &mut Checks<'_>, field: &str, items: usize, most: usize) {
    if items > most {
        checks.fail(field, format!("has more than {most} entries"), "divide it among several routes");
    }
}

/// The parents, whatever else of the route cannot be read.
fn parents(kind: Kind, meta: &Meta, spec: Option<&Value>, problems: &mut Vec<Problem>) -> Parents {
    let raw = match spec.map(|spec| typed::<RawParents>(spec, "spec")) {
        None => return Parents::These(Vec::new()),
        Some(Ok((raw, _))) => raw,
        Some(Err(error)) => {
            let reason =
                format!("{}: every Server of the namespace that it may have meant is closed", error.reason);
            problems.push(meta.problem(kind, Severity::Error, &error.path, reason).remedy("correct it"));
            return Parents::Unreadable;
        }
    };
    // A misspelt `parentRefs` is told where the rest is read.
    let known = ["parentRefs", "useDefaultGateways", "hostnames", "rules"];
    let mut fields = spec.and_then(Value::as_object).into_iter().flat_map(|fields| fields.keys());
    if raw.parent_refs.is_none() && fields.any(|field| !known.contains(&field.as_str())) {
        return Parents::Unreadable;
    }
    let parent = |raw: RawParent| {
        let group = raw.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = raw.kind.as_deref().unwrap_or("Gateway");
        let core = group.is_empty() || group.eq_ignore_ascii_case("core");
        let linkerd = group.eq_ignore_ascii_case(GROUP);
        Parent {
            kind: if linkerd && kind.eq_ignore_ascii_case("Server") {
                ParentKind::Server
            } else if linkerd && kind.eq_ignore_ascii_case("EgressNetwork") {
                ParentKind::EgressNetwork
            } else if core && kind.eq_ignore_ascii_case("Service") {
                ParentKind::Service
            } else {
                ParentKind::Other(format!("{group}/{kind}"))
            },
            namespace: raw.namespace.unwrap_or_else(|| meta.namespace.clone()),
            name: raw.name,
            port: raw.port.filter(|port| *port != 0),
            section: raw.section_name,
        }
    };
    let parents: Vec<Parent> = raw.parent_refs.into_iter().flatten().map(parent).collect();
    for (i, parent) in parents.iter().enumerate().filter(|(_, it)| it.kind.is_foreign_server()) {
        let reason = format!(
            "{}: a Server is of the group {GROUP}: the route is attached to nothing there",
            parent.name
        );
        let field = format!("spec.parentRefs[{i}].group");
        let problem = meta.problem(kind, Severity::Error, &field, reason);
        problems.push(problem.remedy(format!("write group: {GROUP}")));
    }
    Parents::These(parents)
}

fn hostnames(checks: &mut Checks<'_>, written: Vec<String>) -> Vec<HostMatch> {
    limit(checks, "spec.hostnames", written.len(), MAX_ITEMS);
    let mut hosts = Vec::new();
    for (i, text) in written.iter().enumerate() {
        match host_match(text) {
            Some(host) => hosts.push(host),
            None => checks.fail(
                &format!("spec.hostnames[{i}]"),
                format!("{text:?} is not a host's name"),
                "write a DNS name, or one with *. before it",
            ),
        }
    }
    hosts
}

/// Reads a host name; case and a dot at the end do not matter.
pub(super) fn host_match(text: &str) -> Option<HostMatch> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let (name, suffix) = match text.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    // An address is not a name, in whatever spelling.
    if check_dns_name(name).is_err() || name.split('.').all(|label| label.bytes().all(|b| b.is_ascii_digit()))
    {
        return None;
    }
    Some(if suffix { HostMatch::Suffix(format!(".{name}")) } else { HostMatch::Exact(name.to_owned()) })
}

fn rule(checks: &mut Checks<'_>, budget: &mut PatternBudget, field: &str, raw: RawRule) -> RouteRule {
    let mut it =
        RouteRule { name: raw.name, timeouts: raw.timeouts, retry: raw.retry, ..RouteRule::default() };
    let written = raw.matches.unwrap_or_default();
    limit(checks, &format!("{field}.matches"), written.len(), MAX_ITEMS);
    for (i, raw) in written.into_iter().enumerate() {
        let field = format!("{field}.matches[{i}]");
        if let Some(found) = request_match(checks, budget, &field, raw) {
            it.matches.push(found);
        }
    }
    if it.matches.is_empty() {
        it.matches.push(RequestMatch::default());
    }
    for (i, raw) in raw.filters.unwrap_or_default().into_iter().enumerate() {
        let known = [
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestMirror",
            "RequestRedirect",
            "URLRewrite",
            "ExtensionRef",
            "CORS",
        ];
        if !known.contains(&&*raw.r#type) {
            let reason = format!("{:?} is not a filter", raw.r#type);
            checks.fail(&format!("{field}.filters[{i}].type"), reason, "remove it or correct its name");
        }
        let mut filter = raw.rest;
        filter.insert("type".to_owned(), Value::String(raw.r#type));
        it.filters.push(Value::Object(filter));
    }
    for raw in raw.backend_refs.unwrap_or_default() {
        let namespace = raw.namespace.unwrap_or_else(|| checks.meta.namespace.clone());
        let group = raw.group.unwrap_or_default();
        it.filters.extend(raw.filters.unwrap_or_default());
        it.backends.push(BackendRef {
            group: if group.eq_ignore_ascii_case("core") { String::new() } else { group },
            kind: raw.kind.unwrap_or_else(|| "Service".to_owned()),
            name: ObjectName::new(namespace, raw.name),
            port: raw.port.filter(|port| *port != 0),
            weight: raw.weight.unwrap_or(1),
        });
    }
    it
}

fn request_match(
    checks: &mut Checks<'_>,
    budget: &mut PatternBudget,
    field: &str,
    raw: RawMatch,
) -> Option<RequestMatch> {
    let kind = checks.kind;
    if matches!(kind, Kind::TcpRoute | Kind::TlsRoute) {
        checks.fail(field, "does not go with a route of connections", "remove it");
        return None;
    }
    let mut it = RequestMatch::default();
    match (raw.path, raw.method) {
        (path, Some(RawMethod::Http(method))) if kind != Kind::GrpcRoute => {
            it.path = path_match(checks, budget, &format!("{field}.path"), path)?;
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
                checks.fail(&format!("{field}.method"), format!("{method:?} is not a method"), "write one");
            }
            it.method = Some(method);
        }
        (None, Some(RawMethod::Grpc(method))) if kind == Kind::GrpcRoute => {
            it.path = grpc_method(checks, budget, &format!("{field}.method"), method)?;
        }
        (path, None) if kind != Kind::GrpcRoute => {
            it.path = path_match(checks, budget, &format!("{field}.path"), path)?;
        }
        (None, None) => {}
        _ => checks.fail(field, "has a field of another kind of route", "correct it"),
    }
    let (headers, query) = (raw.headers.unwrap_or_default(), raw.query_params.unwrap_or_default());
    limit(checks, &format!("{field}.headers"), headers.len(), MAX_NAMED);
    limit(checks, &format!("{field}.queryParams"), query.len(), MAX_NAMED);
    for (i, raw) in headers.into_iter().enumerate() {
        let field = format!("{field}.headers[{i}]");
        let name = raw.name.to_ascii_lowercase();
        let token = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        if !token {
            checks.fail(&format!("{field}.name"), "is not a header's name", "correct it");
        }
        let value = text_match(checks, budget, &field, raw.r#type.as_deref(), raw.value)?;
        // Of two of one name the first counts, as in the Gateway API.
        if !it.headers.iter().any(|other: &NamedMatch| other.name == name) {
            it.headers.push(NamedMatch { name, value });
        }
    }
    for (i, raw) in query.into_iter().enumerate() {
        let field = format!("{field}.queryParams[{i}]");
        if kind == Kind::GrpcRoute {
            checks.fail(&field, "is not known in a GRPCRoute", "remove it");
        }
        let value = text_match(checks, budget, &field, raw.r#type.as_deref(), raw.value)?;
        if !it.query.iter().any(|other: &NamedMatch| other.name == raw.name) {
            it.query.push(NamedMatch { name: raw.name, value });
        }
    }
    Some(it)
}

/// An expression over a path, which has no escapes any more where it is judged.
fn path_pattern(
    checks: &mut Checks<'_>,
    budget: &mut PatternBudget,
    field: &str,
    text: &str,
) -> Option<Pattern> {
    let escape = |it: &[u8]| it.starts_with(b"%") && it.iter().skip(1).all(u8::is_ascii_hexdigit);
    if text.as_bytes().windows(3).any(escape) {
        checks.fail(field, "has an escape, which no path has once it is read", "write the character itself");
        return None;
    }
    pattern(checks, budget, field, text)
}

fn pattern(checks: &mut Checks<'_>, budget: &mut PatternBudget, field: &str, text: &str) -> Option<Pattern> {
    match budget.take(text) {
        Ok(pattern) => Some(pattern),
        // The route is closed already, and that is told.
        Err(None) => None,
        Err(Some(reason)) => {
            checks.fail(field, reason, "write a shorter or simpler expression (RE2's syntax)");
            None
        }
    }
}

fn text_match(
    checks: &mut Checks<'_>,
    budget: &mut PatternBudget,
    field: &str,
    kind: Option<&str>,
    value: String,
) -> Option<TextMatch> {
    match kind {
        None | Some("Exact") => Some(TextMatch::Exact(value)),
        Some("RegularExpression") => {
            pattern(checks, budget, &format!("{field}.value"), &value).map(TextMatch::Regex)
        }
        Some(_) => {
            checks.fail(
                &format!("{field}.type"),
                "is not a way to compare",
                "write Exact or RegularExpression",
            );
            None
        }
    }
}

fn path_match(
    checks: &mut Checks<'_>,
    budget: &mut PatternBudget,
    field: &str,
    raw: Option<RawValue>,
) -> Option<PathMatch> {
    let raw = raw.unwrap_or(RawValue { r#type: None, value: None });
    let value = raw.value.unwrap_or_else(|| "/".to_owned());
    let plain = |checks: &mut Checks<'_>| {
        // Such a path is never judged, so that the rule would never hold.
        let fits = check_path(&value).is_ok() && !value.contains(['?', '#']);
        if !fits {
            checks.fail(
                &format!("{field}.value"),
                format!("{value:?} is not a path as requests that are judged have it"),
                "begin with a slash; no empty segment, no . or .., no escaped slash, no query",
            );
        }
        fits
    };
    match raw.r#type.as_deref() {
        None | Some("PathPrefix") => {
            // A slash at the end of a prefix means nothing.
            let prefix = value.strip_suffix('/').unwrap_or(&value).to_owned();
            (prefix.is_empty() && value == "/" || plain(checks)).then_some(PathMatch::Prefix(prefix))
        }
        Some("Exact") => plain(checks).then(|| PathMatch::Exact(value.clone())),
        Some("RegularExpression") => {
            path_pattern(checks, budget, &format!("{field}.value"), &value).map(PathMatch::Regex)
        }
        Some(_) => {
            let remedy = "write Exact, PathPrefix or RegularExpression";
            checks.fail(&format!("{field}.type"), "is not a way to compare", remedy);
            None
        }
    }
}

fn grpc_method(
    checks: &mut Checks<'_>,
    budget: &mut PatternBudget,
    field: &str,
    raw: RawGrpcMethod,
) -> Option<PathMatch> {
    let (service, method) = (raw.service.filter(|it| !it.is_empty()), raw.method.filter(|it| !it.is_empty()));
    match raw.r#type.as_deref() {
        None | Some("Exact") => {
            let word = |text: &String| {
                text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
                    && text.split('.').all(|part| !part.is_empty())
            };
            if !service.iter().all(word) || !method.iter().all(|it| word(it) && !it.contains('.')) {
                checks.fail(field, "is not a gRPC service or method", "correct it");
                return None;
            }
            Some(match (service, method) {
                (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
                (Some(service), None) => PathMatch::Prefix(format!("/{service}")),
                (None, Some(method)) => PathMatch::GrpcMethod(method),
                (None, None) => {
                    checks.fail(field, "names neither a service nor a method", "write one at least");
                    return None;
                }
            })
        }
        Some("RegularExpression") => {
            let any = || "[^/]+".to_owned();
            let (service, method) = (service.unwrap_or_else(any), method.unwrap_or_else(any));
            for part in [&service, &method] {
                pattern(checks, budget, field, part)?;
            }
            path_pattern(checks, budget, field, &format!("/(?:{service})/(?:{method})")).map(PathMatch::Regex)
        }
        Some(_) => {
            let remedy = "write Exact or RegularExpression";
            checks.fail(&format!("{field}.type"), "is not a way to compare", remedy);
            None
        }
    }
}

#[derive(Deserialize)]
struct RawGrant {
    from: Vec<RawFrom>,
    to: Vec<RawTo>,
}

#[derive(Deserialize)]
struct RawFrom {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Deserialize)]
struct RawTo {
    group: String,
    kind: String,
    name: Option<String>,
}

pub(super) fn reference_grant(
    meta: Meta,
    spec: Option<&Value>,
    problems: &mut Vec<Problem>,
) -> ReferenceGrant {
    let mut checks = Checks::new(Kind::ReferenceGrant, &meta, "it grants nothing", problems);
    let raw = checks.read::<RawGrant>("spec", spec).filter(|_| checks.sound);
    let (from, to) = raw.map_or((Vec::new(), Vec::new()), |raw| (raw.from, raw.to));
    ReferenceGrant {
        from: from.into_iter().map(|it| (it.group, it.kind, it.namespace)).collect(),
        to: to.into_iter().map(|it| (it.group, it.kind, it.name)).collect(),
        meta,
    }
}
