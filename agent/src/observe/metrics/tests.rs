use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_ebpf::flows::{Count, CounterKey};

use super::{
    super::record::{Names, WorkloadName},
    *,
};

struct Nobody;

impl Names for Nobody {
    fn pod(&self, _: u64) -> Option<Arc<str>> {
        None
    }
    fn workload(&self, _: IpAddr) -> Option<WorkloadName> {
        None
    }
    fn rule(&self, _: u64, _: u32) -> Option<Arc<str>> {
        None
    }
}

struct Fixed;

impl Readings for Fixed {
    fn counters(&self) -> Vec<(CounterKey, Count)> {
        let key = |netns, hook, outcome, reason| CounterKey { netns, hook, outcome, reason, pad: 0 };
        vec![
            (key(7, Hook::Connect as u32, 3, Reason::Unauthorized as u32), Count { count: 5, bytes: 0 }),
            (key(8, Hook::Connect as u32, 3, Reason::Unauthorized as u32), Count { count: 2, bytes: 0 }),
            (key(0, Hook::GuardToPod as u32, 3, Reason::Spoofed as u32), Count { count: 1, bytes: 1500 }),
            (key(0, 99, 99, 9999), Count { count: 4, bytes: 0 }),
        ]
    }

    fn pod(&self, netns: u64) -> Option<Arc<str>> {
        // Two cookies of one name: the pod was made anew.
        matches!(netns, 7 | 8).then(|| Arc::from("shop/web-1"))
    }

    fn certificates(&self) -> Vec<CertificateReading> {
        let not_after = Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600));
        vec![
            CertificateReading { identity: "web.shop".to_owned(), not_after, failures: 0 },
            CertificateReading { identity: "db.shop".to_owned(), not_after: None, failures: 3 },
        ]
    }

    fn anchors(&self) -> Vec<(String, SystemTime)> {
        vec![("c0ffee".to_owned(), UNIX_EPOCH + Duration::from_secs(1_767_225_600))]
    }

    fn trust_stale(&self) -> bool {
        true
    }
    fn workloads(&self) -> (u64, Vec<(&'static str, u64)>) {
        (2, vec![("no_pod", 1)])
    }
    fn tables(&self) -> TablesReading {
        TablesReading { generation: 42, entries: vec![("workloads", 12), ("allows", 3)] }
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        Some(Duration::from_millis(250))
    }

    fn heartbeats_late(&self) -> u64 {
        5
    }
}

fn metrics(most: usize) -> Metrics {
    Metrics::bounded(Arc::new(Fixed), Arc::new(Events::new("node-a", Arc::new(Nobody), 4)), most)
}

fn labels(pod: &str, client: &str) -> FlowLabels {
    let text = |text: &str| Arc::<str>::from(text);
    FlowLabels {
        direction: Direction::Inbound,
        peer: Peer::Source,
        tls: Tls::Mutual,
        pod: text(pod),
        client_id: text(client),
        server_id: text("db.shop"),
        server_port: 5432,
        server: RuleLabels { group: text("policy.linkerd.io"), kind: text("server"), name: text("db") },
        authorization: RuleLabels {
            group: text("policy.linkerd.io"),
            kind: text("authorizationpolicy"),
            name: text("web"),
        },
        destination_pod: text(""),
        destination_service: text(""),
    }
}

const FLOW: &str = r#"direction="inbound",peer="src",tls="true",namespace="shop",pod="db-1",client_id="web.shop",server_id="db.shop",srv_group="policy.linkerd.io",srv_kind="server",srv_name="db",srv_port="5432",authz_group="policy.linkerd.io",authz_kind="authorizationpolicy",authz_name="web",dst_namespace="",dst_pod="",dst_service="""#;

/// The value of a series; `None`: it is not there.
fn value(text: &str, series: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = lines.next().map(str::to_owned);
    assert!(lines.next().is_none(), "{series} stands twice");
    value
}

#[test]
fn a_pods_share_is_its_own_and_nobody_elses() {
    let metrics = Arc::new(metrics(100));
    let _open = metrics.flow(labels("shop/db-1", "web.shop")).open();
    // Names of which one is in the other, and the same name in another namespace.
    let others = ["shop/db-10", "shop/db", "bank/db-1"];
    let _others = others.map(|pod| metrics.flow(labels(pod, "secret.bank")).open());
    metrics.decide(Hook::Connect, Outcome::Refuse, Reason::Unauthorized, "bank/db-1");
    metrics.would_refuse(Reason::Unauthorized, "default policy audit", "shop/db-1", 3);
    let text = metrics.share("shop/db-1").unwrap();
    assert_eq!(value(&text, &format!("tcp_open_total{{{FLOW}}}")).as_deref(), Some("1"));
    assert!(text.contains("heddle_audit_would_refuse_total{") && text.ends_with("# EOF\n"), "{text}");
    let rest: Vec<&str> =
        text.lines().filter(|line| !line.contains("namespace=\"shop\",pod=\"db-1\"")).collect();
    assert!(rest.iter().all(|line| line.starts_with('#')), "{rest:?}");
    assert!(
        !text.contains("secret.bank") && !text.contains("certificate") && !text.contains("kernel"),
        "{text}"
    );
    // The kernel's counts of a pod, and of it alone.
    let web = metrics.share("shop/web-1").unwrap();
    let decided = web.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>();
    assert_eq!(decided.len(), 1, "{web}");
    assert!(decided[0].starts_with("heddle_kernel_decisions_total{") && decided[0].ends_with(" 7"), "{web}");
    assert_eq!(metrics.share("shop/nobody").unwrap(), "# EOF\n");
    metrics.forget_pod("shop/db-1");
    assert_eq!(metrics.share("shop/db-1").unwrap(), "# EOF\n");
}

#[test]
fn a_connection_counts_under_linkerds_names() {
    let metrics = metrics(100);
    let labels = labels("shop/db-1", "web.shop");
    let connection = metrics.flow(labels.clone()).open();
    connection.read(100);
    connection.read(23);
    connection.wrote(7);
    let text = metrics.encode().unwrap();
    let of = |text: &str, name: &str| value(text, &format!("{name}{{{FLOW}}}"));
    assert_eq!(of(&text, "inbound_tcp_authz_allow_total").as_deref(), Some("1"));
    assert_eq!(of(&text, "tcp_open_total").as_deref(), Some("1"));
    assert_eq!(of(&text, "tcp_open_connections").as_deref(), Some("1"));
    assert_eq!(of(&text, "tcp_read_bytes_total").as_deref(), Some("123"));
    assert_eq!(of(&text, "tcp_write_bytes_total").as_deref(), Some("7"));
    drop(connection);
    metrics.close_with(&mut metrics.flow(labels.clone()).open(), "ECONNRESET");
    metrics.deny(&labels);
    metrics.terminate(&labels);
    let text = metrics.encode().unwrap();
    assert_eq!(of(&text, "tcp_open_total").as_deref(), Some("2"));
    assert_eq!(of(&text, "tcp_open_connections").as_deref(), Some("0"));
    assert_eq!(of(&text, "inbound_tcp_authz_deny_total").as_deref(), Some("1"));
    assert_eq!(of(&text, "inbound_tcp_authz_terminate_total").as_deref(), Some("1"));
    let closed = |errno: &str| value(&text, &format!("tcp_close_total{{{FLOW},errno=\"{errno}\"}}"));
    assert_eq!((closed("").as_deref(), closed("ECONNRESET").as_deref()), (Some("1"), Some("1")));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_read_at_a_scrape_is_there() {
    let text = metrics(100).encode().unwrap();
    for (series, expected) in [
        // Two namespaces of one pod come together.
        (
            r#"heddle_kernel_decisions_total{hook="connect",outcome="refuse",reason="unauthorized",namespace="shop",pod="web-1"}"#,
            "7",
        ),
        (
            r#"heddle_kernel_decision_bytes_total{hook="guard_to_pod",outcome="refuse",reason="spoofed",namespace="",pod=""}"#,
            "1500",
        ),
        (
            r#"heddle_kernel_decisions_total{hook="unknown",outcome="unknown",reason="unknown",namespace="",pod=""}"#,
            "4",
        ),
        (r#"heddle_certificate_expiry_seconds{identity="web.shop"}"#, "1767225600.0"),
        (r#"heddle_certificate_expiry_seconds{identity="db.shop"}"#, "0.0"),
        (r#"heddle_certificate_failed_renewals{identity="db.shop"}"#, "3"),
        (r#"heddle_trust_anchor_expiry_seconds{fingerprint="c0ffee"}"#, "1767225600.0"),
        ("heddle_trust_bundle_stale", "1"),
        ("heddle_tables_generation", "42"),
        (r#"heddle_tables_entries{table="workloads"}"#, "12"),
        ("heddle_heartbeat_age_seconds", "0.25"),
        ("heddle_heartbeats_late_total", "5"),
        ("heddle_events_malformed_total", "0"),
    ] {
        assert_eq!(value(&text, series).as_deref(), Some(expected), "{series}\n{text}");
    }
}

#[test]
fn every_family_is_documented() {
    const DOCS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md"));
    let metrics = metrics(100);
    metrics.flow(labels("shop/db-1", "web.shop")).open();
    metrics.handshake(Hook::Inbound, "shop/db-1");
    let text = metrics.encode().unwrap();
    let families: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(families.len() > 20, "{families:?}");
    for family in families {
        let named = [family.to_owned(), format!("{family}_total")];
        assert!(
            named.iter().any(|name| DOCS.contains(&format!("`{name}`"))),
            "docs/operating.md lacks {family}"
        );
    }
}

#[test]
fn the_number_of_series_is_bounded_and_nothing_goes_uncounted() {
    let metrics = metrics(10);
    for client in 0..100 {
        metrics.flow(labels("shop/db-1", &format!("client-{client}"))).open();
        metrics.decide(Hook::Inbound, Outcome::Refuse, Reason::TlsFailed, &format!("shop/pod-{client}"));
    }
    let text = metrics.encode().unwrap();
    let series: Vec<_> =
        text.lines().filter(|line| line.starts_with("inbound_tcp_authz_allow_total{")).collect();
    assert_eq!(series.len(), 11);
    let overflow: Vec<_> = series.iter().filter(|line| line.contains(r#"client_id="overflow""#)).collect();
    assert!(matches!(&overflow[..], [line] if line.ends_with(" 90")), "{overflow:?}");
    let decisions = text.lines().filter(|line| line.starts_with("heddle_agent_decisions_total{"));
    let sum: u64 = decisions.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 100);
    // What is known goes on being counted under its own name.
    metrics.flow(labels("shop/db-1", "client-3")).open();
    let text = metrics.encode().unwrap();
    assert!(text.lines().any(|line| line.contains(r#"client_id="client-3""#) && line.ends_with(" 2")));
}

#[test]
fn a_pods_series_go_with_it_and_make_room() {
    let metrics = metrics(2);
    let held = metrics.flow(labels("shop/db-1", "web.shop")).open();
    metrics.handshake(Hook::Inbound, "shop/db-1");
    metrics.flow(labels("shop/db-2", "web.shop")).open();
    let before = metrics.forgotten();
    metrics.forget_pod("shop/db-1");
    assert_ne!(metrics.forgotten(), before);
    let text = metrics.encode().unwrap();
    assert!(!text.contains(r#"pod="db-1""#), "{text}");
    assert!(text.contains(r#"pod="db-2""#));
    // The handle that is still held harms nobody.
    held.read(1);
    drop(held);
    metrics.flow(labels("shop/db-3", "web.shop")).open();
    let text = metrics.encode().unwrap();
    assert!(text.contains(r#"pod="db-3""#) && !text.contains(r#"pod="db-1""#) && !text.contains("overflow"));
}

#[test]
fn names_cannot_break_out_of_their_label() {
    let metrics = metrics(10);
    let hostile = "a\"} 1\nforged_total{x=\"\\";
    metrics.flow(labels("shop/db-1", hostile)).open();
    metrics.decide(Hook::Inbound, Outcome::Refuse, Reason::TlsFailed, hostile);
    let text = metrics.encode().unwrap();
    assert!(!text.lines().any(|line| line.starts_with("forged_total")), "{text}");
    assert!(text.contains(r#"client_id="a_} 1_forged_total{x=__""#), "{text}");
}

#[test]
fn what_audit_alone_let_pass_is_counted_by_reason_and_rule() {
    let metrics = metrics(100);
    metrics.would_refuse(Reason::Unauthorized, "Server shop/db (accessPolicy audit)", "shop/db-1", 2);
    metrics.would_refuse(Reason::Unauthorized, "Server shop/db (accessPolicy audit)", "shop/db-1", 1);
    let series = r#"heddle_audit_would_refuse_total{reason="unauthorized",rule="Server shop/db (accessPolicy audit)",namespace="shop",pod="db-1"}"#;
    assert_eq!(value(&metrics.encode().unwrap(), series).as_deref(), Some("3"));
    metrics.forget_pod("shop/db-1");
    assert_eq!(value(&metrics.encode().unwrap(), series), None);
}
