//! The decision about who reaches a pod with a datagram. Nobody encrypts one, and nobody asks its sender for a certificate.

use std::{net::IpAddr, sync::Arc};

use heddle_ebpf::{
    Address,
    codes::{Reason, Verdict},
    policy::{NETWORK_ALLOW, NETWORKS_PODS, WORKLOAD_DNS},
};

use crate::{
    clients::Presented,
    compile::Compiled,
    decide::Decision,
    explain::{self, Explanation},
    grants::Who,
    names::IdentityName,
    policy::PodPolicy,
    settings::SameNode,
    verdict::Tables,
};

/// Where names are asked for.
const DNS: u16 = 53;

/// Who sends a datagram, as far as anything proves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender<'a> {
    /// The captured pod of the same node that has the address: its veth proves it.
    Here(&'a IdentityName),
    /// Anybody else. An address proves nobody.
    Elsewhere,
}

/// A datagram that reaches a meshed pod and answers none of the pod's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram<'a> {
    /// Who sends it.
    pub sender: Sender<'a>,
    /// From where.
    pub address: IpAddr,
    /// The pod's address.
    pub server: Address,
    /// The port that it reaches.
    pub port: u16,
}

impl Compiled {
    /// Judges a datagram that reaches a meshed pod of this node. This and the kernel's tables agree.
    pub fn decide_datagram(&self, datagram: &Datagram<'_>) -> Decision {
        let Some(policy) = self.policies.get(&datagram.server) else {
            return self.refuse(Reason::NotCaptured);
        };
        let decision = match self.sender(datagram) {
            Err(decision) => decision,
            Ok(who) => self.judge_datagram(datagram, &policy.inbound, &who),
        };
        if self.asks_for_names(datagram) && decision.verdict.reason != Reason::Denied {
            // Names are asked for before there is anybody to be authenticated to. A rule that denies it holds.
            return Decision::of(Verdict::direct(Reason::PlainCluster, 0), Arc::default());
        }
        decision
    }

    fn asks_for_names(&self, datagram: &Datagram<'_>) -> bool {
        let server = self.tables.workloads.get(&datagram.server);
        datagram.port == DNS && server.is_some_and(|row| row.flags & WORKLOAD_DNS != 0)
    }

    /// Explains the same.
    pub fn explain_datagram(&self, datagram: &Datagram<'_>) -> Explanation {
        let mut it = Explanation::of(self.decide_datagram(datagram));
        let Some(policy) = self.policies.get(&datagram.server) else { return it };
        let rules = policy.inbound.udp.port(datagram.port);
        it.governs = rules.governs.to_string();
        it.protocol = "UDP".to_owned();
        if let Ok(who) = self.sender(datagram) {
            explain::consider(&mut it, &rules.grants, &who, &datagram.address.to_canonical());
        }
        it
    }

    /// Who a datagram's sender is to the rules, or the decision that needs none.
    fn sender<'a>(&self, datagram: &Datagram<'a>) -> Result<Who<'a>, Decision> {
        let names = self.asks_for_names(datagram);
        if let Sender::Here(identity) = datagram.sender {
            return match self.settings.same_node {
                SameNode::Encrypt if !names => Err(self.refuse(Reason::PlainToMeshed)),
                _ => Ok(Who::Known(Presented::of(identity))),
            };
        }
        if names {
            return Ok(Who::Nobody);
        }
        let address = Address::from(datagram.address.to_canonical());
        match self.base.by_address.get(&address) {
            Some(info) if info.meshed() => Err(self.refuse(Reason::PlainToMeshed)),
            Some(_) => Ok(Who::Nobody),
            None if self.base.externals.contains_key(&address) => Err(self.refuse(Reason::PlainToMeshed)),
            None => {
                let view = self.tables.with_captured(|_| None);
                let inside =
                    view.network(NETWORKS_PODS, &address).is_some_and(|it| it.allow == NETWORK_ALLOW);
                if inside { Err(self.refuse(Reason::UnknownClusterAddress)) } else { Ok(Who::Nobody) }
            }
        }
    }

    fn judge_datagram(&self, datagram: &Datagram<'_>, policy: &PodPolicy, who: &Who<'_>) -> Decision {
        let rules = policy.udp.port(datagram.port);
        let mut decision = self.found(who, &datagram.address.to_canonical(), rules, &rules.grants);
        if decision.allowed() {
            // No agent carries it.
            decision.verdict = Verdict::direct(decision.verdict.reason, decision.verdict.rule);
        }
        decision
    }
}
