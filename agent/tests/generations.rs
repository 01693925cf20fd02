//! Tables change by generation: whoever reads sees the old ones whole or the new ones whole, what the new ones forbid
//! ends, and what has no room is refused.

#![allow(clippy::expect_used, reason = "a test may fail so")]

#[path = "common/kernel.rs"]
mod kernel;
#[path = "common/tables_shop.rs"]
mod shop;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Pod as Plain,
    maps::{HashMap, Map, MapData},
};
use heddle::capture::Kernel;
use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason},
    flows::{DirectFlow, FlowKey, Origin, Tuple, maps},
    judge::{INBOUND, OUTBOUND, Question},
    policy::{
        Allow, AllowKey, Backend, BackendKey, NETWORKS_FIRST_FREE, Network, NetworkKey, OUTBOUND_ALLOW,
        PORT_L4_ONLY, PORT_MESH_CLIENTS, PortKey, PortPolicy, Service, ServiceKey, Settings, WORKLOAD_LOCAL,
        WORKLOAD_MESHED, Workload,
    },
};
use heddle_policy::{TableSet, verdict::TCP};
use serde_json::{Value, json};
use xtask::lab::{
    Lab, Pod, PodSpec, ServiceSpec,
    apps::{Attempt, Burst},
    eventually,
};

use kernel::Loaded;
use shop::{Shop, reason_of};

const CLIENT: &str = "10.0.0.1";
const SERVER: &str = "10.0.0.2";
const SERVICE: &str = "10.96.0.1";

fn at(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().expect("an address"))
}

/// Tables whose every number is `odd` or `even`: a reader that took one row from each would find nothing at the second,
/// or would answer with a rule, an outcome or a port that neither of them gives.
fn tables(generation: u64) -> TableSet {
    let number = 1 + (generation % 2) as u32;
    let both = WORKLOAD_MESHED | WORKLOAD_LOCAL;
    let policy = 10 * number;
    let rules = 100 * number;
    let networks = NETWORKS_FIRST_FREE + number;
    let (service, port) = (1000 * number, 8000 + number as u16);
    let open = PortPolicy {
        rules,
        networks,
        governs: 5 + number,
        flags: PORT_MESH_CLIENTS | PORT_L4_ONLY,
        pad: [0; 3],
    };
    let row = |uid, client| Workload { uid, identity: number, client, policy, flags: both };
    let everything = NetworkKey::new(networks, Address::UNSPECIFIED, 0);
    TableSet {
        settings: Settings {
            default_outbound: OUTBOUND_ALLOW,
            same_node_encrypt: number - 1,
            open: 1,
            pad: 0,
        },
        workloads: [(at(CLIENT), row(1, number)), (at(SERVER), row(2, 7 * number))].into_iter().collect(),
        ports: BTreeMap::from([(PortKey { policy, port, protocol: TCP, pad: 0 }, open)]),
        allows: BTreeMap::from([(AllowKey { rules, client: number }, Allow { rule: number })]),
        networks: BTreeMap::from([(everything, Network { rule: 30 + number, allow: 1 })]),
        services: BTreeMap::from([(
            ServiceKey { address: at(SERVICE), port: 80, protocol: 6, pad: 0 },
            Service { service, backends: 1, flags: 0 },
        )])
        .into(),
        backends: BTreeMap::from([(
            BackendKey { service, index: 0 },
            Backend { address: at(SERVER), port, pad: 0 },
        )])
        .into(),
        identities: BTreeMap::from([(number, "somebody".to_owned())]).into(),
        rules: BTreeMap::from([(number, "some rule".to_owned())]),
    }
}

/// What a generation answers: outcome, reason, rule, port. The two kinds answer everything differently.
fn whole(generation: u64, question: &Question) -> (u32, u32, u32, u32) {
    let number = 1 + (generation % 2) as u32;
    if question.direction == OUTBOUND {
        let (outcome, reason) = if number == 1 {
            (Outcome::Direct, Reason::Authorized)
        } else {
            (Outcome::Proxy, Reason::Meshed)
        };
        (outcome as u32, reason as u32, number, 8000 + number)
    } else if question.port == 8000 + number {
        (Outcome::Proxy as u32, Reason::Unauthenticated as u32, 30 + number, question.port)
    } else {
        (Outcome::Refuse as u32, Reason::Unauthorized as u32, 0, question.port)
    }
}

fn questions() -> [Question; 3] {
    let question = |direction, source, destination, port| Question {
        source: at(source),
        destination: at(destination),
        direction,
        port,
        protocol: 6,
        random: 7,
    };
    [
        question(OUTBOUND, CLIENT, SERVICE, 80),
        question(INBOUND, "192.0.2.1", SERVER, 8001),
        question(INBOUND, "192.0.2.1", SERVER, 8002),
    ]
}

/// Asks until it is told to end; returns how many answers came, and how many of them were the first of a generation.
fn read(kernel: &Kernel, ended: &AtomicBool) -> Result<(u64, u64)> {
    let (mut answers, mut changes, mut last) = (0, 0, 0);
    while !ended.load(Relaxed) {
        for _ in 0..20 {
            for question in &questions() {
                let answer = kernel.judge(question)?;
                let seen = (answer.outcome, answer.reason, answer.rule, answer.port);
                ensure!(
                    seen == whole(answer.generation, question),
                    "{answer:?} to {question:?}: neither generation's"
                );
                ensure!(answer.generation >= last, "generation {} after {last}", answer.generation);
                changes += u64::from(answer.generation != last);
                last = answer.generation;
                answers += 1;
            }
        }
        // The others want a processor too.
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok((answers, changes))
}

/// Every flip waits for a grace period of the kernel's: several nodes flip at the same time.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn ten_thousand_flips_show_the_old_tables_or_the_new_ones_and_never_both() -> Result<()> {
    const NODES: u64 = 10;
    const FLIPS: u64 = 10_000 / NODES;
    let mut lab = Lab::new("flips")?;
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let name = format!("node-{node}");
        lab.add_node(&name)?;
        let loaded = Loaded::on(&lab, &name)?;
        loaded.capture_at(CLIENT.parse()?, 11, 1)?;
        loaded.capture_at(SERVER.parse()?, 12, 2)?;
        for generation in [1, 2] {
            loaded.capture.publish(&tables(generation), generation)?;
            for question in &questions() {
                let answer = loaded.capture.kernel().judge(question)?;
                let seen = (answer.outcome, answer.reason, answer.rule, answer.port);
                assert_eq!((answer.generation, seen), (generation, whole(generation, question)), "at rest");
            }
        }
        nodes.push(loaded);
    }
    let ended: Vec<AtomicBool> = nodes.iter().map(|_| AtomicBool::new(false)).collect();
    let totals = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let mut flipping = Vec::new();
        let mut readers = Vec::new();
        for (loaded, ended) in nodes.iter().zip(&ended) {
            let kernel = loaded.another_reader()?;
            readers.push(scope.spawn(move || read(&kernel, ended)));
            readers.push(scope.spawn(|| read(loaded.capture.kernel(), ended)));
            flipping.push(scope.spawn(move || {
                let mut flips = 3..3 + FLIPS;
                let failed = flips.find_map(|number| loaded.capture.publish(&tables(number), number).err());
                ended.store(true, Relaxed);
                failed
            }));
        }
        for thread in flipping {
            if let Some(error) = thread.join().map_err(|_| anyhow!("a publisher panicked"))? {
                return Err(error.into());
            }
        }
        let mut totals = (0, 0);
        for reader in readers {
            let (answers, changes) = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
            totals = (totals.0 + answers, totals.1 + changes);
        }
        Ok(totals)
    })?;
    let (answers, changes) = totals;
    eprintln!("{answers} answers, {changes} of them the first of a generation");
    assert!(nodes.iter().all(|node| node.capture.generation().is_ok_and(|last| last == FLIPS + 2)));
    assert!(changes > NODES * FLIPS / 10, "the readers saw the flips happen: {changes}");
    drop(nodes);
    lab.close()
}

/// Connections are opened as fast as they go while the rule that allows them comes and goes.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_flow_that_is_revoked_during_its_own_connect_is_ended() -> Result<()> {
    let shop = Shop::open("revoked")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let mut press = shop.client.app(&["press", &format!("{}:7000", shop.near.v4)])?;
    let agent = shop.lab.agent("node-a")?;
    let live = || -> Result<usize> {
        let listed =
            shop.client.place().check(&["ss", "-Htn", "state", "established", "dport", "=", ":7000"])?;
        Ok(listed.lines().count())
    };
    let mut most = 0;
    for round in 0..25 {
        let began = std::time::Instant::now();
        shop.allow(true)?;
        eventually("connections to be carried", Duration::from_secs(10), || {
            most = most.max(live()?);
            Ok(live()? > 20)
        })?;
        let (before, carried) = (generation(&agent.status()?), began.elapsed());
        shop.allow(false)?;
        eventually("the narrower rules", Duration::from_secs(10), || {
            Ok(generation(&agent.status()?) > before)
        })
        .with_context(|| format!("round {round}: {:?}\n{}", agent.status(), agent.log_tail(20)))?;
        eventually(&format!("no connection to be left in round {round}"), Duration::from_secs(10), || {
            Ok(live()? == 0)
        })?;
        eprintln!("round {round}: carried after {carried:?}, none left after {:?}", began.elapsed());
        // Nothing that was under way meanwhile comes to life afterwards.
        for _ in 0..10 {
            let left = live()?;
            assert_eq!(left, 0, "round {round}: {left} connections live under rules that forbid them");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    press.close_input();
    press.wait_for("succeeded", Duration::from_secs(40))?;
    let told = press.stdout();
    let told: Burst = serde_json::from_str(told.lines().last().context("nothing told")?)?;
    eprintln!("{told:?}, at most {most} at a time");
    assert!(told.succeeded > 500 && told.failed > 500, "both happened often: {told:?}");
    shop.close()
}

fn generation(status: &Value) -> u64 {
    let of = |name: &str| status.pointer(&format!("/rules/{name}")).and_then(Value::as_u64).unwrap_or(0);
    of("kernelGeneration").min(of("proxyGeneration"))
}

/// A namespace beside the shop's, whose pod lets the shop's client in.
const GREEDY: &str = "\
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: greedy, namespace: greedy}, spec: {podSelector: \
{matchLabels: {app: greedy}}, port: 7000, proxyProtocol: opaque}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: greedy, namespace: greedy}, spec: \
{targetRef: {group: policy.linkerd.io, kind: Server, name: greedy}, requiredAuthenticationRefs: [{group: policy.linkerd.io, \
kind: MeshTLSAuthentication, name: clients}]}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {name: clients, namespace: greedy}, spec: \
{identityRefs: [{kind: ServiceAccount, name: client, namespace: shop}]}}
";

/// Manifests of a namespace that fill a table beyond the sizes below; those of rules are about its pods `app`.
fn overflow(table: &str, namespace: &str, app: &str) -> Result<String> {
    let mut yaml = String::new();
    let pod = |number: u32, account: &str, mesh: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: more{number}, namespace: {namespace}, uid: more{number}, labels: {{app: more}}, \
             annotations: {{heddle.io/mesh: {mesh}}}}}, spec: {{nodeName: node-z, serviceAccountName: {account}, containers: \
             [{{name: c, image: i}}]}}, status: {{phase: Running, podIPs: [{{ip: 10.77.200.{number}}}], conditions: \
             [{{type: Ready, status: \"True\"}}]}}}}\n"
        )
    };
    let server = |number: u32| {
        format!(
            "---\n{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: more{number}, namespace: {namespace}}}, spec: \
             {{podSelector: {{matchLabels: {{app: {app}}}}}, port: {}, proxyProtocol: opaque}}}}\n",
            20_000 + number
        )
    };
    let policy = |number: u32, target: &str, kind: &str, name: &str| {
        format!(
            "---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: more{number}, namespace: {namespace}}}, \
             spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: {target}}}, requiredAuthenticationRefs: \
             [{{group: policy.linkerd.io, kind: {kind}, name: {name}}}]}}}}\n"
        )
    };
    let service = |number: u32, selects: &str, ports: u32| {
        let ports: Vec<_> =
            (0..ports).map(|n| format!("{{name: x{n}, port: {}, targetPort: 80}}", 80 + n)).collect();
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: more{number}, namespace: {namespace}}}, spec: {{clusterIP: \
             10.78.9.{number}, selector: {{app: {selects}}}, ports: [{}]}}}}\n",
            ports.join(", ")
        )
    };
    match table {
        "workloads" => (1..70).try_for_each(|n| write!(yaml, "{}", pod(n, "more", "disabled")))?,
        "identities" => {
            (1..20).try_for_each(|n| write!(yaml, "{}", pod(n, &format!("more{n}"), "enabled")))?
        }
        "ports" => (1..70).try_for_each(|n| write!(yaml, "{}", server(n)))?,
        "rules" => {
            (1..300)
                .try_for_each(|n| write!(yaml, "{}", policy(n, app, "MeshTLSAuthentication", "clients")))?;
        }
        "allows" => (1..20).try_for_each(|n| {
            let policy = policy(n, &format!("more{n}"), "MeshTLSAuthentication", "clients");
            write!(yaml, "{}{policy}", server(n))
        })?,
        "networks" => {
            let nets: Vec<_> = (0..100).map(|n| format!("{{cidr: 192.0.2.{}}}", 2 * n)).collect();
            write!(
                yaml,
                "---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {{name: more, namespace: \
                 {namespace}}}, spec: {{networks: [{}]}}}}\n{}",
                nets.join(", "),
                policy(1, app, "NetworkAuthentication", "more")
            )?;
        }
        "addresses of services" => (1..20).try_for_each(|n| write!(yaml, "{}", service(n, "nobody", 1)))?,
        "services" => write!(yaml, "{}", service(1, app, 20))?,
        "backends" => {
            (1..30).try_for_each(|n| write!(yaml, "{}", pod(n, "more", "disabled")))?;
            write!(yaml, "{}", service(1, "more", 1))?;
        }
        other => anyhow::bail!("no table {other}"),
    }
    Ok(yaml)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_table_without_room_closes_everything_and_says_which_one_to_raise() -> Result<()> {
    let mut shop = Shop::bare("full")?;
    shop.lab.settings().set("capacity", json!({"workloads": 64, "identities": 8, "services": 8}));
    shop.lab.service(&ServiceSpec::new("shop", "near", "near").port("echo", 7, "7000"))?;
    shop.start()?;
    let _servers = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    let agent = shop.lab.agent("node-a")?;
    let works = |to: &Pod| -> Result<bool> {
        Ok(shop.client.connect(&Attempt::new((to.v4, 7000), "hello"))?.received == "hello")
    };
    for (table, with) in
        [("workloads", "workloads"), ("identities", "identities"), ("services", "addresses of services")]
    {
        for to in [&shop.near, &shop.far] {
            eventually(&format!("{} before {table} is full", to.name), Duration::from_secs(10), || {
                works(to)
            })?;
        }
        let events = agent.events()?;
        shop.lab.apply("more.yaml", &overflow(with, "shop", &shop.near.name)?)?;
        let mut told = String::new();
        eventually(&format!("the status to tell that {table} is full"), Duration::from_secs(10), || {
            let status = agent.status()?;
            told = ["kernelError", "remedy"]
                .map(|name| {
                    status.pointer(&format!("/rules/{name}")).and_then(Value::as_str).unwrap_or("").to_owned()
                })
                .join(" ");
            Ok(told.contains(table))
        })
        .with_context(|| format!("it tells {told:?}"))?;
        assert!(told.contains(&format!("capacity: {{{table}: ")), "{table}: {told}");
        for to in [&shop.near, &shop.far] {
            let outcome = shop.client.connect(&Attempt::new((to.v4, 7000), "hello"))?;
            assert!(outcome.refused(), "{table} is full, to {}: {}", to.name, outcome.summary());
            let event = events.next(Duration::from_secs(5), |event| reason_of(event) == "tables_closed");
            assert!(event.is_some(), "{table}, to {}: no event gives tables_closed", to.name);
        }
        // Nor does anybody get in, neither from the other node nor from no mesh.
        for from in [&shop.far, &shop.plain] {
            let outcome =
                from.connect(&Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), "in") })?;
            assert!(!outcome.answered(), "{table} is full, from {}: {}", from.name, outcome.summary());
        }
        shop.lab.manifests().remove("more.yaml")?;
    }
    for to in [&shop.near, &shop.far] {
        eventually("everything to be as before", Duration::from_secs(10), || works(to))?;
    }
    shop.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn whoever_takes_most_of_a_table_is_closed_and_its_neighbors_are_not() -> Result<()> {
    let mut shop = Shop::bare("room")?;
    shop.lab.settings().set(
        "capacity",
        json!({"ports": 64, "rules": 256, "allows": 12, "networks": 96, "services": 16, "backends": 16}),
    );
    let greedy =
        shop.lab.pod(&PodSpec::new("greedy", "node-a").namespace("greedy").account("app").meshed())?;
    let service = shop.lab.service(&ServiceSpec::new("shop", "near", "near").port("echo", 7, "7000"))?;
    let of_greedy =
        shop.lab.service(&ServiceSpec::new("greedy", "greedy", "greedy").port("echo", 7, "7000"))?;
    shop.lab.apply("greedy.yaml", GREEDY)?;
    shop.start()?;
    let _servers = [shop.near.app(&["echo", "[::]:7000"])?, greedy.app(&["echo", "[::]:7000"])?];
    let agent = shop.lab.agent("node-a")?;
    let at = |to: IpAddr, port: u16| shop.client.connect(&Attempt::new((to, port), "hello"));
    let works = |to: IpAddr, port: u16| -> Result<bool> { Ok(at(to, port)?.received == "hello") };
    let neighbors = [(shop.near.v4, 7000), (service.v4, 7)];
    let own = [(greedy.v4, 7000), (of_greedy.v4, 7)];
    for table in ["ports", "rules", "allows", "networks", "services", "backends"] {
        for (to, port) in neighbors.into_iter().chain(own) {
            eventually(&format!("{to}:{port} before {table} is full"), Duration::from_secs(10), || {
                works(to.into(), port)
            })?;
        }
        let events = agent.events()?;
        shop.lab.apply("more.yaml", &overflow(table, "greedy", "greedy")?)?;
        let words = format!("places of table {table}");
        let mut told = String::new();
        eventually(&format!("the status to tell that {table} is full"), Duration::from_secs(10), || {
            told = agent.status()?.pointer("/problems").map(Value::to_string).unwrap_or_default();
            Ok(told.contains(&words))
        })
        .with_context(|| format!("it tells {told:?}"))?;
        assert!(told.contains("Namespace greedy") && !told.contains("Namespace shop"), "{table}: {told}");
        for (to, port) in neighbors {
            let outcome = at(to.into(), port)?;
            assert_eq!(outcome.received, "hello", "{table} is full, to {to}:{port}: {}", outcome.summary());
        }
        let of_objects = ["services", "backends"].contains(&table);
        for (to, port) in own {
            let outcome = at(to.into(), port)?;
            // Pods that their Services do not lead to are reached all the same.
            if of_objects && port == 7000 {
                assert_eq!(outcome.received, "hello", "{table} is full: {}", outcome.summary());
            } else {
                assert!(outcome.refused(), "{table} is full, to {to}:{port}: {}", outcome.summary());
            }
        }
        if !of_objects {
            let why = format!("namespace closed: no room in {table}");
            let named = |event: &Value| event.get("rule").and_then(Value::as_str) == Some(&*why);
            assert!(events.next(Duration::from_secs(5), named).is_some(), "{table}: no event names {why:?}");
        }
        shop.lab.manifests().remove("more.yaml")?;
    }
    for (to, port) in neighbors.into_iter().chain(own) {
        eventually("everything to be as before", Duration::from_secs(10), || works(to.into(), port))?;
    }
    shop.close()
}

/// A map of node-a's, filled up with rows that stand for nobody's connections.
struct Filled<K: Plain, V: Plain>(HashMap<MapData, K, V>, Vec<K>);

impl<K: Plain, V: Plain> Filled<K, V> {
    fn new(shop: &Shop, name: &str, rows: impl Iterator<Item = K>, value: V) -> Result<Self> {
        let pin = format!("root/sys/fs/bpf/heddle/v{}/maps/{name}", heddle_ebpf::SCHEMA);
        let host = shop.lab.at("node-a")?.host();
        let pin = host.netns().ancestors().nth(2).context("no holder")?.join(pin);
        let mut map: HashMap<MapData, K, V> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
        let mut keys = Vec::new();
        for key in rows {
            if map.insert(key, value, 0).is_err() {
                break;
            }
            keys.push(key);
        }
        ensure!(!keys.is_empty(), "{name} had no room at all");
        Ok(Self(map, keys))
    }

    fn empty(mut self) -> Result<()> {
        Ok(self.1.iter().try_for_each(|key| self.0.remove(key))?)
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connections_for_which_a_map_has_no_room_are_refused_until_there_is_room() -> Result<()> {
    let mut shop = Shop::bare("no-room")?;
    shop.lab.settings().set("capacity", json!({"direct_flows": 8, "proxied": 8}));
    shop.start()?;
    let servers = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    let attempt = |to: &Pod| shop.client.connect(&Attempt::new((to.v4, 7000), "one more"));
    let works = |to: &Pod| eventually("room", Duration::from_secs(10), || Ok(attempt(to)?.answered()));
    let refused = |what: &str, to: &Pod| -> Result<()> {
        let accepted = || servers.iter().map(|server| server.stdout().lines().count()).sum::<usize>();
        let (events, before) = (shop.lab.agent("node-a")?.events()?, accepted());
        let outcome = attempt(to)?;
        assert!(outcome.refused(), "{what} is full: {}", outcome.summary());
        let event = events.next(Duration::from_secs(5), |event| reason_of(event) == "map_full");
        assert!(event.is_some(), "{what} is full: no event gives map_full");
        assert_eq!(accepted(), before, "{what} is full: a server accepted somebody");
        Ok(())
    };
    works(&shop.near)?;
    works(&shop.far)?;

    let target = format!("{}:7000", shop.near.v4);
    let held = (0..8).map(|_| shop.client.app(&["hold", &target, "1"])).collect::<Result<Vec<_>>>()?;
    refused("direct_flows", &shop.near)?;
    assert!(attempt(&shop.far)?.answered(), "what needs no row there goes on");
    drop(held);
    works(&shop.near)?;

    let nobody = |number: u16| Tuple { source_port: number, ..Tuple::default() };
    let flows = Filled::new(&shop, maps::DIRECT_FLOWS, (1..100).map(nobody), DirectFlow::default())?;
    refused("direct_flows", &shop.near)?;
    assert!(attempt(&shop.far)?.answered(), "what needs no row there goes on");
    flows.empty()?;
    works(&shop.near)?;

    let flow = |number| FlowKey { tuple: nobody(number), ..FlowKey::default() };
    let proxied = Filled::new(&shop, maps::PROXIED, (1..100).map(flow), Origin::default())?;
    refused("proxied", &shop.far)?;
    assert!(attempt(&shop.near)?.answered(), "what needs no row there goes on");
    proxied.empty()?;
    works(&shop.far)?;
    shop.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn another_size_for_a_pinned_map_is_told_and_takes_nothing_away() -> Result<()> {
    let mut shop = Shop::bare("kept-size")?;
    shop.lab.settings().set("capacity", json!({"workloads": 1000, "proxied": 1000}));
    shop.start()?;
    let _server = shop.near.app(&["echo", "[::]:7000"])?;
    let answered = |shop: &Shop| {
        eventually("a connection", Duration::from_secs(10), || {
            Ok(shop.client.connect(&Attempt::new((shop.near.v4, 7000), "hello"))?.answered())
        })
    };
    answered(&shop)?;
    let told = |shop: &Shop| -> Result<Vec<String>> {
        let status = shop.lab.agent("node-a")?.status()?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let about = |problem: &Value| problem["field"].as_str().unwrap_or("").starts_with("capacity.");
        Ok(problems.iter().filter(|problem| about(problem)).map(ToString::to_string).collect())
    };
    assert_eq!(told(&shop)?, Vec::<String>::new(), "control: what was asked for is in force");
    shop.lab.agent("node-a")?.kill()?;
    shop.lab.settings().set("capacity", json!({"workloads": 2000, "proxied": 1000}));
    shop.lab.start_agent("node-a")?;
    let problems = told(&shop)?;
    assert_eq!(problems.len(), 1, "{problems:?}");
    for part in ["capacity.workloads", "2000", "1000", "heddle release"] {
        assert!(problems[0].contains(part), "{part}: {problems:?}");
    }
    assert!(shop.lab.agent("node-a")?.log().contains("asks for 2000 places"));
    answered(&shop)?;
    shop.close()
}
