//! An event as it is told: for programs as JSON, for people as one line.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use heddle_ebpf::codes::{Hook, Outcome, Reason};
use serde::Serialize;
use time::OffsetDateTime;

/// Names of what the kernel knows by numbers.
pub trait Names: Send + Sync {
    /// `namespace/name` of the pod whose network namespace has this cookie.
    fn pod(&self, netns: u64) -> Option<Arc<str>>;
    /// Who is at an address.
    fn workload(&self, address: IpAddr) -> Option<WorkloadName>;
    /// The text of a rule in a generation.
    fn rule(&self, generation: u64, rule: u32) -> Option<Arc<str>>;
}

/// A workload's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadName {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// `namespace/name` of the workload that the pod is of.
    pub workload: Arc<str>,
    /// Its identity in DNS form; `None`: not meshed.
    pub identity: Option<Arc<str>>,
}

/// Something that happened, before names are put to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// When.
    pub time: SystemTime,
    /// Who decided.
    pub hook: Hook,
    /// What became of it.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The rule that decided, or the Server or default policy for want of one.
    pub rule: Option<Arc<str>>,
    /// The generation of the tables.
    pub generation: u64,
    /// The pod in or at which it happened, as `namespace/name`.
    pub pod: Option<Arc<str>>,
    /// The client, or a packet's sender.
    pub source: SocketAddr,
    /// The server, or a packet's receiver.
    pub destination: SocketAddr,
    /// IP protocol.
    pub protocol: u32,
    /// TCP flags of a dropped segment, or the port that a bind asked for.
    pub detail: u32,
    /// Length of a dropped packet.
    pub length: u32,
    /// The process that called.
    pub command: Option<String>,
    /// Its process id.
    pub pid: Option<u32>,
    /// The client's identity where it is known from a certificate; else it is looked up by address.
    pub source_identity: Option<Arc<str>>,
    /// The server's identity where it is known from a certificate; else it is looked up by address.
    pub destination_identity: Option<Arc<str>>,
    /// More than the reason says, such as what was wrong with a certificate.
    pub because: Option<String>,
}

impl Occurrence {
    /// Something that the agent decided about a TCP connection just now.
    pub fn of_agent(
        time: SystemTime,
        hook: Hook,
        outcome: Outcome,
        reason: Reason,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        Self {
            time,
            hook,
            outcome,
            reason,
            rule: None,
            generation: 0,
            pod: None,
            source,
            destination,
            protocol: TCP,
            detail: 0,
            length: 0,
            command: None,
            pid: None,
            source_identity: None,
            destination_identity: None,
            because: None,
        }
    }
}

const ICMP: u32 = 1;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;
const SCTP: u32 = 132;

/// One end of what an event tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0: none.
    pub port: u16,
    /// `namespace/name` of the workload that is known at the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Its identity in DNS form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Arc<str>>,
}

/// An event as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The node.
    pub node: Arc<str>,
    /// The pod, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// Who decided: [`Hook::as_str`].
    pub hook: &'static str,
    /// `direct`, `proxy` or `refuse`.
    pub outcome: &'static str,
    /// Why: [`Reason::as_str`].
    pub reason: &'static str,
    /// The rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The generation of the tables; 0: not known.
    pub generation: u64,
    /// The client, or a packet's sender.
    pub source: Endpoint,
    /// The server, or a packet's receiver.
    pub destination: Endpoint,
    /// `tcp`, `udp`, …, or the protocol's number.
    pub protocol: String,
    /// The process that called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Its process id in the host's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Length of a dropped packet; 0: not a packet.
    pub length: u32,
    /// TCP flags of a dropped segment, or the port that a bind asked for; else 0.
    pub detail: u32,
    /// The same for people.
    pub sentence: String,
}

/// An outcome as metrics, logs and events name it.
pub(super) const fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Direct => "direct",
        Outcome::Proxy => "proxy",
        Outcome::Refuse => "refuse",
    }
}

impl EventRecord {
    pub(super) fn new(node: &Arc<str>, occurrence: Occurrence, names: &dyn Names) -> Self {
        let endpoint = |at: SocketAddr, identity: Option<Arc<str>>| {
            let found = names.workload(at.ip());
            let (workload, by_address) = found.map_or((None, None), |it| (Some(it.name), it.identity));
            Endpoint { address: at.ip(), port: at.port(), workload, identity: identity.or(by_address) }
        };
        let source = endpoint(occurrence.source, occurrence.source_identity);
        let destination = endpoint(occurrence.destination, occurrence.destination_identity);
        let sentence = sentence(
            occurrence.reason,
            occurrence.rule.as_deref(),
            &source,
            &destination,
            occurrence.because.as_deref(),
        );
        Self {
            time: OffsetDateTime::from(occurrence.time),
            node: Arc::clone(node),
            pod: occurrence.pod,
            hook: occurrence.hook.as_str(),
            outcome: outcome_text(occurrence.outcome),
            reason: occurrence.reason.as_str(),
            rule: occurrence.rule,
            generation: occurrence.generation,
            source,
            destination,
            protocol: protocol(occurrence.protocol),
            command: occurrence.command,
            pid: occurrence.pid,
            length: occurrence.length,
            detail: occurrence.detail,
            sentence,
        }
    }

    /// Whether something was refused or dropped.
    pub fn is_refusal(&self) -> bool {
        self.outcome == outcome_text(Outcome::Refuse)
    }
}

fn protocol(number: u32) -> String {
    match number {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn sentence(
    reason: Reason,
    rule: Option<&str>,
    source: &Endpoint,
    destination: &Endpoint,
    because: Option<&str>,
) -> String {
    let client = source.identity.as_deref().unwrap_or("a client without identity");
    let mut text = match (reason, rule) {
        (Reason::Unauthorized, Some(rule)) => {
            format!("no rule of {rule} allows {client} on port {}", destination.port)
        }
        (Reason::NoIdentity, Some(rule)) => {
            format!("no rule of {rule} allows clients without a mesh identity from {}", source.address)
        }
        (Reason::Authorized, Some(rule)) => format!("{rule} allows {client}"),
        (reason, rule) => {
            let explained = reason.explain().trim().trim_end_matches('.');
            match rule {
                Some(rule) => format!("{explained} ({rule})"),
                None => explained.to_owned(),
            }
        }
    };
    if let Some(because) = because {
        text.push_str(": ");
        text.push_str(because);
    }
    text
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.workload, self.port) {
            (Some(workload), 0) => f.write_str(workload),
            (Some(workload), port) => write!(f, "{workload}:{port}"),
            (None, 0) => self.address.fmt(f),
            (None, port) => SocketAddr::new(self.address, port).fmt(f),
        }
    }
}

/// `12:00:01.123 refused shop/web -> shop/db:5432 (connect, unauthorized): no rule of …`. Times are UTC.
impl fmt::Display for EventRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second, milli) = self.time.time().as_hms_milli();
        let became = match (self.is_refusal(), self.length) {
            (true, 0) => "refused",
            (true, _) => "dropped",
            (false, _) => self.outcome,
        };
        // A client's own port tells nobody anything.
        let source = Endpoint { port: 0, ..self.source.clone() };
        write!(f, "{hour:02}:{minute:02}:{second:02}.{milli:03} {became} {source} -> {}", self.destination)?;
        write!(f, " ({}, ", self.hook)?;
        if self.protocol != "tcp" {
            write!(f, "{}, ", self.protocol)?;
        }
        write!(f, "{}): {}", self.reason, self.sentence)?;
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, " [{command} {pid}]"),
            (Some(command), None) => write!(f, " [{command}]"),
            (None, _) => Ok(()),
        }
    }
}
