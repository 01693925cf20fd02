//! The whole cluster at once, and the one question that all commands ask of it.

use super::{port::Port, source::Source, templates};
use crate::cluster::workload::workload_name;
use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason},
};
use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Connection, Datagram, Decision, Hop, Index, Problem, Request,
    Route, Sender, Severity, Standing, WorkloadInfo,
    names::{IdentityName, IdentityNaming, trust_domain_of},
    resources::{Document, ObjectName, PodPort, Resource, Service, ServicePort, TargetPort, Transport},
    verdict::{self, Connect, UDP},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use time::OffsetDateTime;

/// The address of a client of which only the identity is known: of a block for documentation (RFC 5737), which no rule
/// should name.
pub(super) const UNKNOWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Workloads without an address get one of the block that leads nowhere (RFC 6666).
const NOWHERE: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// A rule for a range of ports is looked at on so many of them.
const MANY_PORTS: usize = 64;
/// How many addresses of a network are tried for one that no pod and no smaller network has.
const TRIED: usize = 1024;

/// The whole cluster.
pub(super) struct Picture {
    /// As a person named it.
    pub name: String,
    pub files: usize,
    /// The resources, without what was made up here.
    pub index: Index,
    pub compiled: Compiled,
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
    /// Whether something could not be read at all.
    pub unread: bool,
    pub texts: BTreeMap<String, String>,
    pub documents: Vec<Document>,
    services: BTreeMap<ObjectName, Service>,
    workloads: BTreeMap<ObjectName, Vec<ObjectName>>,
    ports: BTreeMap<ObjectName, BTreeMap<Port, String>>,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Client {
    /// Its verified identity, where it is a service account's of this trust domain.
    pub identity: Option<IdentityName>,
    /// Any other that it shows: another trust domain's, or that of a workload outside.
    pub foreign: Option<ClientIdentity>,
    /// Its address.
    pub address: IpAddr,
    /// The node that it runs on, where it is one particular pod.
    pub node: Option<String>,
    /// What people call it.
    pub name: String,
}

impl Client {
    /// One that shows no identity.
    pub fn unidentified(address: IpAddr, name: String) -> Self {
        Self { identity: None, foreign: None, address, node: None, name }
    }

    /// What its certificate says.
    pub fn shows(&self) -> ClientIdentity {
        let own = self.identity.as_ref().map(ClientIdentity::from);
        own.or_else(|| self.foreign.clone()).unwrap_or(ClientIdentity::None)
    }
}

/// A service account of another trust domain, by a name of its certificate's. Both its forms are known from one.
pub(super) fn account_elsewhere(naming: &IdentityNaming, text: &str) -> Option<IdentityName> {
    let of_accounts = |dns| str::split_once(dns, ".serviceaccount.identity.");
    let own_word = |rest| str::strip_prefix(rest, naming.identity_namespace());
    let domain = match trust_domain_of(text) {
        Some(domain) => domain,
        None => own_word(of_accounts(text)?.1)?.strip_prefix('.')?,
    };
    IdentityNaming::new(naming.identity_namespace(), domain).ok()?.parse(text).ok()
}

/// What becomes of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Judged {
    pub allowed: bool,
    pub reason: Reason,
    /// The rule that allows, or what governs the port and has none.
    pub rule: String,
    /// Only `audit` allows it.
    pub audited: bool,
    /// A rule that is only tried and would turn the answer.
    pub tried: Option<String>,
    /// Routes are attached, and a `GET /` was judged for all requests.
    pub sampled: bool,
}

impl Picture {
    pub fn of(source: Source) -> Self {
        let texts = source.texts();
        let Source { name, settings, files, unread } = source;
        let documents: Vec<Document> = files.iter().flat_map(|file| file.documents()).collect();
        let count = files.len();
        let mut problems: Vec<Problem> = unread;
        let unread = !problems.is_empty();
        let mut resources = Vec::new();
        for file in files {
            problems.extend(file.parsed.problems);
            resources.extend(file.parsed.resources);
        }
        let (templated, explained) = templates::pods(&documents, &resources);
        problems.retain(|problem| !explained.contains(&(problem.resource.clone(), problem.field.clone())));
        resources.extend(templated.resources);
        problems.extend(templated.problems);
        let picture = Self::compile(name, count, resources, settings, texts, documents);
        problems.extend(picture.problems.iter().cloned());
        Self { unread, problems, ..picture }.with_problems()
    }

    fn compile(
        name: String,
        files: usize,
        resources: Vec<Resource>,
        settings: ClusterSettings,
        texts: BTreeMap<String, String>,
        documents: Vec<Document>,
    ) -> Self {
        let mut index = Index::default();
        let mut placed = Index::default();
        let mut it = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
        let mut without_address = 0u16;
        let mut problems = Vec::new();
        for resource in resources {
            index.apply(resource.clone());
            placed.apply(match resource {
                Resource::Pod(mut pod) => {
                    let id = pod.meta.object_name();
                    let workload = workload_name(&id.name, &pod.meta.labels).to_owned();
                    it.1.entry(ObjectName::new(&*id.namespace, workload)).or_default().push(id.clone());
                    let declared = pod.ports.iter().filter(|port| port.transport != Transport::Sctp);
                    let port = |it: &PodPort| Port { number: it.number, transport: it.transport };
                    it.2.insert(id.clone(), declared.map(|it| (port(it), it.name.clone())).collect());
                    if pod.addresses.is_empty() && !pod.host_network && !pod.finished {
                        if !pod.node.is_empty() {
                            // One that is still to be scheduled, as from a template, can have none.
                            let reason =
                                format!("Pod {id}: has no address: nothing is known of it in the network");
                            // One that starts is as it should be.
                            let severity = if pod.starting { Severity::Note } else { Severity::Warning };
                            let problem = Problem::new(severity, &pod.meta.origin, reason);
                            problems.push(
                                problem
                                    .field("status.podIP", 0)
                                    .remedy("write status.podIP in a manifest, or wait"),
                            );
                        }
                        without_address = without_address.saturating_add(1);
                        let mut segments = NOWHERE.segments();
                        segments[7] = without_address;
                        pod.addresses.push(IpAddr::V6(segments.into()));
                    }
                    Resource::Pod(pod)
                }
                Resource::Service(service) => {
                    it.0.insert(service.meta.object_name(), service.clone());
                    Resource::Service(service)
                }
                other => other,
            });
        }
        let now = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        let compiled = placed.compile_cluster(&settings, now);
        Self {
            name,
            files,
            index,
            compiled,
            problems,
            unread: false,
            texts,
            documents,
            services: it.0,
            workloads: it.1,
            ports: it.2,
        }
    }

    fn with_problems(mut self) -> Self {
        self.problems.extend(self.compiled.problems.iter().cloned());
        self.problems.extend(heddle_policy::lint::lint(&self.index, &self.compiled));
        self.sort_problems();
        self
    }

    /// In the order in which a person goes through the files, the worst first.
    pub fn sort_problems(&mut self) {
        self.problems.sort_by(|a, b| (&a.file, a.line, a.severity, a).cmp(&(&b.file, b.line, b.severity, b)));
        self.problems.dedup();
    }

    /// The settings that hold.
    pub fn settings(&self) -> &ClusterSettings {
        self.compiled.settings()
    }

    /// The pods that anybody can connect to.
    pub fn pods(&self) -> impl Iterator<Item = &WorkloadInfo> {
        self.compiled.pods().filter(|pod| matches!(pod.standing, Standing::Meshed | Standing::Plain))
    }

    /// A pod by its name.
    pub fn pod(&self, name: &ObjectName) -> Option<&WorkloadInfo> {
        self.compiled.pod(&name.namespace, &name.name)
    }

    /// The pods of a workload.
    pub fn pods_of(&self, workload: &ObjectName) -> impl Iterator<Item = &WorkloadInfo> {
        self.workloads.get(workload).into_iter().flatten().filter_map(|pod| self.pod(pod))
    }

    /// A Service by its name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The ports that a pod declares, with their names.
    pub fn declared_ports(&self, pod: &WorkloadInfo) -> BTreeMap<Port, String> {
        let id = ObjectName::new(&*pod.namespace, &*pod.name);
        self.ports.get(&id).cloned().unwrap_or_default()
    }

    /// The pods and ports that a Service's port leads to.
    pub fn endpoints(&self, service: &Service, port: &ServicePort) -> Vec<(&WorkloadInfo, Port)> {
        let transport = port.transport;
        let mut found = Vec::new();
        for pod in self.pods().filter(|pod| pod.namespace == service.meta.namespace) {
            let selected = !service.selector.is_empty()
                && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
            if !selected {
                continue;
            }
            match &port.target {
                TargetPort::Number(number) => found.push((pod, Port { number: *number, transport })),
                TargetPort::Name(name) => {
                    let declared = self.declared_ports(pod);
                    let mut named =
                        declared.iter().filter(|(port, it)| port.transport == transport && *it == name);
                    found.extend(named.next().map(|(port, _)| (pod, *port)));
                }
            }
        }
        found
    }

    /// The ports of a pod at which rules can differ: those that it declares, that a Service leads to, or that have rules of
    /// their own.
    pub fn interesting_ports(&self, pod: &WorkloadInfo) -> BTreeSet<Port> {
        let mut ports: BTreeSet<Port> = self.declared_ports(pod).into_keys().collect();
        for address in pod.addresses.iter().map(|it| Address::from(*it)) {
            for transport in [Transport::Tcp, Transport::Udp] {
                let ruled = self.compiled.ruled_ports(&address, transport).take(MANY_PORTS);
                ports.extend(ruled.map(|number| Port { number, transport }));
            }
        }
        ports
    }

    /// Whether a rule of Heddle's is about datagrams that reach a pod.
    pub fn rules_datagrams(&self, pod: &WorkloadInfo) -> bool {
        pod.addresses.iter().any(|it| self.compiled.rules_datagrams(&Address::from(*it)))
    }

    /// Everybody who may ask: every identity at one of its pods' addresses, and every pod without.
    pub fn clients(&self) -> Vec<Client> {
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        for pod in self.pods() {
            let Some(client) = self.client_of(pod) else { continue };
            clients.entry(client.name.clone()).or_insert(client);
        }
        clients.into_values().collect()
    }

    /// Clients without an identity that no pod is: one for each network that a rule of this picture or of `other` names, and
    /// one for everywhere else.
    pub fn outsiders(&self, other: &Self) -> Vec<Client> {
        let mut networks = self.compiled.named_networks();
        networks.extend(other.compiled.named_networks());
        networks.sort();
        networks.dedup();
        let taken =
            |ip: &IpAddr| [self, other].iter().any(|it| it.compiled.workload(&Address::from(*ip)).is_some());
        let inside = networks.iter().filter(|net| net.prefix_len() > 0).filter_map(|net| {
            let smaller =
                |ip: &IpAddr| networks.iter().any(|it| it != net && net.contains(it) && it.contains(ip));
            let mut tried = net.hosts().take(TRIED).chain([net.addr(), net.broadcast()]);
            let address = tried.find(|ip| !smaller(ip) && !taken(ip))?;
            Some(Client::unidentified(address, format!("{net} (no identity)")))
        });
        let elsewhere = !networks.iter().any(|net| net.prefix_len() > 0 && net.contains(&UNKNOWN_ADDRESS));
        let name = "any other address (no identity)".to_owned();
        let any = Client::unidentified(UNKNOWN_ADDRESS, name);
        inside.chain(elsewhere.then_some(any)).collect()
    }

    /// A pod as a client.
    pub fn client_of(&self, pod: &WorkloadInfo) -> Option<Client> {
        let address = *pod.addresses.first()?;
        let name = match &pod.identity {
            Some(identity) => format!("{}/{}", identity.namespace(), identity.service_account()),
            None => format!("{}/{} (not meshed)", pod.namespace, workload_name(&pod.name, &pod.labels)),
        };
        Some(Client { identity: pod.identity.clone(), ..Client::unidentified(address, name) })
    }

    /// What becomes of a connection to a port of a pod, of a request over it, or of a datagram: what the client's own rules
    /// let leave and the pod's let in. Where requests must be read and none is given, a `GET /` stands for all of them, and
    /// the answer says so.
    pub fn judge(
        &self,
        client: &Client,
        pod: &WorkloadInfo,
        port: Port,
        request: Option<&Request<'_>>,
    ) -> Judged {
        let Some(to) = address_for(client, pod) else {
            return Judged::refused(Reason::UnknownClusterAddress, "");
        };
        if !pod.meshed() {
            return self.judge_plain(client, &to, port);
        }
        let judged = self.judge_arriving(client, pod, to, port, request);
        if client.identity.is_none() || !judged.allowed {
            return judged;
        }
        // Of what is let in alone: a refusal is told by the rule that every client meets.
        let left = self.judge_plain(client, &to, port);
        if left.reason == Reason::Denied { left } else { judged }
    }

    /// What a meshed pod's own node says.
    fn judge_arriving(
        &self,
        client: &Client,
        pod: &WorkloadInfo,
        to: Address,
        port: Port,
        request: Option<&Request<'_>>,
    ) -> Judged {
        if port.is_udp() {
            let asked = datagram(client, pod, to, port);
            return Judged::by(self.compiled.decide_datagram(&asked), false);
        }
        let port = port.number;
        let identity = client.shows();
        let connection = Connection { client: &identity, address: client.address, server: to, port };
        let any = Request { method: "GET", target: "/", ..Request::default() };
        let (decision, sampled) = match request {
            Some(request) => (self.compiled.decide_request(&connection, request).decision, false),
            None => {
                let decision = self.compiled.decide(&connection);
                if decision.verdict.reason == Reason::NeedsRequest {
                    let found = self.compiled.decide_request(&connection, &any);
                    let routed = found.route.is_some() || found.decision.verdict.reason == Reason::NoRoute;
                    (found.decision, routed)
                } else {
                    (decision, false)
                }
            }
        };
        Judged::by(decision, sampled)
    }

    /// What a client's own node says of a datagram to an address.
    pub fn judge_leaving(&self, client: &Client, to: &Address, port: u16) -> Judged {
        let view = self.compiled.tables.with_captured(|address| {
            self.compiled.workload(address).filter(|it| it.meshed()).map(|it| it.digest)
        });
        let source = Address::from(client.address);
        let asked = Connect { source, destination: *to, port, protocol: UDP, random: 0 };
        let found = verdict::outbound(&view, &asked).verdict;
        let allowed = found.outcome != Outcome::Refuse;
        Judged { allowed, ..Judged::refused(found.reason, self.compiled.tables.rule(found.rule)) }
    }

    /// What the client's node says, which judges alone where the destination is not meshed.
    fn judge_plain(&self, client: &Client, to: &Address, port: Port) -> Judged {
        if client.identity.is_none() {
            return Judged { allowed: true, ..Judged::refused(Reason::PlainCluster, "") };
        }
        if port.is_udp() {
            return self.judge_leaving(client, to, port.number);
        }
        let captured =
            |address: &Address| self.compiled.workload(address).filter(|it| it.meshed()).map(|it| it.digest);
        let from = Address::from(client.address);
        match self.compiled.outbound(&from, to, port.number, captured, 0) {
            Route::Refuse(decision) => Judged::refused(decision.verdict.reason, &decision.rule),
            Route::To { endpoints, .. } => match endpoints.into_iter().next().map(|it| it.hop) {
                Some(Hop::Plain(decision) | Hop::Mesh { decision, .. } | Hop::External { decision, .. }) => {
                    Judged {
                        allowed: decision.verdict.outcome != Outcome::Refuse,
                        ..Judged::refused(decision.verdict.reason, &decision.rule)
                    }
                }
                Some(Hop::Refuse(decision)) => Judged::refused(decision.verdict.reason, &decision.rule),
                None => Judged::refused(Reason::NoEndpoints, ""),
            },
        }
    }
}

/// A client's datagram to a pod. Of which node an identity's pods are is told only of one particular pod; else both ends
/// count as being on one.
pub(super) fn datagram<'a>(
    client: &'a Client,
    pod: &WorkloadInfo,
    server: Address,
    port: Port,
) -> Datagram<'a> {
    let elsewhere = client
        .node
        .as_ref()
        .is_some_and(|node| !node.is_empty() && !pod.node.is_empty() && *node != pod.node);
    let sender = match &client.identity {
        Some(identity) if !elsewhere => Sender::Here(identity),
        _ => Sender::Elsewhere,
    };
    Datagram { sender, address: client.address, server, port: port.number }
}

/// The address of a pod that a client asks for: one of its own family, if there is one.
pub(super) fn address_for(client: &Client, pod: &WorkloadInfo) -> Option<Address> {
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == client.address.is_ipv4();
    pod.addresses.iter().find(same_family).or(pod.addresses.first()).map(|ip| Address::from(*ip))
}

impl Judged {
    fn by(decision: Decision, sampled: bool) -> Self {
        Self {
            allowed: decision.allowed(),
            reason: decision.verdict.reason,
            audited: decision.audited,
            rule: decision.rule.to_string(),
            tried: decision.tried.map(|rule| rule.to_string()),
            sampled,
        }
    }

    pub fn refused(reason: Reason, rule: &str) -> Self {
        let rule = rule.to_owned();
        Self { allowed: false, reason, rule, audited: false, tried: None, sampled: false }
    }

    /// In a word.
    pub const fn word(&self) -> &'static str {
        match (self.allowed, self.audited) {
            (true, false) => "allowed",
            (true, true) => "audit",
            (false, _) => "refused",
        }
    }

    /// Why, in a line: the rule, or the reason where no rule speaks.
    pub fn why(&self) -> String {
        let mut why = match (self.rule.is_empty(), self.allowed) {
            (false, true) => self.rule.clone(),
            (false, false) => format!("{}: {}", self.reason.as_str(), self.rule),
            (true, _) => self.reason.as_str().to_owned(),
        };
        if self.sampled {
            why += " (GET /; routes divide requests)";
        }
        if let Some(tried) = &self.tried {
            why += &format!(" (tried, and would turn it: {tried})");
        }
        why
    }
}
