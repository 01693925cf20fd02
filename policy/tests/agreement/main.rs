//! Three ways to one answer: the decision that the kernel programs are built from (over the tables), the agent's
//! decision by name, and a naive reading of the resources. They must agree on everything, over random clusters.
#![allow(clippy::unwrap_used)]

mod random;
mod reference;

use std::{collections::BTreeMap, net::IpAddr};

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason, Verdict},
    policy::{EGRESS_POLICY, SERVICE_DNS},
};
use heddle_policy::{
    Capacity, ClientIdentity, Compiled, Compiler, Connection, Datagram, Hop, Index, Request, Route, Sender,
    resources::{Resource, Transport},
    verdict::{self, Connect, TCP, UDP},
};
use random::{ACCOUNTS, HOSTS, METHODS, NAMESPACES, NODE, NOW, PATHS, PORTS, Random};
use reference::{Answer, Asked, Client, Reference, Way, spellings};

/// How many random clusters; `HEDDLE_CLUSTERS` asks for more.
const CLUSTERS: u64 = 1_500;
/// How often each is asked in each way.
const DECISIONS: usize = 150;

fn clusters() -> u64 {
    std::env::var("HEDDLE_CLUSTERS").ok().and_then(|text| text.parse().ok()).unwrap_or(CLUSTERS)
}

struct Scene {
    seed: u64,
    resources: Vec<Resource>,
    settings: heddle_policy::ClusterSettings,
    compiled: Compiled,
}

impl Scene {
    fn new(seed: u64, random: &mut Random) -> Self {
        let settings = random::settings(random);
        let resources = random::cluster(random);
        let compiled = index(&resources).compile_at(&settings, NODE, NOW);
        Self { seed, resources, settings, compiled }
    }
    fn reference(&self) -> Reference<'_> {
        Reference { resources: &self.resources, settings: &self.settings, node: NODE }
    }
    fn captured(&self, address: &Address) -> Option<u64> {
        let info = self.compiled.workload(address)?;
        (info.local && info.meshed()).then_some(info.digest)
    }
    /// An address of a pod as likely as not.
    fn address(&self, random: &mut Random) -> IpAddr {
        let pods: Vec<IpAddr> = self.compiled.pods().flat_map(|pod| pod.addresses.iter().copied()).collect();
        if random.chance(60) && !pods.is_empty() { *random.pick(&pods) } else { random::address(random) }
    }
    /// Whether a meshed workload is known at an address, in the cluster or outside.
    fn meshed(&self, address: IpAddr) -> bool {
        let pod = self.compiled.workload(&address.into()).is_some_and(|info| info.meshed());
        pod || self.compiled.external(&address.into()).is_some()
    }
    fn local(&self) -> Vec<(IpAddr, String)> {
        let meshed = self.compiled.pods().filter(|pod| pod.local && pod.meshed());
        meshed
            .flat_map(|pod| {
                let name = pod.identity.as_ref().unwrap().dns().to_owned();
                pod.addresses.iter().map(move |address| (*address, name.clone()))
            })
            .collect()
    }
    fn inbound(&self, client: IpAddr, server: IpAddr, port: u16) -> Verdict {
        let view = self.compiled.tables.with_captured(|address| self.captured(address));
        verdict::inbound(&view, &client.into(), &server.into(), port, TCP)
    }
    fn outbound(&self, source: IpAddr, destination: IpAddr, port: u16, random: u32) -> verdict::Outbound {
        self.leaving(source, destination, port, TCP, random)
    }
    fn leaving(
        &self,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        protocol: u8,
        random: u32,
    ) -> verdict::Outbound {
        let view = self.compiled.tables.with_captured(|address| self.captured(address));
        let connect =
            Connect { source: source.into(), destination: destination.into(), port, protocol, random };
        verdict::outbound(&view, &connect)
    }
}

fn index(resources: &[Resource]) -> Index {
    let mut index = Index::default();
    for resource in resources {
        index.apply(resource.clone());
    }
    index
}

fn answer(reason: Reason) -> Answer {
    match reason {
        Reason::Authorized | Reason::Unauthenticated | Reason::Meshed => Answer::Allowed,
        Reason::Unauthorized => Answer::Unauthorized,
        Reason::NoIdentity => Answer::NoIdentity,
        Reason::NeedsRequest => Answer::NeedsRequest,
        Reason::NotCaptured => Answer::NotHere,
        Reason::UnknownClusterAddress => Answer::UnknownAddress,
        Reason::Denied => Answer::Denied,
        Reason::NoRoute => Answer::NoRoute,
        Reason::BadRequest => Answer::BadRequest,
        Reason::InvalidPolicy => Answer::InvalidPolicy,
        Reason::PlainToMeshed => Answer::InTheClear,
        Reason::PlainCluster => Answer::Allowed,
        other => panic!("{other:?}"),
    }
}

#[derive(Default)]
struct Tally(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Tally {
    fn count(&mut self, what: &'static str, answer: impl std::fmt::Debug) {
        *self.0.entry(what).or_default().entry(format!("{answer:?}")).or_default() += 1;
    }
    fn total(&self) -> usize {
        self.0.values().flat_map(BTreeMap::values).sum()
    }
    /// Every answer was met, and often: the agreement is about something.
    fn demand(&self, what: &str, answers: &[&str], at_least: usize) {
        for answer in answers {
            let count = self.0.get(what).and_then(|it| it.get(*answer)).copied().unwrap_or(0);
            assert!(count >= at_least, "{what}: {answer} only {count} times in {:#?}", self.0);
        }
    }
}

#[test]
fn kernel_agent_and_reference_agree() {
    let workers = 4;
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let part = |first| {
            move || {
                let mut tally = Tally::default();
                for seed in (first..clusters()).step_by(workers) {
                    one_cluster(seed, &mut tally);
                }
                tally
            }
        };
        let threads: Vec<_> = (0..workers as u64).map(|first| scope.spawn(part(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut tally = Tally::default();
    for (what, answers) in tallies.iter().flat_map(|it| &it.0) {
        for (answer, count) in answers {
            *tally.0.entry(what).or_default().entry(answer.clone()).or_default() += count;
        }
    }
    println!("{:#?}", tally.0);
    if clusters() < CLUSTERS {
        // A quick look, as at code that was broken on purpose: seldom answers may be missing.
        return;
    }
    assert!(tally.total() >= 1_000_000, "{}", tally.total());
    tally.demand(
        "without identity",
        &["Allowed", "Unauthorized", "NoIdentity", "NeedsRequest", "NotHere", "UnknownAddress", "Denied"],
        200,
    );
    tally.demand("local client", &["Allowed", "Unauthorized", "NeedsRequest", "Denied"], 1000);
    tally.demand("any identity", &["Allowed", "Unauthorized", "NeedsRequest", "NotHere", "Denied"], 1000);
    tally.demand("anonymous", &["Allowed", "NoIdentity", "Denied"], 1000);
    let routed = ["Allowed", "Unauthorized", "Denied", "NoRoute", "InvalidPolicy", "\"taken\""];
    tally.demand("request", &routed, 200);
    tally.demand("request", &["BadRequest"], 20);
    tally.demand("local client", &["\"may not leave\""], 200);
    let from_anywhere =
        ["Allowed", "Unauthorized", "NoIdentity", "NotHere", "UnknownAddress", "Denied", "InTheClear"];
    tally.demand("datagram", &from_anywhere, 200);
    tally.demand("datagram out", &["Allowed", "Unauthorized", "Denied", "\"may not leave\""], 200);
    tally.demand("datagram out", &["\"another node\"", "\"a Service\""], 200);
    tally.demand("outbound", &["Refused", "Plain", "Mesh"], 1000);
}

fn one_cluster(seed: u64, tally: &mut Tally) {
    let mut random = Random(seed);
    let scene = Scene::new(seed, &mut random);
    let local = scene.local();
    for _ in 0..DECISIONS {
        let port = *random.pick(&PORTS);
        let server = match local.is_empty() || random.chance(5) {
            true => scene.address(&mut random),
            false => random.pick(&local).0,
        };
        without_identity(&scene, server, port, &mut random, tally);
        any_identity(&scene, server, port, &mut random, tally);
        anonymous(&scene, server, port, &mut random, tally);
        datagram(&scene, server, port, &mut random, tally);
        request(&scene, server, port, &mut random, tally);
        if !local.is_empty() {
            let client = random.pick(&local);
            local_client(&scene, server, port, client, tally);
            outbound(&scene, client.0, &mut random, tally);
            datagram_out(&scene, client.0, server, port, &mut random, tally);
        }
    }
}

fn without_identity(scene: &Scene, server: IpAddr, port: u16, random: &mut Random, tally: &mut Tally) {
    let address = scene.address(random);
    let at = format!("seed {}: {address} to {server}:{port}", scene.seed);
    let (expected, rule) =
        scene.reference().inbound(server, port, &Client { names: Vec::new(), address, tls: false });
    let named = scene.compiled.authorize(&server.into(), port, &ClientIdentity::None, address);
    assert_eq!((answer(named.verdict.reason), &*named.rule), (expected, &*rule), "{at}: by name");
    assert_eq!(named.allowed(), expected == Answer::Allowed, "{at}");
    assert_eq!(scene.compiled.tables.rule(named.verdict.rule), rule, "{at}: the rule's id");

    let numeric = scene.inbound(address, server, port);
    if scene.meshed(address) {
        // The kernel hands it to the agent, which demands a certificate.
        if numeric.reason == Reason::Meshed {
            assert_eq!((numeric.outcome, expected), (Outcome::Proxy, Answer::NoIdentity), "{at}");
        } else {
            assert_eq!(numeric, named.verdict, "{at}: in numbers");
        }
    } else {
        assert_eq!(numeric, named.verdict, "{at}: in numbers");
    }
    tally.count("without identity", expected);
}

/// Identities that no pod may have, in one form or both.
fn any_identity(scene: &Scene, server: IpAddr, port: u16, random: &mut Random, tally: &mut Tally) {
    let address = scene.address(random);
    let (namespace, account) = (*random.pick(&NAMESPACES), *random.pick(&ACCOUNTS));
    let own_dns = format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local");
    let own_spiffe = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let (dns, spiffe) = match random.below(8) {
        0 => (Some("vm.example".to_owned()), None),
        1 => (None, Some("spiffe://other.example/vm".to_owned())),
        2 => (Some("vm.example".to_owned()), Some("spiffe://other.example/vm".to_owned())),
        3 => (Some(format!("{account}.{namespace}.serviceaccount.identity.linkerd.other.local")), None),
        4 => (None, Some(own_spiffe)),
        5 => (Some(own_dns), None),
        _ => (Some(own_dns), Some(own_spiffe)),
    };
    let mut names: Vec<String> = dns.iter().chain(&spiffe).flat_map(|name| spellings(name)).collect();
    names.sort();
    names.dedup();
    let at = format!("seed {}: {names:?} at {address} to {server}:{port}", scene.seed);
    let (expected, rule) = scene.reference().inbound(server, port, &Client { names, address, tls: true });
    let own = dns.as_deref().and_then(|dns| scene.settings.naming.parse_dns(dns).ok());
    let named =
        scene.compiled.authorize(&server.into(), port, &ClientIdentity::Mesh { dns, spiffe }, address);
    assert_eq!((answer(named.verdict.reason), &*named.rule), (expected, &*rule), "{at}");
    if let Some(own) = own {
        // Names that were read once, when the handshake ended.
        let read = scene.compiled.authorize(&server.into(), port, &ClientIdentity::from(&own), address);
        assert_eq!(read, named, "{at}: read before");
    }
    // What an identity is allowed, the kernel must let through to the agent from a meshed address.
    if expected == Answer::Allowed && scene.meshed(address) {
        assert_eq!(scene.inbound(address, server, port), Verdict::proxy(Reason::Meshed, 0), "{at}");
    }
    tally.count("any identity", expected);
}

/// Whoever completes mesh TLS without a certificate.
fn anonymous(scene: &Scene, server: IpAddr, port: u16, random: &mut Random, tally: &mut Tally) {
    let address = scene.address(random);
    let at = format!("seed {}: anonymous at {address} to {server}:{port}", scene.seed);
    let client = Client { names: Vec::new(), address, tls: true };
    let (expected, rule) = scene.reference().inbound(server, port, &client);
    let named = scene.compiled.authorize(&server.into(), port, &ClientIdentity::Anonymous, address);
    assert_eq!((answer(named.verdict.reason), &*named.rule), (expected, &*rule), "{at}");
    tally.count("anonymous", expected);
}

/// A datagram that reaches a pod: from a pod of the same node, from another, from anywhere.
fn datagram(scene: &Scene, server: IpAddr, port: u16, random: &mut Random, tally: &mut Tally) {
    let address = scene.address(random);
    if address == server {
        return;
    }
    let at = format!("seed {}: a datagram from {address} to {server}:{port}", scene.seed);
    let (expected, rule) = scene.reference().datagram(server, port, address);
    let here = scene.compiled.workload(&address.into()).filter(|it| it.local);
    let sender = here.and_then(|it| it.identity.as_ref()).map_or(Sender::Elsewhere, Sender::Here);
    let asked = Datagram { sender, address, server: server.into(), port };
    let named = scene.compiled.decide_datagram(&asked);
    assert_eq!((answer(named.verdict.reason), &*named.rule), (expected, &*rule), "{at}: by name");
    assert_eq!(named.allowed(), expected == Answer::Allowed, "{at}");
    assert_eq!(scene.compiled.tables.rule(named.verdict.rule), rule, "{at}: the rule's id");
    let view = scene.compiled.tables.with_captured(|address| scene.captured(address));
    let numeric = verdict::inbound(&view, &address.into(), &server.into(), port, UDP);
    assert_eq!(numeric, named.verdict, "{at}: in numbers");
    if random.chance(5) {
        let by_rule = matches!(expected, Answer::Allowed | Answer::Denied);
        let explained = scene.compiled.explain_datagram(&asked);
        assert_eq!(explained.decision, named, "{at}");
        let decided = explained.chain.iter().filter(|step| step.decided).count();
        assert_eq!(decided, usize::from(by_rule && !rule.is_empty()), "{at}: {explained:#?}");
    }
    tally.count("datagram", expected);
}

/// A datagram that leaves a pod towards a meshed pod, by its address or by a Service's.
fn datagram_out(
    scene: &Scene,
    source: IpAddr,
    server: IpAddr,
    port: u16,
    random: &mut Random,
    tally: &mut Tally,
) {
    let draw = random.next() as u32;
    let leaving = |to, port| scene.leaving(source, to, port, UDP, draw).verdict;
    // However a Service's endpoints are mixed: nothing that might reach a meshed one leaves, but questions for names.
    for (key, row) in scene.compiled.tables.services.iter().filter(|(key, _)| key.protocol == UDP) {
        let verdict = leaving(key.address.to_ip(), key.port);
        let names = row.flags & SERVICE_DNS != 0 && key.port == 53;
        if names {
            let denied =
                scene.reference().leave(source, key.address.to_ip(), 53, Transport::Udp) == Some(false);
            let expected = if denied { Reason::Denied } else { Reason::PlainCluster };
            assert_eq!(verdict.reason, expected, "seed {}: {source} asks {key:?} for names", scene.seed);
            tally.count("datagram out", if denied { "no names" } else { "names" });
        }
        let meshed = (0..row.backends).any(|index| {
            let key = heddle_ebpf::policy::BackendKey { service: row.service, index };
            scene.meshed(scene.compiled.tables.backends[&key].address.to_ip())
        });
        if meshed && !names {
            assert_eq!(verdict.outcome, Outcome::Refuse, "seed {}: {source} to {key:?}", scene.seed);
            tally.count("datagram out", "a Service");
        }
    }
    if source == server || !scene.meshed(server) {
        return;
    }
    let at = format!("seed {}: a datagram from {source} to {server}:{port}", scene.seed);
    let verdict = leaving(server, port);
    let neighbor = match server {
        IpAddr::V4(v4) => v4.octets()[0] >= 224,
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local(),
    };
    if neighbor {
        assert_eq!(verdict, Verdict::refuse(Reason::Protocol, 0), "{at}");
        return;
    }
    let reference = scene.reference();
    if reference.leave(source, server, port, Transport::Udp) == Some(false) {
        assert_eq!((verdict.outcome, verdict.reason), (Outcome::Refuse, Reason::Denied), "{at}");
        tally.count("datagram out", "may not leave");
    } else if scene.compiled.workload(&server.into()).is_none_or(|it| !it.local) {
        let names = verdict.reason == Reason::PlainCluster && port == 53;
        assert!(verdict == Verdict::refuse(Reason::PlainToMeshed, 0) || names, "{at}: {verdict:?}");
        tally.count("datagram out", "another node");
    } else {
        let (expected, rule) = reference.datagram(server, port, source);
        let rule_of = scene.compiled.tables.rule(verdict.rule);
        assert_eq!((answer(verdict.reason), rule_of), (expected, &*rule), "{at}");
        assert_eq!(verdict.outcome == Outcome::Direct, expected == Answer::Allowed, "{at}");
        tally.count("datagram out", expected);
    }
}

fn request(scene: &Scene, server: IpAddr, port: u16, random: &mut Random, tally: &mut Tally) {
    let address = scene.address(random);
    let (namespace, account) = (*random.pick(&NAMESPACES), *random.pick(&ACCOUNTS));
    let name = format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local");
    let known = random.chance(70);
    let names = if known { spellings(&name) } else { Vec::new() };
    let identity =
        if known { ClientIdentity::Mesh { dns: Some(name), spiffe: None } } else { ClientIdentity::None };
    let text = |random: &mut Random| (*random.pick(&["a", "b", "ab", "a, b", "c"])).to_owned();
    let asked = Asked {
        method: (*random.pick(&METHODS)).to_owned(),
        path: (*random.pick(&PATHS)).to_owned(),
        query: (0..random.below(3)).map(|_| ("q".to_owned(), text(random))).collect(),
        host: (*random.pick(&HOSTS)).to_owned(),
        headers: (0..random.below(3))
            .map(|i| ((*["X-H", "x-h"].get(i).unwrap()).to_owned(), text(random)))
            .collect(),
    };
    let at = format!("seed {}: {asked:?} by {names:?} at {address} to {server}:{port}", scene.seed);
    let client = Client { tls: !names.is_empty(), names, address };
    let (expected, rule, route) = scene.reference().request(server, port, &client, &asked);

    let query: Vec<String> = asked
        .query
        .iter()
        .map(|(name, value)| format!("{name}={}", value.replace(' ', "+").replace('b', "%62")))
        .collect();
    let target =
        if query.is_empty() { asked.path.clone() } else { format!("{}?{}", asked.path, query.join("&")) };
    let headers: Vec<(&str, &[u8])> =
        asked.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let request = Request { method: &asked.method, target: &target, host: &asked.host, headers: &headers };
    let connection = Connection { client: &identity, address, server: server.into(), port };
    let found = scene.compiled.decide_request(&connection, &request);
    let taken = found.route.map(|it| (it.name.to_owned(), it.rule, it.part));
    let decision = found.decision;
    assert_eq!((answer(decision.verdict.reason), &*decision.rule, taken), (expected, &*rule, route), "{at}");
    assert_eq!(decision.allowed(), expected == Answer::Allowed, "{at}");
    if found.route.is_some() {
        tally.count("request", "taken");
    }
    // The explanation says the same, and names the rule that decided.
    if random.chance(5) {
        let explained = scene.compiled.explain(&connection, Some(&request));
        assert_eq!(explained.decision, decision, "{at}");
        let decided = explained.chain.iter().filter(|step| step.decided).count();
        let by_rule = matches!(expected, Answer::Allowed | Answer::Denied);
        assert_eq!(decided, usize::from(by_rule), "{at}: {explained:#?}");
    }
    tally.count("request", expected);
}

fn local_client(scene: &Scene, server: IpAddr, port: u16, client: &(IpAddr, String), tally: &mut Tally) {
    let (address, name) = client;
    let own = scene.compiled.workload(&(*address).into()).unwrap();
    let to_itself = *address == server;
    if to_itself || scene.compiled.workload(&server.into()).is_none_or(|it| !it.local || !it.meshed()) {
        return;
    }
    let at = format!("seed {}: {name} at {address} to {server}:{port}", scene.seed);
    let (expected, rule) = scene.reference().inbound(
        server,
        port,
        &Client { names: spellings(name), address: *address, tls: true },
    );
    let identity = ClientIdentity::from(own.identity.as_ref().unwrap());
    let named = scene.compiled.authorize(&server.into(), port, &identity, *address);
    assert_eq!((answer(named.verdict.reason), &*named.rule), (expected, &*rule), "{at}: by name");
    let numeric = scene.outbound(*address, server, port, 0).verdict;
    if scene.reference().leave(*address, server, port, Transport::Tcp) == Some(false) {
        assert_eq!((numeric.outcome, numeric.reason), (Outcome::Refuse, Reason::Denied), "{at}: leaving");
        tally.count("local client", "may not leave");
        return;
    }
    assert_eq!((answer(numeric.reason), numeric.rule), (expected, named.verdict.rule), "{at}: in numbers");
    if expected == Answer::Allowed {
        let pod = scene.reference().pod_at(server).unwrap();
        let direct = scene.reference().opaque(pod, port)
            && !reference::agent_answers(pod, port)
            && scene.settings.same_node == heddle_policy::SameNode::Direct;
        assert_eq!(numeric.outcome == Outcome::Direct, direct, "{at}: direct");
    }
    tally.count("local client", expected);
}

fn outbound(scene: &Scene, source: IpAddr, random: &mut Random, tally: &mut Tally) {
    let services: Vec<IpAddr> = scene
        .resources
        .iter()
        .filter_map(|it| if let Resource::Service(it) = it { Some(it) } else { None })
        .flat_map(|service| service.addresses.iter().copied())
        .collect();
    let destination = match random.chance(50) && !services.is_empty() {
        true => *random.pick(&services),
        false => scene.address(random),
    };
    let port = PORTS[random.below(4)];
    let draw = random.next() as u32;
    let at = format!("seed {}: {source} to {destination}:{port}", scene.seed);
    let reference = scene.reference();
    let route = scene.compiled.outbound(
        &source.into(),
        &destination.into(),
        port,
        |address| scene.captured(address),
        draw,
    );
    let numeric = scene.outbound(source, destination, port, draw);
    let Some(expected) = reference.endpoints(destination, port) else {
        assert!(matches!(route, Route::Refuse(_)), "{at}: {route:?}");
        assert_eq!(numeric.verdict.outcome, Outcome::Refuse, "{at}");
        tally.count("outbound", "Nowhere");
        return;
    };
    let ways: Vec<Way> =
        expected.iter().map(|(address, port)| reference.way(source, *address, *port)).collect();
    let chosen = draw as usize % expected.len();
    match route {
        Route::Refuse(decision) => {
            assert!(ways.iter().all(|way| *way == Way::Refused), "{at}: {decision:?} {ways:?}");
        }
        Route::To { endpoints, chosen: index, .. } => {
            assert_eq!(index, chosen, "{at}");
            let found: Vec<(IpAddr, u16)> =
                endpoints.iter().map(|endpoint| (endpoint.address.to_ip(), endpoint.port)).collect();
            assert_eq!(found, expected, "{at}");
            for (endpoint, way) in endpoints.iter().zip(&ways) {
                let hop = match &endpoint.hop {
                    Hop::Refuse(_) => Way::Refused,
                    Hop::Plain(_) => Way::Plain,
                    Hop::External { workload, .. } => Way::Mesh(workload.identity.clone()),
                    Hop::Mesh { identity, .. } => Way::Mesh(identity.dns().to_owned()),
                };
                assert_eq!(hop, *way, "{at}: {endpoint:?}");
            }
        }
    }
    let kernel = match (numeric.verdict.outcome, numeric.verdict.reason) {
        (Outcome::Refuse, _) => "Refused",
        (Outcome::Proxy, Reason::AnotherEndpoint) => "Agent",
        (Outcome::Direct, Reason::Authorized) | (Outcome::Proxy, _) => "Mesh",
        (Outcome::Direct, _) => "Plain",
    };
    let expected_kernel = match &ways[chosen] {
        // The agent looks for another: whichever is allowed, or none.
        Way::Refused if ways.len() > 1 => "Agent",
        Way::Refused => "Refused",
        Way::Plain => "Plain",
        Way::Mesh(_) => "Mesh",
    };
    assert_eq!(kernel, expected_kernel, "{at}: {numeric:?}");
    // Never in the clear to a meshed pod, however it was reached.
    if let Some(pod) = reference.pod_at(numeric.destination.to_ip())
        && numeric.verdict.reason == Reason::PlainCluster
    {
        let info = scene.compiled.pod(&pod.meta.namespace, &pod.meta.name).unwrap();
        assert!(!info.meshed(), "{at}");
    }
    *tally.0.entry("outbound").or_default().entry(kernel.to_owned()).or_default() += 1;
}

#[test]
fn the_order_of_events_makes_no_difference() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let scene = Scene::new(seed, &mut random);
        let mut shuffled = scene.resources.clone();
        random.shuffle(&mut shuffled);
        let mut other = index(&shuffled[..shuffled.len() / 2]);
        // Some come twice, some go and come again.
        for resource in &shuffled {
            if random.chance(20) {
                other.remove(&resource.id());
            }
            other.apply(resource.clone());
        }
        // And as events to one who worked everything out in between.
        let mut compiler = Compiler::new(scene.settings.clone(), Some(NODE.to_owned()));
        for (turn, resource) in shuffled.iter().enumerate() {
            if random.chance(20) {
                compiler.remove(&resource.id());
            }
            compiler.apply(resource.clone());
            if turn % 5 == 0 {
                compiler.compile(NOW - 1);
            }
        }
        for resource in &shuffled {
            if random.chance(10) {
                compiler.remove(&resource.id());
                compiler.compile(NOW);
                compiler.apply(resource.clone());
            }
        }
        let followed = compiler.compile(NOW);
        assert_eq!(scene.compiled.tables, followed.tables, "seed {seed}");
        assert_eq!(scene.compiled.problems, followed.problems, "seed {seed}");
        let other = other.compile_at(&scene.settings, NODE, NOW);
        assert_eq!(scene.compiled.tables, other.tables, "seed {seed}");
        assert_eq!(scene.compiled.problems, other.problems, "seed {seed}");
    }
}

#[test]
fn what_is_followed_change_by_change_is_what_is_worked_out_anew() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let scene = Scene::new(seed, &mut random);
        // What else the same names could be, and more of them.
        let others: Vec<Scene> = (1..4).map(|more| Scene::new(seed + more * 1000, &mut random)).collect();
        let mut compiler = Compiler::new(scene.settings.clone(), Some(NODE.to_owned()));
        scene.resources.iter().for_each(|resource| compiler.apply(resource.clone()));
        compiler.compile(NOW);
        for turn in 0..40 {
            for _ in 0..=random.below(2) {
                if random.chance(30) {
                    compiler.remove(&random.pick(&scene.resources).id());
                } else {
                    let from = if random.chance(50) { &scene } else { random.pick(&others) };
                    compiler.apply(random.pick(&from.resources).clone());
                }
            }
            let followed = compiler.compile(NOW);
            let anew = compiler.index().compile_at(&scene.settings, NODE, NOW);
            assert_eq!(anew.tables, followed.tables, "seed {seed}, turn {turn}");
            assert_eq!(anew.problems, followed.problems, "seed {seed}, turn {turn}");
        }
    }
}

#[test]
fn tables_hold_together() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let scene = Scene::new(seed, &mut random);
        let tables = &scene.compiled.tables;
        assert_eq!(tables.fits(&Capacity::default()), Ok(()), "seed {seed}");
        for (address, workload) in tables.workloads.iter() {
            let Some(info) = scene.compiled.workload(address) else {
                assert!(scene.compiled.external(address).is_some(), "seed {seed}");
                continue;
            };
            assert_eq!(workload.identity != 0, info.meshed(), "seed {seed}");
            assert_eq!(workload.policy != 0, info.meshed() && info.local, "seed {seed}");
            assert_eq!(workload.client != 0, info.meshed() && info.local, "seed {seed}");
            if workload.identity != 0 {
                assert_eq!(tables.identities[&workload.identity], info.identity.as_ref().unwrap().dns());
            }
        }
        for (key, policy) in &tables.ports {
            if key.policy & EGRESS_POLICY != 0 {
                assert_eq!((policy.rules, policy.governs, policy.flags), (0, 0, 0), "seed {seed}");
                continue;
            }
            assert!(policy.rules != 0 && tables.rules.contains_key(&policy.governs), "seed {seed}");
        }
        for (key, service) in tables.services.iter() {
            let there = (0..service.backends).all(|index| {
                tables
                    .backends
                    .contains_key(&heddle_ebpf::policy::BackendKey { service: service.service, index })
            });
            assert!(there, "seed {seed}: {key:?}");
            let dns =
                scene.compiled.service(&key.address).is_some_and(|name| *name == scene.settings.dns_service);
            if dns {
                assert_ne!(service.flags & SERVICE_DNS, 0);
            }
        }
    }
}
