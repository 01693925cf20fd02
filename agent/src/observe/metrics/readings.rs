//! What is read when somebody asks: the kernel's counters, certificates, tables, the heartbeat.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_ebpf::{
    codes::{Hook, Outcome, Reason},
    flows::{Count, CounterKey},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    super::{events::Events, record::outcome_text},
    bounded::SeriesLabels as _,
    labels::{DecisionLabels, Text},
};

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateReading {
    /// Whose, in DNS form.
    pub identity: String,
    /// When it expires; `None`: there is none yet.
    pub not_after: Option<SystemTime>,
    /// How many renewals have failed since the last that did not.
    pub failures: u32,
}

/// The tables in force.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TablesReading {
    /// Their generation; 0: none was published.
    pub generation: u64,
    /// Entries in each table, by its name.
    pub entries: Vec<(&'static str, u64)>,
}

/// What metrics ask the rest of the agent for, at each scrape.
pub trait Readings: Send + Sync + 'static {
    /// The kernel's counters, summed over the CPUs.
    fn counters(&self) -> Vec<(CounterKey, Count)>;
    /// `namespace/name` of the pod whose network namespace has this cookie.
    fn pod(&self, netns: u64) -> Option<Arc<str>>;
    /// Every certificate.
    fn certificates(&self) -> Vec<CertificateReading>;
    /// The trust anchors in force: each one's fingerprint, and when it expires.
    fn anchors(&self) -> Vec<(String, SystemTime)>;
    /// Whether the trust bundle on disk cannot be used and older anchors are in force.
    fn trust_stale(&self) -> bool;
    /// Certificates that workloads got for themselves, and their calls that were refused, by the reason.
    fn workloads(&self) -> (u64, Vec<(&'static str, u64)>);
    /// The tables in force.
    fn tables(&self) -> TablesReading;
    /// How old the agent's last sign of life is; `None`: it gave none.
    fn heartbeat_age(&self) -> Option<Duration>;
    /// How often its bound ran out between two signs of life, while the agent lived.
    fn heartbeats_late(&self) -> u64;
}

#[derive(Clone)]
pub(super) struct AtScrape {
    readings: Arc<dyn Readings>,
    events: Arc<Events>,
}

impl AtScrape {
    pub(super) fn new(readings: Arc<dyn Readings>, events: Arc<Events>) -> Self {
        Self { readings, events }
    }

    /// The kernel's counters under labels: cookies of one pod come together.
    fn decisions(&self) -> BTreeMap<DecisionLabels, Count> {
        let mut sums: BTreeMap<DecisionLabels, Count> = BTreeMap::new();
        for (key, count) in self.readings.counters() {
            let pod = if key.netns == 0 { None } else { self.readings.pod(key.netns) };
            // A code that this agent does not know is another schema's: told, not hidden.
            let labels = DecisionLabels::named(
                Hook::from_code(key.hook).map_or("unknown", Hook::as_str),
                outcome_named(key.outcome),
                Reason::from_code(key.reason).map_or("unknown", Reason::as_str),
                pod.as_deref().unwrap_or(""),
            );
            let sum = sums.entry(labels).or_default();
            sum.count = sum.count.saturating_add(count.count);
            sum.bytes = sum.bytes.saturating_add(count.bytes);
        }
        sums
    }

    /// Of this, what is about one pod.
    pub(super) fn share(
        &self,
        namespace: &str,
        pod: &str,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let mut own = self.decisions();
        own.retain(|labels, _| labels.is_of(namespace, pod));
        if own.is_empty() { Ok(()) } else { tell_decisions(&own, encoder) }
    }
}

/// What the kernel decided.
fn tell_decisions(
    decisions: &BTreeMap<DecisionLabels, Count>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let help = "What the kernel programs decided, and why: connections or packets";
    let mut family = encoder.encode_descriptor("heddle_kernel_decisions", help, None, MetricType::Counter)?;
    for (labels, count) in decisions {
        ConstCounter::new(count.count).encode(family.encode_family(labels)?)?;
    }
    let help = "Bytes of the packets that the kernel programs decided about";
    let mut family =
        encoder.encode_descriptor("heddle_kernel_decision_bytes", help, None, MetricType::Counter)?;
    for (labels, count) in decisions.iter().filter(|(_, count)| count.bytes > 0) {
        ConstCounter::new(count.bytes).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

fn outcome_named(code: u32) -> &'static str {
    let known = [Outcome::Direct, Outcome::Proxy, Outcome::Refuse];
    known.into_iter().find(|it| *it as u32 == code).map_or("unknown", outcome_text)
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtScrape").finish_non_exhaustive()
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        tell_decisions(&self.decisions(), &mut encoder)?;

        let certificates = self.readings.certificates();
        let help = "When the certificate expires, in seconds since 1970; 0: there is none yet";
        let mut family = encoder.encode_descriptor(
            "heddle_certificate_expiry",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for certificate in &certificates {
            let since = certificate.not_after.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let labels = [("identity", Text(&certificate.identity))];
            ConstGauge::new(since.unwrap_or_default().as_secs_f64())
                .encode(family.encode_family(&labels)?)?;
        }
        let help = "Renewals of the certificate that failed since the last that did not";
        let mut family =
            encoder.encode_descriptor("heddle_certificate_failed_renewals", help, None, MetricType::Gauge)?;
        for certificate in &certificates {
            let labels = [("identity", Text(&certificate.identity))];
            ConstGauge::new(i64::from(certificate.failures)).encode(family.encode_family(&labels)?)?;
        }

        let help = "When the trust anchor expires, in seconds since 1970";
        let mut family = encoder.encode_descriptor(
            "heddle_trust_anchor_expiry",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (fingerprint, not_after) in &self.readings.anchors() {
            let since = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let labels = [("fingerprint", Text(fingerprint))];
            ConstGauge::new(since.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        let help = "1 while the trust bundle on disk cannot be used and an older one is in force, or a revocation list is overdue or has left it";
        let family = encoder.encode_descriptor("heddle_trust_bundle_stale", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.readings.trust_stale())).encode(family)?;

        let (issued, refused) = self.readings.workloads();
        let help = "Certificates with keys of their own that workloads were given";
        let family =
            encoder.encode_descriptor("heddle_workload_api_issued", help, None, MetricType::Counter)?;
        ConstCounter::new(issued).encode(family)?;
        let help = "Calls of the Workload API that were refused, by reason";
        let mut family =
            encoder.encode_descriptor("heddle_workload_api_refused", help, None, MetricType::Counter)?;
        for (reason, count) in &refused {
            ConstCounter::new(*count).encode(family.encode_family(&[("reason", *reason)])?)?;
        }

        let tables = self.readings.tables();
        let help = "The generation of the tables in force; 0: none, and everything is refused";
        let family = encoder.encode_descriptor("heddle_tables_generation", help, None, MetricType::Gauge)?;
        ConstGauge::new(signed(tables.generation)).encode(family)?;
        let help = "Entries in the tables in force";
        let mut family = encoder.encode_descriptor("heddle_tables_entries", help, None, MetricType::Gauge)?;
        for (table, entries) in &tables.entries {
            ConstGauge::new(signed(*entries)).encode(family.encode_family(&[("table", *table)])?)?;
        }
        if let Some(age) = self.readings.heartbeat_age() {
            let help = "How old the sign of life is that the kernel programs go by";
            let family = encoder.encode_descriptor(
                "heddle_heartbeat_age",
                help,
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?;
            ConstGauge::new(age.as_secs_f64()).encode(family)?;
        }

        let counts = self.events.counts();
        for (name, help, value) in [
            ("heddle_events", "Events told", counts.told),
            ("heddle_events_malformed", "Items of the ring buffer that are no event", counts.malformed),
            ("heddle_events_missed", "Events that slow listeners missed", counts.missed),
            (
                "heddle_heartbeats_late",
                "Signs of life that came after their bound",
                self.readings.heartbeats_late(),
            ),
            ("heddle_audit_left_out", "Refusals that the audit log had no room for", counts.unlogged),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(family)?;
        }
        Ok(())
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
