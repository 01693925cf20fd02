//! What the rules of one namespace say of its pods on this node: the unit that is worked out anew when a rule changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use crate::{
    authorizations::{self, Authorizations, References as _},
    base::Base,
    clients::Presented,
    egress::{AboutLeaving, EgressPolicy},
    grant_set::{self, Found, GrantSet, first_holders},
    grants::{Clients, Grant, Who},
    policy::{AboutPod, PodPolicy},
    problems::{Problem, Severity},
    resources::{Direction, IdentityRef, Kind, ObjectName, Parents, RateLimitPolicy, Resource, Route},
    room,
    rules::{InNamespace, Rules},
    servers,
};

use heddle_ebpf::policy::Network;
use ipnet::IpNet;

/// Linkerd's namespace of EgressNetworks for whoever has none of its own.
pub(crate) const EGRESS_NAMESPACE: &str = "linkerd-egress";

/// A network at which the answer to clients without identity changes: who decides, and as the tables hold it.
pub(crate) type OpenNetwork = (IpNet, Option<(Arc<str>, bool)>);

/// The rules of a port with what the kernel's tables hold of them.
#[derive(Debug)]
pub(crate) struct KernelGrants {
    pub(crate) set: Arc<GrantSet>,
    /// The clients of this node that a rule is about, by their number: the rule, and whether it denies.
    pub(crate) clients: Vec<(u32, Arc<str>, bool)>,
    /// For clients without identity.
    pub(crate) open: Vec<OpenNetwork>,
}

/// What the rules of one namespace say.
#[derive(Debug, Default)]
pub(crate) struct NamespacePart {
    /// By the pod's number in its namespace.
    pub(crate) policies: Vec<Arc<PodPolicy>>,
    pub(crate) egress: Vec<Option<Arc<EgressPolicy>>>,
    pub(crate) kernel: Vec<KernelGrants>,
    pub(crate) problems: Vec<Problem>,
    /// Resources of other namespaces that it depends on.
    pub(crate) references: BTreeSet<(Kind, ObjectName)>,
    /// When the first of its rules expires.
    pub(crate) next_expiry: Option<i64>,
    /// Whether a rule is about where identities are: it follows the pods of the whole cluster.
    pub(crate) follows_pods: bool,
    /// Whether a rule is about whom namespaces' labels pick: it follows those of the whole cluster.
    pub(crate) follows_labels: bool,
}

impl NamespacePart {
    /// Works out a namespace.
    pub(crate) fn of(rules: &Rules<'_>, namespace: &str) -> Self {
        let mut it = Self::default();
        let found = it.collect(rules, namespace);
        let pods = rules.base.local.get(namespace).map_or(&[][..], Vec::as_slice);
        let mut about = AboutPod::new(rules, namespace, &found);
        let mut leaving = AboutLeaving::new(rules, &found);
        for pod in pods {
            it.policies.push(about.policy(pod, &mut it.problems));
            it.egress.push(leaving.policy(pod));
        }
        if about.is_exceeded() || leaving.is_exceeded() {
            it.problems.push(room::too_many(rules.base, namespace));
            let closed = it.closed(&room::TOO_MANY.into(), rules.base);
            (it.policies, it.egress) = (closed.policies, closed.egress);
        }
        let mut sets: Vec<&Arc<GrantSet>> =
            it.distinct_policies().flat_map(|policy| policy.rules()).map(|rules| &rules.grants).collect();
        let mut seen = HashSet::new();
        sets.retain(|set| seen.insert(Arc::as_ptr(set)));
        sets.sort();
        sets.dedup();
        it.kernel = sets.into_iter().map(|set| KernelGrants::of(set, rules.base)).collect();
        it.problems.sort();
        it.problems.dedup();
        it
    }

    /// What holds for its pods, once for those that have it in common.
    pub(crate) fn distinct_policies(&self) -> impl Iterator<Item = &Arc<PodPolicy>> {
        let mut seen = HashSet::new();
        self.policies.iter().filter(move |policy| seen.insert(Arc::as_ptr(policy)))
    }

    /// The same of what leaves them.
    pub(crate) fn distinct_egress(&self) -> impl Iterator<Item = &Arc<EgressPolicy>> {
        let mut seen = HashSet::new();
        self.egress.iter().flatten().filter(move |policy| seen.insert(Arc::as_ptr(policy)))
    }

    /// Its rules take no more rows of any table than this.
    pub(crate) fn at_most(&self) -> u64 {
        let named = |set: &GrantSet| set.allows.len() + set.denies.len();
        let (mut ports, mut networks, mut rules) = (0, 0, 0);
        for port in self.distinct_policies().flat_map(|policy| policy.rules()) {
            let routes = port.requests.routes.iter().flat_map(|routes| routes.entries());
            rules += 2 + named(&port.grants) + routes.map(|entry| named(&entry.grants)).sum::<usize>();
            ports += 1;
        }
        for egress in self.distinct_egress().flat_map(|egress| egress.rules()) {
            rules += egress.ways.len() + egress.names.len();
            networks += egress.ways.len();
            ports += 1;
        }
        networks += self.kernel.iter().map(|it| it.open.len()).sum::<usize>();
        let allows = self.kernel.iter().map(|it| it.clients.len()).sum::<usize>();
        [ports, networks, rules, allows].into_iter().max().map_or(0, |most| most as u64)
    }

    /// The same pods with everything refused, both ways: no rule is in force, which `why` says.
    pub(crate) fn closed(&self, why: &Arc<str>, base: &Base) -> Self {
        let policies: Vec<Arc<PodPolicy>> = self.policies.iter().map(|it| Arc::new(it.closed(why))).collect();
        let egress = Arc::new(EgressPolicy::closed(why));
        Self {
            egress: vec![Some(egress); policies.len()],
            policies,
            kernel: vec![KernelGrants::of(&grant_set::empty(), base)],
            ..Self::default()
        }
    }

    fn collect<'a>(&mut self, rules: &Rules<'a>, namespace: &'a str) -> InNamespace<'a> {
        let index = rules.index;
        let mut it = InNamespace {
            servers: Vec::new(),
            authorizations: Authorizations::default(),
            routes: BTreeMap::new(),
            closed: BTreeSet::new(),
            closed_everywhere: false,
            limits: BTreeMap::new(),
            access: Vec::new(),
            egress: Vec::new(),
        };
        for resource in index.of_kind(Kind::Server, namespace) {
            if let Resource::Server(server) = resource {
                it.servers.push(server);
            }
        }
        servers::by_age(&mut it.servers);
        for resource in index.of_kind(Kind::AuthorizationPolicy, namespace) {
            if let Resource::AuthorizationPolicy(policy) = resource {
                self.refer(policy.rule.as_ref());
                it.authorizations.add(policy, rules, &mut self.problems);
            }
        }
        for resource in index.of_kind(Kind::ServerAuthorization, namespace) {
            if let Resource::ServerAuthorization(found) = resource {
                let cluster = &rules.base.cluster_networks;
                it.authorizations.add_server_authorization(found, rules, cluster, &mut self.problems);
            }
        }
        for kind in [Kind::LinkerdHttpRoute, Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute]
        {
            for resource in index.of_kind(kind, namespace) {
                if let Resource::Route(route) = resource {
                    self.attach(rules, route, &mut it);
                }
            }
        }
        let mut limits: Vec<&RateLimitPolicy> = Vec::new();
        for resource in index.of_kind(Kind::HttpLocalRateLimitPolicy, namespace) {
            if let Resource::RateLimitPolicy(limit) = resource {
                limits.push(limit);
            }
        }
        limits.sort_by_key(|limit| limit.meta.age());
        for limit in limits {
            match &limit.server {
                None => it.closed_everywhere = true,
                Some(server) if limit.limit.is_none() => {
                    it.closed.insert(server);
                }
                Some(server) => {
                    if let Some(older) = it.limits.get(&**server) {
                        let reason =
                            format!("limits nothing: {}, which is older, does", older.meta.object_name());
                        let kind = Kind::HttpLocalRateLimitPolicy;
                        let problem = limit.meta.problem(kind, Severity::Warning, "spec.targetRef", reason);
                        self.problems.push(problem.remedy("write one for each Server"));
                    } else {
                        it.limits.insert(server, limit);
                    }
                }
            }
        }
        self.access(rules, namespace, &mut it);
        let egress = |namespace| {
            index.of_kind(Kind::EgressNetwork, namespace).filter_map(|it| match it {
                Resource::EgressNetwork(it) => Some(it),
                _ => None,
            })
        };
        it.egress = egress(namespace).collect();
        if it.egress.is_empty() {
            it.egress = egress(EGRESS_NAMESPACE).collect();
        }
        it
    }

    fn refer(&mut self, rule: Option<&crate::resources::Authorization>) {
        let Some(rule) = rule else { return };
        if let Some(IdentityRef::MeshTls(name)) = &rule.identity {
            self.references.insert((Kind::MeshTlsAuthentication, name.clone()));
        }
        if let Some(name) = &rule.network {
            self.references.insert((Kind::NetworkAuthentication, name.clone()));
        }
    }

    fn attach<'a>(&mut self, rules: &Rules<'a>, route: &'a Route, it: &mut InNamespace<'a>) {
        let Some(named) = route.servers() else {
            it.closed_everywhere = true;
            return;
        };
        let mut problem = |severity, field: &str, reason: String, remedy: &str| {
            let problem = route.meta.problem(route.kind, severity, field, reason);
            self.problems.push(problem.remedy(remedy));
        };
        if let Parents::These(parents) = &route.parents {
            for (i, parent) in parents.iter().enumerate() {
                if parent.kind == crate::resources::ParentKind::Server
                    && parent.namespace != route.meta.namespace
                {
                    let field = format!("spec.parentRefs[{i}].namespace");
                    let reason = "is another namespace's: a route is attached to Servers of its own only";
                    problem(
                        Severity::Error,
                        &field,
                        reason.to_owned(),
                        "write the route in the Server's namespace",
                    );
                }
            }
        }
        for name in named {
            let full = ObjectName::new(&*route.meta.namespace, name);
            let Some(server) = rules.server(&full) else {
                let reason = format!("there is no Server {full}: the route is attached to nothing there");
                problem(Severity::Warning, "spec.parentRefs", reason, "write the Server or correct the name");
                continue;
            };
            if !crate::policy::takes(server.protocol, route.kind) {
                let reason = format!(
                    "Server {full} speaks {}: a {} does not go with it and has no effect there",
                    server.protocol.as_str(),
                    route.kind.as_str()
                );
                problem(
                    Severity::Warning,
                    "spec.parentRefs",
                    reason,
                    "correct the Server's proxyProtocol or remove the route",
                );
                continue;
            }
            if route.rules.is_none() {
                it.closed.insert(name);
            }
            it.routes.entry(name).or_default().push(route);
        }
    }

    fn access<'a>(&mut self, rules: &Rules<'a>, namespace: &'a str, it: &mut InNamespace<'a>) {
        let none = BTreeMap::new();
        let labels = rules.base.namespaces.get(namespace).map_or(&none, |meta| &*meta.labels);
        let own = rules.index.of_kind(Kind::AccessRule, namespace);
        for resource in own.chain(rules.index.of_kind(Kind::ClusterAccessRule, "")) {
            let Resource::AccessRule(rule) = resource else { continue };
            if !rule.is_about_namespace(namespace, labels) {
                continue;
            }
            match rule.spec.as_ref().and_then(|spec| spec.expires) {
                Some(expires) if expires <= rules.now => {
                    self.problems.push(authorizations::expired(rule));
                    continue;
                }
                Some(expires) => {
                    self.next_expiry = Some(self.next_expiry.map_or(expires, |it| it.min(expires)));
                }
                None => {}
            }
            match rule.spec.as_ref().map(|spec| &spec.direction) {
                Some(Direction::Outbound(destinations)) => {
                    self.follows_pods |= destinations.iter().any(|it| !it.identities.is_empty());
                }
                Some(Direction::Inbound(peers)) => {
                    self.follows_labels |= peers.iter().any(|it| it.namespaces.is_some());
                }
                None => {}
            }
            it.access.push(rule);
        }
    }
}

impl KernelGrants {
    fn of(set: &Arc<GrantSet>, base: &Base) -> Self {
        let mut clients = Vec::new();
        for (number, (identity, address)) in (0u32..).zip(&base.clients) {
            let who = Who::Known(Presented::of(identity));
            match set.find(&who, address) {
                Found::Allowed(grant) => clients.push((number, Arc::clone(&grant.rule), false)),
                Found::Denied(grant) => clients.push((number, Arc::clone(&grant.rule), true)),
                Found::Nothing => {}
            }
        }
        Self { set: Arc::clone(set), clients, open: flatten(set) }
    }
}

/// What clients without an identity may, by address.
fn flatten(set: &GrantSet) -> Vec<OpenNetwork> {
    fn open(grants: &[Grant], about: fn(&Clients, &Who<'_>) -> bool) -> Vec<(u32, &Grant)> {
        (0..).zip(grants).filter(|(_, grant)| about(&grant.clients, &Who::Nobody)).collect()
    }
    let allows = open(&set.allows, Clients::allows);
    // As one list: every rule that denies comes before any that allows.
    let mut all = open(&set.denies, Clients::denies);
    let denies = u32::try_from(set.denies.len()).unwrap_or(u32::MAX);
    all.extend(allows.into_iter().map(|(index, grant)| (index + denies, grant)));
    let of = |index: u32| {
        let (list, at, deny) =
            if index < denies { (&set.denies, index, true) } else { (&set.allows, index - denies, false) };
        list.get(at as usize).map(|grant| (Arc::clone(&grant.rule), deny))
    };
    first_holders(&all).into_iter().map(|(point, index)| (point, index.and_then(of))).collect()
}

/// As the kernel's tables hold it.
pub(crate) fn network_row(found: Option<&(Arc<str>, bool)>, rule: impl Fn(&Arc<str>) -> u32) -> Network {
    match found {
        None => Network { rule: 0, allow: 0 },
        Some((text, denies)) => Network { rule: rule(text), allow: if *denies { 2 } else { 1 } },
    }
}
