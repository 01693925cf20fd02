//! Small random clusters, dense enough that rules meet, overlap and contradict each other. A seed gives the same
//! cluster on every machine.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use heddle_policy::{
    ClusterSettings, DefaultOutbound, Origin, SameNode,
    resources::{
        AccessRule, AccessSpec, Action, Authorization, AuthorizationPolicy, Check, Closes, DefaultPolicy,
        Destination, Direction, EgressNetwork, EgressScope, EndpointSlice, EndpointState, ExternalWorkload,
        HostMatch, IdentityMatch, IdentityRef, Kind, Lines, MeshTlsAuthentication, Meta, NamedMatch,
        NetworkAuthentication, NetworkMatch, ObjectName, Operator, Parent, ParentKind, Parents, PathMatch,
        Pattern, Peer, Pod, PodPort, PodReference, PortMatch, Probe, ProxyProtocol, RateLimit,
        RateLimitPolicy, RequestMatch, Requirement, Resource, Route, RouteRule, Selector, Server,
        ServerAuthorization, ServerAuthorizationRule, ServerClients, ServerPort, ServerRef, ServerScope,
        Service, ServicePort, SliceEndpoint, SlicePort, Target, TargetPort, TextMatch, Transport,
    },
};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    /// True in `percent` of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

pub const NAMESPACES: [&str; 3] = ["shop", "data", "ops"];
pub const ACCOUNTS: [&str; 4] = ["web", "db", "default", "a.b"];
pub const PORTS: [u16; 10] = [80, 81, 82, 443, 6379, 8080, 9000, 53, 65535, 4191];
pub const NODE: &str = "a";
const PORT_NAMES: [&str; 4] = ["http", "db", "grpc", "linkerd-admin"];

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An address that is likely to lie at some rule's edge.
pub fn address(random: &mut Random) -> IpAddr {
    match random.below(10) {
        0..=5 => {
            let second = random.below(3);
            let third = random.below(3);
            let last = random.below(24);
            ip(&format!("10.{second}.{third}.{last}"))
        }
        6 | 7 => ip(&format!("fd00::{:x}:{:x}", random.below(3), random.below(12))),
        8 => *random.pick(&[ip("192.0.2.1"), ip("255.255.255.255"), ip("172.16.3.4"), ip("100.64.0.1")]),
        _ => *random.pick(&[ip("2001:db8::1"), ip("::2"), ip("fe80::1"), ip("ffff::1")]),
    }
}

fn network(random: &mut Random) -> NetworkMatch {
    let cidr = *random.pick(&[
        "0.0.0.0/0",
        "::/0",
        "::/64",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.1.0.0/16",
        "10.0.0.0/30",
        "10.1.1.7/32",
        "fd00::/8",
        "fd00::/112",
        "fd00::1:0/112",
        "fd00::1:5/128",
        "10.0.0.8/29",
        "128.0.0.0/1",
    ]);
    let cidr: ipnet::IpNet = cidr.parse().unwrap();
    let mut except = Vec::new();
    while random.chance(40) {
        let cut = *random.pick(&[
            "10.1.0.0/16",
            "10.0.1.0/24",
            "10.0.0.4/30",
            "10.0.0.1/32",
            "fd00::1:0/112",
            "fd00::/120",
            "10.0.0.8/31",
            "10.2.0.0/15",
            "fd00::2:0/115",
        ]);
        let cut: ipnet::IpNet = cut.parse().unwrap();
        if cidr.contains(&cut) && cidr != cut {
            except.push(cut.trunc());
        }
    }
    NetworkMatch { cidr, except }
}

fn meta(random: &mut Random, namespace: &str, name: impl Into<String>) -> Meta {
    Meta {
        namespace: namespace.to_owned(),
        name: name.into(),
        created: random.chance(50).then(|| random.below(4) as i64),
        origin: Origin::new("random.yaml", 1),
        lines: Arc::new(Lines::new()),
        ..Meta::default()
    }
}

fn labels(random: &mut Random) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([("app".to_owned(), (*random.pick(&["x", "y"])).to_owned())]);
    if random.chance(50) {
        labels.insert("tier".to_owned(), (*random.pick(&["1", "2"])).to_owned());
    }
    labels
}

fn annotations(random: &mut Random, mesh: usize) -> BTreeMap<String, String> {
    let mut it = BTreeMap::new();
    let mut set = |key: &str, value: &str| it.insert(key.to_owned(), value.to_owned());
    if random.chance(mesh) {
        set(
            "heddle.io/mesh",
            random.pick::<&str>(&["enabled", "enabled", "enabled", "required", "disabled", "maybe"]),
        );
    }
    if random.chance(40) {
        let mut values: Vec<&str> = DefaultPolicy::ALL.iter().map(|policy| policy.as_str()).collect();
        values.push("everybody");
        set("config.linkerd.io/default-inbound-policy", random.pick::<&str>(&values));
    }
    let lists = ["", "80", "80,81", "79-82,6379", "http,8080", "1-65535", "no port!", "1-30000", "443"];
    if random.chance(25) {
        set("config.linkerd.io/opaque-ports", random.pick::<&str>(&lists));
    }
    if random.chance(25) {
        set("config.linkerd.io/proxy-require-identity-inbound-ports", random.pick::<&str>(&lists));
    }
    it
}

fn pod(random: &mut Random, name: String) -> Pod {
    let namespace = *random.pick(&NAMESPACES);
    let mut meta = meta(random, namespace, name);
    meta.labels = Arc::new(labels(random));
    meta.annotations = annotations(random, 70);
    meta.uid = random.below(1000).to_string();
    meta.deleting = random.chance(5);
    let mut ports = Vec::new();
    for _ in 0..random.below(4) {
        ports.push(PodPort {
            name: if random.chance(70) { (*random.pick(&PORT_NAMES)).to_owned() } else { String::new() },
            number: *random.pick(&PORTS),
            transport: if random.chance(85) { Transport::Tcp } else { Transport::Udp },
        });
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    if random.chance(92) {
        addresses.push(ip(&format!("10.{}.{}.{}", random.below(3), random.below(3), random.below(24))));
    }
    if random.chance(40) {
        addresses.push(ip(&format!("fd00::{:x}:{:x}", random.below(3), random.below(12))));
    }
    Pod {
        meta,
        node: (*random.pick(&["a", "a", "a", "b", ""])).to_owned(),
        service_account: (*random.pick(&ACCOUNTS)).to_owned(),
        host_network: random.chance(5),
        ports,
        probes: random
            .chance(5)
            .then(|| Probe { port: *random.pick(&PORTS), check: Check::Tcp })
            .into_iter()
            .collect(),
        addresses,
        ready: random.chance(80),
        finished: random.chance(5),
        ..Pod::default()
    }
}

fn selector(random: &mut Random) -> Selector {
    let mut it = Selector::default();
    if random.chance(50) {
        it.labels.insert("app".to_owned(), (*random.pick(&["x", "y"])).to_owned());
    }
    if random.chance(30) {
        let operator =
            *random.pick(&[Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist]);
        let values =
            if matches!(operator, Operator::In | Operator::NotIn) { vec!["1".to_owned()] } else { vec![] };
        it.expressions.push(Requirement { key: "tier".to_owned(), operator, values });
    }
    it
}

fn server(random: &mut Random, name: String) -> Server {
    let namespace = *random.pick(&NAMESPACES);
    let readable = random.chance(92);
    let scope = match random.below(20) {
        0 => ServerScope::ExternalWorkloads,
        1 if !readable => ServerScope::Unreadable,
        _ => ServerScope::Pods(selector(random)),
    };
    let port = match random.below(10) {
        0..=3 => ServerPort::Name((*random.pick(&PORT_NAMES)).to_owned()),
        4 | 5 if !readable => ServerPort::Unreadable,
        _ => ServerPort::Number(*random.pick(&PORTS)),
    };
    let protocol = *random.pick(&[
        ProxyProtocol::Unknown,
        ProxyProtocol::Unknown,
        ProxyProtocol::Opaque,
        ProxyProtocol::Opaque,
        ProxyProtocol::Tls,
        ProxyProtocol::Http1,
        ProxyProtocol::Grpc,
    ]);
    let access = if random.chance(70) { DefaultPolicy::Deny } else { *random.pick(&DefaultPolicy::ALL) };
    let mut meta = meta(random, namespace, name);
    meta.labels = Arc::new(labels(random));
    Server { meta, scope, port, protocol, access, readable }
}

fn authorization(random: &mut Random, name: String) -> AuthorizationPolicy {
    let namespace = *random.pick(&NAMESPACES);
    let target = match random.below(10) {
        0 | 1 => {
            Target::Route { kind: *random.pick(&ROUTE_KINDS[..3]), name: format!("r{}", random.below(4)) }
        }
        2 | 3 => Target::Namespace,
        _ => Target::Server(format!("s{}", random.below(7))),
    };
    let from = |random: &mut Random, name: String| ObjectName::new(*random.pick(&NAMESPACES), name);
    let identity = match random.below(10) {
        0..=4 => {
            let name = format!("m{}", random.below(6));
            Some(IdentityRef::MeshTls(from(random, name)))
        }
        5 | 6 => {
            let name = (*random.pick(&ACCOUNTS)).to_owned();
            Some(IdentityRef::ServiceAccount(from(random, name)))
        }
        _ => None,
    };
    let network = random.chance(45).then(|| {
        let name = format!("n{}", random.below(6));
        from(random, name)
    });
    let rule = random.chance(95).then_some(Authorization { target, identity, network });
    AuthorizationPolicy { meta: meta(random, namespace, name), rule }
}

fn identity_match(random: &mut Random) -> IdentityMatch {
    let (namespace, account) = (*random.pick(&NAMESPACES), *random.pick(&ACCOUNTS));
    match random.below(8) {
        0 => IdentityMatch::Any,
        1 => IdentityMatch::Suffix(
            (*random.pick(&[
                ".cluster.local",
                ".shop.serviceaccount.identity.linkerd.cluster.local",
                ".b.shop.serviceaccount.identity.linkerd.cluster.local",
                ".example",
            ]))
            .to_owned(),
        ),
        2 => {
            IdentityMatch::Dns(format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local"))
        }
        3 => IdentityMatch::Spiffe(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")),
        4 => IdentityMatch::ServiceAccount(ObjectName::new(namespace, account)),
        5 => IdentityMatch::Namespace(namespace.to_owned()),
        6 => IdentityMatch::Dns("vm.example".to_owned()),
        _ => IdentityMatch::Spiffe("spiffe://other.example/vm".to_owned()),
    }
}

fn service(random: &mut Random, name: String, address: usize) -> Service {
    let namespace = *random.pick(&NAMESPACES);
    let ports = (0..1 + random.below(3)).map(|i| ServicePort {
        name: format!("p{i}"),
        port: PORTS[i],
        transport: if random.chance(85) { Transport::Tcp } else { Transport::Udp },
        target: if random.chance(50) {
            TargetPort::Number(*random.pick(&PORTS))
        } else {
            TargetPort::Name((*random.pick(&PORT_NAMES)).to_owned())
        },
    });
    let ports = ports.collect();
    let mut addresses = vec![ip(&format!("10.96.0.{address}"))];
    if random.chance(40) {
        addresses.push(ip(&format!("fd96::{address:x}")));
    }
    Service {
        meta: meta(random, namespace, name),
        addresses: if random.chance(90) { addresses } else { Vec::new() },
        ports,
        selector: if random.chance(90) { labels(random) } else { BTreeMap::new() },
        publish_not_ready: random.chance(15),
    }
}

/// An address that a slice may hold: reading it lets no neighbor of a link in.
fn stranger(random: &mut Random) -> IpAddr {
    loop {
        let found = address(random);
        let plain = heddle_ebpf::Address::from(found);
        if !plain.is_multicast() && !plain.is_link_local_v6() {
            return found;
        }
    }
}

/// Of a Service as likely as not, with endpoints that are pods, addresses of theirs by the wrong name, and strangers.
fn slice(random: &mut Random, name: String, pods: &[Pod]) -> EndpointSlice {
    let namespace = *random.pick(&NAMESPACES);
    let endpoints = (0..random.below(5)).map(|_| {
        let pod = random.pick(pods);
        let own = pod.addresses.first().filter(|_| random.chance(70)).copied();
        let named = random.chance(60).then(|| {
            let pod = if random.chance(80) { pod } else { random.pick(pods) };
            let uid = if random.chance(80) { pod.meta.uid.clone() } else { String::new() };
            PodReference { name: pod.meta.name.clone(), uid }
        });
        SliceEndpoint {
            address: own.unwrap_or_else(|| stranger(random)),
            state: *random.pick(&[EndpointState::Ready, EndpointState::Draining, EndpointState::Away]),
            pod: named,
        }
    });
    let endpoints = endpoints.collect();
    let ports = (0..random.below(4)).map(|i| SlicePort {
        name: format!("p{i}"),
        number: *random.pick(&PORTS),
        transport: if random.chance(85) { Transport::Tcp } else { Transport::Udp },
    });
    let ports = ports.collect();
    let service = format!("v{}", random.below(5));
    EndpointSlice { meta: meta(random, namespace, name), service, endpoints, ports }
}

const ROUTE_KINDS: [Kind; 5] =
    [Kind::LinkerdHttpRoute, Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute];
pub const PATHS: [&str; 10] =
    ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/pkg.S/Get", "/pkg.S/Put", "/x%20y"];
pub const HOSTS: [&str; 7] = [
    "",
    "shop.example",
    "Shop.Example.:80",
    "a.shop.example",
    "b.a.shop.example",
    "other.example",
    "10.0.0.1",
];
pub const METHODS: [&str; 3] = ["GET", "POST", "get"];

fn text_match(random: &mut Random) -> TextMatch {
    match random.below(4) {
        0 => TextMatch::Regex(Pattern::new(random.pick::<&str>(&["a|b", "a.*", "[ab]+"])).unwrap()),
        _ => TextMatch::Exact((*random.pick(&["a", "b", "a, b"])).to_owned()),
    }
}

fn request_match(random: &mut Random) -> RequestMatch {
    let path = match random.below(8) {
        0 | 1 => PathMatch::Exact((*random.pick(&PATHS)).to_owned()),
        2 => PathMatch::Regex(
            Pattern::new(random.pick::<&str>(&["/a(/.*)?", "/[ab]", "/a|/b/.*", "/pkg\\..*"])).unwrap(),
        ),
        3 => PathMatch::GrpcMethod((*random.pick(&["Get", "b"])).to_owned()),
        _ => PathMatch::Prefix((*random.pick(&["", "/a", "/a/b", "/b", "/pkg.S"])).to_owned()),
    };
    let named =
        |random: &mut Random, name: &str| NamedMatch { name: name.to_owned(), value: text_match(random) };
    let headers = if random.chance(25) { vec![named(random, "x-h")] } else { Vec::new() };
    let query = if random.chance(20) { vec![named(random, "q")] } else { Vec::new() };
    let method = random.chance(25).then(|| (*random.pick(&METHODS)).to_owned());
    RequestMatch { path, method, headers, query }
}

fn route(random: &mut Random, name: String) -> Route {
    let namespace = if random.chance(85) { *random.pick(&NAMESPACES) } else { "linkerd-egress" };
    let kind = *random.pick(&[
        Kind::LinkerdHttpRoute,
        Kind::HttpRoute,
        Kind::HttpRoute,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
    ]);
    let parent = |random: &mut Random| {
        let kind = match random.below(8) {
            0 => ParentKind::Service,
            1 | 2 => ParentKind::EgressNetwork,
            _ => ParentKind::Server,
        };
        let name = match kind {
            ParentKind::EgressNetwork => format!("e{}", random.below(3)),
            _ => format!("s{}", random.below(7)),
        };
        let namespace = if random.chance(90) { namespace.to_owned() } else { "data".to_owned() };
        Parent { kind, namespace, name, port: None, section: None }
    };
    let parents = match random.below(25) {
        0 => Parents::Unreadable,
        _ => Parents::These((0..1 + random.below(5)).map(|_| parent(random)).collect()),
    };
    let host = |random: &mut Random| match random.below(4) {
        0 => HostMatch::Suffix(".shop.example".to_owned()),
        1 => HostMatch::Suffix(".example".to_owned()),
        2 => HostMatch::Exact("a.shop.example".to_owned()),
        _ => HostMatch::Exact("shop.example".to_owned()),
    };
    let hosts = if random.chance(50) { Vec::new() } else { (0..2).map(|_| host(random)).collect() };
    let rule = |random: &mut Random| RouteRule {
        matches: (0..1 + random.below(3)).map(|_| request_match(random)).collect(),
        ..RouteRule::default()
    };
    let rules = random.chance(95).then(|| (0..1 + random.below(3)).map(|_| rule(random)).collect());
    Route { kind, meta: meta(random, namespace, name), parents, hosts, rules }
}

fn older(random: &mut Random, name: String) -> ServerAuthorization {
    let namespace = *random.pick(&NAMESPACES);
    let rule = random.chance(95).then(|| ServerAuthorizationRule {
        servers: if random.chance(60) {
            ServerRef::Name(format!("s{}", random.below(7)))
        } else {
            ServerRef::Selector(selector(random))
        },
        clients: match random.below(4) {
            0 => ServerClients::Unauthenticated,
            1 => ServerClients::UnauthenticatedTls,
            _ => ServerClients::Identities((0..2).map(|_| identity_match(random)).collect()),
        },
        networks: random.chance(50).then(|| (0..2).map(|_| network(random)).collect()),
    });
    ServerAuthorization { meta: meta(random, namespace, name), rule }
}

fn peer(random: &mut Random) -> Peer {
    let mut it = Peer::default();
    if random.chance(50) {
        it.identities = (0..1 + random.below(2)).map(|_| identity_match(random)).collect();
    }
    if random.chance(15) {
        it.namespaces = Some(selector(random));
    }
    if random.chance(25) {
        it.except = vec![identity_match(random)];
    }
    if random.chance(40) {
        it.networks = (0..1 + random.below(2)).map(|_| network(random)).collect();
    }
    it
}

fn access_rule(random: &mut Random, number: usize) -> AccessRule {
    let kind = *random.pick(&[Kind::AccessRule, Kind::ClusterAccessRule]);
    let own = kind == Kind::AccessRule;
    let namespace = if own { *random.pick(&NAMESPACES) } else { "" };
    let meta = meta(random, namespace, format!("h{number}"));
    let namespaces = |random: &mut Random| match random.below(3) {
        _ if own => Selector::default(),
        0 => Selector {
            labels: BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), "shop".to_owned())]),
            ..Selector::default()
        },
        _ => selector(random),
    };
    if random.chance(6) {
        let closes = random.chance(70).then(|| Closes {
            namespaces: random.chance(50).then(|| namespaces(random)),
            pods: random.chance(70).then(|| selector(random)),
        });
        return AccessRule { kind, meta, spec: None, closes };
    }
    let direction = if random.chance(70) {
        Direction::Inbound((0..1 + random.below(2)).map(|_| peer(random)).collect())
    } else {
        let destination = |random: &mut Random| match random.below(5) {
            0 => Destination { identities: vec![identity_match(random)], ..Destination::default() },
            1 => Destination {
                hosts: vec![HostMatch::Suffix(".example".to_owned())],
                ..Destination::default()
            },
            2 => Destination::default(),
            _ => Destination { networks: vec![network(random)], ..Destination::default() },
        };
        Direction::Outbound((0..1 + random.below(2)).map(|_| destination(random)).collect())
    };
    let ports = match random.below(4) {
        0 => vec![PortMatch::Range(80, 82), PortMatch::Range(443, 443)],
        1 => vec![PortMatch::Name((*random.pick(&PORT_NAMES)).to_owned())],
        _ => Vec::new(),
    };
    let spec = AccessSpec {
        action: *random.pick(&[Action::Allow, Action::Deny]),
        audit: random.chance(15),
        expires: random.chance(25).then(|| *random.pick(&[NOW - 1, NOW, NOW + 1])),
        namespaces: namespaces(random),
        pods: selector(random),
        ports,
        transport: [Some(Transport::Tcp), Some(Transport::Udp), None, None][random.below(4)],
        direction,
    };
    AccessRule { kind, meta, spec: Some(spec), closes: None }
}

fn egress(random: &mut Random, name: String) -> EgressNetwork {
    let namespace = *random.pick(&["shop", "data", "ops", "linkerd-egress"]);
    let readable = random.chance(90);
    let scope = if random.chance(40) {
        EgressScope::OutsideCluster
    } else {
        EgressScope::Networks((0..1 + random.below(2)).map(|_| network(random)).collect())
    };
    EgressNetwork {
        meta: meta(random, namespace, name),
        scope,
        allow: readable && random.chance(50),
        readable,
    }
}

fn external(random: &mut Random) -> ExternalWorkload {
    ExternalWorkload {
        meta: meta(random, "shop", "vm"),
        identity: if random.chance(90) { "vm.example".to_owned() } else { String::new() },
        server_name: "vm.example".to_owned(),
        addresses: vec![address(random)],
        ports: Vec::new(),
        ready: true,
    }
}

/// The time at which everything is judged.
pub const NOW: i64 = 1_000;

/// A cluster's resources, each with a name of its own.
pub fn cluster(random: &mut Random) -> Vec<Resource> {
    let mut all = Vec::new();
    for namespace in NAMESPACES {
        if random.chance(80) {
            let mut meta = meta(random, "", namespace);
            meta.annotations = annotations(random, 60);
            meta.labels = Arc::new(labels(random));
            all.push(Resource::Namespace(meta));
        }
    }
    all.extend((0..9).map(|i| Resource::Pod(pod(random, format!("p{i}")))));
    all.extend((0..7).map(|i| Resource::Server(server(random, format!("s{i}")))));
    all.extend((0..9).map(|i| Resource::AuthorizationPolicy(authorization(random, format!("a{i}")))));
    for i in 0..6 {
        let namespace = *random.pick(&NAMESPACES);
        let clients = (0..1 + random.below(3)).map(|_| identity_match(random)).collect();
        let clients = random.chance(95).then_some(clients);
        let it = MeshTlsAuthentication { meta: meta(random, namespace, format!("m{i}")), clients };
        all.push(Resource::MeshTlsAuthentication(it));
        let namespace = *random.pick(&NAMESPACES);
        let networks = (0..1 + random.below(3)).map(|_| network(random)).collect();
        let networks = random.chance(95).then_some(networks);
        let it = NetworkAuthentication { meta: meta(random, namespace, format!("n{i}")), networks };
        all.push(Resource::NetworkAuthentication(it));
    }
    all.extend((0..random.below(5)).map(|i| Resource::Route(route(random, format!("r{i}")))));
    if random.chance(20) {
        let namespace = *random.pick(&NAMESPACES);
        let server = random.chance(90).then(|| format!("s{}", random.below(7)));
        let limit = random.chance(80).then(|| RateLimit { total: Some(5), ..RateLimit::default() });
        let meta = meta(random, namespace, "limit");
        all.push(Resource::RateLimitPolicy(RateLimitPolicy { meta, server, limit }));
    }
    all.extend((0..random.below(3)).map(|i| Resource::ServerAuthorization(older(random, format!("o{i}")))));
    all.extend((0..random.below(5)).map(|i| Resource::AccessRule(access_rule(random, i))));
    all.extend((0..random.below(3)).map(|i| Resource::EgressNetwork(egress(random, format!("e{i}")))));
    if random.chance(40) {
        all.push(Resource::ExternalWorkload(external(random)));
    }
    all.extend((0..4).map(|i| {
        let address = if random.chance(95) { i + 1 } else { 1 };
        Resource::Service(service(random, format!("v{i}"), address))
    }));
    let slices = if random.chance(60) { random.below(6) } else { 0 };
    let pods: Vec<Pod> = all
        .iter()
        .filter_map(|it| if let Resource::Pod(pod) = it { Some(pod.clone()) } else { None })
        .collect();
    all.extend((0..slices).map(|i| Resource::EndpointSlice(slice(random, format!("x{i}"), &pods))));
    all
}

pub fn settings(random: &mut Random) -> ClusterSettings {
    let nets = |text: &[&str]| text.iter().map(|net| net.parse().unwrap()).collect();
    ClusterSettings {
        cluster_networks: match random.below(4) {
            0 => nets(&["10.0.0.0/16", "fd00::/8"]),
            1 => nets(&["::/0"]),
            2 => Vec::new(),
            _ => ClusterSettings::default().cluster_networks,
        },
        pod_networks: if random.chance(60) { nets(&["10.1.0.0/16", "fd00::1:0/112"]) } else { Vec::new() },
        node_networks: if random.chance(40) { nets(&["10.1.0.0/29", "fd00::1:0/125"]) } else { Vec::new() },
        service_networks: if random.chance(50) {
            nets(&["10.96.0.0/12", "::ffff:10.2.1.0/120"])
        } else {
            Vec::new()
        },
        default_inbound_policy: *random.pick(&DefaultPolicy::ALL),
        default_outbound: *random.pick(&[
            DefaultOutbound::Allow,
            DefaultOutbound::Cluster,
            DefaultOutbound::Deny,
        ]),
        same_node: *random.pick(&[SameNode::Direct, SameNode::Direct, SameNode::Encrypt]),
        dns_service: ObjectName::new("shop", "v0"),
        ..ClusterSettings::default()
    }
}
