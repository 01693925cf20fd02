//! The kinds that are watched, and in which version each is served here.

use kube::{Client, core::ApiResource};

/// A kind of resources that policy is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// Those that are known, the one to prefer first.
    pub versions: &'static [&'static str],
}

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    versions: &'static [&'static str],
) -> Kind {
    Kind { group, kind, plural, versions }
}

const LINKERD: &str = "policy.linkerd.io";
const GATEWAY: &str = "gateway.networking.k8s.io";

/// Every one of them.
pub(super) const KINDS: [Kind; 21] = [
    kind("", "Namespace", "namespaces", &["v1"]),
    kind("", "ServiceAccount", "serviceaccounts", &["v1"]),
    kind("", "Pod", "pods", &["v1"]),
    kind("", "Service", "services", &["v1"]),
    kind("discovery.k8s.io", "EndpointSlice", "endpointslices", &["v1"]),
    kind(LINKERD, "Server", "servers", &["v1beta3", "v1beta2", "v1beta1"]),
    kind(LINKERD, "AuthorizationPolicy", "authorizationpolicies", &["v1alpha1"]),
    kind(LINKERD, "MeshTLSAuthentication", "meshtlsauthentications", &["v1alpha1"]),
    kind(LINKERD, "NetworkAuthentication", "networkauthentications", &["v1alpha1"]),
    kind(LINKERD, "ServerAuthorization", "serverauthorizations", &["v1beta1", "v1alpha1"]),
    kind(LINKERD, "HTTPRoute", "httproutes", &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"]),
    kind(LINKERD, "HTTPLocalRateLimitPolicy", "httplocalratelimitpolicies", &["v1alpha1"]),
    kind(LINKERD, "EgressNetwork", "egressnetworks", &["v1alpha1"]),
    kind("workload.linkerd.io", "ExternalWorkload", "externalworkloads", &["v1beta1", "v1alpha1"]),
    kind(GATEWAY, "HTTPRoute", "httproutes", &["v1", "v1beta1", "v1alpha2"]),
    kind(GATEWAY, "GRPCRoute", "grpcroutes", &["v1", "v1alpha2"]),
    kind(GATEWAY, "TLSRoute", "tlsroutes", &["v1", "v1alpha3", "v1alpha2"]),
    kind(GATEWAY, "TCPRoute", "tcproutes", &["v1", "v1alpha2"]),
    kind(GATEWAY, "ReferenceGrant", "referencegrants", &["v1", "v1beta1", "v1alpha2"]),
    kind("heddle.io", "AccessRule", "accessrules", &["v1alpha1"]),
    kind("heddle.io", "ClusterAccessRule", "clusteraccessrules", &["v1alpha1"]),
];

impl Kind {
    /// As kubectl names it.
    pub(super) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    fn in_version(&self, version: &str) -> ApiResource {
        let api_version =
            if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// As it is served by most API servers.
    pub(super) fn preferably(&self) -> Option<ApiResource> {
        self.versions.first().map(|version| self.in_version(version))
    }

    /// As the API server serves it; none if it does not. A version that is not known here is better than none: whoever
    /// reads it closes what it may have meant.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub(super) async fn served(&self, client: &Client) -> Result<Option<ApiResource>, kube::Error> {
        if self.group.is_empty() {
            return Ok(self.preferably());
        }
        // One that only just started does not know its own kinds yet: an absence of its is none.
        let ready = axum::http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
        client.request_text(ready).await?;
        let groups = client.list_api_groups().await?.groups;
        let group = groups.into_iter().find(|group| group.name == self.group);
        let Some(group) = group else { return Ok(None) };
        let served: Vec<String> = group.versions.into_iter().map(|version| version.version).collect();
        for version in self.preferred(&served) {
            let list = client.list_api_group_resources(&format!("{}/{version}", self.group)).await?;
            if list.resources.iter().any(|it| it.name == self.plural && it.kind == self.kind) {
                return Ok(Some(self.in_version(version)));
            }
        }
        Ok(None)
    }

    /// The versions to look for it in: the known ones first, in their order.
    fn preferred<'a>(&self, served: &'a [String]) -> Vec<&'a String> {
        let known = self.versions.iter().filter_map(|known| served.iter().find(|it| it == known));
        let others = served.iter().filter(|it| !self.versions.contains(&it.as_str()));
        known.chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_policy::{Origin, resources::parse_value};

    #[test]
    fn every_kind_that_policy_is_made_of_is_watched_in_a_version_that_is_read() {
        for kind in &KINDS {
            for version in kind.versions {
                let resource = kind.in_version(version);
                let object = serde_json::json!({
                    "apiVersion": resource.api_version, "kind": kind.kind,
                    "metadata": {"name": "it", "namespace": "shop"}, "spec": {},
                });
                let parsed = parse_value(object, Origin::new("it", 0));
                let passed_over =
                    |reason: &str| reason.contains("not known here") || reason.contains("not made of");
                let wrong: Vec<_> = parsed.problems.iter().filter(|it| passed_over(&it.reason)).collect();
                assert!(wrong.is_empty(), "{kind:?}: {wrong:?}");
            }
        }
    }

    #[test]
    fn a_known_version_is_preferred_and_an_unknown_one_is_better_than_none() {
        let served = |versions: &[&str]| versions.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let server = &KINDS[5];
        assert_eq!(server.preferred(&served(&["v2", "v1beta1", "v1beta3"])), ["v1beta3", "v1beta1", "v2"]);
        assert_eq!(server.preferred(&served(&["v2"])), ["v2"]);
        assert!(server.preferred(&[]).is_empty());
    }
}
