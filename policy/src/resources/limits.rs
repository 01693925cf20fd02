//! HTTPLocalRateLimitPolicies.

use serde::Deserialize;
use serde_json::Value;

use super::{
    checks::{Checks, RawRef},
    linkerd::GROUP,
    meta::{Kind, Meta},
    routes::{RateLimit, RateLimitPolicy, RateOverride},
    typed::typed,
};
use crate::problems::Problem;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLimitTarget {
    target_ref: RawRef,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLimit {
    #[serde(rename = "targetRef")]
    _target_ref: Option<Value>,
    total: Option<RawRate>,
    identity: Option<RawRate>,
    overrides: Option<Vec<RawOverride>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRate {
    requests_per_second: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawOverride {
    requests_per_second: u32,
    client_refs: Vec<RawRef>,
}

pub(super) fn rate_limit(meta: Meta, spec: Option<&Value>, problems: &mut Vec<Problem>) -> RateLimitPolicy {
    let mut checks = Checks::new(
        Kind::HttpLocalRateLimitPolicy,
        &meta,
        "every request to the Server that it limits is refused",
        problems,
    );
    // The Server that it limits, whatever else cannot be read.
    let target =
        spec.and_then(|spec| typed::<RawLimitTarget>(spec, "spec").ok()).map(|(raw, _)| raw.target_ref);
    let server = match target {
        Some(target) if target.is(GROUP, "Server") && !target.leaves(&meta) => Some(target.name),
        _ => {
            checks.fail(
                "spec.targetRef",
                "names no Server of its namespace",
                "write group policy.linkerd.io, kind Server and its name",
            );
            None
        }
    };
    let raw = checks.read::<RawLimit>("spec", spec);
    let limit = raw.and_then(|raw| {
        let mut it = RateLimit {
            total: raw.total.map(|rate| rate.requests_per_second),
            identity: raw.identity.map(|rate| rate.requests_per_second),
            overrides: Vec::new(),
        };
        for (i, raw) in raw.overrides.unwrap_or_default().into_iter().enumerate() {
            let mut clients = Vec::new();
            for (j, reference) in raw.client_refs.iter().enumerate() {
                if reference.is("", "ServiceAccount") {
                    clients.push(reference.object_name(&meta));
                } else {
                    let field = format!("spec.overrides[{i}].clientRefs[{j}]");
                    checks.fail(&field, "is not a ServiceAccount", "refer to one");
                }
            }
            if clients.is_empty() {
                checks.fail(
                    &format!("spec.overrides[{i}].clientRefs"),
                    "is empty",
                    "write a client at least",
                );
            }
            it.overrides.push(RateOverride { per_second: raw.requests_per_second, clients });
        }
        let rates = [it.total, it.identity].into_iter().flatten();
        if rates.chain(it.overrides.iter().map(|it| it.per_second)).any(|rate| rate == 0) {
            checks.fail(
                "spec",
                "has a rate of 0",
                "write a rate of 1 at least; a Server without rules refuses all",
            );
        }
        checks.sound.then_some(it)
    });
    RateLimitPolicy { meta, server, limit }
}
