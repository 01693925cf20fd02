//! What the data plane tells becomes metrics and events.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use heddle_ebpf::codes::{Hook, Outcome, Reason};

use super::{pods::Pods, shadow::Shadow};
use crate::{
    capture::{DirectSeen, EndedFlow},
    observe::{
        events::Events,
        flows::{FlowBook, SeenFlow, record::FlowOutcome},
        metrics::{Direction, FlowLabels, Metrics, OpenConnection, Peer, RuleLabels, Tls},
        record::{Names, Occurrence},
    },
    proxy::environment::{Ending, Flow, PodId, Recorder, Refusal},
};

type Key = (Hook, PodId, SocketAddr, SocketAddr);

pub(super) struct Told {
    pub pods: Arc<Pods>,
    pub metrics: Arc<Metrics>,
    pub events: Arc<Events>,
    pub names: Arc<dyn Names>,
    pub flows: Arc<FlowBook>,
    shadow: Shadow,
    open: Mutex<HashMap<Key, OpenConnection>>,
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
        Self { pods, metrics, events, names, flows, shadow, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, OpenConnection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Connections that the kernel carried alone.
    pub fn direct(&self, seen: &DirectSeen) {
        let client = self.names.workload(seen.client.ip());
        let rule = self.names.rule(seen.generation, seen.rule);
        let identity = client.and_then(|it| it.identity);
        let audit = self.shadow.would_refuse(seen.client.ip(), identity.as_deref(), seen.server);
        if let Some(refusal) = &audit {
            let server = self.names.workload(seen.server.ip());
            let pod = server.as_ref().map_or("", |it| &it.name);
            self.metrics.would_refuse(refusal.reason, &refusal.rule, pod, seen.count);
        }
        let flow = SeenFlow {
            client: seen.client.ip(),
            client_identity: identity,
            server: seen.server,
            outcome: FlowOutcome::Allowed,
            reason: Reason::Authorized.as_str(),
            rule,
            audit: audit.map(|refusal| refusal.reason.as_str()),
        };
        self.flows.saw(flow, seen.count, SystemTime::now());
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
            outcome: FlowOutcome::Allowed,
            reason: reason.as_str(),
            rule: (!flow.rule.is_empty()).then(|| Arc::clone(&flow.rule)),
            audit: audit.map(|refusal| refusal.reason.as_str()),
        };
        self.flows.saw(seen, 1, SystemTime::now());
    }

    /// A connection that the kernel carried alone was ended: what a relay tells of its own, at each end.
    pub fn revoked(&self, ended: &EndedFlow) {
        let hook = if ended.server_side { Hook::Inbound } else { Hook::Outbound };
        let pod = self.pods.get(PodId(ended.pod)).map(|entry| Arc::clone(&entry.name));
        self.metrics.decide(hook, Outcome::Refuse, Reason::Revoked, pod.as_deref().unwrap_or_default());
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
        occurrence.rule = self.names.rule(ended.generation, ended.rule);
        self.events.tell(occurrence);
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

fn key(flow: &Flow) -> Key {
    (flow.hook, flow.pod, flow.client, flow.destination)
}

impl Recorder for Told {
    fn opened(&self, flow: &Flow) {
        let labels = self.labels(flow);
        if flow.hook == Hook::Inbound {
            self.metrics.allow(&labels);
            self.allowed(flow);
        }
        let connection = self.metrics.open(&labels);
        self.open().insert(key(flow), connection);
    }

    fn bytes(&self, flow: &Flow, sent: u64, received: u64) {
        if let Some(connection) = self.open().get(&key(flow)) {
            connection.read(sent);
            connection.wrote(received);
        }
    }

    fn closed(&self, flow: &Flow, ending: &Ending) {
        let connection = self.open().remove(&key(flow));
        let labels = self.labels(flow);
        match (connection, ending) {
            (Some(connection), Ending::Reset | Ending::Lost) => {
                self.metrics.close_with(connection, &labels, "ECONNRESET");
            }
            (connection, Ending::Terminated(refusal)) => {
                drop(connection);
                if flow.hook == Hook::Inbound {
                    self.metrics.terminate(&labels);
                }
                self.events.tell(self.occurrence(flow, Reason::Revoked, &refusal.rule));
            }
            _ => {}
        }
    }

    fn refused(&self, flow: &Flow, refusal: &Refusal) {
        if flow.hook == Hook::Inbound {
            self.metrics.deny(&self.labels(flow));
        }
        let pod = self.pods.get(flow.pod);
        let name = pod.as_ref().map_or("", |entry| &entry.name);
        self.metrics.decide(flow.hook, Outcome::Refuse, refusal.reason, name);
        self.events.tell(self.occurrence(flow, refusal.reason, &refusal.rule));
    }

    fn handshake(&self, hook: Hook, pod: PodId) {
        let pod = self.pods.get(pod);
        self.metrics.handshake(hook, pod.as_ref().map_or("", |entry| &entry.name));
    }
}
