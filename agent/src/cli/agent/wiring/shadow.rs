//! What only `audit` lets pass, and what a rule that is only tried would have refused.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_ebpf::{Address, codes::Reason};
use heddle_identity::Trust;
use heddle_policy::{ClientIdentity, Compiled};

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
            Some(text) => match self.trust.parse(text) {
                Ok(name) => ClientIdentity::from(&name),
                Err(_) => ClientIdentity::Mesh { dns: Some(text.to_owned()), spiffe: None },
            },
        };
        let to = Address::from(server.ip().to_canonical());
        let decision = snapshot.compiled.authorize(&to, server.port(), &known, client.to_canonical());
        if decision.audited {
            let reason = if identity.is_some() { Reason::Unauthorized } else { Reason::NoIdentity };
            return Some(WouldRefuse { reason, rule: decision.rule });
        }
        let tried =
            decision.tried.filter(|_| decision.verdict.outcome != heddle_ebpf::codes::Outcome::Refuse)?;
        Some(WouldRefuse { reason: Reason::Denied, rule: tried })
    }
}
