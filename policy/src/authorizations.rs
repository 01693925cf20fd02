//! What authorizes whom on a Server or by default, with every reference followed, in the order in which rules are
//! credited.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    names::{IdentityName, IdentityNaming, check_dns_name},
    problems::{Problem, Severity},
    resources::{
        Authorization, AuthorizationPolicy, DefaultPolicy, IdentityMatch, IdentityRef, Kind,
        MeshTlsAuthentication, NetworkAuthentication, NetworkMatch, ObjectName, Server, Target,
    },
    settings::canonical,
};

/// An identity that a rule allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Match {
    /// Every mesh identity.
    Any,
    /// One of ours, in whichever form.
    Name(IdentityName),
    /// Every service account of a namespace.
    Namespace(String),
    /// Every DNS form that ends in this.
    Suffix(String),
    /// A DNS form that is not a service account's of ours.
    Dns(String),
    /// A SPIFFE form that is not a service account's of ours.
    Spiffe(String),
}

/// A client's names, as its certificate or the kernel vouches for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Presented {
    /// The service account of ours, if it is one.
    name: Option<IdentityName>,
    dns: Option<String>,
    spiffe: Option<String>,
}

impl Presented {
    /// The names of a service account of ours.
    pub(crate) fn of(name: IdentityName) -> Self {
        Self { name: Some(name), dns: None, spiffe: None }
    }

    /// The names of a certificate. `None`: there is none, one is malformed, or the two disagree.
    pub(crate) fn read(naming: &IdentityNaming, dns: Option<&str>, spiffe: Option<&str>) -> Option<Self> {
        let by_dns = dns.map(|text| naming.parse_dns(text).ok());
        let by_spiffe = spiffe.map(|text| naming.parse_spiffe(text).ok());
        let name = match (by_dns, by_spiffe) {
            (None, None) => return None,
            (Some(a), Some(b)) if a != b => return None,
            (Some(name), _) | (None, Some(name)) => name,
        };
        if dns.is_some_and(|text| check_dns_name(text).is_err()) || spiffe.is_some_and(str::is_empty) {
            return None;
        }
        Some(Self { name, dns: dns.map(str::to_owned), spiffe: spiffe.map(str::to_owned) })
    }

    fn dns(&self) -> Option<&str> {
        self.name.as_ref().map(IdentityName::dns).or(self.dns.as_deref())
    }
}

impl Match {
    fn holds(&self, client: &Presented) -> bool {
        match self {
            Self::Any => true,
            Self::Name(name) => client.name.as_ref() == Some(name),
            Self::Namespace(namespace) => {
                client.name.as_ref().is_some_and(|name| name.namespace() == namespace)
            }
            Self::Suffix(suffix) => {
                client.dns().is_some_and(|dns| dns.len() > suffix.len() && dns.ends_with(suffix.as_str()))
            }
            Self::Dns(dns) => client.dns.as_ref() == Some(dns),
            Self::Spiffe(spiffe) => client.spiffe.as_ref() == Some(spiffe),
        }
    }
}

/// How specific a rule is; the most specific is credited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Specificity {
    Server,
    Namespace,
    Default,
    Audit,
}

/// One rule that allows. Sorts in the order in which rules are credited.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Grant {
    pub(crate) specificity: Specificity,
    /// Microseconds since 1970; unknown counts as youngest.
    pub(crate) created: i64,
    /// As people read it; unique among the rules of a cluster.
    pub(crate) rule: Arc<str>,
    /// `None`: nobody needs an identity.
    pub(crate) clients: Option<Arc<[Match]>>,
    /// `None`: from anywhere.
    pub(crate) networks: Option<Arc<[NetworkMatch]>>,
}

impl Grant {
    /// Whether it allows a client with these names, or none, at an address.
    pub(crate) fn holds(&self, client: Option<&Presented>, address: &IpAddr) -> bool {
        self.holds_for(client)
            && self.networks.as_ref().is_none_or(|nets| nets.iter().any(|n| n.contains(address)))
    }

    /// Whether it allows a client with these names, or none, as far as names go.
    pub(crate) fn holds_for(&self, client: Option<&Presented>) -> bool {
        match (&self.clients, client) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(matches), Some(client)) => matches.iter().any(|it| it.holds(client)),
        }
    }

    /// What a default policy (or `accessPolicy`) allows, under the name of `rule`.
    pub(crate) fn by_default(
        policy: DefaultPolicy,
        rule: String,
        cluster: &Arc<[NetworkMatch]>,
    ) -> Option<Self> {
        let any: Option<Arc<[Match]>> = Some(Arc::from([Match::Any]));
        let (clients, networks) = match policy {
            DefaultPolicy::Deny => return None,
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => (None, None),
            DefaultPolicy::AllAuthenticated => (any, None),
            DefaultPolicy::ClusterUnauthenticated => (None, Some(Arc::clone(cluster))),
            DefaultPolicy::ClusterAuthenticated => (any, Some(Arc::clone(cluster))),
        };
        let specificity =
            if policy == DefaultPolicy::Audit { Specificity::Audit } else { Specificity::Default };
        Some(Self { specificity, created: i64::MAX, rule: rule.into(), clients, networks })
    }
}

/// Networks of the settings as a rule holds them.
pub(crate) fn plain_networks(networks: &[IpNet]) -> Arc<[NetworkMatch]> {
    networks.iter().map(|net| NetworkMatch { cidr: canonical(net), except: Vec::new() }).collect()
}

/// The AuthorizationPolicies of a cluster, their references followed.
#[derive(Default, Debug)]
pub(crate) struct Authorizations {
    by_server: BTreeMap<ObjectName, Vec<Grant>>,
    by_namespace: BTreeMap<String, Vec<Grant>>,
}

/// Where references lead.
pub(crate) struct References<'a> {
    pub(crate) naming: &'a IdentityNaming,
    pub(crate) mesh_tls: BTreeMap<ObjectName, &'a MeshTlsAuthentication>,
    pub(crate) networks: BTreeMap<ObjectName, &'a NetworkAuthentication>,
    pub(crate) servers: BTreeMap<ObjectName, &'a Server>,
}

impl Authorizations {
    /// Adds a policy, unless something in it makes it grant nothing.
    pub(crate) fn add(
        &mut self,
        policy: &AuthorizationPolicy,
        references: &References<'_>,
        problems: &mut Vec<Problem>,
    ) {
        let Some(rule) = &policy.rule else { return };
        let mut tell = |severity, field: &str, reason: String, remedy: &str| {
            problems
                .push(policy.meta.problem(Kind::AuthorizationPolicy, severity, field, reason).remedy(remedy));
        };
        let specificity = match &rule.target {
            Target::Route => {
                let reason =
                    "is attached to a route, whose requests are not read: it grants nothing".to_owned();
                tell(Severity::Warning, "spec.targetRef", reason, "target the Server");
                return;
            }
            Target::Server(server) => {
                let name = ObjectName::new(&*policy.meta.namespace, &**server);
                if !references.servers.contains_key(&name) {
                    let reason = format!("there is no Server {name}: the policy grants nothing");
                    tell(Severity::Warning, "spec.targetRef", reason, "write the Server or correct the name");
                }
                Specificity::Server
            }
            Target::Namespace => Specificity::Namespace,
        };
        let (clients, networks) = match follow(rule, references) {
            Ok(found) => found,
            Err(reason) => {
                tell(
                    Severity::Error,
                    "spec.requiredAuthenticationRefs",
                    reason,
                    "write it or correct the reference",
                );
                return;
            }
        };
        let grant = Grant {
            specificity,
            created: policy.meta.created.unwrap_or(i64::MAX),
            rule: format!("AuthorizationPolicy {}", policy.meta.object_name()).into(),
            clients,
            networks,
        };
        match &rule.target {
            Target::Server(server) => {
                let name = ObjectName::new(&*policy.meta.namespace, &**server);
                self.by_server.entry(name).or_default().push(grant);
            }
            _ => self.by_namespace.entry(policy.meta.namespace.clone()).or_default().push(grant),
        }
    }

    /// Everything that allows anybody on a Server, in the order of credit.
    pub(crate) fn of_server(&self, server: &Server, cluster: &Arc<[NetworkMatch]>) -> Vec<Grant> {
        if !server.readable {
            return Vec::new();
        }
        let name = server.meta.object_name();
        let access = format!("Server {name} (accessPolicy {})", server.access.as_str());
        let mut grants: Vec<Grant> = self
            .by_server
            .get(&name)
            .into_iter()
            .chain(self.by_namespace.get(&name.namespace))
            .flatten()
            .cloned()
            .chain(Grant::by_default(server.access, access, cluster))
            .collect();
        grants.sort();
        grants
    }
}

type Followed = (Option<Arc<[Match]>>, Option<Arc<[NetworkMatch]>>);

fn follow(rule: &Authorization, references: &References<'_>) -> Result<Followed, String> {
    const NOTHING: &str = "the policy grants nothing";
    let clients = match &rule.identity {
        None => None,
        Some(IdentityRef::ServiceAccount(account)) => {
            let name = account_match(account, references.naming)
                .ok_or_else(|| format!("{account} cannot be a service account: {NOTHING}"))?;
            Some(Arc::from([name]))
        }
        Some(IdentityRef::MeshTls(name)) => {
            let found = references
                .mesh_tls
                .get(name)
                .ok_or_else(|| format!("there is no MeshTLSAuthentication {name}: {NOTHING}"))?;
            let clients = found
                .clients
                .as_ref()
                .ok_or_else(|| format!("MeshTLSAuthentication {name} cannot be read: {NOTHING}"))?;
            Some(clients.iter().filter_map(|client| resolve(client, references.naming)).collect())
        }
    };
    let networks = match &rule.network {
        None => None,
        Some(name) => {
            let found = references
                .networks
                .get(name)
                .ok_or_else(|| format!("there is no NetworkAuthentication {name}: {NOTHING}"))?;
            let networks = found
                .networks
                .as_ref()
                .ok_or_else(|| format!("NetworkAuthentication {name} cannot be read: {NOTHING}"))?;
            Some(networks.iter().cloned().collect())
        }
    };
    Ok((clients, networks))
}

fn account_match(account: &ObjectName, naming: &IdentityNaming) -> Option<Match> {
    naming.name(&account.namespace, &account.name).ok().map(Match::Name)
}

/// An entry in terms of identities. `None`: nobody can have it.
fn resolve(entry: &IdentityMatch, naming: &IdentityNaming) -> Option<Match> {
    Some(match entry {
        IdentityMatch::Any => Match::Any,
        IdentityMatch::Suffix(suffix) => Match::Suffix(suffix.clone()),
        IdentityMatch::Dns(dns) => {
            naming.parse_dns(dns).map_or_else(|_| Match::Dns(dns.clone()), Match::Name)
        }
        IdentityMatch::Spiffe(id) => {
            naming.parse_spiffe(id).map_or_else(|_| Match::Spiffe(id.clone()), Match::Name)
        }
        IdentityMatch::ServiceAccount(account) => account_match(account, naming)?,
        IdentityMatch::Namespace(namespace) => Match::Namespace(namespace.clone()),
    })
}
