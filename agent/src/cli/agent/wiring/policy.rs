//! The data plane's decisions are made over the snapshot in force.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason},
    policy::{PORT_L4_ONLY, WORKLOAD_TAKES_PLAIN},
};
use heddle_identity::Trust;
use heddle_policy::{
    ClientIdentity, Compiled, Endpoint, Hop, Route,
    resources::{Check, Passage},
    verdict::{self, TCP, Tables as _},
};
use tokio::sync::watch;

use super::pods::Pods;
use crate::{
    cluster::snapshot::SnapshotReader,
    proxy::environment::{Decision, InboundClass, PeerName, PodId, Policy, Refusal, Upstream},
};

pub(super) struct SnapshotPolicy {
    pub pods: Arc<Pods>,
    pub rules: SnapshotReader<Compiled>,
    /// Whose names are known: the own trust domain's and those that are federated with.
    pub trust: Arc<Trust>,
    /// Chooses among a Service's endpoints, one after the other.
    pub turn: AtomicU32,
    pub changes: watch::Receiver<u64>,
}

impl SnapshotPolicy {
    fn route(&self, pod: PodId, destination: SocketAddr, turn: u32) -> Result<Route, Refusal> {
        let entry = self.pods.get(pod).ok_or_else(|| Refusal::new(Reason::NotCaptured))?;
        let snapshot = self.rules.peek();
        let snapshot = snapshot.as_ref().ok_or_else(|| Refusal::new(Reason::TablesClosed))?;
        let ip = destination.ip().to_canonical();
        Ok(snapshot.compiled.outbound(
            &entry.address_like(ip),
            &Address::from(ip),
            destination.port(),
            |address| self.pods.captured(address),
            turn,
        ))
    }
}

/// Who a client is by the name that its connection is told of with: in its SPIFFE form, it has no other.
pub(super) fn told(trust: &Trust, name: &str) -> Option<ClientIdentity> {
    let account = trust.parse(name).ok()?;
    Some(if name == account.spiffe() {
        ClientIdentity::SpiffeAlone(account)
    } else {
        ClientIdentity::Account(account)
    })
}

fn refusal(decision: &heddle_policy::Decision) -> Refusal {
    Refusal::by(decision.verdict.reason, (&*decision.rule).into())
}

fn upstream(trust: &Trust, endpoint: &Endpoint) -> Result<Upstream, Refusal> {
    let address = SocketAddr::new(endpoint.address.to_ip(), endpoint.port);
    match &endpoint.hop {
        Hop::Mesh { identity, .. } => Ok(Upstream { address, expected: Some(PeerName::from(identity)) }),
        // The identity is asked for by its own name only: another SNI than the name that is demanded is not supported.
        Hop::External { workload, .. } => match trust.parse(&workload.identity) {
            Ok(identity) if identity.dns() == workload.server_name => {
                Ok(Upstream { address, expected: Some(PeerName::new(identity.dns())) })
            }
            Ok(_) | Err(_) => Err(Refusal::new(Reason::NoIdentity)),
        },
        Hop::Plain(_) => Ok(Upstream { address, expected: None }),
        Hop::Refuse(decision) => Err(refusal(decision)),
    }
}

impl Policy for SnapshotPolicy {
    fn resolve(&self, pod: PodId, destination: SocketAddr) -> Result<Upstream, Refusal> {
        match self.route(pod, destination, self.turn.fetch_add(1, Ordering::Relaxed))? {
            Route::Refuse(decision) => Err(refusal(&decision)),
            Route::To { endpoints, chosen, .. } => {
                // The one whose turn it is, or the next that may be reached.
                let after = endpoints.iter().cycle().skip(chosen).take(endpoints.len());
                let mut first = Err(Refusal::new(Reason::NoEndpoints));
                for (tried, endpoint) in after.enumerate() {
                    let found = upstream(&self.trust, endpoint);
                    if found.is_ok() {
                        return found;
                    }
                    if tried == 0 {
                        first = found;
                    }
                }
                first
            }
        }
    }

    fn may_continue(&self, pod: PodId, live: &Upstream) -> Result<(), Refusal> {
        match self.route(pod, live.address, 0)? {
            Route::Refuse(decision) => Err(refusal(&decision)),
            Route::To { endpoints, .. } => {
                let endpoint = endpoints.first().ok_or_else(|| Refusal::new(Reason::NoEndpoints))?;
                // Another pod at the same address is another destination; one that is on its way is the same.
                let on_its_way = || {
                    let snapshot = self.rules.peek();
                    let address = Address::from(live.address.ip().to_canonical());
                    let known = snapshot.as_ref().and_then(|it| it.compiled.workload(&address));
                    known.is_some_and(|info| {
                        let own = info.identity.as_ref().map(|it| it.dns());
                        let same = live.expected.as_ref().is_none_or(|it| Some(it.as_str()) == own);
                        same && info.passage != Passage::Over
                    })
                };
                let same = upstream(&self.trust, endpoint)? == *live || on_its_way();
                if same { Ok(()) } else { Err(Refusal::new(Reason::Revoked)) }
            }
        }
    }

    fn is_new(&self, pod: PodId) -> bool {
        self.pods.get(pod).is_some_and(|entry| entry.is_new(Instant::now()))
    }

    fn inbound_class(&self, pod: PodId, client: IpAddr, port: u16) -> Result<InboundClass, Refusal> {
        let entry = self.pods.get(pod).ok_or_else(|| Refusal::new(Reason::NotCaptured))?;
        let snapshot = self.rules.peek();
        let snapshot = snapshot.as_ref().ok_or_else(|| Refusal::new(Reason::TablesClosed))?;
        let tables = snapshot.compiled.tables.with_captured(|address: &Address| self.pods.captured(address));
        let server = entry.address_like(client);
        let found = verdict::inbound(&tables, &Address::from(client.to_canonical()), &server, port, TCP);
        if found.outcome != Outcome::Proxy {
            let rule = snapshot.compiled.tables.rule(found.rule).into();
            return Err(Refusal::by(found.reason, rule));
        }
        if found.reason == Reason::Meshed {
            let on_its_way = |address: &Address| {
                tables.workload(address).is_some_and(|row| row.flags & WORKLOAD_TAKES_PLAIN != 0)
            };
            let either = on_its_way(&server) || on_its_way(&Address::from(client.to_canonical()));
            return Ok(if either { InboundClass::Either } else { InboundClass::MeshTls });
        }
        let opaque = tables
            .workload(&server)
            .and_then(|workload| verdict::port_policy(&tables, workload.policy, port, TCP))
            .is_some_and(|port| port.flags & PORT_L4_ONLY != 0);
        Ok(InboundClass::Plain { server_first: opaque })
    }

    fn authorize(&self, pod: PodId, port: u16, identity: Option<&PeerName>, client: IpAddr) -> Decision {
        let refuse = |reason| Decision { allowed: false, reason, rule: "".into() };
        let Some(entry) = self.pods.get(pod) else {
            return refuse(Reason::NotCaptured);
        };
        let snapshot = self.rules.peek();
        let Some(snapshot) = snapshot.as_ref() else {
            return refuse(Reason::TablesClosed);
        };
        let server = entry.address_like(client);
        // The address may belong to another pod by now, though the namespace is still this one's.
        if snapshot.compiled.workload(&server).is_none_or(|known| known.digest != entry.captured.row.uid) {
            return refuse(Reason::NotCaptured);
        }
        let judged = |decision: heddle_policy::Decision| Decision {
            allowed: decision.allowed(),
            reason: decision.verdict.reason,
            rule: (&*decision.rule).into(),
        };
        let identity = match identity {
            None => return judged(snapshot.compiled.authorize_in_passage(&server, port, client)),
            Some(name) => match name.account() {
                Some(account) => ClientIdentity::from(account),
                // Of another trust domain, for as long as that is trusted, or with a SPIFFE name alone.
                None => match told(&self.trust, name.as_str()) {
                    Some(client) => client,
                    None => return refuse(Reason::NoIdentity),
                },
            },
        };
        judged(snapshot.compiled.authorize(&server, port, &identity, client.to_canonical()))
    }

    fn probes(&self, pod: PodId, address: IpAddr, port: u16) -> Vec<Check> {
        let Some(entry) = self.pods.get(pod) else { return Vec::new() };
        let snapshot = self.rules.peek();
        let known = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.compiled.workload(&Address::from(address.to_canonical())))
            // The address may belong to another pod by now, though the namespace is still this one's.
            .filter(|known| known.digest == entry.captured.row.uid);
        let probes = known.map_or(&[][..], |known| &known.probes);
        probes.iter().filter(|probe| probe.port == port).map(|probe| probe.check.clone()).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
