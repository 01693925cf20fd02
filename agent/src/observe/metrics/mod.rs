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
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

mod bounded;
mod labels;
mod readings;

pub use labels::{Direction, FlowLabels, Peer, RuleLabels, Tls};
pub use readings::{CertificateReading, Readings, TablesReading};

use super::events::Events;
use bounded::Bounded;
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
    forgotten: AtomicU64,
}

impl Metrics {
    /// Metrics that take what is read at each scrape from `readings` and `events`.
    pub fn new(readings: Arc<dyn Readings>, events: Arc<Events>) -> Self {
        Self::bounded(readings, events, MOST_SERIES)
    }

    fn bounded(readings: Arc<dyn Readings>, events: Arc<Events>, most: usize) -> Self {
        let mut registry = Registry::default();
        let allowed = Bounded::new(most);
        let denied = Bounded::new(most);
        let terminated = Bounded::new(most);
        let opened = Bounded::new(most);
        let open = Bounded::new(most);
        let closed = Bounded::new(most);
        let read = Bounded::new(most);
        let written = Bounded::new(most);
        let handshakes = Bounded::new(most);
        let decisions = Bounded::new(most);
        let audited = Bounded::new(most);
        let r = &mut registry;
        r.register("inbound_tcp_authz_allow", "Connections into pods that a rule allowed", allowed.series());
        r.register("inbound_tcp_authz_deny", "Connections into pods that no rule allowed", denied.series());
        let help = "Live connections into pods that ended because the rules no longer allow them";
        r.register("inbound_tcp_authz_terminate", help, terminated.series());
        r.register("tcp_open", "Connections opened", opened.series());
        r.register("tcp_open_connections", "Connections open now", open.series());
        r.register("tcp_close", "Connections closed", closed.series());
        r.register("tcp_read_bytes", "Bytes read from peers", read.series());
        r.register("tcp_write_bytes", "Bytes written to peers", written.series());
        r.register("heddle_handshakes", "TLS handshakes of the agent's", handshakes.series());
        r.register("heddle_agent_decisions", "What the agent decided, and why", decisions.series());
        let help = "Connections that only `audit` let pass: a `deny` would have refused them";
        registry.register("heddle_audit_would_refuse", help, audited.series());
        registry.register_collector(Box::new(readings::AtScrape::new(readings, events)));
        Self {
            registry,
            allowed,
            denied,
            terminated,
            opened,
            open,
            closed,
            read,
            written,
            handshakes,
            decisions,
            audited,
            forgotten: AtomicU64::new(0),
        }
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
        for series in [&self.allowed, &self.denied, &self.terminated, &self.opened, &self.read, &self.written]
        {
            series.forget(namespace, name);
        }
        self.open.forget(namespace, name);
        self.closed.forget(namespace, name);
        self.handshakes.forget(namespace, name);
        self.decisions.forget(namespace, name);
        self.audited.forget(namespace, name);
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
