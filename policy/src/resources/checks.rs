//! What is wrong with one resource's spec, collected while it is read: the parts that several kinds share.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    meta::{Kind, Meta, ObjectName},
    rules::{IdentityMatch, NetworkMatch},
    selector::{Operator, Requirement, Selector},
    typed::{Unreadable, typed},
};
use crate::{
    names::check_dns_name,
    problems::{Problem, Severity},
};

/// Collects what is wrong with one resource's spec.
pub(super) struct Checks<'a> {
    pub(super) kind: Kind,
    pub(super) meta: &'a Meta,
    consequence: &'static str,
    problems: &'a mut Vec<Problem>,
    pub(super) sound: bool,
}

impl<'a> Checks<'a> {
    pub(super) fn new(
        kind: Kind,
        meta: &'a Meta,
        consequence: &'static str,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self { kind, meta, consequence, problems, sound: true }
    }

    pub(super) fn fail(&mut self, field: &str, reason: impl std::fmt::Display, remedy: &str) {
        self.sound = false;
        let reason = format!("{reason}: {}", self.consequence);
        self.problems.push(self.meta.problem(self.kind, Severity::Error, field, reason).remedy(remedy));
    }

    /// Reads a spec. Fields that are not known fail the checks, but what is known is returned.
    pub(super) fn read<T: DeserializeOwned>(&mut self, field: &str, value: Option<&Value>) -> Option<T> {
        let Some(value) = value else {
            self.fail(field, "is missing", "write it");
            return None;
        };
        match typed::<T>(value, field) {
            Ok((spec, unknown)) => {
                for path in unknown {
                    self.fail(&path, "is not a known field", "remove it or correct its name");
                }
                Some(spec)
            }
            Err(Unreadable { path, reason }) => {
                self.fail(&path, reason, "correct it");
                None
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSelector {
    match_labels: Option<std::collections::BTreeMap<String, String>>,
    match_expressions: Option<Vec<RawRequirement>>,
}

#[derive(Deserialize)]
pub(super) struct RawRequirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

pub(super) fn selector(checks: &mut Checks<'_>, field: &str, raw: RawSelector) -> Option<Selector> {
    let mut it = Selector { labels: raw.match_labels.unwrap_or_default(), ..Selector::default() };
    for (i, raw) in raw.match_expressions.unwrap_or_default().into_iter().enumerate() {
        let values = raw.values.unwrap_or_default();
        let (operator, valued) = match raw.operator.as_str() {
            "In" => (Operator::In, true),
            "NotIn" => (Operator::NotIn, true),
            "Exists" => (Operator::Exists, false),
            "DoesNotExist" => (Operator::DoesNotExist, false),
            _ => {
                let field = format!("{field}.matchExpressions[{i}].operator");
                checks.fail(&field, "is not an operator", "write In, NotIn, Exists or DoesNotExist");
                return None;
            }
        };
        if valued == values.is_empty() {
            let field = format!("{field}.matchExpressions[{i}].values");
            checks.fail(
                &field,
                "does not go with the operator",
                "In and NotIn need values, Exists and DoesNotExist none",
            );
            return None;
        }
        it.expressions.push(Requirement { key: raw.key, operator, values });
    }
    Some(it)
}

#[derive(Deserialize)]
pub(super) struct RawRef {
    pub(super) group: Option<String>,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) namespace: Option<String>,
}

impl RawRef {
    /// Kinds and groups compare without case, as in Linkerd; the core group is written `""`, `core` or left out.
    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        let own = self.group.as_deref().unwrap_or_default();
        let own = if own.eq_ignore_ascii_case("core") { "" } else { own };
        own.eq_ignore_ascii_case(group) && self.kind.eq_ignore_ascii_case(kind)
    }

    pub(super) fn object_name(&self, meta: &Meta) -> ObjectName {
        ObjectName::new(self.namespace.as_deref().unwrap_or(&meta.namespace), &*self.name)
    }

    pub(super) fn leaves(&self, meta: &Meta) -> bool {
        self.namespace.as_deref().is_some_and(|namespace| namespace != meta.namespace)
    }
}

pub(super) fn identity_match(text: &str) -> Result<IdentityMatch, String> {
    if text == "*" {
        return Ok(IdentityMatch::Any);
    }
    if let Some(rest) = text.strip_prefix("*.") {
        check_dns_name(rest).map_err(|error| error.to_string())?;
        return Ok(IdentityMatch::Suffix(format!(".{rest}")));
    }
    if let Some(rest) = text.strip_prefix("spiffe://") {
        let mut segments = rest.split('/');
        let domain = segments.next().unwrap_or_default();
        let domain_fits = !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
        let segment_fits = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        if !domain_fits || !segments.all(segment_fits) || !rest.contains('/') {
            return Err("is not a SPIFFE id".to_owned());
        }
        return Ok(IdentityMatch::Spiffe(text.to_owned()));
    }
    check_dns_name(text).map_err(|error| error.to_string())?;
    Ok(IdentityMatch::Dns(text.to_owned()))
}

#[derive(Deserialize)]
pub(super) struct RawNetwork {
    pub(super) cidr: String,
    pub(super) except: Option<Vec<String>>,
}

/// Reads a list of networks at `field`.
pub(super) fn networks(checks: &mut Checks<'_>, field: &str, raw: Vec<RawNetwork>) -> Vec<NetworkMatch> {
    if raw.is_empty() {
        checks.fail(field, "is empty", "write a network at least");
    }
    let mut networks = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        let Some(cidr) = checks.network(&format!("{field}.cidr"), &raw.cidr) else { continue };
        let mut it = NetworkMatch { cidr, except: Vec::new() };
        for (j, text) in raw.except.unwrap_or_default().iter().enumerate() {
            let field = format!("{field}.except[{j}]");
            match checks.network(&field, text) {
                None => {}
                Some(cut) if cut.contains(&cidr) => {
                    checks.fail(&field, format!("{cut} covers its network {cidr}"), "write a part of it");
                }
                Some(cut) if !cidr.contains(&cut) => {
                    checks.fail(
                        &field,
                        format!("{cut} lies outside its network {cidr}"),
                        "write a part of it",
                    );
                }
                Some(cut) => it.except.push(cut),
            }
        }
        networks.push(it);
    }
    networks
}

impl Checks<'_> {
    /// Reads a network or a single address. What stands behind its prefix is told, since it decides nothing.
    fn network(&mut self, field: &str, text: &str) -> Option<IpNet> {
        let Some(net) = cidr(text) else {
            self.fail(
                field,
                format!("{text:?} is not a network"),
                "write an address or a network such as 10.0.0.0/8 or fd00::/8",
            );
            return None;
        };
        if let Ok(written) = text.parse::<IpNet>()
            && written.addr() != written.network()
        {
            self.warn(field, format!("{text:?} has bits behind its prefix: it means {net}"), "write that");
        }
        Some(net)
    }

    /// Tells of something that is in force, but probably not as it was meant.
    pub(super) fn warn(&mut self, field: &str, reason: impl std::fmt::Display, remedy: &str) {
        let problem = self.meta.problem(self.kind, Severity::Warning, field, reason.to_string());
        self.problems.push(problem.remedy(remedy));
    }
}

/// Reads a network or a single address. IPv4 in its IPv6 form is refused: it would mean another network to each
/// reader. So would 010.0.0.0, which is 8.0.0.0 to some.
fn cidr(text: &str) -> Option<IpNet> {
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().ok()?),
        Some((address, _)) => {
            address.parse::<IpAddr>().ok()?;
            text.parse::<IpNet>().ok()?.trunc()
        }
    };
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.network().to_ipv4_mapped().is_some() => None,
        net => Some(net),
    }
}
