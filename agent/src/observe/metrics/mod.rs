//! Metrics, as OpenMetrics text: Linkerd's TCP series, so that its dashboards go on working, and Heddle's own.
//!
//! The series of connections that are alike are looked up once and kept ([`FlowSeries`]); after that a connection that
//! opens, and what it carries, are atomic additions.
//! The number of series is bounded: what does not fit is counted in one series whose names say `overflow`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use heddle_ebpf::codes::{Hook, Outcome, Reason};
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

mod bounded;
mod labels;
mod readings;

pub use labels::{Direction, FlowLabels, Peer, RuleLabels, Tls};
pub use readings::{CertificateReading, Readings, TablesReading};

use super::events::Events;
use bounded::{Bounded, Series};
use labels::{AuditLabels, CloseLabels, DecisionLabels};

/// What the text is, as HTTP says it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How many series each name may have: 512 pods with a score of peers each.
const MOST_SERIES: usize = 10_000;

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    allowed: Bounded<FlowLabels, Counter>,
    denied: Bounded<FlowLabels, Counter>,
    terminated: Bounded<FlowLabels, Counter>,
    opened: Bounded<FlowLabels, Counter>,
    open: Bounded<FlowLabels, Gauge>,
    closed: Bounded<CloseLabels, Counter>,
    read: Bounded<FlowLabels, Counter>,
    written: Bounded<FlowLabels, Counter>,
    handshakes: Bounded<DecisionLabels, Counter>,
    decisions: Bounded<DecisionLabels, Counter>,
    audited: Bounded<AuditLabels, Counter>,
    readings: readings::AtScrape,
    forgotten: AtomicU64,
}

impl Metrics {
    /// Metrics that take what is read at each scrape from `readings` and `events`.
    pub fn new(readings: Arc<dyn Readings>, events: Arc<Events>) -> Self {
        Self::bounded(readings, events, MOST_SERIES)
    }

    fn bounded(readings: Arc<dyn Readings>, events: Arc<Events>, most: usize) -> Self {
        let terminated = "Live connections into pods that ended because the rules no longer allow them";
        let audited = "Connections that only `audit` let pass: a `deny` would have refused them";
        let readings = readings::AtScrape::new(readings, events);
        let mut it = Self {
            registry: Registry::default(),
            allowed: Bounded::new(
                "inbound_tcp_authz_allow",
                "Connections into pods that a rule allowed",
                most,
            ),
            denied: Bounded::new(
                "inbound_tcp_authz_deny",
                "Connections into pods that no rule allowed",
                most,
            ),
            terminated: Bounded::new("inbound_tcp_authz_terminate", terminated, most),
            opened: Bounded::new("tcp_open", "Connections opened", most),
            open: Bounded::new("tcp_open_connections", "Connections open now", most),
            closed: Bounded::new("tcp_close", "Connections closed", most),
            read: Bounded::new("tcp_read_bytes", "Bytes read from peers", most),
            written: Bounded::new("tcp_write_bytes", "Bytes written to peers", most),
            handshakes: Bounded::new("heddle_handshakes", "TLS handshakes of the agent's", most),
            decisions: Bounded::new("heddle_agent_decisions", "What the agent decided, and why", most),
            audited: Bounded::new("heddle_audit_would_refuse", audited, most),
            readings: readings.clone(),
            forgotten: AtomicU64::new(0),
        };
        let mut registry = Registry::default();
        it.all().into_iter().for_each(|series| series.register(&mut registry));
        registry.register_collector(Box::new(readings));
        it.registry = registry;
        it
    }

    fn all(&self) -> [&dyn Series; 11] {
        [
            &self.allowed,
            &self.denied,
            &self.terminated,
            &self.opened,
            &self.open,
            &self.closed,
            &self.read,
            &self.written,
            &self.handshakes,
            &self.decisions,
            &self.audited,
        ]
    }

    /// The series of connections with these labels, to be kept for the next of them: as long as [`Self::forgotten`]
    /// stays as it is.
    pub fn flow(&self, labels: FlowLabels) -> Arc<FlowSeries> {
        let allowed = (labels.direction == Direction::Inbound).then(|| self.allowed.of(&labels));
        Arc::new(FlowSeries {
            allowed,
            opened: self.opened.of(&labels),
            open: self.open.of(&labels),
            read: self.read.of(&labels),
            written: self.written.of(&labels),
            closed: self.closed.of(&CloseLabels::of(&labels, "")),
            labels,
        })
    }

    /// A number that changes when series are dropped: what was kept of them counts into nothing.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// A connection failed or was reset: it counts as closed, once it is dropped, with the system's name of the error (`ECONNRESET`).
    pub fn close_with(&self, connection: &mut OpenConnection, errno: &'static str) {
        connection.failed = Some(self.closed.of(&CloseLabels::of(&connection.series.labels, errno)));
    }

    /// A connection into a pod was denied.
    pub fn deny(&self, labels: &FlowLabels) {
        self.denied.of(labels).inc();
    }

    /// A live connection into a pod was ended.
    pub fn terminate(&self, labels: &FlowLabels) {
        self.terminated.of(labels).inc();
    }

    /// The agent decided about a connection of `pod` (`namespace/name`).
    pub fn decide(&self, hook: Hook, outcome: Outcome, reason: Reason, pod: &str) {
        self.decisions.of(&DecisionLabels::new(hook, outcome, reason, pod)).inc();
    }

    /// The agent finished a TLS handshake for `pod` (`namespace/name`).
    pub fn handshake(&self, hook: Hook, pod: &str) {
        self.handshakes.of(&DecisionLabels::new(hook, Outcome::Proxy, Reason::Meshed, pod)).inc();
    }

    /// Connections to `pod` (`namespace/name`) passed by an `audit` rule alone; a `deny` would have refused them for
    /// `reason`.
    pub fn would_refuse(&self, reason: Reason, rule: &str, pod: &str, count: u64) {
        self.audited.of(&AuditLabels::new(reason, rule, pod)).inc_by(count);
    }

    /// A pod (`namespace/name`) is gone: its series go with it.
    pub fn forget_pod(&self, pod: &str) {
        let (namespace, name) = labels::split(pod);
        self.all().into_iter().for_each(|series| series.forget(namespace, name));
        self.forgotten.fetch_add(1, Ordering::Release);
    }

    /// Everything, as OpenMetrics text.
    ///
    /// # Errors
    /// Text that cannot be made, which no value here is known to cause.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// What is told of one pod (`namespace/name`), and nothing of another: what a Server about the pod's port `linkerd-admin`
    /// lets its clients read.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn share(self: &Arc<Self>, pod: &str) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Share { metrics: Arc::clone(self), pod: pod.to_owned() }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// One pod's part.
#[derive(Debug)]
struct Share {
    metrics: Arc<Metrics>,
    pod: String,
}

impl Collector for Share {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let (namespace, name) = labels::split(&self.pod);
        for series in self.metrics.all() {
            series.share(namespace, name, &mut encoder)?;
        }
        self.metrics.readings.share(namespace, name, &mut encoder)
    }
}

/// The series of connections that are alike.
#[derive(Debug)]
pub struct FlowSeries {
    labels: FlowLabels,
    allowed: Option<Counter>,
    opened: Counter,
    open: Gauge,
    read: Counter,
    written: Counter,
    closed: Counter,
}

impl FlowSeries {
    /// A connection opened; into a pod: because it was allowed. Keep what is returned as long as it lives.
    pub fn open(self: Arc<Self>) -> OpenConnection {
        if let Some(allowed) = &self.allowed {
            allowed.inc();
        }
        self.opened.inc();
        self.open.inc();
        OpenConnection { series: self, failed: None }
    }
}

/// A connection that is open; counted as closed when it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    series: Arc<FlowSeries>,
    failed: Option<Counter>,
}

impl OpenConnection {
    /// Bytes were read from the peer.
    pub fn read(&self, bytes: u64) {
        self.series.read.inc_by(bytes);
    }

    /// Bytes were written to the peer.
    pub fn wrote(&self, bytes: u64) {
        self.series.written.inc_by(bytes);
    }

    /// Its labels.
    pub fn labels(&self) -> &FlowLabels {
        &self.series.labels
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.series.open.dec();
        self.failed.as_ref().unwrap_or(&self.series.closed).inc();
    }
}

#[cfg(test)]
mod tests;
