//! The meaning of the resources once more, as plainly as it can be written: straight over the resources, no index, no
//! tables, no ids, nothing shared with the code under test but the resources' types.

use std::net::IpAddr;

use heddle_policy::{
    ClusterSettings, DefaultOutbound,
    resources::{
        AuthorizationPolicy, DefaultPolicy, EndpointSlice, EndpointState, ExternalWorkload, IdentityMatch,
        IdentityRef, Kind, Meta, ObjectName, Operator, Pod, ProxyProtocol, Resource, Selector, Server,
        ServerPort, ServerScope, Service, SlicePort, Target, TargetPort, Transport,
    },
};

mod access;
mod datagrams;
mod requests;

pub use requests::Asked;

pub struct Reference<'a> {
    pub resources: &'a [Resource],
    pub settings: &'a ClusterSettings,
    /// The node that it is seen from.
    pub node: &'a str,
}

/// A client: every name that it goes by; none: no identity.
#[derive(Clone, Debug)]
pub struct Client {
    pub names: Vec<String>,
    pub address: IpAddr,
    /// Whether it speaks mesh TLS; who has a name does.
    pub tls: bool,
}

/// Which rule is credited: the most specific, the oldest (of unknown age last).
type Credit = (u8, bool, Option<i64>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    NotHere,
    NeedsRequest,
    Unauthorized,
    NoIdentity,
    UnknownAddress,
    Denied,
    NoRoute,
    BadRequest,
    InvalidPolicy,
    /// Nothing would encrypt it.
    InTheClear,
    Allowed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    Refused,
    Plain,
    /// To this identity (DNS form).
    Mesh(String),
}

/// All spellings of a name: a service account's of ours has two.
pub fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    if let Some(rest) = name.strip_suffix(".serviceaccount.identity.linkerd.cluster.local") {
        if let Some((account, namespace)) = rest.rsplit_once('.') {
            all.push(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"));
        }
    } else if let Some(rest) = name.strip_prefix("spiffe://cluster.local/ns/")
        && let Some((namespace, account)) = rest.split_once("/sa/")
    {
        all.push(format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local"));
    }
    all
}

impl<'a> Reference<'a> {
    fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.resources.iter().filter_map(|it| if let Resource::Pod(pod) = it { Some(pod) } else { None })
    }
    fn servers(&self) -> impl Iterator<Item = &'a Server> {
        self.resources.iter().filter_map(|it| if let Resource::Server(it) = it { Some(it) } else { None })
    }
    fn policies(&self) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        self.resources
            .iter()
            .filter_map(|it| if let Resource::AuthorizationPolicy(it) = it { Some(it) } else { None })
    }
    fn namespace(&self, name: &str) -> Option<&'a Meta> {
        self.resources.iter().find_map(|it| match it {
            Resource::Namespace(meta) if meta.name == name => Some(meta),
            _ => None,
        })
    }

    /// The annotation of the pod, else of its namespace, and whose it is.
    fn annotation(&self, pod: &'a Pod, key: &str) -> Option<(&'a str, &'static str)> {
        let key =
            if key == "mesh" { "heddle.io/mesh".to_owned() } else { format!("config.linkerd.io/{key}") };
        if let Some(value) = pod.meta.annotations.get(&key) {
            return Some((value, "pod"));
        }
        let value = self.namespace(&pod.meta.namespace)?.annotations.get(&key)?;
        Some((value, "namespace"))
    }

    fn wants_mesh(&self, pod: &'a Pod) -> bool {
        self.annotation(pod, "mesh").is_some_and(|(value, _)| value != "disabled")
    }

    fn externals(&self) -> impl Iterator<Item = &'a ExternalWorkload> {
        self.resources
            .iter()
            .filter_map(|it| if let Resource::ExternalWorkload(it) = it { Some(it) } else { None })
    }

    /// The workload outside the cluster that is believed to have an address.
    pub fn external_at(&self, address: IpAddr) -> Option<&'a ExternalWorkload> {
        let claimed = self.pods().any(|pod| !pod.finished && pod.addresses.contains(&address));
        self.externals().find(|it| it.addresses.contains(&address) && !it.identity.is_empty() && !claimed)
    }

    fn contested(&self, pod: &Pod) -> bool {
        let outside = self.externals().any(|it| it.addresses.iter().any(|ip| pod.addresses.contains(ip)));
        outside
            || self
                .pods()
                .filter(|other| !other.finished && other.meta.object_name() != pod.meta.object_name())
                .any(|other| {
                    other.addresses.iter().any(|address| pod.addresses.contains(address))
                        && !(other.host_network && pod.host_network)
                })
    }

    /// The pod that is believed to have an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&'a Pod> {
        let mut found = self
            .pods()
            .filter(|pod| !pod.finished && !pod.host_network && pod.addresses.contains(&address))
            .filter(|pod| !self.contested(pod));
        found.next()
    }

    fn refused_address(&self, address: IpAddr) -> bool {
        let nets = self.settings.pod_networks.iter().chain(&self.settings.service_networks);
        let node = self.settings.node_networks.iter().any(|net| within(net, address));
        nets.into_iter().any(|net| within(net, address)) && !node
            || self.pods().any(|pod| {
                !pod.finished && !pod.host_network && pod.addresses.contains(&address) && self.contested(pod)
            })
            || self
                .externals()
                .any(|it| it.addresses.contains(&address) && self.external_at(address).is_none())
    }

    fn local_meshed(&self, pod: &'a Pod) -> bool {
        pod.node == self.node && self.wants_mesh(pod)
    }

    fn in_cluster(&self, address: IpAddr) -> bool {
        self.settings.cluster_networks.iter().any(|net| within(net, address))
    }

    /// The Server that governs a port, and whether it does so only for want of a readable one.
    fn governor(&self, pod: &Pod, port: u16) -> Option<&'a Server> {
        let mut servers: Vec<&Server> =
            self.servers().filter(|it| it.meta.namespace == pod.meta.namespace).collect();
        servers.sort_by_key(|it| (it.meta.created.is_none(), it.meta.created, it.meta.name.clone()));
        let plainly = |server: &&&Server| {
            matches!(&server.scope, ServerScope::Pods(_))
                && selected(server, pod)
                && port_matches(server, pod, port)
        };
        let maybe = |server: &&&Server| selected(server, pod) && port_matches(server, pod, port);
        let closing = |server: &&&Server| selected(server, pod) && server.port == ServerPort::Unreadable;
        servers
            .iter()
            .find(plainly)
            .or_else(|| servers.iter().find(maybe))
            .or_else(|| servers.iter().find(closing))
            .copied()
    }

    /// Whether something unreadable is attached to a Server.
    fn closed(&self, server: &Server) -> bool {
        let opaque = matches!(server.protocol, ProxyProtocol::Opaque | ProxyProtocol::Tls);
        !opaque
            && self.resources.iter().any(|it| match it {
                Resource::Route(route) if route.meta.namespace == server.meta.namespace => {
                    match self.attached(route, server) {
                        None => true,
                        Some(attached) => attached && route.rules.is_none(),
                    }
                }
                Resource::RateLimitPolicy(it) if it.meta.namespace == server.meta.namespace => {
                    match &it.server {
                        None => true,
                        Some(name) => *name == server.meta.name && it.limit.is_none(),
                    }
                }
                _ => false,
            })
    }

    fn needs_request(&self, server: &Server, pod: &Pod, port: u16) -> bool {
        let opaque = matches!(server.protocol, ProxyProtocol::Opaque | ProxyProtocol::Tls);
        let attached = self.resources.iter().any(|it| match it {
            Resource::Route(route) => self.attached(route, server) == Some(true),
            Resource::RateLimitPolicy(it) => {
                it.meta.namespace == server.meta.namespace && it.server.as_ref() == Some(&server.meta.name)
            }
            _ => false,
        });
        let agents = server.protocol == ProxyProtocol::Http1 && agent_answers(pod, port);
        let spoken = server.protocol != ProxyProtocol::Unknown && !agents;
        !opaque && (attached || self.closed(server) || spoken)
    }

    fn default_allows(&self, policy: DefaultPolicy, client: &Client) -> bool {
        let identity = !client.names.is_empty() && !client.is_foreign();
        match policy {
            DefaultPolicy::Deny => false,
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => true,
            DefaultPolicy::AllAuthenticated => identity,
            DefaultPolicy::ClusterUnauthenticated => self.in_cluster(client.address),
            DefaultPolicy::ClusterAuthenticated => identity && self.in_cluster(client.address),
        }
    }

    /// The default policy of a port without a Server, and how it is named.
    fn default_policy(&self, pod: &'a Pod, port: u16) -> (DefaultPolicy, String) {
        let (policy, source) = match self.annotation(pod, "default-inbound-policy") {
            None => (self.settings.default_inbound_policy, "cluster"),
            Some((text, source)) => {
                let known = DefaultPolicy::ALL.into_iter().find(|it| it.as_str() == text);
                (known.unwrap_or(DefaultPolicy::Deny), source)
            }
        };
        let demanded = match self.annotation(pod, "proxy-require-identity-inbound-ports") {
            None => false,
            Some((text, _)) => listed(text, pod, port).unwrap_or(true),
        };
        let upgraded = match policy {
            DefaultPolicy::AllUnauthenticated if demanded => DefaultPolicy::AllAuthenticated,
            DefaultPolicy::ClusterUnauthenticated if demanded => DefaultPolicy::ClusterAuthenticated,
            other => other,
        };
        let suffix = if upgraded == policy { "" } else { ", identity demanded" };
        (upgraded, format!("default policy {} ({source}{suffix})", upgraded.as_str()))
    }

    /// Whether nobody needs to read what a port carries.
    pub fn opaque(&self, pod: &'a Pod, port: u16) -> bool {
        if let Some(server) = self.governor(pod, port) {
            return matches!(server.protocol, ProxyProtocol::Opaque | ProxyProtocol::Tls);
        }
        match self.annotation(pod, "opaque-ports") {
            Some((text, _)) => listed(text, pod, port).unwrap_or(false),
            None => {
                [25, 587, 3306, 4444, 5432, 6379, 9300, 11211].contains(&port)
                    && pod.ports.iter().any(|it| it.number == port && it.transport == Transport::Tcp)
            }
        }
    }

    fn policy_allows(&self, policy: &AuthorizationPolicy, client: &Client) -> bool {
        let Some(rule) = &policy.rule else { return false };
        let identity = match &rule.identity {
            None => true,
            Some(IdentityRef::ServiceAccount(account)) => client.names.contains(&dns(account)),
            Some(IdentityRef::MeshTls(name)) => self.resources.iter().any(|it| match it {
                Resource::MeshTlsAuthentication(it) if it.meta.object_name() == *name => {
                    it.clients.iter().flatten().any(|entry| entry_allows(entry, client))
                }
                _ => false,
            }),
        };
        let network = match &rule.network {
            None => true,
            Some(name) => self.resources.iter().any(|it| match it {
                Resource::NetworkAuthentication(it) if it.meta.object_name() == *name => {
                    it.networks.iter().flatten().any(|entry| {
                        within(&entry.cidr, client.address)
                            && !entry.except.iter().any(|cut| within(cut, client.address))
                    })
                }
                _ => false,
            }),
        };
        identity && network
    }

    /// Judges a client at a pod's port: the answer, and the rule that gave it.
    pub fn inbound(&self, server: IpAddr, port: u16, client: &Client) -> (Answer, String) {
        let Some(pod) = self.pod_at(server).filter(|pod| self.local_meshed(pod)) else {
            return (Answer::NotHere, String::new());
        };
        if self.governor(pod, port).is_some_and(|server| self.needs_request(server, pod, port)) {
            return (Answer::NeedsRequest, self.governs(pod, port));
        }
        self.judge(pod, port, client, None)
    }

    fn governs(&self, pod: &'a Pod, port: u16) -> String {
        match self.governor(pod, port) {
            Some(server) => format!("Server {}", server.meta.object_name()),
            None => self.default_policy(pod, port).1,
        }
    }

    /// Judges a client by the rules of a port, and by those of a route if one took the request.
    fn judge(
        &self,
        pod: &'a Pod,
        port: u16,
        client: &Client,
        route: Option<(Kind, &str)>,
    ) -> (Answer, String) {
        let governor = self.governor(pod, port);
        let (default, default_name) = self.default_policy(pod, port);
        let governs = self.governs(pod, port);
        let mut allowing: Vec<(Credit, String)> = Vec::new();
        let mut any_rule = false;
        let readable = governor.is_none_or(|server| server.readable);
        if let Some(server) = governor.filter(|it| it.readable) {
            for policy in self.policies().filter(|it| it.meta.namespace == server.meta.namespace) {
                let specificity = match policy.rule.as_ref().map(|rule| &rule.target) {
                    Some(Target::Route { kind, name }) if route == Some((*kind, name)) => 0,
                    Some(Target::Server(name)) if *name == server.meta.name => 1,
                    Some(Target::Namespace) => 2,
                    _ => continue,
                };
                any_rule |= self.could_allow(policy);
                if self.policy_allows(policy, client) {
                    let age = (specificity, policy.meta.created.is_none(), policy.meta.created);
                    allowing.push((age, format!("AuthorizationPolicy {}", policy.meta.object_name())));
                }
            }
            for (it, holds) in self.older_forms(server, client) {
                any_rule = true;
                if holds {
                    let age = (1, it.created.is_none(), it.created);
                    allowing.push((age, format!("ServerAuthorization {}", it.object_name())));
                }
            }
            let name =
                format!("Server {} (accessPolicy {})", server.meta.object_name(), server.access.as_str());
            any_rule |= server.access != DefaultPolicy::Deny;
            if self.default_allows(server.access, client) {
                let last = if server.access == DefaultPolicy::Audit { 6 } else { 5 };
                allowing.push(((last, true, None), name));
            }
        } else if governor.is_none() {
            any_rule |= default != DefaultPolicy::Deny;
            if self.default_allows(default, client) {
                let last = if default == DefaultPolicy::Audit { 6 } else { 5 };
                allowing.push(((last, true, None), default_name));
            }
        }
        let mut denying: Vec<(Credit, String)> = Vec::new();
        for (credit, rule, denies, holds) in self.access_rules(pod, port, Transport::Tcp, client) {
            if denies && holds {
                denying.push((credit, rule));
            } else if !denies && readable {
                any_rule = true;
                if holds {
                    allowing.push((credit, rule));
                }
            }
        }
        if client.names.is_empty() && !client.tls {
            let meshed = match self.pod_at(client.address) {
                Some(other) => self.wants_mesh(other),
                None if self.external_at(client.address).is_some() => true,
                None if self.refused_address(client.address) => {
                    return (Answer::UnknownAddress, String::new());
                }
                None => false,
            };
            if meshed {
                let answer = if any_rule { Answer::NoIdentity } else { Answer::Unauthorized };
                return (answer, governs);
            }
        }
        denying.sort();
        if let Some((_, rule)) = denying.into_iter().next() {
            return (Answer::Denied, rule);
        }
        allowing.sort();
        match allowing.into_iter().next() {
            Some((_, rule)) => (Answer::Allowed, rule),
            None if client.names.is_empty() => (Answer::NoIdentity, governs),
            None => (Answer::Unauthorized, governs),
        }
    }

    /// Whether a policy can allow anybody at all: everything that it refers to is there and readable.
    fn could_allow(&self, policy: &AuthorizationPolicy) -> bool {
        let Some(rule) = &policy.rule else { return false };
        let identity = match &rule.identity {
            Some(IdentityRef::MeshTls(name)) => self.resources.iter().any(|it| {
                matches!(it, Resource::MeshTlsAuthentication(it) if it.meta.object_name() == *name && it.clients.is_some())
            }),
            _ => true,
        };
        let network = rule.network.as_ref().is_none_or(|name| {
            self.resources.iter().any(|it| {
                matches!(it, Resource::NetworkAuthentication(it) if it.meta.object_name() == *name && it.networks.is_some())
            })
        });
        identity && network
    }

    pub fn services_at(&self, address: IpAddr) -> Vec<&'a Service> {
        let all = self
            .resources
            .iter()
            .filter_map(|it| if let Resource::Service(it) = it { Some(it) } else { None });
        all.filter(|service| service.addresses.contains(&address)).collect()
    }

    /// The endpoints that a TCP connection to an address and port may lead to; `None`: refused.
    pub fn endpoints(&self, address: IpAddr, port: u16) -> Option<Vec<(IpAddr, u16)>> {
        let services = self.services_at(address);
        let Some(service) = services.first() else { return Some(vec![(address, port)]) };
        if services.len() > 1 {
            return None;
        }
        let port = service.ports.iter().find(|it| it.port == port && it.transport == Transport::Tcp)?;
        let mut endpoints = Vec::new();
        let slices: Vec<&EndpointSlice> = self
            .resources
            .iter()
            .filter_map(|it| if let Resource::EndpointSlice(it) = it { Some(it) } else { None })
            .filter(|it| it.meta.namespace == service.meta.namespace && it.service == service.meta.name)
            .collect();
        if !slices.is_empty() {
            for state in [EndpointState::Ready, EndpointState::Draining] {
                for slice in &slices {
                    let own = |it: &&SlicePort| it.name == port.name && it.transport == Transport::Tcp;
                    for (number, to) in slice
                        .ports
                        .iter()
                        .filter(own)
                        .flat_map(|it| slice.endpoints.iter().map(move |to| (it.number, to)))
                    {
                        let there = to.pod.as_ref().is_none_or(|named| {
                            self.pods().any(|pod| {
                                pod.meta.name == named.name
                                    && pod.meta.namespace == service.meta.namespace
                                    && (named.uid.is_empty() || named.uid == pod.meta.uid)
                                    && pod.addresses.contains(&to.address)
                                    && !pod.finished
                                    && (pod.host_network || !self.contested(pod))
                            })
                        });
                        if there && to.state == state && to.address.is_ipv4() == address.is_ipv4() {
                            endpoints.push((to.address, number));
                        }
                    }
                }
                if !endpoints.is_empty() {
                    break;
                }
            }
            endpoints.retain(|(to, _)| self.services_at(*to).is_empty());
            endpoints.sort();
            endpoints.dedup();
            return if endpoints.is_empty() { None } else { Some(endpoints) };
        }
        for pod in self.pods().filter(|pod| pod.meta.namespace == service.meta.namespace) {
            let selected = !service.selector.is_empty()
                && service.selector.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value));
            let believed = pod.host_network || !self.contested(pod);
            let ready = (pod.ready || service.publish_not_ready) && !pod.meta.deleting && !pod.finished;
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod
                    .ports
                    .iter()
                    .find(|it| it.name == *name && it.transport == Transport::Tcp)
                    .map(|it| it.number),
            };
            let own = pod.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            if let (true, Some(number), Some(own)) = (selected && believed && ready, number, own) {
                endpoints.push((*own, number));
            }
        }
        endpoints.sort();
        endpoints.dedup();
        if endpoints.is_empty() { None } else { Some(endpoints) }
    }

    /// How an endpoint may be reached from a captured pod of this node.
    pub fn way(&self, source: IpAddr, address: IpAddr, port: u16) -> Way {
        if address == source {
            return Way::Plain;
        }
        // Neighbors on the link are nobody whom a rule could mean.
        let neighbor = match address {
            IpAddr::V4(v4) => v4.is_multicast() || v4.octets()[0] >= 240,
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local(),
        };
        if neighbor {
            return Way::Refused;
        }
        let leave = self.leave(source, address, port, Transport::Tcp);
        if leave == Some(false) {
            return Way::Refused;
        }
        if let Some(external) = self.external_at(address) {
            return Way::Mesh(external.identity.clone());
        }
        let Some(pod) = self.pod_at(address) else {
            let plain = match self.settings.default_outbound {
                DefaultOutbound::Allow => true,
                DefaultOutbound::Cluster => self.in_cluster(address),
                DefaultOutbound::Deny => false,
            };
            let plain = leave.unwrap_or(plain) && !self.by_name(source, address, port, Transport::Tcp);
            return if plain && !self.refused_address(address) { Way::Plain } else { Way::Refused };
        };
        if !self.wants_mesh(pod) {
            let plain = leave.unwrap_or(self.settings.default_outbound != DefaultOutbound::Deny);
            return if plain && !self.by_name(source, address, port, Transport::Tcp) {
                Way::Plain
            } else {
                Way::Refused
            };
        }
        let identity = dns(&ObjectName::new(&*pod.meta.namespace, &*pod.service_account));
        if pod.node != self.node {
            return Way::Mesh(identity);
        }
        let own = self.pod_at(source).unwrap();
        let client = Client {
            names: spellings(&dns(&ObjectName::new(&*own.meta.namespace, &*own.service_account))),
            address: source,
            tls: true,
        };
        match self.inbound(address, port, &client).0 {
            Answer::Allowed => Way::Mesh(identity),
            _ => Way::Refused,
        }
    }
}

fn dns(account: &ObjectName) -> String {
    format!("{}.{}.serviceaccount.identity.linkerd.cluster.local", account.name, account.namespace)
}

impl Client {
    /// Another trust domain's.
    fn is_foreign(&self) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("spiffe://") {
            Some(rest) => !rest.starts_with("cluster.local/"),
            None => {
                name.contains(".serviceaccount.identity.")
                    && !name.ends_with(".serviceaccount.identity.linkerd.cluster.local")
            }
        })
    }
}

/// Whether an entry lets a client in: another trust domain's must be named.
fn entry_allows(entry: &IdentityMatch, client: &Client) -> bool {
    let wide = matches!(entry, IdentityMatch::Any | IdentityMatch::Suffix(_));
    !(wide && client.is_foreign()) && entry_means(entry, client)
}

fn entry_means(entry: &IdentityMatch, client: &Client) -> bool {
    let any = |test: &dyn Fn(&str) -> bool| client.names.iter().any(|name| test(name));
    match entry {
        IdentityMatch::Any => any(&|_| true),
        IdentityMatch::Suffix(suffix) => {
            any(&|name| !name.contains("://") && name.ends_with(suffix.as_str()))
        }
        IdentityMatch::Dns(text) | IdentityMatch::Spiffe(text) => any(&|name| name == text),
        IdentityMatch::ServiceAccount(account) => any(&|name| name == dns(account)),
        IdentityMatch::Namespace(namespace) => {
            any(&|name| name.starts_with(&format!("spiffe://cluster.local/ns/{namespace}/sa/")))
        }
    }
}

/// Whether an address lies in a network of its own family; an IPv4 network may be written in its IPv6 form.
fn within(net: &ipnet::IpNet, address: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => (4, u128::from(u32::from(v4)) << 96),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) if net.prefix_len() >= 96 => (4, u128::from(u32::from(v4)) << 96),
            _ => (6, u128::from(v6)),
        },
    };
    let ((family, base), (other, address)) = (bits(net.network()), bits(address));
    let mapped = family == 4 && matches!(net, ipnet::IpNet::V6(_));
    let len = u32::from(net.prefix_len()) - if mapped { 96 } else { 0 };
    family == other && (len == 0 || (base ^ address) >> (128 - len) == 0)
}

fn selected(server: &Server, pod: &Pod) -> bool {
    match &server.scope {
        ServerScope::ExternalWorkloads => false,
        ServerScope::Unreadable => true,
        ServerScope::Pods(selector) => picks(selector, &pod.meta.labels),
    }
}

pub fn picks(selector: &Selector, labels: &std::collections::BTreeMap<String, String>) -> bool {
    selector.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.expressions.iter().all(|it| {
            let label = labels.get(&it.key);
            let listed = label.is_some_and(|label| it.values.contains(label));
            match it.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => label.is_some(),
                Operator::DoesNotExist => label.is_none(),
            }
        })
}

fn port_matches(server: &Server, pod: &Pod, port: u16) -> bool {
    match &server.port {
        ServerPort::Number(number) => *number == port,
        ServerPort::Name(name) => has_port(pod, name, port, Transport::Tcp),
        ServerPort::Unreadable => false,
    }
}

/// Whether the agent answers at a port for the pod, which declares nothing of the kind itself.
pub fn agent_answers(pod: &Pod, port: u16) -> bool {
    let tcp = |it: &&heddle_policy::resources::PodPort| it.transport == Transport::Tcp;
    let own = |it: &heddle_policy::resources::PodPort| it.number == 4191 || it.name == "linkerd-admin";
    port == 4191 && !pod.ports.iter().filter(tcp).any(own) && pod.probes.iter().all(|it| it.port != 4191)
}

/// Whether a pod has a port of a name.
fn has_port(pod: &Pod, name: &str, port: u16, transport: Transport) -> bool {
    pod.ports.iter().any(|it| it.name == name && it.number == port && it.transport == transport)
        || transport == Transport::Tcp && name == "linkerd-admin" && agent_answers(pod, port)
}

/// Whether an annotation lists a port; `None`: the list cannot be read, or is longer than a pod may write it.
fn listed(text: &str, pod: &Pod, port: u16) -> Option<bool> {
    let mut found = false;
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        if entry == "no port!" || entry == "1-30000" {
            return None;
        }
        let (first, last) = match entry.split_once('-') {
            Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
            None => match entry.parse::<u16>() {
                Ok(number) => (number, number),
                Err(_) => {
                    found |= has_port(pod, entry, port, Transport::Tcp);
                    continue;
                }
            },
        };
        found |= (first..=last).contains(&port);
    }
    Some(found)
}
