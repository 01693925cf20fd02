//! One rule that allows or denies, with every reference followed.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    clients::{ClientIdentity, Match, Presented},
    names::IdentityNaming,
    resources::{DefaultPolicy, NetworkMatch},
    settings::canonical,
};

/// How specific a rule is; the most specific is credited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Specificity {
    Route,
    Server,
    Namespace,
    /// Of Heddle's own, for a namespace.
    Rule,
    /// Of Heddle's own, for the cluster.
    ClusterRule,
    Default,
    Audit,
}

/// Whom a rule is about, as far as names go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Clients {
    /// Everybody, with an identity or without.
    Everybody,
    /// Who speaks mesh TLS, with a certificate or without.
    MeshTls,
    /// Who shows no identity and speaks no mesh TLS.
    Unidentified,
    /// Whoever has one of these identities.
    Any(Arc<[Match]>),
    /// Whoever has one of the first identities (`None`: any), and none of the others.
    Except(Option<Arc<[Match]>>, Arc<[Match]>),
}

/// Whether an entry is about a client.
type Means = fn(&Match, &Presented<'_>) -> bool;

/// A client as a rule looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who<'a> {
    /// Without an identity.
    Nobody,
    /// Without an identity, over mesh TLS.
    Anonymous,
    /// With one.
    Known(Presented<'a>),
}

impl<'a> Who<'a> {
    /// What a client is to the rules; a name that is to be written anew goes into `buffer`. `None`: its certificate bears no
    /// name that could be judged.
    pub(crate) fn of(
        client: &'a ClientIdentity,
        naming: &IdentityNaming,
        buffer: &'a mut String,
    ) -> Option<Self> {
        Some(match client {
            ClientIdentity::None => Self::Nobody,
            ClientIdentity::Anonymous => Self::Anonymous,
            ClientIdentity::Account(name) if naming.owns(name) => Self::Known(Presented::of(name)),
            ClientIdentity::SpiffeAlone(name) if naming.owns(name) => {
                Self::Known(Presented { foreign: true, ..Presented::of(name) })
            }
            ClientIdentity::Account(name) | ClientIdentity::SpiffeAlone(name) => {
                Self::Known(Presented::read(naming, Some(name.dns()), Some(name.spiffe()), buffer)?)
            }
            ClientIdentity::Mesh { dns, spiffe } => {
                Self::Known(Presented::read(naming, dns.as_deref(), spiffe.as_deref(), buffer)?)
            }
        })
    }
}

/// One rule. Sorts in the order in which rules are credited.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Grant {
    pub(crate) specificity: Specificity,
    /// Microseconds since 1970; unknown counts as youngest.
    pub(crate) created: i64,
    /// As people read it.
    pub(crate) rule: Arc<str>,
    /// Which part of the rule, where it has several.
    pub(crate) part: u32,
    pub(crate) clients: Clients,
    /// `None`: from anywhere.
    pub(crate) networks: Option<Arc<[NetworkMatch]>>,
}

impl Clients {
    /// Whether a rule that allows is about a client. Who shows no identity is never "not X", and a workload of another
    /// trust domain must be named.
    pub(crate) fn allows(&self, who: &Who<'_>) -> bool {
        match (self, who) {
            (Self::Except(None, _), Who::Known(client)) if client.foreign => false,
            _ => self.about(who, Match::allows, Match::holds),
        }
    }

    /// Whether a rule that denies is about a client. Who shows no identity may be anybody but X.
    pub(crate) fn denies(&self, who: &Who<'_>) -> bool {
        match (self, who) {
            (Self::Except(None, _), Who::Nobody | Who::Anonymous) => true,
            _ => self.about(who, Match::holds, Match::allows),
        }
    }

    /// `means` tells whom an entry means, `spares` whom an exception does: whichever is in doubt falls to the stricter.
    fn about(&self, who: &Who<'_>, means: Means, spares: Means) -> bool {
        match (self, who) {
            (Self::Everybody, _)
            | (Self::MeshTls, Who::Anonymous | Who::Known(_))
            | (Self::Unidentified, Who::Nobody) => true,
            (Self::Any(matches), Who::Known(client)) => matches.iter().any(|it| means(it, client)),
            (Self::Except(matches, except), Who::Known(client)) => {
                matches.as_ref().is_none_or(|matches| matches.iter().any(|it| means(it, client)))
                    && !except.iter().any(|it| spares(it, client))
            }
            _ => false,
        }
    }
}

impl Grant {
    /// What it costs to be worked out.
    pub(crate) fn weight(&self) -> usize {
        let networks = self.networks.iter().flat_map(|networks| networks.iter());
        let clients = match &self.clients {
            Clients::Any(matches) | Clients::Except(Some(matches), _) => matches.len(),
            _ => 0,
        };
        1 + clients + networks.map(|it| 1 + it.except.len()).sum::<usize>()
    }

    /// Whether an address lies where the rule looks.
    pub(crate) fn reaches(&self, address: &IpAddr) -> bool {
        self.networks.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(address)))
    }

    /// What a default policy (or `accessPolicy`) allows, under the name of `rule`.
    pub(crate) fn by_default(
        policy: DefaultPolicy,
        rule: &Arc<str>,
        cluster: &Arc<[NetworkMatch]>,
    ) -> Option<Self> {
        let any = || Clients::Any(Arc::from([Match::Any]));
        let (clients, networks) = match policy {
            DefaultPolicy::Deny => return None,
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => (Clients::Everybody, None),
            DefaultPolicy::AllAuthenticated => (any(), None),
            DefaultPolicy::ClusterUnauthenticated => (Clients::Everybody, Some(Arc::clone(cluster))),
            DefaultPolicy::ClusterAuthenticated => (any(), Some(Arc::clone(cluster))),
        };
        let specificity =
            if policy == DefaultPolicy::Audit { Specificity::Audit } else { Specificity::Default };
        Some(Self { specificity, created: i64::MAX, rule: Arc::clone(rule), part: 0, clients, networks })
    }
}

/// Networks of the settings as a rule holds them.
pub(crate) fn plain_networks(networks: &[IpNet]) -> Arc<[NetworkMatch]> {
    networks.iter().map(|net| NetworkMatch { cidr: canonical(net), except: Vec::new() }).collect()
}
