use std::net::IpAddr;

use heddle_ebpf::codes::{Outcome, Reason};

use crate::{
    Capacity, ClientIdentity, ClusterSettings, Compiled, Compiler, Connection, DefaultOutbound, Index,
    Severity,
    compile::tests::address,
    resources::parse_file,
    verdict::{self, Connect, TCP},
};

fn pod(namespace: &str, number: usize) -> String {
    let name = format!("{namespace}-{number}");
    let ip = ip_of(namespace, number);
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, uid: {name}, labels: {{app: app}}, \
         annotations: {{heddle.io/mesh: enabled}}}}, spec: {{nodeName: a, serviceAccountName: app, containers: [{{name: c, image: i}}]}}, \
         status: {{phase: Running, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}}}\n"
    )
}

fn ip_of(namespace: &str, number: usize) -> String {
    let third = namespace.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    format!("10.1.{third}.{}", number + 1)
}

/// A Server on a port of the namespace's pods that lets these networks in.
fn server(namespace: &str, port: usize, networks: &[String]) -> String {
    let networks: Vec<String> = networks.iter().map(|it| format!("{{cidr: {it}}}")).collect();
    format!(
        "---\n{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: s{port}, namespace: {namespace}}}, spec: \
         {{podSelector: {{matchLabels: {{app: app}}}}, port: {port}, proxyProtocol: opaque}}}}\n\
         ---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {{name: n{port}, namespace: {namespace}}}, \
         spec: {{networks: [{}]}}}}\n\
         ---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: p{port}, namespace: {namespace}}}, \
         spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: s{port}}}, requiredAuthenticationRefs: \
         [{{group: policy.linkerd.io, kind: NetworkAuthentication, name: n{port}}}]}}}}\n",
        networks.join(", ")
    )
}

fn networks(first: usize, count: usize) -> Vec<String> {
    (first..first + count)
        .map(|n| format!("192.{}.{}.{}", n >> 15 & 0xff, n >> 7 & 0xff, n << 1 & 0xff))
        .collect()
}

fn compiler(text: &str) -> Compiler {
    let parsed = parse_file("all.yaml", text);
    assert_eq!(parsed.problems, [], "the fixture itself is sound");
    let settings = ClusterSettings { default_outbound: DefaultOutbound::Allow, ..ClusterSettings::default() };
    Compiler::new(settings, Some("a".to_owned())).with(Index::of([parsed]))
}

fn reaches(it: &Compiled, from: &str, to: &str, port: u16) -> (bool, Reason, String) {
    let view = it.tables.with_captured(|address| it.workload(address).map(|info| info.digest));
    let verdict = verdict::inbound(&view, &address(from), &address(to), port, TCP);
    (verdict.outcome != Outcome::Refuse, verdict.reason, it.tables.rule(verdict.rule).to_owned())
}

fn leaves(it: &Compiled, from: &str, to: &str) -> (bool, String) {
    let view = it.tables.with_captured(|address| it.workload(address).map(|info| info.digest));
    let connect =
        Connect { source: address(from), destination: address(to), port: 443, protocol: TCP, random: 0 };
    let verdict = verdict::outbound(&view, &connect).verdict;
    (verdict.outcome != Outcome::Refuse, it.tables.rule(verdict.rule).to_owned())
}

#[test]
fn whoever_takes_most_of_a_table_is_closed_and_nobody_else() {
    let mut text = pod("greedy", 0) + &pod("shop", 0);
    for number in 0..17 {
        text += &server("greedy", 1000 + number, &networks(number * 1024, 1024));
    }
    text += &server("shop", 80, &networks(0, 8));
    let (greedy, shop) = (ip_of("greedy", 0), ip_of("shop", 0));
    let from = &networks(0, 1)[0];

    let unbounded = compiler(&text).compile(0);
    assert!(unbounded.tables.fits(&Capacity::default()).is_err());
    assert!(reaches(&unbounded, from, &greedy, 1000).0);
    assert!(leaves(&unbounded, &greedy, "203.0.113.1").0);

    let it = compiler(&text).within(Capacity::default()).compile(0);
    assert_eq!(it.tables.fits(&Capacity::default()), Ok(()));
    assert!(reaches(&it, from, &shop, 80).0);
    assert!(leaves(&it, &shop, "203.0.113.1").0);
    let why = "namespace closed: no room in networks";
    for port in [1000, 80] {
        assert_eq!(reaches(&it, from, &greedy, port), (false, Reason::NoIdentity, why.to_owned()));
    }
    assert_eq!(leaves(&it, &greedy, "203.0.113.1"), (false, why.to_owned()));
    assert!(!leaves(&it, &greedy, &shop).0, "not even within the mesh");
    let told: Vec<String> = it.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].contains("Namespace greedy: ")
            && told[0].contains("take 17408 of the 16384 places of table networks"),
        "{told:?}"
    );

    // What the proxy goes by says the same.
    let connection = Connection {
        client: &ClientIdentity::None,
        address: from.parse::<IpAddr>().unwrap(),
        server: address(&greedy),
        port: 1000,
    };
    assert!(unbounded.decide(&connection).allowed());
    assert!(!it.decide(&connection).allowed());
}

/// Rules that fill a table: `more` rows of it, of one namespace.
fn filling(table: &str, namespace: &str, more: usize) -> String {
    let access = |number: usize, spec: &str| {
        format!(
            "---\n{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: r{number}, namespace: {namespace}}}, spec: \
             {{{spec}}}}}\n"
        )
    };
    match table {
        "networks" => server(namespace, 80, &networks(0, more)),
        "ports" => access(0, &format!("action: Allow, ports: [\"1-{more}\"], from: [{{anyone: true}}]")),
        "rules" => (0..more).map(|n| access(n, "action: Allow, from: [{anyone: true}]")).collect(),
        // A client that some of the ports let in has a row with each.
        "allows" => (0..more)
            .map(|n| {
                let client = format!("from: [{{serviceAccounts: [{{name: app, namespace: {namespace}}}]}}]");
                access(n, &format!("action: Allow, ports: [{}], {client}", n + 1))
            })
            .collect(),
        other => panic!("no rules fill {other}"),
    }
}

#[test]
fn each_table_that_rules_fill_has_room_for_the_others() {
    for (table, capacity) in [
        ("networks", Capacity { networks: 300, ..Capacity::default() }),
        ("ports", Capacity { ports: 300, ..Capacity::default() }),
        ("rules", Capacity { rules: 300, ..Capacity::default() }),
        ("allows", Capacity { allows: 300, ..Capacity::default() }),
    ] {
        let names = ["north", "south", "west", "quiet"];
        let mut text: String = names.map(|name| pod(name, 0)).concat();
        for (namespace, more) in [("north", 180), ("south", 170), ("west", 90), ("quiet", 3)] {
            text += &filling(table, namespace, more);
        }
        let whole = compiler(&text).compile(0);
        assert_eq!(whole.tables.fits(&capacity).unwrap_err().table, table);
        let it = compiler(&text).within(capacity).compile(0);
        assert_eq!(it.tables.fits(&capacity), Ok(()), "{table}");
        let told: Vec<&str> = it.problems.iter().map(|problem| &*problem.resource).collect();
        assert_eq!(told, ["Namespace north"], "{table}: the one that takes most, and it is enough");

        // As soon as there is room it is as if there always had been.
        let mut compiler = compiler(&text).within(capacity);
        assert_eq!(compiler.compile(0).tables, it.tables);
        let of_south: Vec<_> = compiler
            .index()
            .ids()
            .filter(|it| it.namespace == "south" && it.kind.is_rule())
            .cloned()
            .collect();
        of_south.iter().for_each(|id| compiler.remove(id));
        let after = compiler.compile(0);
        let expected = compiler.clone().within(Capacity::default()).compile(0);
        assert_eq!(after.tables, expected.tables, "{table}");
        assert!(after.problems.iter().all(|it| !it.reason.contains("closed")), "{table}");
    }
}

#[test]
fn whoever_takes_an_even_share_is_never_closed() {
    // Eight namespaces of sizes that follow no order, in tables of many sizes.
    let sizes = [5, 33, 90, 8, 61, 240, 17, 130];
    let names: Vec<String> = (0..sizes.len()).map(|n| format!("n{n}")).collect();
    let mut text: String = names.iter().map(|name| pod(name, 0)).collect();
    for (n, (name, size)) in names.iter().zip(sizes).enumerate() {
        text += &server(name, 80, &networks(n * 1000, size));
    }
    let base = compiler(&text).compile(0).tables.networks.len() - sizes.iter().sum::<usize>();
    for networks in (80..700).step_by(20) {
        let capacity = Capacity { networks, ..Capacity::default() };
        let it = compiler(&text).within(capacity).compile(0);
        assert_eq!(it.tables.fits(&capacity), Ok(()));
        let closed = |name: &str| it.problems.iter().any(|it| it.resource == format!("Namespace {name}"));
        let share = (networks as usize - base - 3) / sizes.len();
        for (n, (name, size)) in names.iter().zip(sizes).enumerate() {
            assert!(size > share || !closed(name), "{name} takes {size} of {networks}");
            let from = &self::networks(n * 1000, 1)[0];
            assert_eq!(reaches(&it, from, &ip_of(name, 0), 80).0, !closed(name), "{name}: as it is told");
        }
        let least = sizes.iter().zip(&names).filter(|(_, name)| closed(name)).map(|(size, _)| *size).min();
        let most = sizes.iter().zip(&names).filter(|(_, name)| !closed(name)).map(|(size, _)| *size).max();
        assert!(least.is_none() || most.is_none() || least >= most, "those that take most: {capacity:?}");
    }
}

#[test]
fn who_takes_nothing_of_a_table_is_not_closed_for_it_even_if_it_helps_nobody() {
    let mut text = pod("north", 0) + &pod("quiet", 0);
    text += &server("north", 80, &networks(0, 20));
    // Not even what closing takes has room.
    let capacity = Capacity { networks: 1, ..Capacity::default() };
    let it = compiler(&text).within(capacity).compile(0);
    assert!(it.tables.fits(&capacity).is_err(), "the kernel side closes everything");
    let told: Vec<&str> = it.problems.iter().map(|problem| &*problem.resource).collect();
    assert_eq!(told, ["Namespace north"]);
}

#[test]
fn services_without_room_are_refused_and_leave_others_theirs() {
    let service = |namespace: &str, number: usize, ports: usize| {
        let ports: Vec<String> = (0..ports).map(|n| format!("{{name: p{n}, port: {}}}", 1000 + n)).collect();
        let third = if namespace == "greedy" { 9 } else { 8 };
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: {namespace}}}, spec: {{clusterIP: \
             10.96.{third}.{number}, selector: {{app: app}}, ports: [{}]}}}}\n",
            ports.join(", ")
        )
    };
    let mut text = pod("greedy", 0) + &pod("greedy", 1) + &pod("shop", 0);
    text += &(1..4).map(|n| service("greedy", n, 60)).collect::<String>();
    text += &service("shop", 1, 20);
    text += &filling("rules", "shop", 1);
    text += &filling("rules", "greedy", 1);
    let shop = ip_of("shop", 0);
    for capacity in
        [Capacity { services: 150, ..Capacity::default() }, Capacity { backends: 150, ..Capacity::default() }]
    {
        let whole = compiler(&text).compile(0);
        assert!(whole.tables.fits(&capacity).is_err());
        let it = compiler(&text).within(capacity).compile(0);
        assert_eq!(it.tables.fits(&capacity), Ok(()));
        let at = |it: &Compiled, to: &str| {
            let view = it.tables.with_captured(|address| it.workload(address).map(|info| info.digest));
            let (source, destination) = (address(&shop), address(to));
            let connect = Connect { source, destination, port: 1000, protocol: TCP, random: 0 };
            verdict::outbound(&view, &connect).verdict.outcome != Outcome::Refuse
        };
        assert!(at(&whole, "10.96.9.1") && at(&whole, "10.96.8.1"));
        assert!(!at(&it, "10.96.9.1"), "its Services are refused");
        assert!(at(&it, "10.96.8.1"), "another's are there");
        assert!(at(&it, &ip_of("greedy", 0)), "its pods are reached by their own addresses");
        let told: Vec<&str> = it.problems.iter().map(|problem| &*problem.resource).collect();
        assert_eq!(told, ["Namespace greedy"]);
    }
}

#[test]
fn a_check_names_who_may_be_closed() {
    let text = |servers: usize| -> String {
        let servers = (0..servers).map(|n| server("greedy", 1000 + n, &networks(n * 1024, 1024)));
        pod("greedy", 0) + &pod("shop", 0) + &servers.collect::<String>()
    };
    for (servers, severity) in [(3, None), (5, Some(Severity::Warning)), (17, Some(Severity::Error))] {
        let compiler = compiler(&text(servers));
        let compiled = compiler.index().compile_cluster(&ClusterSettings::default(), 0);
        let found = crate::lint::lint(compiler.index(), &compiled);
        let found: Vec<_> = found.iter().filter(|it| it.reason.contains("table networks")).collect();
        assert_eq!(
            found.iter().map(|it| it.severity).collect::<Vec<_>>(),
            Vec::from_iter(severity),
            "{servers}"
        );
        assert!(found.iter().all(|it| it.resource == "Namespace greedy"), "{found:?}");
    }
}

/// Rules about what leaves: one for each of these networks, with exceptions within them.
fn leaving(namespace: &str, rules: usize, networks_each: usize) -> String {
    let rule = |number: usize| {
        let nets: Vec<String> = (number * networks_each..(number + 1) * networks_each)
            .map(|n| {
                let (a, b) = (n >> 8 & 0xff, n & 0xff);
                format!("{{cidr: 20.{a}.{b}.0/24, except: [20.{a}.{b}.8, 20.{a}.{b}.64/26]}}")
            })
            .collect();
        format!(
            "---\n{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: l{number}, namespace: {namespace}}}, spec: \
             {{action: Deny, to: [{{networks: [{}]}}]}}}}\n",
            nets.join(", ")
        )
    };
    (0..rules).map(rule).collect()
}

#[test]
fn thousands_of_networks_and_rules_for_many_pods_are_worked_out_once_and_at_once() {
    // Going over all networks for each, or over all for each pod or port, this would not end while anybody waits.
    for (rules, each) in [(16, 1024), (4096, 1)] {
        let mut text: String = (0..200).map(|n| pod("shop", n)).collect();
        text += &leaving("shop", rules, each);
        text += &server("shop", 80, &networks(0, 1024));
        let it = compiler(&text).compile(0);
        for number in [0, 199] {
            let from = ip_of("shop", number);
            for (to, passes) in
                [("20.0.1.1", false), ("20.0.1.9", false), ("20.0.1.8", true), ("20.0.1.70", true)]
            {
                assert_eq!(leaves(&it, &from, to).0, passes, "{number} to {to}");
            }
            assert!(reaches(&it, &networks(0, 1)[0], &from, 80).0);
        }
        // Each network and its exceptions once, whatever the number of pods.
        let rows = it.tables.networks.len();
        assert!((rules * each * 3..rules * each * 3 + 2048 + 64).contains(&rows), "{rows}");
    }
}

#[test]
fn what_would_take_too_long_to_work_out_closes_its_namespace() {
    // Each port has rules of its own, and with them all networks of the rule about every port.
    let access = |number: usize, spec: &str| {
        format!(
            "---\n{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: r{number}, namespace: greedy}}, spec: \
             {{{spec}}}}}\n"
        )
    };
    let world = |ports: usize, way: &str| {
        let nets: Vec<String> = networks(0, 1024).iter().map(|it| format!("{{cidr: {it}}}")).collect();
        let nets = nets.join(", ");
        let all = match way {
            "from" => access(9999, &format!("action: Allow, from: [{{networks: [{nets}]}}]")),
            "to" => access(9999, &format!("action: Deny, to: [{{networks: [{nets}]}}]")),
            _ => format!(
                "---\n{{apiVersion: policy.linkerd.io/v1alpha1, kind: EgressNetwork, metadata: {{name: r9999, namespace: greedy}}, \
                 spec: {{trafficPolicy: Deny, networks: [{nets}]}}}}\n"
            ),
        };
        let one = |n: usize| {
            let peer = if way == "from" { "from: [{anyone: true}]" } else { "to: [{anywhere: true}]" };
            access(n, &format!("action: Allow, ports: [{n}], {peer}"))
        };
        pod("greedy", 0)
            + &pod("shop", 0)
            + &server("shop", 80, &networks(0, 8))
            + &all
            + &(1..=ports).map(one).collect::<String>()
    };
    let from = &networks(0, 1)[0];
    for way in ["from", "to", "EgressNetwork"] {
        for (ports, closed) in [(100, false), (600, true)] {
            let it = compiler(&world(ports, way)).compile(0);
            let (greedy, shop) = (ip_of("greedy", 0), ip_of("shop", 0));
            let told = it.problems.iter().any(|it| it.reason.contains("counted for each set of ports"));
            assert_eq!(told, closed, "{way} {ports}: {:?}", it.problems);
            assert_eq!(leaves(&it, &greedy, "203.0.113.1").0, !closed, "{way} {ports}");
            if way == "from" {
                assert_eq!(reaches(&it, from, &greedy, 443).0, !closed, "{ports}");
            }
            assert!(reaches(&it, from, &shop, 80).0 && leaves(&it, &shop, "203.0.113.1").0, "{way} {ports}");
        }
    }
    // What closed it is gone, and so is the closing.
    let mut compiler = compiler(&world(600, "from"));
    compiler.compile(0);
    let rules: Vec<_> = compiler.index().ids().filter(|it| it.name.starts_with('r')).cloned().collect();
    rules.iter().filter(|it| it.name != "r9999").for_each(|id| compiler.remove(id));
    assert!(reaches(&compiler.compile(0), from, &ip_of("greedy", 0), 443).0);
}
