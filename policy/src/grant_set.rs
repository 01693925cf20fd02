//! Everything that allows and denies on one port or route, so arranged that asking does not take longer with more rules.

use std::{
    cmp::Ordering,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::{
    clients::{Match, Presented},
    grants::{Clients, Grant, Who},
    networks::{self, Holding},
};

/// What a set says of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// A rule denies it.
    Denied(&'a Grant),
    /// A rule allows it.
    Allowed(&'a Grant),
    /// No rule is about it.
    Nothing,
}

/// The rules of one port or route.
#[derive(Clone, Debug, Default)]
pub(crate) struct GrantSet {
    /// Sorted in the order of credit.
    pub(crate) allows: Vec<Grant>,
    /// The same.
    pub(crate) denies: Vec<Grant>,
    /// Rules that are only tried.
    pub(crate) tried_allows: Vec<Grant>,
    /// The same.
    pub(crate) tried_denies: Vec<Grant>,
    allow_index: Lookup,
    deny_index: Lookup,
}

/// The first rule that holds in each network of one length; `None`: none does.
type Networks = HashMap<IpNet, Option<u32>, RandomState>;

/// Rules by whom they are about, each list sorted.
#[derive(Clone, Debug, Default)]
struct Lookup {
    names: HashMap<String, Vec<u32>, RandomState>,
    namespaces: HashMap<String, Vec<u32>, RandomState>,
    suffixes: HashMap<String, Vec<u32>, RandomState>,
    spiffe: HashMap<String, Vec<u32>, RandomState>,
    /// About every identity, or about all but some.
    any: Vec<u32>,
    /// About everybody, from anywhere.
    everybody: Option<u32>,
    /// About everybody at some addresses: by the length of the prefix, longest first, and the network.
    open: Vec<(u8, Networks)>,
}

impl GrantSet {
    pub(crate) fn new(mut allows: Vec<Grant>, mut denies: Vec<Grant>) -> Self {
        allows.sort();
        denies.sort();
        let (allow_index, deny_index) = (Lookup::of(&allows), Lookup::of(&denies));
        Self { allows, denies, allow_index, deny_index, ..Self::default() }
    }

    #[must_use]
    pub(crate) fn trying(mut self, mut allows: Vec<Grant>, mut denies: Vec<Grant>) -> Self {
        allows.sort();
        denies.sort();
        (self.tried_allows, self.tried_denies) = (allows, denies);
        self
    }

    /// What holds for a client at an address: a rule that denies wins over any that allows; of several that allow, the
    /// first is credited.
    pub(crate) fn find(&self, who: &Who<'_>, address: &IpAddr) -> Found<'_> {
        if let Some(index) = self.deny_index.first(&self.denies, who, address, Clients::denies)
            && let Some(grant) = self.denies.get(index as usize)
        {
            return Found::Denied(grant);
        }
        let index = self.allow_index.first(&self.allows, who, address, Clients::allows);
        index.and_then(|index| self.allows.get(index as usize)).map_or(Found::Nothing, Found::Allowed)
    }

    /// The first rule that is only tried and would have changed an answer.
    pub(crate) fn tried(&self, who: &Who<'_>, address: &IpAddr, allowed: bool) -> Option<&Grant> {
        let (list, about): (_, fn(&Clients, &Who<'_>) -> bool) = if allowed {
            (&self.tried_denies, Clients::denies)
        } else {
            (&self.tried_allows, Clients::allows)
        };
        list.iter().find(|grant| about(&grant.clients, who) && grant.reaches(address))
    }

    /// Whether any rule may allow somebody who speaks mesh TLS.
    pub(crate) fn may_allow(&self) -> bool {
        !self.allows.is_empty()
    }

    /// Whether some rule allows clients that complete mesh TLS without a certificate.
    pub(crate) fn anonymous(&self) -> bool {
        self.allows.iter().any(|grant| grant.clients == Clients::MeshTls)
    }

    fn parts(&self) -> [&Vec<Grant>; 4] {
        [&self.allows, &self.denies, &self.tried_allows, &self.tried_denies]
    }
}

impl PartialEq for GrantSet {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}
impl Eq for GrantSet {}
impl PartialOrd for GrantSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for GrantSet {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// The set of nobody's rules.
pub(crate) fn empty() -> Arc<GrantSet> {
    static EMPTY: LazyLock<Arc<GrantSet>> = LazyLock::new(Arc::default);
    Arc::clone(&EMPTY)
}

impl Lookup {
    fn of(grants: &[Grant]) -> Self {
        let mut it = Self::default();
        let mut open: Vec<(u32, &Grant)> = Vec::new();
        for (index, grant) in (0u32..).zip(grants) {
            match &grant.clients {
                Clients::Everybody if grant.networks.is_none() => {
                    it.everybody.get_or_insert(index);
                }
                Clients::Everybody => open.push((index, grant)),
                Clients::MeshTls | Clients::Unidentified | Clients::Except(None, _) => it.any.push(index),
                Clients::Any(matches) | Clients::Except(Some(matches), _) => {
                    for entry in matches.iter() {
                        it.add(entry, index);
                    }
                }
            }
        }
        it.fill_open(&open);
        it
    }

    fn add(&mut self, entry: &Match, index: u32) {
        let (map, key) = match entry {
            Match::Any => {
                if self.any.last() != Some(&index) {
                    self.any.push(index);
                }
                return;
            }
            Match::Name(name) | Match::Dns(name) => (&mut self.names, name),
            Match::Namespace(namespace) => (&mut self.namespaces, namespace),
            Match::Suffix(suffix) => (&mut self.suffixes, suffix),
            Match::Spiffe(spiffe) => (&mut self.spiffe, spiffe),
        };
        let list = map.entry(key.clone()).or_default();
        if list.last() != Some(&index) {
            list.push(index);
        }
    }

    /// For each network at which the answer can change, the first rule that holds inside it and outside every smaller.
    fn fill_open(&mut self, open: &[(u32, &Grant)]) {
        let mut by_length: std::collections::BTreeMap<(bool, u8), Networks> =
            std::collections::BTreeMap::new();
        for (point, index) in first_holders(open) {
            let family = matches!(point, IpNet::V6(_));
            by_length.entry((family, point.prefix_len())).or_default().insert(point, index);
        }
        self.open = by_length.into_iter().rev().map(|((_, length), map)| (length, map)).collect();
    }

    fn open_at(&self, address: &IpAddr) -> Option<u32> {
        for (length, nets) in &self.open {
            let Ok(net) = IpNet::new(*address, *length) else { continue };
            if let Some(found) = nets.get(&net.trunc()) {
                return *found;
            }
        }
        None
    }

    /// The first rule that holds.
    fn first(
        &self,
        grants: &[Grant],
        who: &Who<'_>,
        address: &IpAddr,
        about: fn(&Clients, &Who<'_>) -> bool,
    ) -> Option<u32> {
        let mut best = self.everybody;
        if !self.open.is_empty() {
            best = [best, self.open_at(address)].into_iter().flatten().min();
        }
        let mut consider = |list: &[u32]| {
            for index in list {
                if best.is_some_and(|best| best <= *index) {
                    break;
                }
                let holds = |grant: &Grant| about(&grant.clients, who) && grant.reaches(address);
                if grants.get(*index as usize).is_some_and(holds) {
                    best = Some(*index);
                    break;
                }
            }
        };
        consider(&self.any);
        if let Who::Known(client) = who {
            self.of_client(client, &mut consider);
        }
        best
    }

    fn of_client(&self, client: &Presented<'_>, consider: &mut impl FnMut(&[u32])) {
        if let Some(list) = self.names.get(client.dns) {
            consider(list);
        }
        if let Some(list) = client.namespace.and_then(|it| self.namespaces.get(it)) {
            consider(list);
        }
        if !client.spiffe.is_empty()
            && let Some(list) = self.spiffe.get(client.spiffe)
        {
            consider(list);
        }
        if !self.suffixes.is_empty() {
            for (dot, _) in client.dns.match_indices('.') {
                if let Some(list) = self.suffixes.get(&client.dns[dot..]) {
                    consider(list);
                }
            }
        }
    }
}

/// The networks at which the answer can change, each with the first rule (given in order, with its number) that holds
/// in it and outside every smaller one.
pub(crate) fn first_holders(open: &[(u32, &Grant)]) -> Vec<(IpNet, Option<u32>)> {
    const EVERYWHERE: &[IpNet] = &[];
    let mut all = Vec::new();
    for (index, grant) in open {
        let what = *index;
        match &grant.networks {
            None => {
                all.extend(networks::everything().map(|cidr| Holding { what, cidr, except: EVERYWHERE }));
            }
            Some(list) => {
                all.extend(list.iter().map(|it| Holding { what, cidr: it.cidr, except: &it.except }));
            }
        }
    }
    let mut found = Vec::new();
    networks::sweep(&all, [], |point, held| {
        found.push((point, held.first_key_value().map(|(index, _)| *index)));
    });
    found
}
