//! What authorizes and forbids in one namespace, with every reference followed, in the order in which rules are credited.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    clients::Match,
    grants::{Clients, Grant, Specificity},
    names::IdentityNaming,
    problems::{Problem, Severity},
    resources::{
        AccessRule, Action, Authorization, AuthorizationPolicy, Direction, IdentityRef, Kind,
        MeshTlsAuthentication, NetworkAuthentication, NetworkMatch, ObjectName, Peer, Server,
        ServerAuthorization, ServerClients, ServerRef, Target, namespace_matches,
    },
};

/// Where references lead.
pub(crate) trait References {
    fn naming(&self) -> &IdentityNaming;
    fn mesh_tls(&self, name: &ObjectName) -> Option<&MeshTlsAuthentication>;
    fn network(&self, name: &ObjectName) -> Option<&NetworkAuthentication>;
    fn server(&self, name: &ObjectName) -> Option<&Server>;
    fn route(&self, kind: Kind, name: &ObjectName) -> bool;
    /// Every namespace that is known, with its labels.
    fn namespaces(&self) -> Vec<(&str, &BTreeMap<String, String>)>;
}

/// What one namespace's policies allow.
#[derive(Default, Debug)]
pub(crate) struct Authorizations {
    by_server: BTreeMap<String, Vec<Grant>>,
    by_route: BTreeMap<(Kind, String), Vec<Grant>>,
    of_namespace: Vec<Grant>,
    by_label: Vec<(ServerRef, Grant)>,
}

impl Authorizations {
    /// Adds a policy, unless something in it makes it grant nothing.
    pub(crate) fn add(
        &mut self,
        policy: &AuthorizationPolicy,
        references: &impl References,
        problems: &mut Vec<Problem>,
    ) {
        let Some(rule) = &policy.rule else { return };
        let mut tell = |severity, field: &str, reason: String, remedy: &str| {
            problems
                .push(policy.meta.problem(Kind::AuthorizationPolicy, severity, field, reason).remedy(remedy));
        };
        let own = |name: &String| ObjectName::new(&*policy.meta.namespace, &**name);
        let specificity = match &rule.target {
            Target::Server(server) => {
                if references.server(&own(server)).is_none() {
                    let reason = format!("there is no Server {}: the policy grants nothing", own(server));
                    tell(Severity::Warning, "spec.targetRef", reason, "write the Server or correct the name");
                }
                Specificity::Server
            }
            Target::Route { kind, name } => {
                if !references.route(*kind, &own(name)) {
                    let reason =
                        format!("there is no {} {}: the policy grants nothing", kind.as_str(), own(name));
                    tell(Severity::Warning, "spec.targetRef", reason, "write the route or correct the name");
                }
                Specificity::Route
            }
            Target::Namespace => Specificity::Namespace,
        };
        let (clients, networks) = match follow(rule, references) {
            Ok(found) => found,
            Err(reason) => {
                let field = "spec.requiredAuthenticationRefs";
                tell(Severity::Error, field, reason, "write it or correct the reference");
                return;
            }
        };
        let grant = Grant {
            specificity,
            created: policy.meta.created.unwrap_or(i64::MAX),
            rule: format!("AuthorizationPolicy {}", policy.meta.object_name()).into(),
            part: 0,
            clients,
            networks,
        };
        match &rule.target {
            Target::Server(server) => self.by_server.entry(server.clone()).or_default().push(grant),
            Target::Route { kind, name } => {
                self.by_route.entry((*kind, name.clone())).or_default().push(grant);
            }
            Target::Namespace => self.of_namespace.push(grant),
        }
    }

    /// Adds an authorization of the older form.
    pub(crate) fn add_server_authorization(
        &mut self,
        it: &ServerAuthorization,
        references: &impl References,
        cluster: &Arc<[NetworkMatch]>,
        problems: &mut Vec<Problem>,
    ) {
        let Some(rule) = &it.rule else { return };
        if let ServerRef::Name(name) = &rule.servers
            && references.server(&ObjectName::new(&*it.meta.namespace, &**name)).is_none()
        {
            let reason = format!("there is no Server {}/{name}: it grants nothing", it.meta.namespace);
            let problem =
                it.meta.problem(Kind::ServerAuthorization, Severity::Warning, "spec.server.name", reason);
            problems.push(problem.remedy("write the Server or correct the name"));
        }
        let clients = match &rule.clients {
            ServerClients::Unauthenticated => Clients::Everybody,
            ServerClients::UnauthenticatedTls => Clients::MeshTls,
            ServerClients::Identities(entries) => Clients::Any(
                entries.iter().filter_map(|entry| Match::resolve(entry, references.naming())).collect(),
            ),
        };
        let grant = Grant {
            specificity: Specificity::Server,
            created: it.meta.created.unwrap_or(i64::MAX),
            rule: format!("ServerAuthorization {}", it.meta.object_name()).into(),
            part: 0,
            clients,
            networks: Some(
                rule.networks.as_ref().map_or_else(|| Arc::clone(cluster), |it| it.as_slice().into()),
            ),
        };
        match &rule.servers {
            ServerRef::Name(name) => self.by_server.entry(name.clone()).or_default().push(grant),
            ServerRef::Selector(_) => self.by_label.push((rule.servers.clone(), grant)),
        }
    }

    /// Everything that allows anybody on a Server.
    pub(crate) fn of_server(&self, server: &Server, cluster: &Arc<[NetworkMatch]>) -> Vec<Grant> {
        if !server.readable {
            return Vec::new();
        }
        let name = server.meta.object_name();
        let access = format!("Server {name} (accessPolicy {})", server.access.as_str()).into();
        let labeled = self.by_label.iter().filter(|(servers, _)| match servers {
            ServerRef::Selector(selector) => selector.matches(&server.meta.labels),
            ServerRef::Name(_) => false,
        });
        let by_name = self.by_server.get(&name.name).into_iter().flatten();
        by_name
            .chain(&self.of_namespace)
            .chain(labeled.map(|(_, grant)| grant))
            .cloned()
            .chain(Grant::by_default(server.access, &access, cluster))
            .collect()
    }

    /// What policies allow on a route by its name.
    pub(crate) fn of_route(&self, kind: Kind, name: &str) -> &[Grant] {
        self.by_route.get(&(kind, name.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// Whom a rule is about, and at which addresses.
type Followed = (Clients, Option<Arc<[NetworkMatch]>>);

fn follow(rule: &Authorization, references: &impl References) -> Result<Followed, String> {
    const NOTHING: &str = "the policy grants nothing";
    let clients = match &rule.identity {
        None => Clients::Everybody,
        Some(IdentityRef::ServiceAccount(account)) => {
            let name = Match::account(account, references.naming())
                .ok_or_else(|| format!("{account} cannot be a service account: {NOTHING}"))?;
            Clients::Any(Arc::from([name]))
        }
        Some(IdentityRef::MeshTls(name)) => {
            let found = references
                .mesh_tls(name)
                .ok_or_else(|| format!("there is no MeshTLSAuthentication {name}: {NOTHING}"))?;
            let clients = found
                .clients
                .as_ref()
                .ok_or_else(|| format!("MeshTLSAuthentication {name} cannot be read: {NOTHING}"))?;
            Clients::Any(clients.iter().filter_map(|it| Match::resolve(it, references.naming())).collect())
        }
    };
    let networks = match &rule.network {
        None => None,
        Some(name) => {
            let found = references
                .network(name)
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

/// How a rule of Heddle's is named.
pub(crate) fn rule_name(rule: &AccessRule) -> Arc<str> {
    match rule.kind {
        Kind::AccessRule => format!("AccessRule {}", rule.meta.object_name()).into(),
        kind => format!("{} {}", kind.as_str(), rule.meta.name).into(),
    }
}

/// What a rule of Heddle's says of those who reach a pod: one grant for each entry. Empty where it looks the other way.
pub(crate) fn inbound_grants(rule: &AccessRule, references: &impl References) -> Vec<Grant> {
    let specificity =
        if rule.kind == Kind::AccessRule { Specificity::Rule } else { Specificity::ClusterRule };
    let name = rule_name(rule);
    let grant = |part, clients, networks: &[NetworkMatch]| Grant {
        specificity,
        created: rule.meta.created.unwrap_or(i64::MAX),
        rule: Arc::clone(&name),
        part,
        clients,
        networks: (!networks.is_empty()).then(|| networks.into()),
    };
    match &rule.spec {
        Some(spec) => match &spec.direction {
            Direction::Inbound(peers) => (0..)
                .zip(peers)
                .map(|(part, peer)| grant(part, clients(peer, references), &peer.networks))
                .collect(),
            Direction::Outbound(_) => Vec::new(),
        },
        None if rule.closes.is_some() => vec![grant(0, Clients::Everybody, &[])],
        None => Vec::new(),
    }
}

/// Whether a rule denies; one that cannot be read and may have meant it does.
pub(crate) fn denies(rule: &AccessRule) -> bool {
    rule.spec.as_ref().map_or(rule.closes.is_some(), |spec| spec.action == Action::Deny)
}

fn clients(peer: &Peer, references: &impl References) -> Clients {
    let naming = references.naming();
    let resolve = |list: &[_]| -> Vec<Match> {
        let mut found: Vec<Match> = list.iter().filter_map(|it| Match::resolve(it, naming)).collect();
        found.sort();
        found.dedup();
        found
    };
    let mut named = resolve(&peer.identities);
    if let Some(selector) = &peer.namespaces {
        let namespaces = references.namespaces();
        let picked = namespaces.iter().filter(|(name, labels)| namespace_matches(selector, name, labels));
        named.extend(picked.map(|(name, _)| Match::Namespace((*name).to_owned())));
    }
    let says_who = !peer.identities.is_empty() || peer.namespaces.is_some();
    let except = resolve(&peer.except);
    match (says_who, except.is_empty()) {
        (false, true) => Clients::Everybody,
        (true, true) => Clients::Any(named.into()),
        (says_who, false) => Clients::Except(says_who.then(|| named.into()), except.into()),
    }
}

/// A problem of a rule that is no longer in force.
pub(crate) fn expired(rule: &AccessRule) -> Problem {
    let reason = "has expired: it is no longer in force";
    let problem = rule.meta.problem(rule.kind, Severity::Note, "spec.expires", reason);
    problem.remedy("remove the rule or give it more time")
}
