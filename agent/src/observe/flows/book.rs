//! The flows of one interval.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use heddle_ebpf::codes::Reason;
use time::OffsetDateTime;

use super::{
    super::record::{EventRecord, Names},
    record::{FlowEnd, FlowLine, FlowOutcome, FlowRecord, LeftOut, VERSION},
};

/// How many sorts of flows one interval holds: each is a record.
const MOST: usize = 4096;

/// A connection, or several that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeenFlow {
    /// The client's address.
    pub client: IpAddr,
    /// The client's identity, where it is known from a certificate; else it is looked up by address.
    pub client_identity: Option<Arc<str>>,
    /// The server's address and port.
    pub server: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// What became of it.
    pub outcome: FlowOutcome,
    /// Why: [`heddle_ebpf::codes::Reason::as_str`].
    pub reason: &'static str,
    /// The rule that decided, or what governs the port and has none.
    pub rule: Option<Arc<str>>,
    /// Only `audit` let it pass: why a `deny` would have refused it.
    pub audit: Option<&'static str>,
}

struct Kept {
    source: FlowEnd,
    destination: FlowEnd,
    count: u64,
    first: SystemTime,
    last: SystemTime,
}

#[derive(Default)]
struct Page {
    flows: HashMap<SeenFlow, Kept>,
    left_out: u64,
}

/// Where flows are told.
pub struct FlowBook {
    node: Arc<str>,
    names: Arc<dyn Names>,
    most: usize,
    page: Mutex<Page>,
}

impl std::fmt::Debug for FlowBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowBook").field("node", &self.node).finish_non_exhaustive()
    }
}

impl FlowBook {
    /// The flows of `node`.
    pub fn new(node: &str, names: Arc<dyn Names>) -> Self {
        Self { node: node.into(), names, most: MOST, page: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn bounded(node: &str, names: Arc<dyn Names>, most: usize) -> Self {
        Self { most, ..Self::new(node, names) }
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many connections were judged.
    pub fn saw(&self, flow: SeenFlow, count: u64, when: SystemTime) {
        let mut page = self.page();
        let full = page.flows.len() >= self.most;
        match page.flows.entry(flow) {
            Entry::Occupied(kept) => {
                let kept = kept.into_mut();
                kept.count += count;
                kept.last = kept.last.max(when);
            }
            Entry::Vacant(_) if full => page.left_out += count,
            Entry::Vacant(place) => {
                // Named now: the pod may be gone when the record is written.
                let flow = place.key();
                let source = self.end(flow.client, None, flow.client_identity.clone());
                let destination = self.end(flow.server.ip(), Some(flow.server.port()), None);
                place.insert(Kept { source, destination, count, first: when, last: when });
            }
        }
    }

    /// A refusal was told as an event. What is no connection to a port, and what the far side alone can name the reason of,
    /// is no flow.
    pub fn refused(&self, event: &EventRecord) {
        let protocol = match &*event.protocol {
            "tcp" if event.length == 0 => "tcp",
            "udp" => "udp",
            _ => return,
        };
        let connection = event.destination.port != 0;
        let not_here = [Reason::RefusedByPeer, Reason::Revoked].iter().any(|it| it.as_str() == event.reason);
        if !connection || !event.is_refusal() || not_here {
            return;
        }
        let flow = SeenFlow {
            client: event.source.address,
            client_identity: event.source.identity.clone(),
            server: SocketAddr::new(event.destination.address, event.destination.port),
            protocol,
            outcome: FlowOutcome::Refused,
            reason: event.reason,
            rule: event.rule.clone(),
            audit: None,
        };
        self.saw(flow, 1, event.time.into());
    }

    /// So many connections cannot be told apart any more.
    pub fn lost(&self, count: u64) {
        self.page().left_out += count;
    }

    fn end(&self, address: IpAddr, port: Option<u16>, identity: Option<Arc<str>>) -> FlowEnd {
        let found = self.names.workload(address);
        let identity = identity.or_else(|| found.as_ref().and_then(|it| it.identity.clone()));
        FlowEnd {
            address: address.to_canonical(),
            port,
            pod: found.as_ref().map(|it| it.name.to_string()),
            workload: found.map(|it| it.workload.to_string()),
            identity: identity.map(|it| it.to_string()),
        }
    }

    /// Takes what was seen since the last time.
    pub fn take(&self, now: SystemTime) -> Vec<FlowLine> {
        let Page { flows, left_out } = std::mem::take(&mut *self.page());
        let mut lines: Vec<FlowLine> = flows
            .into_iter()
            .map(|(flow, kept)| {
                FlowLine::Flow(Box::new(FlowRecord {
                    version: VERSION,
                    node: self.node.to_string(),
                    first: OffsetDateTime::from(kept.first),
                    last: OffsetDateTime::from(kept.last),
                    count: kept.count,
                    protocol: flow.protocol.into(),
                    source: kept.source,
                    destination: kept.destination,
                    outcome: flow.outcome,
                    reason: flow.reason.into(),
                    rule: flow.rule.map(|rule| rule.to_string()),
                    audit: flow.audit.map(str::to_owned),
                }))
            })
            .collect();
        if left_out > 0 {
            let why = format!(
                "more than {} sorts of flows within one interval, or the kernel's map was full",
                self.most
            );
            lines.push(FlowLine::LeftOut(self.left_out(left_out, why, now)));
        }
        lines
    }

    /// A line that says what is missing.
    pub fn left_out(&self, count: u64, why: impl Into<String>, now: SystemTime) -> LeftOut {
        LeftOut {
            version: VERSION,
            node: self.node.to_string(),
            time: OffsetDateTime::from(now),
            left_out: count,
            why: why.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::record::WorkloadName;

    struct Shop;

    impl Names for Shop {
        fn pod(&self, _: u64) -> Option<Arc<str>> {
            None
        }
        fn workload(&self, address: IpAddr) -> Option<WorkloadName> {
            (address.to_string() == "10.1.0.5").then(|| WorkloadName {
                name: "shop/web-7d9f-x2x4z".into(),
                workload: "shop/web".into(),
                identity: Some("web.shop.serviceaccount.identity.linkerd.cluster.local".into()),
            })
        }
        fn rule(&self, _: u64, _: u32) -> Option<Arc<str>> {
            None
        }
    }

    fn flow(client: &str, port: u16) -> SeenFlow {
        SeenFlow {
            client: client.parse().unwrap(),
            client_identity: None,
            server: SocketAddr::new("10.1.0.9".parse().unwrap(), port),
            protocol: "tcp",
            outcome: FlowOutcome::Allowed,
            reason: Reason::Authorized.as_str(),
            rule: Some("Server shop/db (accessPolicy audit)".into()),
            audit: Some(Reason::Unauthorized.as_str()),
        }
    }

    #[test]
    fn connections_that_are_alike_are_one_record_with_names_and_times() {
        let book = FlowBook::new("a", Arc::new(Shop));
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        for seconds in [5, 9, 7] {
            book.saw(flow("10.1.0.5", 5432), 2, at(seconds));
        }
        let lines = book.take(at(10));
        let [FlowLine::Flow(record)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((record.count, record.first.unix_timestamp(), record.last.unix_timestamp()), (6, 5, 9));
        insta::assert_snapshot!(lines[0].to_json());
        assert_eq!(FlowLine::parse(&lines[0].to_json()).unwrap(), lines[0], "it is read as it was written");
        assert!(book.take(at(11)).is_empty(), "told once");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let book = FlowBook::bounded("a", Arc::new(Shop), 2);
        for port in [1, 2, 3, 4, 1] {
            book.saw(flow("10.1.0.7", port), 1, SystemTime::UNIX_EPOCH);
        }
        book.lost(5);
        let lines = book.take(SystemTime::UNIX_EPOCH);
        let counted: u64 =
            lines.iter().map(|it| if let FlowLine::Flow(it) = it { it.count } else { 0 }).sum();
        let left: u64 =
            lines.iter().map(|it| if let FlowLine::LeftOut(it) = it { it.left_out } else { 0 }).sum();
        assert_eq!((lines.len(), counted, left), (3, 3, 7), "{lines:?}");
        assert_eq!(FlowLine::parse(&lines[2].to_json()).unwrap(), lines[2]);
    }
}
