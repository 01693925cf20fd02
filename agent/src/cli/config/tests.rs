use super::*;

fn load(text: &str, flags: Flags) -> Result<Config, ConfigError> {
    Given::parse(Path::new("agent.yaml"), text.into())?
        .judge(|name, file| validate::validate(name, file, &flags))
}

fn problems(text: &str) -> Vec<String> {
    let error = load(text, Flags::default()).unwrap_err();
    error.problems.iter().map(ToString::to_string).collect()
}

const LEAST: &str = "node: a\nmanifests: /m\nca: {memory: true}\n";

#[test]
fn the_least_file_gives_the_documented_defaults() {
    let config = load(LEAST, Flags::default()).unwrap();
    assert_eq!(config.default_inbound_policy, DefaultPolicy::Deny);
    assert_eq!(config.default_outbound, DefaultOutbound::Allow);
    assert_eq!(config.same_node, SameNode::Direct);
    assert_eq!(
        (config.trust_domain.as_str(), config.identity_namespace.as_str()),
        ("cluster.local", "linkerd")
    );
    assert_eq!(config.dns_service.to_string(), "kube-system/kube-dns");
    assert!(config.cluster_settings().is_ok());
    assert_eq!(config.run_directory, Path::new("/run/heddle"));
    assert_eq!(config.heartbeat_milliseconds, 2_000);
    assert_eq!(config.cluster_networks.len(), 5);
    assert!((1..=4).contains(&config.workers));
    assert_eq!((config.cgroup, config.kubelet_cgroup), (None, None));
    assert_eq!((config.federation, config.renew_after_percent), (None, 50));
}

#[test]
fn every_field_of_the_file_is_taken() {
    let text = "
node: node-a
manifests: /etc/heddle/manifests
clusterNetworks: [10.0.0.0/8, 'fd00::/8']
podNetworks: [10.244.0.0/16]
serviceNetworks: [10.96.0.0/12]
defaultInboundPolicy: cluster-authenticated
defaultOutbound: cluster
sameNode: encrypt
trustDomain: example.org
identityNamespace: mesh
dnsService: dns/coredns
ca: {folder: /var/lib/heddle/ca}
federation: /etc/heddle/federation
renewAfterPercent: 70
runDirectory: /run/h
bpffs: /bpf
cgroup: /sys/fs/cgroup/unified/lab
heartbeatMilliseconds: 250
kubeletCgroup: /sys/fs/cgroup/unified/kubelet
workers: 2
pollMicroseconds: 50
capacity: {workloads: 100, direct_flows: 200}
log: {format: json, filter: 'heddle::cluster=debug,info'}
";
    let config = load(text, Flags::default()).unwrap();
    assert_eq!(config.ca, Ca::Folder("/var/lib/heddle/ca".into()));
    assert_eq!(config.federation.as_deref(), Some(Path::new("/etc/heddle/federation")));
    assert_eq!(config.renew_after_percent, 70);
    assert_eq!(config.capacity, BTreeMap::from([("workloads".into(), 100), ("direct_flows".into(), 200)]));
    assert_eq!((config.workers, config.heartbeat_milliseconds, config.poll_microseconds), (2, 250, 50));
    assert_eq!(config.log, Log { format: LogFormat::Json, filter: "heddle::cluster=debug,info".into() });
    // What is printed is a file that means the same.
    let printed = config.to_yaml().unwrap();
    assert_eq!(load(&printed, Flags::default()).unwrap(), config, "{printed}");
}

#[test]
fn flags_go_before_the_file() {
    let flags = Flags {
        node: Some("b".into()),
        pod_networks: vec!["10.1.0.0/16".into()],
        ca_folder: Some("/ca".into()),
        workers: Some(1),
        ..Flags::default()
    };
    let config = load(&format!("{LEAST}podNetworks: [10.2.0.0/16]\nworkers: 3\n"), flags.clone()).unwrap();
    assert_eq!((config.node.as_str(), config.workers), ("b", 1));
    assert_eq!(config.pod_networks, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);
    assert_eq!(config.ca, Ca::Folder("/ca".into()));
    // Flags alone will do.
    let alone = Flags { manifests: Some("/m".into()), ..flags };
    assert_eq!(Config::load(&alone).unwrap().node, "b");
}

#[test]
fn an_unknown_or_doubled_field_is_an_error_with_its_line() {
    for (text, expected) in [
        ("node: a\nmanifest: /m\n", "agent.yaml:2: unknown field `manifest`"),
        ("node: a\nca:\n  memory: true\n  folders: /x\n", "agent.yaml:4: unknown field `folders`"),
        ("node: a\nnode: b\n", "agent.yaml:2: "),
        ("node: [a\n", "agent.yaml:"),
        ("workers: many\n", "agent.yaml:1: "),
        ("- a\n", "agent.yaml:1: "),
    ] {
        let problems = problems(text);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains(expected), "{} does not say {expected}", problems[0]);
    }
}

#[test]
fn every_wrong_value_is_named_at_once_with_field_line_and_remedy() {
    let text = "node: Node_A
manifests: m
clusterNetworks: [10.0.0.1/8, ten]
defaultInboundPolicy: perhaps
defaultOutbound: maybe
sameNode: never
trustDomain: '..'
dnsService: kube-dns
ca: {folder: /x, memory: true}
heartbeatMilliseconds: 1
workers: 9
capacity: {wrokloads: 1, ports: 0}
log: {format: xml, filter: 'heddle=loud'}
";
    let problems = problems(text);
    let expected = [
        "agent.yaml:1: node: ",
        "agent.yaml:2: manifests: `m` is not an absolute path",
        "agent.yaml:3: clusterNetworks[0]: `10.0.0.1/8` has bits set outside its prefix (write 10.0.0.0/8)",
        "agent.yaml:3: clusterNetworks[1]: `ten` is no network",
        "agent.yaml:4: defaultInboundPolicy: `perhaps` is not known (one of deny, ",
        "agent.yaml:5: defaultOutbound: `maybe` is not known (one of allow, cluster, deny)",
        "agent.yaml:6: sameNode: `never` is not known (one of direct, encrypt)",
        "agent.yaml:7: trustDomain: ",
        "agent.yaml:8: dnsService: `kube-dns` names no Service",
        "agent.yaml:9: ca: more than one authority is named",
        "agent.yaml:10: heartbeatMilliseconds: 1 is out of range (a number from 100 to 60000)",
        "agent.yaml:11: workers: 9 is out of range (a number from 1 to 4)",
        "agent.yaml:12: capacity.ports: 0 is out of range",
        "agent.yaml:12: capacity.wrokloads: is no map whose size can be set",
        "agent.yaml:13: log.format: `xml` is not known",
        "agent.yaml:13: log.filter: ",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem} does not say {expected}");
    }
}

#[test]
fn what_is_required_is_asked_for() {
    let problems = problems("node: a\n");
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with("error: manifests: is required (name the folder"), "{}", problems[0]);
    assert!(
        problems[1].starts_with("error: ca: is required (write `ca: {url: https://HOST:PORT"),
        "{}",
        problems[1]
    );
    assert_eq!(load("", Flags::default()).unwrap_err().problems.len(), 2);
}

#[test]
fn an_authority_that_is_asked_is_known_by_its_anchors_and_knows_by_a_token() {
    let with = |ca: &str| format!("node: a\nmanifests: /m\nca: {ca}\n");
    let whole = "{url: 'https://ca.heddle-system:8443', trustBundle: /b.pem, tokenFile: /token}";
    let config = load(&with(whole), Flags::default()).unwrap();
    let Ca::Remote(remote) = &config.ca else { panic!("{:?}", config.ca) };
    assert_eq!(remote.account.to_string(), "heddle-system/heddle-ca");
    let again = load(&config.to_yaml().unwrap(), Flags::default()).unwrap();
    assert_eq!(again.ca, config.ca);
    for (ca, said) in [
        ("{url: 'https://ca:8443', tokenFile: /t}", "ca.trustBundle: is required"),
        ("{url: 'https://ca:8443', trustBundle: /b}", "ca.tokenFile: is required"),
        ("{url: 'http://ca:8443', trustBundle: /b, tokenFile: /t}", "`http://ca:8443` is no address"),
        ("{url: 'https://ca:8443/x', trustBundle: /b, tokenFile: /t}", "is no address"),
        ("{url: 'https://ca', trustBundle: b, tokenFile: /t}", "`b` is not an absolute path"),
        ("{url: 'https://ca', trustBundle: /b, tokenFile: /t, account: x}", "names no service account"),
        ("{url: 'https://ca', trustBundle: /b, tokenFile: /t, folder: /f}", "more than one authority"),
    ] {
        let problems = problems(&with(ca));
        assert!(problems.iter().any(|problem| problem.contains(said)), "{ca}: {problems:?}");
    }
}

#[test]
fn spire_is_an_authority_alone_and_serves_workloads_itself() {
    let with = |ca: &str| format!("node: a\nmanifests: /m\nca: {ca}\n");
    let config = load(&with("{spire: /run/spire/admin.sock}"), Flags::default()).unwrap();
    assert_eq!(config.ca, Ca::Spire("/run/spire/admin.sock".into()));
    assert_eq!(load(&config.to_yaml().unwrap(), Flags::default()).unwrap().ca, config.ca);
    let flags = Flags { ca_spire: Some("/other".into()), ..Flags::default() };
    assert_eq!(load(&with("{memory: true}"), flags).unwrap().ca, Ca::Spire("/other".into()));
    for (ca, said) in [
        ("{spire: admin.sock}", "`admin.sock` is not an absolute path"),
        ("{spire: /s, folder: /f}", "more than one authority"),
        ("{spire: /s, memory: true}", "more than one authority"),
        ("{spire: /s}\nworkloadApi: /w", "SPIRE's agent serves workloads itself"),
    ] {
        let problems = problems(&with(ca));
        assert!(problems.iter().any(|problem| problem.contains(said)), "{ca}: {problems:?}");
    }
}

#[test]
fn a_file_that_others_may_write_or_that_is_none_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    let load = |path: &Path| {
        let error = Config::load(&Flags {
            place: PlaceFlags { config: Some(path.into()), ..PlaceFlags::default() },
            ..Flags::default()
        });
        error.map_err(|error| error.problems[0].to_string())
    };
    assert!(load(&path).unwrap_err().contains("No such file"));
    assert!(load(dir.path()).unwrap_err().contains("not a regular file"));
    std::fs::write(&path, LEAST).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(load(&path).unwrap_err().contains("others may write to it (chmod go-w"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(load(&path).unwrap().node, "a");
}

#[test]
fn where_an_agent_is_can_be_told_without_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, "runDirectory: /run/a\nbpffs: /bpf\n").unwrap();
    let flags = PlaceFlags { config: Some(path), bpffs: Some("/other".into()), ..PlaceFlags::default() };
    let place = Place { run_directory: "/run/a".into(), bpffs: "/other".into(), cgroup: None };
    assert_eq!(Place::load(&flags).unwrap(), place);
    let wrong = PlaceFlags { run_directory: Some("run".into()), ..PlaceFlags::default() };
    assert_eq!(Place::load(&wrong).unwrap_err().problems[0].field, "runDirectory");
}

#[test]
fn tables_have_the_sizes_that_are_named_and_the_usual_ones_else() {
    let config = load(&format!("{LEAST}capacity: {{ports: 77}}\n"), Flags::default()).unwrap();
    assert_eq!(config.table_capacity(), Capacity { ports: 77, ..Capacity::default() });
}

#[test]
fn flows_are_recorded_where_a_file_is_named_and_nowhere_else() {
    assert_eq!(load(LEAST, Flags::default()).unwrap().flow_log, None);
    let written =
        load(&format!("{LEAST}flowLog: {{file: /var/log/flows.jsonl, megabytes: 8}}\n"), Flags::default());
    let expected = FlowLog { file: "/var/log/flows.jsonl".into(), megabytes: 8 };
    assert_eq!(written.unwrap().flow_log, Some(expected));
    let flags = Flags { flow_log: Some("/x".into()), ..Flags::default() };
    assert_eq!(load(LEAST, flags).unwrap().flow_log, Some(FlowLog { file: "/x".into(), megabytes: 64 }));
    for (wrong, field) in [
        ("{file: x}", "flowLog.file"),
        ("{megabytes: 8}", "flowLog.file"),
        ("{file: /x, megabytes: 0}", "flowLog.megabytes"),
    ] {
        let told = problems(&format!("{LEAST}flowLog: {wrong}\n"));
        assert!(told.len() == 1 && told[0].contains(field), "{told:?}");
    }
}

#[test]
fn a_node_is_handed_over_only_where_that_is_asked_for() {
    assert_eq!(load(LEAST, Flags::default()).unwrap().hand_over, None);
    let asked = |text: &str| load(&format!("{LEAST}handOver: {text}\n"), Flags::default()).unwrap().hand_over;
    assert_eq!(asked("{}"), Some(HandOver { drain_seconds: 300 }));
    assert_eq!(asked("{drainSeconds: 20}"), Some(HandOver { drain_seconds: 20 }));
    let flags = Flags { hand_over: true, ..Flags::default() };
    assert_eq!(load(LEAST, flags).unwrap().hand_over, Some(HandOver { drain_seconds: 300 }));
    for wrong in ["9991", "node-a:9991", "0.0.0.0:0", "''"] {
        let told = problems(&format!("{LEAST}metricsAddress: {wrong}\n"));
        assert!(told.len() == 1 && told[0].contains("metricsAddress"), "{wrong}: {told:?}");
    }
    let told = problems(&format!("{LEAST}joinStepSeconds: 61\n"));
    assert!(told.len() == 1 && told[0].contains("joinStepSeconds"), "{told:?}");
    let told = problems(&format!("{LEAST}handOver: {{drainSeconds: 0}}\n"));
    assert!(told.len() == 1 && told[0].contains("handOver.drainSeconds"), "{told:?}");
}

/// What the chart takes the agents start with.
#[test]
fn the_charts_schema_has_the_same_bounds() {
    let schema = include_str!("../../../../deploy/helm/heddle/values.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let field = |path: &str| {
        let path = format!("/properties/agent/properties/config/properties/{path}");
        schema.pointer(&path).unwrap_or_else(|| panic!("{path}")).clone()
    };
    assert_eq!(field("workers/maximum"), *validate::WORKERS.end());
    assert_eq!(field("capacity/additionalProperties/maximum"), *validate::PLACES.end());
    assert_eq!(field("capacity/propertyNames/enum"), serde_json::json!(validate::SIZED));
}
