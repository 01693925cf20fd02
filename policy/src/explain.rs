//! Why a decision fell as it did: every rule that was considered, in the order in which it was, and why each did or did
//! not match.

use std::{net::IpAddr, sync::Arc};

use heddle_ebpf::{Address, policy::PORT_NEEDS_REQUEST};

use crate::{
    clients::Match,
    compile::Compiled,
    decide::{Connection, Decision},
    grant_set::GrantSet,
    grants::{Clients, Grant, Who},
    policy::PortRules,
    request::{Request, Routed},
};

/// What a rule does to whom it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// It refuses.
    Denies,
    /// It allows.
    Allows,
    /// It would refuse, and is only tried.
    WouldDeny,
    /// It would allow, and is only tried.
    WouldAllow,
    /// It takes requests, which its own rules are then about.
    Takes,
}

/// One rule that was considered.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The rule, as people read it.
    pub rule: String,
    /// What it does to whom it is about.
    pub effect: Effect,
    /// Whether it is about this client or request.
    pub matched: bool,
    /// Whether it is the one that decided.
    pub decided: bool,
    /// Why, in a sentence each: what matched, and what did not.
    pub why: Vec<String>,
}

/// A decision with everything that was considered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The Server or default policy that governs the port; empty: the pod is not one that policy is about.
    pub governs: String,
    /// What the port speaks, as a Server's `proxyProtocol` spells it.
    pub protocol: String,
    /// Whether the port's rules can only be decided by reading requests.
    pub needs_request: bool,
    /// Every rule that was considered, in order: routes, then rules that deny, then rules that allow, then those that
    /// are only tried.
    pub chain: Vec<Step>,
}

impl Compiled {
    /// Explains a decision about a connection, or about a request of it.
    pub fn explain(&self, connection: &Connection<'_>, request: Option<&Request<'_>>) -> Explanation {
        let decision = match request {
            Some(request) => self.decide_request(connection, request).decision,
            None => self.decide(connection),
        };
        let mut it = Explanation::of(decision);
        let Some(policy) = self.policies.get(&connection.server) else { return it };
        let rules = policy.inbound.tcp.port(connection.port);
        it.governs = rules.governs.to_string();
        it.protocol = rules.protocol.as_str().to_owned();
        it.needs_request = rules.flags & PORT_NEEDS_REQUEST != 0;
        let grants = self.routes(rules, request, &mut it.chain);
        let mut buffer = String::new();
        let Some(who) = Who::of(connection.client, &self.settings.naming, &mut buffer) else { return it };
        let address = Address::from(connection.address).to_ip();
        consider(&mut it, grants, &who, &address);
        it
    }

    /// The steps of the routes; returns the grants that hold for what takes the request.
    fn routes<'a>(
        &self,
        rules: &'a PortRules,
        request: Option<&Request<'_>>,
        chain: &mut Vec<Step>,
    ) -> &'a GrantSet {
        let (Some(request), Some(routes)) = (request, &rules.requests.routes) else { return &rules.grants };
        let found = routes.find(request);
        let taken = match &found {
            Ok(Routed::To(entry)) => Some(*entry),
            _ => None,
        };
        for entry in routes.entries() {
            let this = taken.is_some_and(|taken| std::ptr::eq(taken, entry));
            let why = match &found {
                Err(error) => error.to_string(),
                Ok(_) if this => "the first, in the order of precedence, whose every part holds".to_owned(),
                Ok(Routed::To(_)) => "does not hold for the request, or another takes precedence".to_owned(),
                Ok(Routed::Nowhere) => "does not hold for the request".to_owned(),
            };
            chain.push(Step {
                rule: format!("{} (rule {}, match {})", entry.route, entry.rule, entry.part),
                effect: Effect::Takes,
                matched: this,
                decided: false,
                why: vec![why],
            });
        }
        taken.map_or(&*rules.grants, |entry| &*entry.grants)
    }
}

impl Explanation {
    /// A decision of which nothing else is known.
    pub(crate) fn of(decision: Decision) -> Self {
        Self {
            decision,
            governs: String::new(),
            protocol: String::new(),
            needs_request: false,
            chain: Vec::new(),
        }
    }
}

/// Adds every rule of a set, in the order in which they are considered.
pub(crate) fn consider(it: &mut Explanation, grants: &GrantSet, who: &Who<'_>, address: &IpAddr) {
    let lists: [(&[Grant], Effect, About); 4] = [
        (&grants.denies, Effect::Denies, Clients::denies),
        (&grants.allows, Effect::Allows, Clients::allows),
        (&grants.tried_denies, Effect::WouldDeny, Clients::denies),
        (&grants.tried_allows, Effect::WouldAllow, Clients::allows),
    ];
    for (list, effect, about) in lists {
        for grant in list {
            it.chain.push(step(grant, effect, who, address, about));
        }
    }
    // The first that says what was decided.
    let rule = Arc::clone(&it.decision.rule);
    let wanted = if it.decision.allowed() { Effect::Allows } else { Effect::Denies };
    let decided =
        it.chain.iter_mut().find(|step| step.matched && step.effect == wanted && *step.rule == *rule);
    if let Some(step) = decided {
        step.decided = true;
    }
}

type About = fn(&Clients, &Who<'_>) -> bool;

fn step(grant: &Grant, effect: Effect, who: &Who<'_>, address: &IpAddr, about: About) -> Step {
    let (named, reached) = (about(&grant.clients, who), grant.reaches(address));
    let mut why = vec![by_name(&grant.clients, who, named)];
    if let Some(networks) = &grant.networks {
        let shown: Vec<String> = networks.iter().take(8).map(|it| it.cidr.to_string()).collect();
        let more = networks.len().saturating_sub(shown.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let inside = if reached { "lies in" } else { "lies in none of" };
        why.push(format!("{address} {inside} {}{more}", shown.join(", ")));
    }
    Step { rule: grant.rule.to_string(), effect, matched: named && reached, decided: false, why }
}

fn by_name(clients: &Clients, who: &Who<'_>, holds: bool) -> String {
    let shown = |matches: &[Match]| {
        let texts: Vec<String> = matches.iter().take(8).map(Match::describe).collect();
        let more = matches.len().saturating_sub(texts.len());
        if more == 0 { texts.join(", ") } else { format!("{} and {more} more", texts.join(", ")) }
    };
    let client = match who {
        Who::Nobody => "the client shows no identity".to_owned(),
        Who::Anonymous => "the client speaks mesh TLS and shows no identity".to_owned(),
        Who::Known(name) if name.dns.is_empty() => name.spiffe.to_owned(),
        Who::Known(name) => name.dns.to_owned(),
    };
    let relation = if holds { "is among" } else { "is not among" };
    match clients {
        Clients::Everybody => "is about everybody".to_owned(),
        Clients::MeshTls => "is about everybody who speaks mesh TLS".to_owned(),
        Clients::Unidentified => "is about everybody without an identity".to_owned(),
        Clients::Any(matches) => format!("{client}: {relation} {}", shown(matches)),
        Clients::Except(None, except) => format!("{client}: everybody but {}", shown(except)),
        Clients::Except(Some(matches), except) => {
            format!("{client}: {}, but not {}", shown(matches), shown(except))
        }
    }
}
