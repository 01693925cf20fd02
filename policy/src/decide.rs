//! The decision about who reaches a pod: a connection, and each request of it.

use std::{net::IpAddr, sync::Arc};

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason, Verdict},
    policy::{NETWORKS_PODS, PORT_NEEDS_REQUEST},
};

use crate::{
    clients::ClientIdentity,
    compile::Compiled,
    grant_set::{Found, GrantSet},
    grants::{Specificity, Who},
    limits::RateLimits,
    policy::PortRules,
    request::{Request, RouteEntry, Routed, check_path},
    resources::{Passage, ProxyProtocol},
    verdict::Tables,
};

/// A connection that reached a meshed pod, as far as policy looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who the client is.
    pub client: &'a ClientIdentity,
    /// Where it is: the address on the wire.
    pub address: IpAddr,
    /// The pod's address.
    pub server: Address,
    /// The port that it reached.
    pub port: u16,
}

/// A decision, and the rule that made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What becomes of it and why, with the rule's id in [`crate::tables::TableSet::rules`] (0: it has none there).
    pub verdict: Verdict,
    /// The rule's name; where nothing allows, that of the Server or default policy that governs the port.
    pub rule: Arc<str>,
    /// Whether only `audit` allows it: a `deny` would have refused.
    pub audited: bool,
    /// The first rule that is only tried (`mode: Audit`) and would have turned the answer.
    pub tried: Option<Arc<str>>,
}

impl Decision {
    pub(crate) fn of(verdict: Verdict, rule: Arc<str>) -> Self {
        Self { verdict, rule, audited: false, tried: None }
    }

    /// Whether it may go on.
    pub fn allowed(&self) -> bool {
        self.verdict.outcome != Outcome::Refuse
    }

    /// What a client of HTTP is answered when it is refused: the status, and gRPC's (with HTTP's 200).
    pub fn status(&self) -> (u16, u8) {
        match self.verdict.reason {
            Reason::NoRoute => (404, 5),
            Reason::RateLimited => (429, 8),
            Reason::InvalidPolicy => (500, 13),
            Reason::BadRequest => (400, 3),
            _ => (403, 7),
        }
    }
}

/// A decision about a request.
#[derive(Clone, Debug)]
pub struct RequestDecision<'a> {
    /// The decision.
    pub decision: Decision,
    /// The route that takes the request; `None`: none is attached, or none takes it.
    pub route: Option<MatchedRoute<'a>>,
    /// The limits on its rate, which are the proxy's to count.
    pub limits: Option<&'a RateLimits>,
}

/// A route that takes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MatchedRoute<'a> {
    /// As people read it: `HTTPRoute shop/web`.
    pub name: &'a str,
    /// Which of its rules.
    pub rule: u32,
    /// Which of the rule's matches.
    pub part: u32,
}

impl Compiled {
    /// Judges a client that reached a meshed pod of this node, by its certificate's names and its address.
    ///
    /// For clients without identity, and for identities that a pod of this node has, this and the kernel's tables
    /// agree; it knows identities too that no pod in the snapshot has. Whether the pod is captured is the caller's to
    /// know. A port whose rules need requests to be read is refused: see [`Self::decide_request`].
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let Some(policy) = self.policies.get(&connection.server) else {
            return self.refuse(Reason::NotCaptured);
        };
        let rules = policy.inbound.tcp.port(connection.port);
        if rules.flags & PORT_NEEDS_REQUEST != 0 {
            return self.refuse_by(Reason::NeedsRequest, &rules.governs);
        }
        self.judge(connection, rules, &rules.grants)
    }

    /// The same, by parts.
    pub fn authorize(
        &self,
        server: &Address,
        port: u16,
        client: &ClientIdentity,
        client_address: IpAddr,
    ) -> Decision {
        self.decide(&Connection { client, address: client_address, server: *server, port })
    }

    /// Judges a client that speaks plain text, for as long as the server or the client is on its way into the mesh or out
    /// of it: then alone, where the server is, a client is taken for the pod whose address it has. Whom that lets in was
    /// let in before the server's way began, and is not when it is over.
    pub fn authorize_in_passage(&self, server: &Address, port: u16, client_address: IpAddr) -> Decision {
        let by_address = self.authorize(server, port, &ClientIdentity::None, client_address);
        let on_its_way = |address: &Address| {
            self.base.by_address.get(address).is_some_and(|info| info.passage != Passage::Over)
        };
        if by_address.allowed() || !on_its_way(server) {
            return by_address;
        }
        let client = self.base.by_address.get(&Address::from(client_address.to_canonical()));
        match client.and_then(|info| info.identity.as_ref()) {
            Some(identity) => self.authorize(server, port, &ClientIdentity::from(identity), client_address),
            None => by_address,
        }
    }

    /// Judges a request over a connection: for a proxy that reads requests. On a port whose bytes nobody reads the
    /// connection's decision is the request's.
    pub fn decide_request(&self, connection: &Connection<'_>, request: &Request<'_>) -> RequestDecision<'_> {
        let alone = |decision| RequestDecision { decision, route: None, limits: None };
        let Some(policy) = self.policies.get(&connection.server) else {
            return alone(self.refuse(Reason::NotCaptured));
        };
        let rules = policy.inbound.tcp.port(connection.port);
        if matches!(rules.protocol, ProxyProtocol::Opaque | ProxyProtocol::Tls) {
            return alone(self.judge(connection, rules, &rules.grants));
        }
        if rules.requests.closed {
            return alone(self.refuse_by(Reason::InvalidPolicy, &rules.governs));
        }
        let limits = rules.requests.limits.as_deref();
        let Some(routes) = &rules.requests.routes else {
            if check_path(request.split().0).is_err() {
                return alone(self.refuse_by(Reason::BadRequest, &rules.governs));
            }
            let decision = self.judge(connection, rules, &rules.grants);
            return RequestDecision { decision, route: None, limits };
        };
        match routes.find(request) {
            Err(_) => alone(self.refuse_by(Reason::BadRequest, &rules.governs)),
            Ok(Routed::Nowhere) => alone(self.refuse_by(Reason::NoRoute, &rules.governs)),
            Ok(Routed::To(RouteEntry { route, rule, part, grants, .. })) => RequestDecision {
                decision: self.judge(connection, rules, grants),
                route: Some(MatchedRoute { name: route, rule: *rule, part: *part }),
                limits,
            },
        }
    }

    /// Whether the agent itself answers at a port of a pod of this node, whoever may come there.
    pub fn agent_answers(&self, server: &Address, port: u16) -> bool {
        self.policies.get(server).is_some_and(|policy| policy.inbound.admin == Some(port))
    }

    /// Whether a port lets clients in that complete mesh TLS without a certificate: everywhere else their handshake
    /// fails.
    pub fn admits_anonymous(&self, server: &Address, port: u16) -> bool {
        self.policies.get(server).is_some_and(|policy| {
            let rules = policy.inbound.tcp.port(port);
            let routes = rules.requests.routes.iter().flat_map(|routes| routes.entries());
            rules.grants.anonymous() || routes.into_iter().any(|entry| entry.grants.anonymous())
        })
    }

    /// Judges a client by a set of grants.
    pub(crate) fn judge(
        &self,
        connection: &Connection<'_>,
        rules: &PortRules,
        grants: &GrantSet,
    ) -> Decision {
        let client_address = connection.address.to_canonical();
        let mut buffer = String::new();
        let Some(who) = Who::of(connection.client, &self.settings.naming, &mut buffer) else {
            return self.refuse_by(Reason::NoIdentity, &rules.governs);
        };
        if matches!(who, Who::Nobody) {
            if client_address.is_loopback() {
                return Decision::of(Verdict::proxy(Reason::Loopback, 0), Arc::clone(&rules.governs));
            }
            let address = Address::from(client_address);
            if let Some(refused) = self.refuse_unauthenticated(&address, rules, grants) {
                return refused;
            }
        }
        self.found(&who, &client_address, rules, grants)
    }

    /// What a set of grants says of somebody at an address.
    pub(crate) fn found(
        &self,
        who: &Who<'_>,
        address: &IpAddr,
        rules: &PortRules,
        grants: &GrantSet,
    ) -> Decision {
        let (allowed, mut decision) = match grants.find(who, address) {
            Found::Denied(grant) => (false, self.refuse_by(Reason::Denied, &grant.rule)),
            Found::Allowed(grant) => {
                let known = matches!(who, Who::Known(_));
                let reason = if known { Reason::Authorized } else { Reason::Unauthenticated };
                let verdict = Verdict::proxy(reason, self.rule_id(&grant.rule));
                let mut decision = Decision::of(verdict, Arc::clone(&grant.rule));
                decision.audited = grant.specificity == Specificity::Audit;
                (true, decision)
            }
            Found::Nothing if matches!(who, Who::Known(_)) => {
                (false, self.refuse_by(Reason::Unauthorized, &rules.governs))
            }
            Found::Nothing => (false, self.refuse_by(Reason::NoIdentity, &rules.governs)),
        };
        decision.tried = grants.tried(who, address, allowed).map(|grant| Arc::clone(&grant.rule));
        decision
    }

    /// A client without identity at an address that a meshed workload has, or that none of the pods' network has, is
    /// not what it seems.
    fn refuse_unauthenticated(
        &self,
        client: &Address,
        rules: &PortRules,
        grants: &GrantSet,
    ) -> Option<Decision> {
        let meshed = match self.base.by_address.get(client) {
            Some(info) => info.meshed() && info.passage == Passage::Over,
            None if self.base.externals.contains_key(client) => true,
            None => {
                let view = self.tables.with_captured(|_| None);
                let inside = view.network(NETWORKS_PODS, client).is_some_and(|network| network.allow == 1);
                return inside.then(|| self.refuse(Reason::UnknownClusterAddress));
            }
        };
        let reason = if grants.may_allow() { Reason::NoIdentity } else { Reason::Unauthorized };
        meshed.then(|| self.refuse_by(reason, &rules.governs))
    }

    /// Refused by no rule.
    pub(crate) fn refuse(&self, reason: Reason) -> Decision {
        Decision::of(Verdict::refuse(reason, 0), Arc::default())
    }

    pub(crate) fn refuse_by(&self, reason: Reason, rule: &Arc<str>) -> Decision {
        Decision::of(Verdict::refuse(reason, self.rule_id(rule)), Arc::clone(rule))
    }

    pub(crate) fn rule_id(&self, rule: &Arc<str>) -> u32 {
        self.rule_ids.of(rule)
    }
}

#[cfg(test)]
mod tests;
