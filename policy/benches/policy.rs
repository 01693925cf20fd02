//! What deciding costs: a cluster of 2,000 namespaces, 100,000 pods and 10,000 rules, seen from a node with 250 pods.
//! Each figure stands beside that of the naive evaluator of the tests, over the same cluster in the same run. Criterion's
//! figures are times on the wall; the summary tells the processor's time too, which a busy machine stretches less.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, hint::black_box, net::IpAddr, sync::Arc, time::Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Compiler, Connection, Origin, Request,
    resources::{
        Authorization, AuthorizationPolicy, DefaultPolicy, EndpointSlice, EndpointState, IdentityMatch,
        IdentityRef, Kind, Lines, MeshTlsAuthentication, Meta, ObjectName, Parent, ParentKind, Parents,
        PathMatch, Pod, PodReference, ProxyProtocol, RequestMatch, Resource, Route, RouteRule, Selector,
        Server, ServerPort, ServerScope, Service, ServicePort, SliceEndpoint, SlicePort, Target, TargetPort,
        Transport,
    },
    verdict,
};

#[allow(dead_code)]
#[path = "../tests/agreement/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "../tests/agreement/reference/mod.rs"]
mod reference;

use reference::{Asked, Client, Reference, spellings};

const NAMESPACES: usize = 2_000;
const PODS: usize = 50;
const LOCAL: usize = 250;
const ROUTES: usize = 100;

fn meta(namespace: &str, name: String) -> Meta {
    Meta {
        namespace: namespace.to_owned(),
        uid: format!("u-{namespace}-{name}"),
        name,
        created: Some(1),
        origin: Origin::default(),
        lines: Arc::new(Lines::new()),
        ..Meta::default()
    }
}

fn app(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), name.to_owned())])
}

fn server(namespace: &str, name: &str, port: u16, protocol: ProxyProtocol) -> Resource {
    Resource::Server(Server {
        meta: meta(namespace, name.to_owned()),
        scope: ServerScope::Pods(Selector { labels: app("web"), ..Selector::default() }),
        port: ServerPort::Number(port),
        protocol,
        access: DefaultPolicy::Deny,
        readable: true,
    })
}

fn policy(namespace: &str, name: &str, target: Target) -> Resource {
    let rule = Authorization {
        target,
        identity: Some(IdentityRef::MeshTls(ObjectName::new(namespace, "clients"))),
        network: None,
    };
    Resource::AuthorizationPolicy(AuthorizationPolicy {
        meta: meta(namespace, name.to_owned()),
        rule: Some(rule),
    })
}

fn clients(namespace: &str, from: usize) -> Resource {
    let clients = vec![
        IdentityMatch::ServiceAccount(ObjectName::new(namespace, "web")),
        IdentityMatch::Namespace(format!("n{from}")),
    ];
    let meta = meta(namespace, "clients".to_owned());
    Resource::MeshTlsAuthentication(MeshTlsAuthentication { meta, clients: Some(clients) })
}

fn route(number: usize) -> Resource {
    let matches = vec![RequestMatch {
        path: match number % 3 {
            0 => PathMatch::Exact(format!("/api/v1/exact/{number}")),
            _ => PathMatch::Prefix(format!("/api/v1/prefix/{number}")),
        },
        method: Some("GET".to_owned()),
        ..RequestMatch::default()
    }];
    let parent = Parent {
        kind: ParentKind::Server,
        namespace: "n0".to_owned(),
        name: "http".to_owned(),
        port: None,
        section: None,
    };
    Resource::Route(Route {
        kind: Kind::HttpRoute,
        meta: meta("n0", format!("route{number}")),
        parents: Parents::These(vec![parent]),
        hosts: Vec::new(),
        rules: Some(vec![RouteRule { matches, ..RouteRule::default() }]),
    })
}

fn pod(namespace: usize, index: usize, node: &str) -> Pod {
    let [a, b] = u16::try_from(namespace * 32 + 8).unwrap().to_be_bytes();
    Pod {
        meta: Meta { labels: Arc::new(app("web")), ..meta(&format!("n{namespace}"), format!("p{index}")) },
        node: node.to_owned(),
        service_account: if index.is_multiple_of(2) { "web".to_owned() } else { format!("sa{}", index % 7) },
        addresses: vec![IpAddr::from([10, a, b, u8::try_from(index).unwrap()])],
        ready: true,
        ..Pod::default()
    }
}

/// A Service of a namespace, which leads to its first pods; another with the same name has another address.
fn service(namespace: usize, name: &str, last: u8) -> Resource {
    let [a, b] = u16::try_from(namespace).unwrap().to_be_bytes();
    Resource::Service(Service {
        meta: meta(&format!("n{namespace}"), name.to_owned()),
        addresses: vec![IpAddr::from([172, 16 + a, b, last])],
        ports: vec![ServicePort {
            name: String::new(),
            port: 8080,
            transport: Transport::Tcp,
            target: TargetPort::Number(8080),
        }],
        ..Service::default()
    })
}

fn slice(namespace: usize) -> Resource {
    let own = pod(namespace, 0, "");
    let of = |index: usize| {
        let pod = pod(namespace, index, "");
        SliceEndpoint {
            address: pod.addresses[0],
            state: EndpointState::Ready,
            pod: Some(PodReference { name: pod.meta.name, uid: pod.meta.uid }),
        }
    };
    Resource::EndpointSlice(EndpointSlice {
        meta: meta(&own.meta.namespace, "svc-1".to_owned()),
        service: "svc".to_owned(),
        ports: vec![SlicePort { name: String::new(), number: 8080, transport: Transport::Tcp }],
        endpoints: (0..10).map(of).collect(),
    })
}

fn namespace(number: usize, more: &[(&str, &str)], label: &str) -> Resource {
    let mut own = meta("", format!("n{number}"));
    own.annotations.insert("heddle.io/mesh".to_owned(), "enabled".to_owned());
    own.annotations.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    own.labels = Arc::new(app(label));
    Resource::Namespace(own)
}

/// Five rules, a Service and its endpoints in each of 2,000 namespaces; the first five pods of the first fifty namespaces are this node's.
fn cluster() -> Vec<Resource> {
    let mut all = Vec::new();
    for number in 0..NAMESPACES {
        let namespace = &*format!("n{number}");
        all.push(self::namespace(number, &[], "a"));
        all.push(service(number, "svc", 1));
        all.push(slice(number));
        all.push(server(namespace, "http", 8080, ProxyProtocol::Http1));
        all.push(server(namespace, "db", 6379, ProxyProtocol::Opaque));
        all.push(policy(namespace, "one", Target::Server("db".to_owned())));
        all.push(policy(namespace, "two", Target::Namespace));
        all.push(clients(namespace, (number + 1) % 50));
        for index in 0..PODS {
            let here = number < LOCAL / 5 && index < 5;
            let node = if here { "here".to_owned() } else { format!("node-{}", number % 500) };
            all.push(Resource::Pod(pod(number, index, &node)));
        }
    }
    all.extend((0..ROUTES).map(route));
    all
}

fn resident(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

struct Scene {
    resources: Vec<Resource>,
    settings: ClusterSettings,
    compiler: Compiler,
    compiled: Compiled,
}

fn scene() -> Scene {
    let settings = ClusterSettings::default();
    let bare = resident("VmRSS");
    let mut compiler = Compiler::new(settings.clone(), Some("here".to_owned()));
    for resource in cluster() {
        compiler.apply(resource);
    }
    // As an agent holds them: nobody keeps the text that they were read from, nor a second copy.
    let before = resident("VmRSS") - bare;
    let (start, began) = (Instant::now(), worked());
    let compiled = compiler.compile(0);
    let (took, work) = (start.elapsed(), worked() - began);
    let grown = resident("VmHWM").saturating_sub(bare + before);
    println!(
        "{} rules, {NAMESPACES} namespaces, {} pods, {LOCAL} here, {ROUTES} routes; on {} cores",
        NAMESPACES * 5,
        NAMESPACES * PODS,
        std::thread::available_parallelism().unwrap()
    );
    println!(
        "full compile: {took:?} (bound: 1 s; {work:.3} s of the processor's), {grown} MiB and the resources' {before} MiB (bound: 300 MiB)"
    );
    assert!(compiled.problems.is_empty(), "{:?}", compiled.problems.first());
    // A second copy, for the naive evaluator alone.
    Scene { resources: cluster(), settings, compiler, compiled }
}

/// A port with so many rules about it, each for a service account of its own; the last of them is the one that is asked.
fn many_rules(rules: usize) -> (Compiled, ClientIdentity) {
    let naming = ClusterSettings::default().naming;
    let mut compiler = Compiler::new(ClusterSettings::default(), Some("here".to_owned()));
    let mut own = meta("", "n0".to_owned());
    own.annotations.insert("heddle.io/mesh".to_owned(), "enabled".to_owned());
    compiler.apply(Resource::Namespace(own));
    compiler.apply(server("n0", "db", 6379, ProxyProtocol::Opaque));
    for index in 0..2 {
        let mut pod = pod(0, index, "here");
        pod.service_account = if index == 0 { "web".to_owned() } else { format!("client{}", rules - 1) };
        compiler.apply(Resource::Pod(pod));
    }
    for number in 0..rules {
        let account = ObjectName::new("n0", format!("client{number}"));
        let rule = Authorization {
            target: Target::Server("db".to_owned()),
            identity: Some(IdentityRef::ServiceAccount(account)),
            network: None,
        };
        let meta = meta("n0", format!("rule{number}"));
        compiler.apply(Resource::AuthorizationPolicy(AuthorizationPolicy { meta, rule: Some(rule) }));
    }
    let last = rules - 1;
    let identity = ClientIdentity::from(&naming.name("n0", &format!("client{last}")).unwrap());
    (compiler.compile(0), identity)
}

/// What one decision costs as the rules about its port grow a thousandfold.
fn growth() {
    let (server, client) = (IpAddr::from([10, 0, 8, 0]), IpAddr::from([10, 0, 8, 1]));
    let mut first = None;
    for rules in [10, 100, 1_000, 10_000] {
        let (compiled, identity) = many_rules(rules);
        let view = compiled.tables.with_captured(|at| compiled.workload(at).map(|info| info.digest));
        let connection = Connection { client: &identity, address: client, server: server.into(), port: 6379 };
        let connect = verdict::Connect {
            source: client.into(),
            destination: server.into(),
            port: 6379,
            protocol: verdict::TCP,
            random: 0,
        };
        assert!(compiled.decide(&connection).allowed());
        assert_eq!(verdict::outbound(&view, &connect).verdict.reason, heddle_ebpf::codes::Reason::Authorized);
        let (_, named) = timed(1_000_000, || compiled.decide(black_box(&connection)));
        let (_, numbered) = timed(1_000_000, || verdict::outbound(&view, black_box(&connect)));
        let (a, b) = *first.get_or_insert((named, numbered));
        println!(
            "{rules} rules about the port: {:.0} ns by identity ({:.2} of the first), {:.0} ns by the tables ({:.2})",
            named * 1e9,
            named / a,
            numbered * 1e9,
            numbered / b
        );
    }
}

/// Seconds that the processor has worked for this thread.
fn worked() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds on the wall and of the processor for one turn.
fn timed<T>(turns: u32, mut ask: impl FnMut() -> T) -> (f64, f64) {
    let (start, before) = (Instant::now(), worked());
    for _ in 0..turns {
        black_box(ask());
    }
    let turns = f64::from(turns);
    (start.elapsed().as_secs_f64() / turns, (worked() - before) / turns)
}

/// The naive evaluator looks at everything each time: a handful of turns is enough to know what it takes.
fn naively<T>(what: &str, ask: impl FnMut() -> T) -> f64 {
    let (_, each) = timed(5, ask);
    println!("{what}, naively: {:.1} ms of the processor's", each * 1e3);
    each
}

fn compared<T>(what: &str, naive: f64, ask: impl FnMut() -> T) {
    let (wall, each) = timed(1_000_000, ask);
    let ratio = naive / each;
    println!(
        "{what}: {:.0} ns of the processor's, {:.0} on the wall; 1/{ratio:.0} of the naive evaluator's",
        each * 1e9,
        wall * 1e9
    );
}

/// What a change costs, with the compilation that follows it.
fn changed(what: &str, turns: u32, change: impl FnMut()) {
    let (wall, each) = timed(turns, change);
    println!("{what}: {:.2} ms of the processor's, {:.2} on the wall", each * 1e3, wall * 1e3);
}

fn policy_bench(criterion: &mut Criterion) {
    let Scene { resources, settings, mut compiler, compiled } = scene();
    let reference = Reference { resources: &resources, settings: &settings, node: "here" };
    let server = IpAddr::from([10, 0, 8, 0]);
    let near = IpAddr::from([10, 0, 8, 2]);
    let far = IpAddr::from([10, 200, 200, 3]);
    let name = "web.n0.serviceaccount.identity.linkerd.cluster.local";
    let identity = ClientIdentity::Mesh {
        dns: Some(name.to_owned()),
        spiffe: Some("spiffe://cluster.local/ns/n0/sa/web".to_owned()),
    };

    let mut group = criterion.benchmark_group("policy");
    group.sample_size(10);
    group.bench_function("full compile", |bench| {
        bench.iter_batched(
            || Compiler::new(settings.clone(), Some("here".to_owned())).with(compiler.index().clone()),
            |mut fresh| fresh.compile(0),
            criterion::BatchSize::PerIteration,
        );
    });
    let mut turn = 0;
    group.bench_function("one changed rule", |bench| {
        bench.iter(|| {
            turn += 1;
            compiler.apply(clients("n7", 10 + turn % 2));
            compiler.compile(0)
        });
    });
    drop(group);
    changed("one changed rule (bound: 2 ms)", 200, || {
        turn += 1;
        compiler.apply(clients("n7", 10 + turn % 2));
        black_box(compiler.compile(0));
    });
    for (what, node) in
        [("one pod elsewhere comes or goes", "node-9"), ("one pod here comes or goes", "here")]
    {
        let mut pod = pod(9, 7, node);
        pod.meta.name = "comes-and-goes".to_owned();
        pod.addresses = vec![IpAddr::from([10, 254, 0, 1])];
        let resource = Resource::Pod(pod);
        let mut there = false;
        changed(what, 20, || {
            there = !there;
            if there {
                compiler.apply(resource.clone())
            } else {
                compiler.remove(&resource.id())
            }
            black_box(compiler.compile(0));
        });
    }
    let audit = [("config.linkerd.io/default-inbound-policy", "audit")];
    for (what, there, gone) in [
        ("a namespace's annotation changes", namespace(9, &audit, "a"), namespace(9, &[], "a")),
        ("a namespace's labels change", namespace(9, &[], "b"), namespace(9, &[], "a")),
        ("a Service's address changes", service(9, "svc", 2), service(9, "svc", 1)),
    ] {
        let mut turn = false;
        changed(what, 20, || {
            turn = !turn;
            compiler.apply(if turn { there.clone() } else { gone.clone() });
            black_box(compiler.compile(0));
        });
    }
    let resource = service(9, "another", 7);
    let mut there = false;
    changed("a Service comes or goes", 20, || {
        there = !there;
        if there {
            compiler.apply(resource.clone())
        } else {
            compiler.remove(&resource.id())
        }
        black_box(compiler.compile(0));
    });

    let captured = |address: &heddle_ebpf::Address| compiled.workload(address).map(|info| info.digest);
    let view = compiled.tables.with_captured(captured);
    let connect = verdict::Connect {
        source: near.into(),
        destination: server.into(),
        port: 6379,
        protocol: verdict::TCP,
        random: 0,
    };
    // As an agent asks: the names were read once, when the handshake ended.
    let account = ClientIdentity::from(&settings.naming.parse(name).unwrap());
    let connection = Connection { client: &account, address: far, server: server.into(), port: 6379 };
    let unread = Connection { client: &identity, ..connection };
    assert!(compiled.decide(&connection).allowed());
    assert_eq!(compiled.decide(&connection), compiled.decide(&unread));
    assert_eq!(verdict::outbound(&view, &connect).verdict.outcome, heddle_ebpf::codes::Outcome::Direct);
    criterion.bench_function("connection, by identity", |bench| {
        bench.iter(|| compiled.decide(black_box(&connection)));
    });
    criterion.bench_function("connection, with its certificate's names read", |bench| {
        bench.iter(|| compiled.decide(black_box(&unread)));
    });
    criterion.bench_function("connection, by the tables", |bench| {
        bench.iter(|| verdict::outbound(&view, black_box(&connect)));
    });
    let http = Connection { port: 8080, ..connection };
    let headers: [(&str, &[u8]); 3] = [("host", b"n0.example"), ("user-agent", b"bench"), ("accept", b"*/*")];
    let target = "/api/v1/prefix/98/items/7?page=3";
    let request = Request { method: "GET", target, host: "n0.example", headers: &headers };
    let found = compiled.decide_request(&http, &request);
    assert!(found.decision.allowed() && found.route.is_some());
    criterion.bench_function("request, 100 routes", |bench| {
        bench.iter(|| compiled.decide_request(black_box(&http), black_box(&request)));
    });

    let client = Client { names: spellings(name), address: far, tls: true };
    let asked = Asked {
        method: "GET".to_owned(),
        path: "/api/v1/prefix/98/items/7".to_owned(),
        query: Vec::new(),
        host: "n0.example".to_owned(),
        headers: Vec::new(),
    };
    let naive = naively("connection", || reference.inbound(server, 6379, &client));
    compared("connection, by identity (bound: 100 ns)", naive, || compiled.decide(black_box(&connection)));
    compared("the same with its certificate's names read anew", naive, || {
        compiled.decide(black_box(&unread))
    });
    compared("connection, by the tables (bound: 100 ns)", naive, || verdict::outbound(&view, &connect));
    let allocated = allocation_counter::measure(|| {
        black_box(compiled.decide_request(black_box(&http), black_box(&request)));
    });
    println!("request, 100 routes: {} allocations (bound: none)", allocated.count_total);
    let naive = naively("request", || reference.request(server, 8080, &client, &asked));
    compared("request, 100 routes (bound: 1000 ns)", naive, || compiled.decide_request(&http, &request));
    growth();
}

criterion_group!(benches, policy_bench);
criterion_main!(benches);
