//! What the data plane tells becomes metrics and events.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use heddle_ebpf::codes::{Hook, Outcome, Reason};

use super::{pods::Pods, shadow::Shadow};
use crate::{
    capture::{DirectSeen, EndedFlow},
    observe::{
        events::Events,
        flows::{FlowBook, SeenFlow, record::FlowOutcome},
        metrics::{Direction, FlowLabels, FlowSeries, Metrics, OpenConnection, Peer, RuleLabels, Tls},
        record::{Names, Occurrence},
    },
    proxy::environment::{Carried, Ending, Flow, PeerName, PodId, Recorder, Refusal},
};

/// Kinds of connections whose series are kept: far more than are alive at a time.
const KEPT: usize = 4096;

/// Connections that differ in none of these share their series.
#[derive(PartialEq, Eq, Hash)]
struct Alike {
    hook: Hook,
    pod: PodId,
    port: u16,
    peer: Option<PeerName>,
    rule: Arc<str>,
}

/// Series that were looked up, and since which [`Metrics::forgotten`] they hold.
#[derive(Default)]
struct Known {
    forgotten: u64,
    series: HashMap<Alike, Arc<FlowSeries>>,
}

/// What every connection of the data plane is told to.
pub(super) struct Told(Arc<Inner>);

struct Inner {
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    names: Arc<dyn Names>,
    flows: Arc<FlowBook>,
    shadow: Shadow,
    known: RwLock<Known>,
}

impl Told {
    pub fn new(
        pods: Arc<Pods>,
        metrics: Arc<Metrics>,
        events: Arc<Events>,
        names: Arc<dyn Names>,
        flows: Arc<FlowBook>,
        shadow: Shadow,
    ) -> Self {
        Self(Arc::new(Inner { pods, metrics, events, names, flows, shadow, known: RwLock::default() }))
    }

    /// Where flows are gathered.
    pub fn flows(&self) -> &Arc<FlowBook> {
        &self.0.flows
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

impl Inner {
    fn series(&self, flow: &Flow) -> Arc<FlowSeries> {
        let alike = Alike {
            hook: flow.hook,
            pod: flow.pod,
            port: flow.destination.port(),
            peer: flow.peer.clone(),
            rule: Arc::clone(&flow.rule),
        };
        let forgotten = self.metrics.forgotten();
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if known.forgotten == forgotten
                && let Some(series) = known.series.get(&alike)
            {
                return Arc::clone(series);
            }
        }
        let series = self.metrics.flow(self.labels(flow));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.forgotten != forgotten || known.series.len() >= KEPT {
            *known = Known { forgotten, series: HashMap::new() };
        }
        known.series.insert(alike, Arc::clone(&series));
        series
    }

    fn labels(&self, flow: &Flow) -> FlowLabels {
        let none: Arc<str> = Arc::from("");
        let entry = self.pods.get(flow.pod);
        let own: Arc<str> =
            entry.as_ref().map_or_else(|| Arc::clone(&none), |entry| entry.workload.identity().dns().into());
        let peer: Arc<str> =
            flow.peer.as_ref().map_or_else(|| Arc::clone(&none), |peer| peer.as_str().into());
        let inbound = flow.hook == Hook::Inbound;
        let (client_id, server_id) = if inbound { (peer, own) } else { (own, peer) };
        FlowLabels {
            direction: if inbound { Direction::Inbound } else { Direction::Outbound },
            peer: if inbound { Peer::Source } else { Peer::Destination },
            tls: if flow.peer.is_some() { Tls::Mutual } else { Tls::NoIdentity },
            pod: entry.map_or_else(|| Arc::clone(&none), |entry| Arc::clone(&entry.name)),
            client_id,
            server_id,
            server_port: flow.destination.port(),
            server: RuleLabels::none(),
            authorization: rule_labels(&flow.rule),
            destination_pod: Arc::clone(&none),
            destination_service: none,
        }
    }

    /// A connection into a pod was let pass.
    fn allowed(&self, flow: &Flow) {
        let identity: Option<Arc<str>> = flow.peer.as_ref().map(|peer| Arc::from(peer.as_str()));
        let audit = self.shadow.would_refuse(flow.client.ip(), identity.as_deref(), flow.destination);
        if let Some(refusal) = &audit {
            let pod = self.pods.get(flow.pod);
            let pod = pod.as_ref().map_or("", |entry| &entry.name);
            self.metrics.would_refuse(refusal.reason, &refusal.rule, pod, 1);
        }
        let reason = if identity.is_some() { Reason::Authorized } else { Reason::Unauthenticated };
        let seen = SeenFlow {
            client: flow.client.ip(),
            client_identity: identity,
            server: flow.destination,
            protocol: "tcp",
            outcome: FlowOutcome::Allowed,
            reason: reason.as_str(),
            rule: (!flow.rule.is_empty()).then(|| Arc::clone(&flow.rule)),
            audit: audit.map(|refusal| refusal.reason.as_str()),
        };
        self.flows.saw(seen, 1, SystemTime::now());
    }

    fn occurrence(&self, flow: &Flow, reason: Reason, rule: &Arc<str>) -> Occurrence {
        let mut occurrence = Occurrence::of_agent(
            SystemTime::now(),
            flow.hook,
            Outcome::Refuse,
            reason,
            flow.client,
            flow.destination,
        );
        occurrence.pod = self.pods.get(flow.pod).map(|entry| Arc::clone(&entry.name));
        occurrence.rule = (!rule.is_empty()).then(|| Arc::clone(rule));
        let peer = flow.peer.as_ref().map(|peer| Arc::from(peer.as_str()));
        if flow.hook == Hook::Inbound {
            occurrence.source_identity = peer;
        } else {
            occurrence.destination_identity = peer;
        }
        occurrence
    }
}

impl Told {
    /// Connections and conversations in UDP that the kernel carried alone.
    pub fn direct(&self, seen: &DirectSeen) {
        let told = &self.0;
        let client = told.names.workload(seen.client.ip());
        let identity = client.and_then(|it| it.identity);
        let (rule, audit) = if seen.udp {
            told.shadow.datagram(seen.client.ip(), seen.server)
        } else {
            let audit = told.shadow.would_refuse(seen.client.ip(), identity.as_deref(), seen.server);
            (told.names.rule(seen.generation, seen.rule), audit)
        };
        if let Some(refusal) = &audit {
            let server = told.names.workload(seen.server.ip());
            let pod = server.as_ref().map_or("", |it| &it.name);
            told.metrics.would_refuse(refusal.reason, &refusal.rule, pod, seen.count);
        }
        let reason =
            if seen.udp && identity.is_none() { Reason::Unauthenticated } else { Reason::Authorized };
        let flow = SeenFlow {
            client: seen.client.ip(),
            client_identity: identity,
            server: seen.server,
            protocol: if seen.udp { "udp" } else { "tcp" },
            outcome: FlowOutcome::Allowed,
            reason: reason.as_str(),
            rule,
            audit: audit.map(|refusal| refusal.reason.as_str()),
        };
        told.flows.saw(flow, seen.count, SystemTime::now());
    }

    /// A connection that the kernel carried alone was ended: what a relay tells of its own, at each end.
    pub fn revoked(&self, ended: &EndedFlow) {
        let hook = if ended.server_side { Hook::Inbound } else { Hook::Outbound };
        let pod = self.0.pods.get(PodId(ended.pod)).map(|entry| Arc::clone(&entry.name));
        self.0.metrics.decide(hook, Outcome::Refuse, Reason::Revoked, pod.as_deref().unwrap_or_default());
        let mut occurrence = Occurrence::of_agent(
            SystemTime::now(),
            hook,
            Outcome::Refuse,
            Reason::Revoked,
            ended.client,
            ended.server,
        );
        occurrence.pod = pod;
        occurrence.generation = ended.generation;
        occurrence.rule = self.0.names.rule(ended.generation, ended.rule);
        self.0.events.tell(occurrence);
    }
}

/// `Kind namespace/name` or `default policy NAME (…)` in the three labels that Linkerd's dashboards know.
fn rule_labels(rule: &str) -> RuleLabels {
    let mut words = rule.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("default"), Some("policy"), Some(name)) => {
            RuleLabels { group: "".into(), kind: "default".into(), name: name.into() }
        }
        (Some(kind), Some(name), _) => RuleLabels {
            group: "policy.linkerd.io".into(),
            kind: kind.to_lowercase().into(),
            name: name.split_once('/').map_or(name, |(_, name)| name).into(),
        },
        _ => RuleLabels::none(),
    }
}

/// A connection of an application's that is open.
#[derive(Debug)]
struct Carrying {
    told: Arc<Inner>,
    connection: OpenConnection,
}

impl Carried for Carrying {
    fn bytes(&self, sent: u64, received: u64) {
        self.connection.read(sent);
        self.connection.wrote(received);
    }

    fn closed(&mut self, flow: &Flow, ending: &Ending) {
        let Self { told, connection } = self;
        match ending {
            Ending::Reset | Ending::Lost => told.metrics.close_with(connection, "ECONNRESET"),
            Ending::Terminated(refusal) => {
                if flow.hook == Hook::Inbound {
                    told.metrics.terminate(connection.labels());
                }
                told.events.tell(told.occurrence(flow, Reason::Revoked, &refusal.rule));
            }
            Ending::Closed | Ending::Detached => {}
        }
    }
}

impl Recorder for Told {
    fn opened(&self, flow: &Flow) -> Box<dyn Carried> {
        if flow.hook == Hook::Inbound {
            self.0.allowed(flow);
        }
        Box::new(Carrying { told: Arc::clone(&self.0), connection: self.0.series(flow).open() })
    }

    fn refused(&self, flow: &Flow, refusal: &Refusal) {
        let told = &self.0;
        if flow.hook == Hook::Inbound {
            told.metrics.deny(&told.labels(flow));
        }
        let pod = told.pods.get(flow.pod);
        let name = pod.as_ref().map_or("", |entry| &entry.name);
        told.metrics.decide(flow.hook, Outcome::Refuse, refusal.reason, name);
        let mut occurrence = told.occurrence(flow, refusal.reason, &refusal.rule);
        occurrence.because = refusal.because.as_deref().map(str::to_owned);
        told.events.tell(occurrence);
    }

    fn handshake(&self, hook: Hook, pod: PodId) {
        let told = &self.0;
        let pod = told.pods.get(pod);
        told.metrics.handshake(hook, pod.as_ref().map_or("", |entry| &entry.name));
    }
}
