//! What holds for each port of a pod.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use heddle_ebpf::policy::{PORT_AGENT_ANSWERS, PORT_DETECT, PORT_L4_ONLY, PORT_NEEDS_REQUEST};

use crate::{
    applying::{About, Applying, MAX_PORTS, add_listed, ports_of},
    authorizations::{denies, inbound_grants},
    base::LocalPod,
    defaults::PodDefaults,
    grant_set::GrantSet,
    grants::{Clients, Grant},
    limits::RateLimits,
    problems::{Problem, Severity},
    request::RouteTable,
    resources::{Direction, Kind, Pod, PortSet, ProxyProtocol, Server, Transport},
    room::Effort,
    rules::{InNamespace, Rules},
    servers::{Governors, conflict, governors},
};

/// What holds for the requests of a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    /// Something attached cannot be read: every request is refused.
    pub(crate) closed: bool,
    /// `None`: none is attached, and every request is judged as the connection is.
    pub(crate) routes: Option<Arc<RouteTable>>,
    pub(crate) limits: Option<Arc<RateLimits>>,
}

/// What holds for a port.
#[derive(Clone, Debug)]
pub(crate) struct PortRules {
    pub(crate) grants: Arc<GrantSet>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) protocol: ProxyProtocol,
    /// What is named when nothing allows.
    pub(crate) governs: Arc<str>,
    /// `PORT_*`, but for what follows from the grants.
    pub(crate) flags: u8,
}

impl PortRules {
    /// The same for the port at which the agent answers for the pod. No such connection is left to the kernel alone. Where a
    /// Server says no more of requests than that they are HTTP/1, there is nothing to be seen in one that would decide.
    fn where_the_agent_answers(&self) -> Self {
        let requests = &self.requests;
        let plain = !requests.closed && requests.routes.is_none() && requests.limits.is_none();
        let http1 = plain && self.protocol == ProxyProtocol::Http1;
        let cleared = PORT_L4_ONLY | if http1 { PORT_NEEDS_REQUEST } else { 0 };
        Self { flags: self.flags & !cleared | PORT_DETECT | PORT_AGENT_ANSWERS, ..self.clone() }
    }
}

/// What holds for the ports of one protocol.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) own: BTreeMap<u16, PortRules>,
    /// For every other port.
    pub(crate) rest: PortRules,
}

impl Ports {
    /// What holds for a port.
    pub(crate) fn port(&self, port: u16) -> &PortRules {
        self.own.get(&port).unwrap_or(&self.rest)
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &PortRules> {
        self.own.values().chain([&self.rest])
    }
}

/// What holds for a pod's ports.
#[derive(Clone, Debug)]
pub(crate) struct PodPolicy {
    pub(crate) tcp: Ports,
    pub(crate) udp: Ports,
    /// The port at which the agent answers for the pod.
    pub(crate) admin: Option<u16>,
}

impl PodPolicy {
    /// Everything refused: no rule of the pod's is in force, which `why` says.
    pub(crate) fn closed(&self, why: &Arc<str>) -> Self {
        let rest = PortRules {
            grants: crate::grant_set::empty(),
            requests: Arc::default(),
            protocol: ProxyProtocol::Opaque,
            governs: Arc::clone(why),
            flags: PORT_L4_ONLY,
        };
        let admin = self.admin.map(|port| (port, rest.where_the_agent_answers()));
        Self {
            tcp: Ports { own: admin.into_iter().collect(), rest: rest.clone() },
            udp: Ports { own: BTreeMap::new(), rest },
            admin: self.admin,
        }
    }

    /// What holds for the ports of a protocol.
    pub(crate) fn of(&self, transport: Transport) -> &Ports {
        if transport == Transport::Udp { &self.udp } else { &self.tcp }
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &PortRules> {
        self.tcp.rules().chain(self.udp.rules())
    }
}

/// Whether routes of a kind go with what a Server speaks.
pub(crate) fn takes(protocol: ProxyProtocol, kind: Kind) -> bool {
    match kind {
        Kind::HttpRoute | Kind::LinkerdHttpRoute => {
            matches!(protocol, ProxyProtocol::Unknown | ProxyProtocol::Http1 | ProxyProtocol::Http2)
        }
        Kind::GrpcRoute => protocol == ProxyProtocol::Grpc,
        _ => false,
    }
}

/// Works out the pods of a namespace; pods and ports that are alike share what is worked out.
pub(crate) struct AboutPod<'a> {
    rules: &'a Rules<'a>,
    namespace: &'a str,
    found: &'a InNamespace<'a>,
    made: HashMap<(Governor<'a>, Vec<usize>), PortRules>,
    /// What was made, and whether more ports are listed than are kept.
    alike: HashMap<Alike<'a>, (Arc<PodPolicy>, bool)>,
    grants: Vec<Vec<Grant>>,
    effort: Effort,
}

/// What tells pods of a namespace apart: for those that have it in common the same holds.
#[derive(PartialEq, Eq, Hash)]
struct Alike<'a> {
    defaults: PodDefaults,
    governed: Vec<(u16, &'a str)>,
    rest: Option<&'a str>,
    tcp: Vec<About>,
    udp: Vec<About>,
    admin: Option<u16>,
}

/// What tells ports of a pod apart: the Server that governs them, or what the defaults say of them, and the rules that name
/// them.
type Sort<'a> = (Result<&'a str, (bool, bool)>, &'a [usize]);

/// What governs a port.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Governor<'a> {
    Server(&'a str),
    Default {
        text: String,
        opaque: bool,
    },
    /// No Server is about datagrams.
    Datagrams {
        text: String,
    },
}

impl<'a> AboutPod<'a> {
    pub(crate) fn new(rules: &'a Rules<'a>, namespace: &'a str, found: &'a InNamespace<'a>) -> Self {
        let grants = found.access.iter().map(|rule| inbound_grants(rule, rules)).collect();
        Self {
            rules,
            namespace,
            found,
            made: HashMap::new(),
            alike: HashMap::new(),
            grants,
            effort: Effort::new(),
        }
    }

    /// Whether the rules are too many: then they are not in force.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.effort.is_exceeded()
    }

    /// What holds for a pod.
    pub(crate) fn policy(&mut self, local: &LocalPod, problems: &mut Vec<Problem>) -> Arc<PodPolicy> {
        let pod = &*local.pod;
        let meta = self.rules.base.namespaces.get(self.namespace);
        let defaults = PodDefaults::of(pod, meta, self.rules.settings, problems);
        let governors = governors(pod, &self.found.servers, |winner, loser, port| {
            problems.push(conflict(winner, loser, pod, port));
        });
        let key = Alike {
            defaults,
            governed: governors.ports.iter().map(|(port, server)| (*port, &*server.meta.name)).collect(),
            rest: governors.rest.map(|server| &*server.meta.name),
            tcp: self.about(pod, Transport::Tcp),
            udp: self.about(pod, Transport::Udp),
            admin: pod.admin_port(),
        };
        let (policy, overfull) = match self.alike.get(&key) {
            Some((policy, overfull)) => (Arc::clone(policy), *overfull),
            None => {
                let (policy, overfull) = self.make_policy(&key, &governors);
                let policy = Arc::new(policy);
                self.alike.insert(key, (Arc::clone(&policy), overfull));
                (policy, overfull)
            }
        };
        if overfull {
            let reason = format!(
                "has rules for more than {MAX_PORTS} ports: those beyond are refused whatever rule allows them"
            );
            problems.push(pod.meta.problem(Kind::Pod, Severity::Error, "spec", reason));
        }
        policy
    }

    /// What holds for a pod, and whether more ports are listed than are kept.
    fn make_policy(&mut self, key: &Alike<'a>, governors: &Governors<'a>) -> (PodPolicy, bool) {
        let defaults = &key.defaults;
        let (udp, udp_overfull) = self.datagrams(defaults, &key.udp);
        let mut listed: BTreeSet<u16> = governors.ports.keys().copied().collect();
        if governors.rest.is_none() {
            // A list of every port is in `rest` already.
            let sets = [&defaults.opaque, &defaults.require_identity].into_iter().filter(|set| !set.is_all());
            listed.extend(sets.flat_map(PortSet::iter));
        }
        let access = Applying::of(&key.tcp);
        let overfull = add_listed(&mut listed, &access);
        let governor = |port: Option<u16>| {
            let server = port.and_then(|port| governors.ports.get(&port).copied()).or(governors.rest);
            match (server, port) {
                (Some(server), _) => Ok(server),
                (None, Some(port)) => {
                    Err((defaults.opaque.contains(port), defaults.require_identity.contains(port)))
                }
                (None, None) => Err((defaults.opaque.is_all(), defaults.require_identity.is_all())),
            }
        };
        let mut rest = self.rules_of(governor(None), access.everywhere.clone(), defaults);
        // Most ports are alike: a list of all rules is made once for each sort.
        let mut alike: HashMap<Sort<'_>, PortRules> = HashMap::new();
        let mut own = BTreeMap::new();
        for port in listed.into_iter().take(MAX_PORTS) {
            let (governor, listed) = (governor(Some(port)), access.listed(port));
            let rules = alike
                .entry((governor.map(|server| &*server.meta.name), listed))
                .or_insert_with(|| self.rules_of(governor, access.with(listed), defaults));
            own.insert(port, rules.clone());
        }
        if overfull || !self.effort.take(own.len() + access.weight()) {
            rest.grants = crate::grant_set::empty();
        }
        let mut tcp = Ports { own, rest };
        if let Some(port) = key.admin {
            let rules = tcp.port(port).where_the_agent_answers();
            tcp.own.insert(port, rules);
        }
        (PodPolicy { tcp, udp, admin: key.admin }, overfull || udp_overfull)
    }

    /// What holds for datagrams: the default policy, as far as it lets clients without identity in, and Heddle's rules. A
    /// meshed client needs a rule that says UDP: by a default it would depend on which node each of the two runs on.
    fn datagrams(&mut self, defaults: &PodDefaults, about: &[About]) -> (Ports, bool) {
        let identity = &defaults.require_identity;
        let mut listed = BTreeSet::new();
        if !identity.is_all() {
            listed.extend(identity.iter());
        }
        let access = Applying::of(about);
        let overfull = add_listed(&mut listed, &access);
        let mut rest = self.datagram_rules(identity.is_all(), access.everywhere.clone(), defaults);
        let mut alike: HashMap<(bool, &[usize]), PortRules> = HashMap::new();
        let mut own = BTreeMap::new();
        for port in listed.into_iter().take(MAX_PORTS) {
            let (demanded, listed) = (identity.contains(port), access.listed(port));
            let rules = alike
                .entry((demanded, listed))
                .or_insert_with(|| self.datagram_rules(demanded, access.with(listed), defaults));
            own.insert(port, rules.clone());
        }
        if overfull || !self.effort.take(own.len() + access.weight()) {
            rest.grants = crate::grant_set::empty();
        }
        (Ports { own, rest }, overfull)
    }

    fn datagram_rules(&mut self, demanded: bool, applying: Vec<usize>, defaults: &PodDefaults) -> PortRules {
        let text = default_text(defaults, demanded);
        let key = (Governor::Datagrams { text: text.clone() }, applying);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let policy = if demanded { defaults.policy.authenticated() } else { defaults.policy };
        let text: Arc<str> = text.into();
        let mut allows: Vec<Grant> =
            Grant::by_default(policy, &text, &self.rules.base.cluster_networks).into_iter().collect();
        allows.retain_mut(|grant| {
            let open = grant.clients == Clients::Everybody;
            grant.clients = Clients::Unidentified;
            open
        });
        let made = PortRules {
            grants: self.grants(allows, &key.1, true),
            requests: Arc::default(),
            protocol: ProxyProtocol::Opaque,
            governs: text,
            flags: PORT_L4_ONLY,
        };
        self.made.insert(key, made.clone());
        made
    }

    /// Which of Heddle's rules are about a pod's ports of a protocol, and which ports (`None`: every one).
    fn about(&self, pod: &Pod, transport: Transport) -> Vec<About> {
        let mut about = Vec::new();
        for (index, rule) in self.found.access.iter().enumerate() {
            let selected = match (&rule.spec, &rule.closes) {
                (Some(spec), _) => {
                    spec.pods.matches(&pod.meta.labels)
                        && spec.is_about(transport)
                        && matches!(spec.direction, Direction::Inbound(_))
                }
                (None, Some(closes)) => {
                    closes.pods.as_ref().is_none_or(|pods| pods.matches(&pod.meta.labels))
                }
                (None, None) => false,
            };
            if selected {
                about.push((index, ports_of(rule, pod, transport)));
            }
        }
        about
    }

    fn rules_of(
        &mut self,
        governor: Result<&'a Server, (bool, bool)>,
        applying: Vec<usize>,
        defaults: &PodDefaults,
    ) -> PortRules {
        let key = match governor {
            Ok(server) => Governor::Server(&server.meta.name),
            Err((opaque, identity)) => Governor::Default { text: default_text(defaults, identity), opaque },
        };
        if let Some(made) = self.made.get(&(key.clone(), applying.clone())) {
            return made.clone();
        }
        let made = self.make(governor, &applying, defaults);
        self.made.insert((key, applying), made.clone());
        made
    }

    fn make(
        &self,
        governor: Result<&'a Server, (bool, bool)>,
        applying: &[usize],
        defaults: &PodDefaults,
    ) -> PortRules {
        let networks = &self.rules.base.cluster_networks;
        match governor {
            Err((opaque, identity)) => {
                let policy = if identity { defaults.policy.authenticated() } else { defaults.policy };
                let text: Arc<str> = default_text(defaults, identity).into();
                let allows = Grant::by_default(policy, &text, networks).into_iter().collect();
                PortRules {
                    grants: self.grants(allows, applying, true),
                    requests: Arc::default(),
                    protocol: if opaque { ProxyProtocol::Opaque } else { ProxyProtocol::Unknown },
                    governs: text,
                    flags: if opaque { PORT_L4_ONLY } else { PORT_DETECT },
                }
            }
            Ok(server) => {
                let allows = self.found.authorizations.of_server(server, networks);
                let l4 = matches!(server.protocol, ProxyProtocol::Opaque | ProxyProtocol::Tls);
                let requests =
                    if l4 { Requests::default() } else { self.requests(server, &allows, applying) };
                let declared = matches!(
                    server.protocol,
                    ProxyProtocol::Http1 | ProxyProtocol::Http2 | ProxyProtocol::Grpc
                );
                let read =
                    declared || requests.closed || requests.routes.is_some() || requests.limits.is_some();
                PortRules {
                    grants: self.grants(allows, applying, server.readable),
                    requests: Arc::new(requests),
                    protocol: server.protocol,
                    governs: format!("Server {}", server.meta.object_name()).into(),
                    flags: if l4 { PORT_L4_ONLY } else { PORT_DETECT }
                        | if read { PORT_NEEDS_REQUEST } else { 0 },
                }
            }
        }
    }

    /// The set of what allows and what Heddle's rules add. On a Server that cannot be read nothing allows.
    fn grants(&self, mut allows: Vec<Grant>, applying: &[usize], readable: bool) -> Arc<GrantSet> {
        let (mut denied, mut tried_allows, mut tried_denies) = (Vec::new(), Vec::new(), Vec::new());
        for index in applying {
            let (Some(rule), Some(grants)) = (self.found.access.get(*index), self.grants.get(*index)) else {
                continue;
            };
            let tried = rule.spec.as_ref().is_some_and(|spec| spec.audit);
            match (denies(rule), tried) {
                (true, false) => denied.extend(grants.iter().cloned()),
                (true, true) => tried_denies.extend(grants.iter().cloned()),
                (false, true) => tried_allows.extend(grants.iter().cloned()),
                (false, false) if readable => allows.extend(grants.iter().cloned()),
                (false, false) => {}
            }
        }
        let all = [&allows, &denied, &tried_allows, &tried_denies].into_iter().flatten();
        if !self.effort.take(all.map(Grant::weight).sum()) {
            return crate::grant_set::empty();
        }
        Arc::new(GrantSet::new(allows, denied).trying(tried_allows, tried_denies))
    }

    fn requests(&self, server: &Server, allows: &[Grant], applying: &[usize]) -> Requests {
        let name = &*server.meta.name;
        let found = self.found;
        let closed = found.closed_everywhere || found.closed.contains(name);
        let routes = found.routes.get(name).map(|routes| {
            let with_grants = routes.iter().map(|route| {
                let own = found.authorizations.of_route(route.kind, &route.meta.name);
                let both = own.iter().chain(allows).cloned().collect();
                let both = if server.readable { both } else { Vec::new() };
                (*route, self.grants(both, applying, server.readable))
            });
            Arc::new(RouteTable::new(with_grants))
        });
        let limits = found.limits.get(name).and_then(|policy| {
            let limit = policy.limit.as_ref()?;
            Some(Arc::new(RateLimits::new(policy.meta.object_name(), limit, self.rules.settings)))
        });
        Requests { closed, routes, limits }
    }
}

fn default_text(defaults: &PodDefaults, identity: bool) -> String {
    let policy = if identity { defaults.policy.authenticated() } else { defaults.policy };
    let why = if policy == defaults.policy { "" } else { ", identity demanded" };
    format!("default policy {} ({}{why})", policy.as_str(), defaults.source)
}
