//! Where a connection leads that a pod opens, by name.

use std::sync::Arc;

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason, Verdict},
    policy::{BackendKey, ServiceKey},
};

use crate::{
    base::External,
    compile::Compiled,
    decide::Decision,
    names::IdentityName,
    request::Host,
    resources::ObjectName,
    settings::ClusterSettings,
    verdict::{self, Connect, TCP},
    ways::{NameRule, Way},
    workloads::WorkloadInfo,
};

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// To one of these endpoints.
    To {
        /// The Service that was asked for, if it was one.
        service: Option<ObjectName>,
        /// Every endpoint; for what is not a Service, the destination alone.
        endpoints: Vec<Endpoint>,
        /// The one that the kernel would choose for the same random number.
        chosen: usize,
    },
    /// Nowhere.
    Refuse(Decision),
}

/// One place that a connection may lead to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// How it may be reached.
    pub hop: Hop,
}

/// How an endpoint may be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hop {
    /// In mutual TLS, if the far side shows this identity.
    Mesh {
        /// What must be demanded.
        identity: IdentityName,
        /// Whether it is a pod of this node.
        local: bool,
        /// The verdict. `Direct`: the kernel would carry it alone.
        decision: Decision,
    },
    /// In mutual TLS to a workload outside the cluster, if it shows its identity.
    External {
        /// What must be asked for and demanded.
        workload: External,
        /// The verdict.
        decision: Decision,
    },
    /// In plain text.
    Plain(Decision),
    /// Not at all.
    Refuse(Decision),
}

impl Compiled {
    /// Works out where a connection that an application in the pod at `source` opens may lead, and whom the agent must
    /// demand there. `captured` tells the digest of the UID of the pod that is captured on this node at an address.
    pub fn outbound(
        &self,
        source: &Address,
        destination: &Address,
        port: u16,
        captured: impl Fn(&Address) -> Option<u64>,
        random: u32,
    ) -> Route {
        let view = self.tables.with_captured(captured);
        let judge = |address: &Address, port: u16| {
            let connect = Connect { source: *source, destination: *address, port, protocol: TCP, random };
            verdict::outbound(&view, &connect).verdict
        };
        let key = ServiceKey { address: *destination, port, protocol: TCP, pad: 0 };
        let row = self.tables.services.get(&key);
        let Some(row) = row.filter(|row| row.backends > 0) else {
            let hop = self.hop(destination, judge(destination, port));
            return match hop {
                Hop::Refuse(decision) => Route::Refuse(decision),
                hop => Route::To {
                    service: None,
                    endpoints: vec![Endpoint { address: *destination, port, hop }],
                    chosen: 0,
                },
            };
        };
        let endpoints: Vec<Endpoint> = (0..row.backends)
            .filter_map(|index| self.tables.backends.get(&BackendKey { service: row.service, index }))
            .map(|backend| Endpoint {
                address: backend.address,
                port: backend.port,
                hop: self.hop(&backend.address, judge(&backend.address, backend.port)),
            })
            .collect();
        let chosen = (random % row.backends) as usize;
        let all_refuse = endpoints.iter().all(|endpoint| matches!(endpoint.hop, Hop::Refuse(_)));
        match endpoints.get(chosen).map(|endpoint| &endpoint.hop) {
            Some(Hop::Refuse(decision)) if all_refuse => Route::Refuse(decision.clone()),
            Some(_) => {
                Route::To { service: self.base.service_names.get(destination).cloned(), endpoints, chosen }
            }
            None => Route::Refuse(self.refuse(Reason::NoEndpoints)),
        }
    }

    fn hop(&self, address: &Address, verdict: Verdict) -> Hop {
        let decision = Decision::of(verdict, self.tables.rule(verdict.rule).into());
        let info = self.base.by_address.get(address);
        match (verdict.outcome, verdict.reason, info.and_then(|info| info.identity.clone())) {
            (Outcome::Refuse, _, _) => Hop::Refuse(decision),
            (_, Reason::Meshed | Reason::Authorized, Some(identity)) => {
                Hop::Mesh { identity, local: info.is_some_and(|info| info.local), decision }
            }
            (Outcome::Direct, _, _) => Hop::Plain(decision),
            (Outcome::Proxy, _, _) => match self.external(address) {
                Some(workload) => Hop::External { workload: workload.clone(), decision },
                // A meshed address without an identity to demand: never in the clear.
                None => Hop::Refuse(self.refuse(Reason::UnknownClusterAddress)),
            },
        }
    }

    /// The pod that has an address.
    pub fn workload(&self, address: &Address) -> Option<&WorkloadInfo> {
        self.base.by_address.get(address).map(AsRef::as_ref)
    }

    /// A pod by its name, whatever its standing.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&WorkloadInfo> {
        self.base.pod(namespace, name).map(AsRef::as_ref)
    }

    /// Every pod, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &WorkloadInfo> {
        self.base.all_pods().map(AsRef::as_ref)
    }

    /// The Service that has an address.
    pub fn service(&self, address: &Address) -> Option<&ObjectName> {
        self.base.service_names.get(address)
    }

    /// The settings that were compiled with.
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    /// The workload outside the cluster that has an address.
    pub fn external(&self, address: &Address) -> Option<&External> {
        self.base.externals.get(address).map(AsRef::as_ref)
    }

    /// Judges the name (SNI, or a request's host) that a pod asks for at a plain destination, where the tables leave it
    /// to the name.
    pub fn by_name(&self, source: &Address, destination: &Address, port: u16, host: &str) -> Decision {
        let rules = self.policies.get(source).and_then(|it| it.egress.as_ref()).map(|it| it.tcp.port(port));
        let Some(rules) = rules else { return self.refuse(Reason::OutboundDenied) };
        let Ok(host) = Host::read(host) else { return self.refuse(Reason::BadRequest) };
        let found = rules.by_name(host.as_str(), &destination.to_ip());
        let here = rules.at(&destination.to_ip());
        let way = if let Way::ByName(_, unnamed) = here { unnamed } else { here };
        match (found, here, way) {
            (Some(rule), ..) if rule.denies => self.refuse_by(Reason::Denied, &rule.rule),
            (_, Way::Deny(rule), _) | (None, _, Way::Deny(rule)) => self.refuse_by(Reason::Denied, rule),
            (Some(NameRule { rule, .. }), ..) | (None, _, Way::Allow(rule)) => {
                Decision::of(Verdict::direct(Reason::PlainOutside, self.rule_id(rule)), rule.clone())
            }
            (None, ..) => self.by_default(destination),
        }
    }

    /// What `defaultOutbound` says of a plain destination.
    fn by_default(&self, destination: &Address) -> Decision {
        use crate::settings::DefaultOutbound;
        let address = destination.to_ip();
        let inside = self.base.cluster_networks.iter().any(|net| net.contains(&address));
        let rule = Arc::default();
        match self.settings.default_outbound {
            DefaultOutbound::Allow => Decision::of(Verdict::direct(Reason::PlainOutside, 0), rule),
            DefaultOutbound::Cluster if inside => {
                Decision::of(Verdict::direct(Reason::PlainCluster, 0), rule)
            }
            DefaultOutbound::Cluster => self.refuse(Reason::OutboundOutsideCluster),
            DefaultOutbound::Deny => self.refuse(Reason::OutboundDenied),
        }
    }
}
