//! Services that come, go and stand elsewhere: the others keep their endpoints, but may get other numbers, which follow the order of
//! addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use heddle_ebpf::{
    Address,
    policy::{BackendKey, Service as Row, ServiceKey},
};

use super::plain;
use crate::{
    base::Base,
    index::Index,
    resources::{Kind, ObjectName, Resource, Service},
    services::places,
    settings::ClusterSettings,
};

impl Base {
    /// Gives these Services, which had such addresses, the rows that they have now; where those lead is worked out afterwards. `None`: it makes
    /// a difference to others.
    pub(super) fn resettle(
        &mut self,
        changed: &BTreeMap<ObjectName, BTreeSet<IpAddr>>,
        index: &Index,
        settings: &ClusterSettings,
    ) -> Option<()> {
        // The tables know the pods behind the cluster's DNS as such.
        if changed.contains_key(&settings.dns_service) {
            return None;
        }
        let services: Vec<&Service> = changed
            .keys()
            .filter_map(|name| match index.get(Kind::Service, name)? {
                Resource::Service(service) => Some(service),
                _ => None,
            })
            .collect();
        let gone = changed.iter().flat_map(|(name, had)| had.iter().map(move |ip| (*ip, name)));
        let gone: Vec<(IpAddr, &ObjectName)> = gone.collect();
        let come: Vec<(IpAddr, &Service)> =
            services.iter().flat_map(|it| it.addresses.iter().map(|ip| (*ip, *it))).collect();
        self.no_endpoint_is_at(gone.iter().map(|it| it.0).chain(come.iter().map(|it| it.0)), index)?;

        let mut rows = BTreeMap::clone(&self.services);
        let mut names = BTreeMap::clone(&self.service_names);
        for (ip, name) in gone {
            let address = plain(&ip)?;
            match names.get(&address) {
                Some(owner) if owner == name => {
                    names.remove(&address);
                    for key in own_rows(&rows, address) {
                        rows.remove(&key);
                    }
                }
                // Had and lost again before anybody saw it, or somebody else's as well.
                _ if own_rows(&rows, address).is_empty() => {}
                _ => return None,
            }
        }
        for (ip, service) in come {
            let address = plain(&ip)?;
            if !own_rows(&rows, address).is_empty() {
                return None;
            }
            rows.insert(ServiceKey { address, port: 0, protocol: 0, pad: 0 }, Row::default());
            names.insert(address, service.meta.object_name());
            for (_, _, key) in places(service).filter(|(at, ..)| *at == ip) {
                // Those that were there stay what they were, until it is known where they lead now.
                rows.insert(key, self.services.get(&key).copied().unwrap_or_default());
            }
        }
        let there: BTreeSet<ObjectName> = services.iter().map(|it| it.meta.object_name()).collect();
        if changed.keys().any(|name| !there.contains(name) && self.service_problems.contains_key(name)) {
            Arc::make_mut(&mut self.service_problems)
                .retain(|name, _| !changed.contains_key(name) || there.contains(name));
        }
        self.service_names = Arc::new(names);
        self.renumber(rows);
        Some(())
    }

    /// Nothing that leads to an address is an endpoint where that is a Service's: whatever is there would become one, or be one no more.
    fn no_endpoint_is_at(&self, addresses: impl Iterator<Item = IpAddr>, index: &Index) -> Option<()> {
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        for ip in &addresses {
            let address = plain(ip)?;
            let taken = self.by_address.get(&address).is_some() || self.externals.contains_key(&address);
            if taken || self.claimed.contains(ip) {
                return None;
            }
        }
        let sliced = index.of_every_kind(Kind::EndpointSlice).any(|it| match it {
            Resource::EndpointSlice(slice) => {
                slice.endpoints.iter().any(|it| addresses.contains(&it.address))
            }
            _ => false,
        });
        (!sliced).then_some(())
    }

    /// Numbers the rows in their order. Each of them bears the number under which its endpoints were known, if they were.
    fn renumber(&mut self, mut rows: BTreeMap<ServiceKey, Row>) {
        if rows.keys().eq(self.services.keys()) {
            return;
        }
        let mut backends = Vec::with_capacity(self.backends.len());
        for (service, row) in (1u32..).zip(rows.values_mut()) {
            for index in 0..row.backends {
                let known = self.backends.get(&BackendKey { service: row.service, index });
                backends.extend(known.map(|it| (BackendKey { service, index }, *it)));
            }
            row.service = service;
        }
        self.services = Arc::new(rows);
        self.backends = Arc::new(backends.into_iter().collect());
    }
}

/// The rows of an address, that which says that it is a Service's included.
fn own_rows(rows: &BTreeMap<ServiceKey, Row>, address: Address) -> Vec<ServiceKey> {
    let first = ServiceKey { address, port: 0, protocol: 0, pad: 0 };
    rows.range(first..).take_while(|(key, _)| key.address == address).map(|(key, _)| *key).collect()
}
