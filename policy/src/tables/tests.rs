use super::*;

fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

#[test]
fn the_longest_prefix_of_the_set_wins() {
    let mut tables = TableSet::default();
    let mut add = |set, net: &str, rule, allow| {
        let net: ipnet::IpNet = net.parse().unwrap();
        tables.networks.insert(crate::networks::key(set, &net), Network { rule, allow });
    };
    add(16, "10.0.0.0/8", 1, 1);
    add(16, "10.1.0.0/16", 2, 0);
    add(16, "10.1.2.3/32", 3, 1);
    add(17, "10.1.2.0/24", 4, 1);
    add(17, "::/0", 5, 1);
    add(17, "0.0.0.0/0", 6, 0);
    let view = tables.with_captured(|_| None);
    for (set, text, rule) in [
        (16, "10.9.9.9", Some(1)),
        (16, "10.1.9.9", Some(2)),
        (16, "10.1.2.3", Some(3)),
        (16, "10.1.2.4", Some(2)),
        (16, "11.0.0.0", None),
        (16, "fd00::1", None),
        (17, "10.1.2.3", Some(4)),
        (17, "10.1.3.3", Some(6)),
        (17, "fd00::1", Some(5)),
        (18, "10.1.2.3", None),
    ] {
        assert_eq!(view.network(set, &address(text)).map(|it| it.rule), rule, "{set} {text}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let mut tables = TableSet::default();
    for id in 0..5 {
        tables.rules.insert(id, String::new());
    }
    assert_eq!(tables.fits(&Capacity { rules: 5, ..Capacity::default() }), Ok(()));
    let error = tables.fits(&Capacity { rules: 4, ..Capacity::default() }).unwrap_err();
    assert_eq!(error, TooLarge { table: "rules", needed: 5, capacity: 4 });
    assert_eq!(
        error.to_string(),
        "table rules needs 5 entries and has room for 4: raise capacity.rules in the agent's configuration"
    );
}

#[test]
fn each_table_is_counted_whole() {
    // Two of one, three of the next, and so on: each table has a number of its own.
    let (mut tables, of) = (TableSet::default(), |id: u32| address(&format!("10.0.0.{id}")));
    let elsewhere: AddressMap<Workload> = {
        let mut it = AddressMap::default();
        it.insert(of(1), Workload::default());
        it
    };
    tables.workloads = Workloads::new(elsewhere, [(of(2), Workload::default())]);
    for id in 0..3 {
        tables.ports.insert(PortKey { policy: id, port: 0, protocol: 6, pad: 0 }, PortPolicy::default());
    }
    tables.allows.extend((0..4).map(|rules| (AllowKey { rules, client: 0 }, Allow::default())));
    for set in 0..5 {
        tables.networks.insert(NetworkKey::new(set, of(0), 32), Network { rule: 0, allow: 0 });
    }
    tables.rules.extend((0..9).map(|id| (id, String::new())));
    let fits = |change: fn(&mut Capacity)| {
        let mut capacity = Capacity::default();
        change(&mut capacity);
        tables.fits(&capacity).map_err(|error| (error.table, error.needed))
    };
    assert_eq!(fits(|it| it.workloads = 1), Err(("workloads", 2)));
    assert_eq!(fits(|it| it.ports = 2), Err(("ports", 3)));
    assert_eq!(fits(|it| it.allows = 3), Err(("allows", 4)));
    assert_eq!(fits(|it| it.networks = 4), Err(("networks", 5)));
    assert_eq!(fits(|it| it.rules = 8), Err(("rules", 9)));
    assert_eq!(fits(|it| (it.workloads, it.ports, it.allows) = (2, 3, 4)), Ok(()));
    let rows = ["workloads", "ports", "allows", "networks", "rules", "services", "none"];
    assert_eq!(rows.map(|table| tables.rows(table)), [2, 3, 4, 5, 9, 0, 0]);
    assert!(tables.workloads.contains_key(&of(1)) && !tables.workloads.contains_key(&of(3)));
    assert!(!tables.workloads.is_empty() && Workloads::default().is_empty());
}

#[test]
fn capacity_is_read_with_its_defaults() {
    let capacity: Capacity = serde_json::from_str(r#"{"ports": 7}"#).unwrap();
    assert_eq!(capacity, Capacity { ports: 7, ..Capacity::default() });
    assert!(serde_json::from_str::<Capacity>(r#"{"port": 7}"#).is_err());
}

#[test]
fn each_table_tells_how_many_rows_it_has() {
    let text = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u, labels: {app: web}}, spec: {nodeName: a, serviceAccountName: web, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}}
";
    let parsed = crate::resources::parse_file("r", text);
    let it = crate::Index::of([parsed]).compile_cluster(&crate::ClusterSettings::default(), 0).tables;
    for (table, rows) in [
        ("workloads", it.workloads.len()),
        ("ports", it.ports.len()),
        ("allows", it.allows.len()),
        ("networks", it.networks.len()),
        ("services", it.services.len()),
        ("backends", it.backends.len()),
        ("identities", it.identities.len()),
        ("rules", it.rules.len()),
    ] {
        assert!(rows > 0 || table == "allows", "{table} is empty, and its count shows nothing");
        assert_eq!(it.rows(table), rows as u64, "{table}");
    }
    assert_eq!(it.rows("something else"), 0);
    // What writes the kernel's tables goes through all of them.
    let keys: Vec<&Address> = it.workloads.keys().collect();
    assert_eq!((keys.len(), it.workloads.iter().count()), (1, 1));
    assert!(keys.iter().all(|key| **key == address("10.1.0.1")));
}
