//! What only `audit` lets pass, and what a rule that is only tried would have refused.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_ebpf::{Address, codes::Reason};
use heddle_identity::Trust;
use heddle_policy::{ClientIdentity, Compiled, Datagram, Decision, Sender};

use super::policy::told;
use crate::cluster::snapshot::SnapshotReader;

/// A refusal that did not happen.
pub(super) struct WouldRefuse {
    pub reason: Reason,
    /// The rule in audit, or the one that is tried.
    pub rule: Arc<str>,
}

/// Judges what was let pass once more, by the snapshot in force, for what the decision says beside its outcome.
pub(super) struct Shadow {
    rules: SnapshotReader<Compiled>,
    trust: Arc<Trust>,
}

impl Shadow {
    pub const fn new(rules: SnapshotReader<Compiled>, trust: Arc<Trust>) -> Self {
        Self { rules, trust }
    }

    /// Why a connection that was let pass would have been refused; `None`: it would not.
    pub fn would_refuse(
        &self,
        client: IpAddr,
        identity: Option<&str>,
        server: SocketAddr,
    ) -> Option<WouldRefuse> {
        let snapshot = self.rules.peek();
        let snapshot = snapshot.as_ref()?;
        let known = match identity {
            None => ClientIdentity::None,
            Some(text) => told(&self.trust, text)
                .unwrap_or_else(|| ClientIdentity::Mesh { dns: Some(text.to_owned()), spiffe: None }),
        };
        let to = Address::from(server.ip().to_canonical());
        let decision = snapshot.compiled.authorize(&to, server.port(), &known, client.to_canonical());
        refused_but_for_audit(decision, identity.is_some())
    }

    /// The rule by which a conversation in UDP was let pass, and why it would have been refused; none: it would not, or the
    /// rules have changed since.
    pub fn datagram(&self, client: IpAddr, server: SocketAddr) -> (Option<Arc<str>>, Option<WouldRefuse>) {
        let snapshot = self.rules.peek();
        let Some(snapshot) = snapshot.as_ref() else { return (None, None) };
        let (from, to) = (client.to_canonical(), Address::from(server.ip().to_canonical()));
        let pod = snapshot.compiled.workload(&Address::from(from)).filter(|it| it.local && it.meshed());
        let sender = pod.and_then(|it| it.identity.as_ref()).map_or(Sender::Elsewhere, Sender::Here);
        let asked = Datagram { sender, address: from, server: to, port: server.port() };
        let decision = snapshot.compiled.decide_datagram(&asked);
        if !decision.allowed() {
            return (None, None);
        }
        let rule = (!decision.rule.is_empty()).then(|| Arc::clone(&decision.rule));
        (rule, refused_but_for_audit(decision, matches!(sender, Sender::Here(_))))
    }
}

fn refused_but_for_audit(decision: Decision, known: bool) -> Option<WouldRefuse> {
    if decision.audited {
        let reason = if known { Reason::Unauthorized } else { Reason::NoIdentity };
        return Some(WouldRefuse { reason, rule: decision.rule });
    }
    let allowed = decision.allowed();
    let tried = decision.tried.filter(|_| allowed)?;
    Some(WouldRefuse { reason: Reason::Denied, rule: tried })
}
