//! Decisions by name: what the agent asks once it knows who a client is, and where a connection leads.

use std::net::IpAddr;

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason, Verdict},
    policy::{PORT_NEEDS_REQUEST, ServiceKey},
};

use crate::{
    authorizations::Presented,
    compile::{Compiled, PodPolicy},
    names::IdentityName,
    resources::ObjectName,
    settings::ClusterSettings,
    verdict::{self, Connect, TCP, Tables},
    workloads::WorkloadInfo,
};

/// Who a client is, as its certificate says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientIdentity {
    /// It showed no certificate.
    None,
    /// It showed one, which was verified, with these names.
    Mesh {
        /// The DNS form.
        dns: Option<String>,
        /// The SPIFFE form.
        spiffe: Option<String>,
    },
}

impl From<&IdentityName> for ClientIdentity {
    fn from(name: &IdentityName) -> Self {
        Self::Mesh { dns: Some(name.dns().to_owned()), spiffe: Some(name.spiffe().to_owned()) }
    }
}

/// A decision, and the rule that made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What becomes of the connection and why, with the rule's id in [`crate::tables::TableSet::rules`].
    pub verdict: Verdict,
    /// The rule's name; where nothing allows, that of the Server or default policy that governs the port.
    pub rule: String,
    /// Whether only `audit` allows it: a `deny` would have refused.
    pub audited: bool,
}

impl Decision {
    /// Whether the connection may go on.
    pub fn allowed(&self) -> bool {
        self.verdict.outcome != Outcome::Refuse
    }
}

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
    /// In plain text.
    Plain(Decision),
    /// Not at all.
    Refuse(Decision),
}

impl Compiled {
    /// Judges a client that reached a meshed pod of this node, by its certificate's names and its address.
    ///
    /// For clients without identity, and for identities that a pod of this node has, this and the kernel's tables
    /// agree; it knows identities too that no pod in the snapshot has. Whether the pod is captured is the caller's to
    /// know.
    pub fn authorize(
        &self,
        server: &Address,
        port: u16,
        client: &ClientIdentity,
        client_address: IpAddr,
    ) -> Decision {
        let Some(policy) = self.policies.get(server) else {
            return self.refuse(Reason::NotCaptured, "");
        };
        let rules = policy.port(port);
        if rules.flags & PORT_NEEDS_REQUEST != 0 {
            return self.refuse(Reason::NeedsRequest, &rules.governs);
        }
        let presented = match client {
            ClientIdentity::None => None,
            ClientIdentity::Mesh { dns, spiffe } => {
                match Presented::read(&self.settings.naming, dns.as_deref(), spiffe.as_deref()) {
                    Some(presented) => Some(presented),
                    None => return self.refuse(Reason::NoIdentity, &rules.governs),
                }
            }
        };
        let address = Address::from(client_address);
        if presented.is_none()
            && let Some(refused) = self.refuse_unauthenticated(&address, policy, port)
        {
            return refused;
        }
        let client_address = address.to_ip();
        match rules.grants.iter().find(|grant| grant.holds(presented.as_ref(), &client_address)) {
            Some(grant) => {
                let reason = if presented.is_some() { Reason::Authorized } else { Reason::Unauthenticated };
                let verdict = Verdict::proxy(reason, self.rule_id(&grant.rule));
                let audited = grant.specificity == crate::authorizations::Specificity::Audit;
                Decision { verdict, rule: grant.rule.to_string(), audited }
            }
            None if presented.is_some() => self.refuse(Reason::Unauthorized, &rules.governs),
            None => self.refuse(Reason::NoIdentity, &rules.governs),
        }
    }

    /// A client without identity at an address that a meshed pod has, or that none of the pods' network has, is not
    /// what it seems.
    fn refuse_unauthenticated(&self, client: &Address, policy: &PodPolicy, port: u16) -> Option<Decision> {
        let rules = policy.port(port);
        match self.by_address.get(client) {
            Some(info) if info.meshed() && rules.grants.is_empty() => {
                Some(self.refuse(Reason::Unauthorized, &rules.governs))
            }
            Some(info) if info.meshed() => Some(self.refuse(Reason::NoIdentity, &rules.governs)),
            Some(_) => None,
            None => {
                let inside = self
                    .tables
                    .with_captured(|_| None)
                    .network(heddle_ebpf::policy::NETWORKS_PODS, client)
                    .copied();
                inside
                    .is_some_and(|network| network.allow == 1)
                    .then(|| self.refuse(Reason::UnknownClusterAddress, ""))
            }
        }
    }

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
            .filter_map(|index| {
                self.tables.backends.get(&heddle_ebpf::policy::BackendKey { service: row.service, index })
            })
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
            Some(_) => Route::To { service: self.services.get(destination).cloned(), endpoints, chosen },
            None => Route::Refuse(self.refuse(Reason::NoEndpoints, "")),
        }
    }

    fn hop(&self, address: &Address, verdict: Verdict) -> Hop {
        let decision = Decision { verdict, rule: self.tables.rule(verdict.rule).to_owned(), audited: false };
        let info = self.by_address.get(address);
        match (verdict.outcome, verdict.reason, info.and_then(|info| info.identity.clone())) {
            (Outcome::Refuse, _, _) => Hop::Refuse(decision),
            (_, Reason::Meshed | Reason::Authorized, Some(identity)) => {
                Hop::Mesh { identity, local: info.is_some_and(|info| info.local), decision }
            }
            (Outcome::Direct, _, _) => Hop::Plain(decision),
            // A meshed address without an identity to demand: never in the clear.
            (Outcome::Proxy, _, _) => Hop::Refuse(self.refuse(Reason::UnknownClusterAddress, "")),
        }
    }

    /// The pod that has an address.
    pub fn workload(&self, address: &Address) -> Option<&WorkloadInfo> {
        self.by_address.get(address).map(AsRef::as_ref)
    }

    /// A pod by its name, whatever its standing.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&WorkloadInfo> {
        self.pods.get(&ObjectName::new(namespace, name)).map(AsRef::as_ref)
    }

    /// Every pod, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &WorkloadInfo> {
        self.pods.values().map(AsRef::as_ref)
    }

    /// The Service that has an address.
    pub fn service(&self, address: &Address) -> Option<&ObjectName> {
        self.services.get(address)
    }

    /// The settings that were compiled with.
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    fn refuse(&self, reason: Reason, rule: &str) -> Decision {
        let verdict = Verdict::refuse(reason, self.rule_id(rule));
        Decision { verdict, rule: rule.to_owned(), audited: false }
    }

    fn rule_id(&self, rule: &str) -> u32 {
        self.rule_ids.get(rule).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
