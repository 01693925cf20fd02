use std::{
    io::Write,
    sync::Mutex,
    time::{Duration, UNIX_EPOCH},
};

use heddle_ebpf::{
    Address,
    codes::{Hook, Outcome, Reason},
    flows::{Event, Tuple},
    text,
};

use super::{super::record::WorkloadName, *};

struct Shop;

impl Names for Shop {
    fn pod(&self, netns: u64) -> Option<Arc<str>> {
        (netns == 7).then(|| Arc::from("shop/web-1"))
    }

    fn workload(&self, address: std::net::IpAddr) -> Option<WorkloadName> {
        let (name, identity) = match address.to_string().as_str() {
            "10.1.0.5" => ("shop/web-1", Some("web.shop.serviceaccount.identity.linkerd.cluster.local")),
            "fd00::9" => ("shop/db-1", Some("db.shop.serviceaccount.identity.linkerd.cluster.local")),
            "10.1.0.8" => ("old/plain", None),
            _ => return None,
        };
        Some(WorkloadName { name: name.into(), workload: name.into(), identity: identity.map(Arc::from) })
    }

    fn rule(&self, generation: u64, rule: u32) -> Option<Arc<str>> {
        (generation == 42 && rule == 3).then(|| Arc::from("Server shop/db"))
    }
}

fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn event() -> Event {
    Event {
        time_ns: 1_123_000_000,
        netns: 7,
        generation: 42,
        tuple: Tuple {
            source: address("10.1.0.5"),
            destination: address("fd00::9"),
            source_port: 40_000,
            destination_port: 5432,
        },
        hook: Hook::Connect as u32,
        outcome: Outcome::Refuse as u32,
        reason: Reason::Unauthorized as u32,
        rule: 3,
        protocol: 6,
        detail: 1,
        command: text("curl"),
        pid: 99,
        ..Event::default()
    }
}

/// The event as the kernel writes it: field after field, in the order of the C structure.
fn bytes(event: &Event) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [event.time_ns, event.netns, event.generation] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(event.tuple.source.bytes);
    out.extend(event.tuple.destination.bytes);
    out.extend(event.tuple.source_port.to_ne_bytes());
    out.extend(event.tuple.destination_port.to_ne_bytes());
    for word in
        [event.hook, event.outcome, event.reason, event.rule, event.protocol, event.detail, event.length]
    {
        out.extend(word.to_ne_bytes());
    }
    out.extend(event.command.iter().map(|byte| *byte as u8));
    out.extend(event.pid.to_ne_bytes());
    // The structure's alignment rounds it up.
    out.resize(size_of::<Event>(), 0xaa);
    out
}

/// 2026-01-01 12:00:00 UTC, less nothing: the epoch of the kernel's clock in these tests.
fn epoch() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_268_800)
}

fn events(capacity: usize) -> Events {
    Events::new("node-a", Arc::new(Shop), capacity)
}

async fn told(event: &Event) -> Arc<EventRecord> {
    let events = events(8);
    let mut listener = events.subscribe();
    events.kernel(&bytes(event), epoch()).unwrap();
    match listener.next().await {
        Some(Told::Event(record)) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_of_the_fields_is_the_layouts() {
    use std::mem::offset_of;
    assert_eq!(bytes(&event()).len(), size_of::<Event>());
    let offsets = [
        offset_of!(Event, time_ns),
        offset_of!(Event, netns),
        offset_of!(Event, generation),
        offset_of!(Event, tuple),
        offset_of!(Event, hook),
        offset_of!(Event, outcome),
        offset_of!(Event, reason),
        offset_of!(Event, rule),
        offset_of!(Event, protocol),
        offset_of!(Event, detail),
        offset_of!(Event, length),
        offset_of!(Event, command),
        offset_of!(Event, pid),
    ];
    assert_eq!(offsets, [0, 8, 16, 24, 60, 64, 68, 72, 76, 80, 84, 88, 104]);
    let tuple = [
        offset_of!(Tuple, source),
        offset_of!(Tuple, destination),
        offset_of!(Tuple, source_port),
        offset_of!(Tuple, destination_port),
    ];
    assert_eq!(tuple, [0, 16, 32, 34]);
}

#[tokio::test]
async fn an_event_gets_its_names_and_reads_at_a_glance() {
    let record = told(&event()).await;
    assert_eq!(
        record.to_string(),
        "12:00:01.123 refused shop/web-1 -> shop/db-1:5432 (connect, unauthorized): no rule of Server shop/db \
         allows web.shop.serviceaccount.identity.linkerd.cluster.local on port 5432 [curl 99]"
    );
    let json = serde_json::to_value(&*record).unwrap();
    let expected = serde_json::json!({
        "time": "2026-01-01T12:00:01.123Z",
        "node": "node-a",
        "pod": "shop/web-1",
        "hook": "connect",
        "outcome": "refuse",
        "reason": "unauthorized",
        "rule": "Server shop/db",
        "generation": 42,
        "source": {
            "address": "10.1.0.5", "port": 40_000, "workload": "shop/web-1",
            "identity": "web.shop.serviceaccount.identity.linkerd.cluster.local",
        },
        "destination": {
            "address": "fd00::9", "port": 5432, "workload": "shop/db-1",
            "identity": "db.shop.serviceaccount.identity.linkerd.cluster.local",
        },
        "protocol": "tcp",
        "command": "curl",
        "pid": 99,
        "length": 0,
        "detail": 1,
        "sentence": "no rule of Server shop/db allows web.shop.serviceaccount.identity.linkerd.cluster.local on port 5432",
    });
    assert_eq!(json, expected);
}

#[tokio::test]
async fn what_has_no_name_is_told_by_its_number() {
    let mut packet = event();
    packet.netns = 8;
    packet.rule = 9;
    packet.tuple.source = address("192.0.2.1");
    packet.tuple.destination = address("10.1.0.8");
    packet.hook = Hook::GuardFromPod as u32;
    packet.reason = Reason::Spoofed as u32;
    packet.protocol = 17;
    packet.length = 1500;
    packet.command = text("");
    packet.pid = 0;
    let record = told(&packet).await;
    assert_eq!((&record.pod, record.pid), (&None, None));
    assert_eq!(
        record.to_string(),
        "12:00:01.123 dropped 192.0.2.1 -> old/plain:5432 (guard_from_pod, udp, spoofed): A source address or MAC \
         address that is not the pod's (rule 9)"
    );
}

#[tokio::test]
async fn a_process_cannot_write_on_the_terminal() {
    let mut hostile = event();
    hostile.command = text("\u{1b}[2J\nok\u{9b}");
    let record = told(&hostile).await;
    assert_eq!(record.command.as_deref(), Some("?[2J?ok??"));
    assert!(!record.to_string().contains(char::is_control));
}

#[tokio::test]
async fn bytes_that_are_no_event_are_counted_and_told_to_nobody() {
    let events = events(8);
    let mut listener = events.subscribe();
    let good = bytes(&event());
    let with = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let cases = [
        (vec![], Malformed::Length(0)),
        (good[..good.len() - 1].to_vec(), Malformed::Length(good.len() - 1)),
        ([&good[..], &[0]].concat(), Malformed::Length(good.len() + 1)),
        (with(60, 99), Malformed::Hook(99)),
        (with(64, 0), Malformed::Outcome(0)),
        (with(68, 9999), Malformed::Reason(9999)),
    ];
    for (bytes, why) in &cases {
        assert_eq!(events.kernel(bytes, epoch()), Err(*why));
    }
    events.kernel(&good, epoch()).unwrap();
    assert!(matches!(listener.next().await, Some(Told::Event(record)) if record.reason == "unauthorized"));
    assert_eq!(
        events.counts(),
        EventCounts { told: 1, malformed: cases.len() as u64, ..EventCounts::default() }
    );
    // A time beyond all calendars does not matter either.
    events.kernel(&[&u64::MAX.to_ne_bytes(), &good[8..]].concat(), epoch()).unwrap();
}

#[tokio::test]
async fn a_laggard_is_told_how_much_it_missed_and_goes_on() {
    let events = events(4);
    let mut slow = events.subscribe();
    for port in 1..=10u16 {
        let mut event = event();
        event.tuple.destination_port = port;
        events.kernel(&bytes(&event), epoch()).unwrap();
    }
    assert!(matches!(slow.next().await, Some(Told::Missed(6))));
    for port in 7..=10 {
        assert!(matches!(slow.next().await, Some(Told::Event(record)) if record.destination.port == port));
    }
    assert_eq!(events.counts().missed, 6);
    drop(events);
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn the_agents_own_refusals_bear_what_the_certificate_says() {
    let events = events(4);
    let mut listener = events.subscribe();
    let mut refusal = Occurrence::of_agent(
        epoch(),
        Hook::Inbound,
        Outcome::Refuse,
        Reason::TlsFailed,
        "10.1.0.5:1".parse().unwrap(),
        "[fd00::9]:5432".parse().unwrap(),
    );
    refusal.source_identity = Some(Arc::from("other.shop.serviceaccount.identity.linkerd.cluster.local"));
    refusal.because = Some("the peer presented no certificate".to_owned());
    events.tell(refusal);
    let Some(Told::Event(record)) = listener.next().await else { panic!() };
    let identity = record.source.identity.as_deref();
    assert_eq!(identity, Some("other.shop.serviceaccount.identity.linkerd.cluster.local"));
    assert!(
        record.sentence.ends_with("does not verify: the peer presented no certificate"),
        "{}",
        record.sentence
    );
}

#[test]
fn the_kernels_clock_is_turned_into_the_walls() {
    let since = monotonic_epoch() + Duration::from_secs(0);
    let again = monotonic_epoch();
    let apart = again.duration_since(since).unwrap_or_else(|error| error.duration());
    assert!(apart < Duration::from_secs(1), "{apart:?}");
    assert!(since < SystemTime::now());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the audit log says, line by line, while something is done.
fn audited(act: impl FnOnce()) -> Vec<serde_json::Value> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_env_filter("heddle::audit=info")
        .with_writer(move || writer.clone());
    tracing::subscriber::with_default(subscriber.finish(), act);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_flood_of_refusals_is_told_whole_logged_in_part_and_counted() {
    const FLOOD: u64 = 1000;
    let events = events(2000);
    let mut listener = events.subscribe();
    let lines = audited(|| {
        for _ in 0..FLOOD {
            events.kernel(&bytes(&event()), epoch()).unwrap();
        }
    });
    let refusals = lines.iter().filter(|line| line["fields"]["reason"] == "unauthorized").count() as u64;
    assert!(refusals >= 1, "{lines:?}");
    assert_eq!(refusals + events.counts().unlogged, FLOOD, "what is not logged is counted");
    assert!(events.counts().unlogged > FLOOD / 2, "{} lines", lines.len());
    assert!(
        lines.iter().any(|line| line["level"] == "WARN" && line["fields"]["pod"] == "shop/web-1"),
        "the log says that it leaves something out: {lines:?}"
    );
    let mut heard = 0;
    while let Ok(_event) = listener.receiver.try_recv() {
        heard += 1;
    }
    assert_eq!(heard, FLOOD, "whoever follows the events hears each");
}

#[test]
fn refusals_are_in_the_audit_log_and_nothing_else_is() {
    let lines = audited(|| {
        let events = events(4);
        events.kernel(&bytes(&event()), epoch()).unwrap();
        let mut allowed = event();
        allowed.outcome = Outcome::Direct as u32;
        allowed.reason = Reason::Authorized as u32;
        events.kernel(&bytes(&allowed), epoch()).unwrap();
    });
    let [line] = &lines[..] else { panic!("one line: {lines:?}") };
    assert_eq!(line["target"], "heddle::audit");
    assert_eq!(line["fields"]["reason"], "unauthorized");
    assert_eq!(line["fields"]["rule"], "Server shop/db");
    assert_eq!(line["fields"]["source_identity"], "web.shop.serviceaccount.identity.linkerd.cluster.local");
    assert_eq!(line["fields"]["destination_port"], 5432);
}
