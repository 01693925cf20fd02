//! Datagrams, as plainly: no Server is about them, and an address proves nobody.

use std::net::IpAddr;

use heddle_policy::{
    SameNode,
    resources::{DefaultPolicy, ObjectName, Transport},
};

use super::{Answer, Client, Credit, Reference, dns, spellings};

impl Reference<'_> {
    /// Whether the pod at an address is one of the cluster's DNS Service.
    fn answers_names(&self, address: IpAddr) -> bool {
        let Some(pod) = self.pod_at(address) else { return false };
        let services = self.resources.iter().filter_map(|it| match it {
            heddle_policy::resources::Resource::Service(it) => Some(it),
            _ => None,
        });
        services.filter(|it| it.meta.object_name() == self.settings.dns_service).any(|it| {
            it.meta.namespace == pod.meta.namespace
                && !it.selector.is_empty()
                && it.selector.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value))
        })
    }

    /// Judges a datagram from an address to a port of a pod's, which answers none of the pod's.
    pub fn datagram(&self, server: IpAddr, port: u16, address: IpAddr) -> (Answer, String) {
        let judged = self.judged_by_rules(server, port, address);
        let names = port == 53 && self.answers_names(server);
        match judged {
            (Answer::NotHere | Answer::Denied, _) => judged,
            _ if names => (Answer::Allowed, String::new()),
            _ => judged,
        }
    }

    fn judged_by_rules(&self, server: IpAddr, port: u16, address: IpAddr) -> (Answer, String) {
        let Some(pod) = self.pod_at(server).filter(|pod| self.local_meshed(pod)) else {
            return (Answer::NotHere, String::new());
        };
        let sender = self.pod_at(address).filter(|other| self.wants_mesh(other));
        let here = sender.is_some_and(|other| other.node == self.node);
        let names = port == 53 && self.answers_names(server);
        if !names {
            if self.external_at(address).is_some()
                || sender.is_some() && (!here || self.settings.same_node == SameNode::Encrypt)
            {
                return (Answer::InTheClear, String::new());
            }
            if self.pod_at(address).is_none() && self.refused_address(address) {
                return (Answer::UnknownAddress, String::new());
            }
        }
        // Whom nothing proves is nobody, to rules that deny a question for names.
        let names = sender.filter(|_| here).map_or_else(Vec::new, |it| {
            spellings(&dns(&ObjectName::new(&*it.meta.namespace, &*it.service_account)))
        });
        let client = Client { names, address, tls: false };
        let (default, governs) = self.default_policy(pod, port);
        let mut allowing: Vec<(Credit, String)> = Vec::new();
        let mut denying: Vec<(Credit, String)> = Vec::new();
        if client.names.is_empty() && self.default_allows(default, &client) {
            let last = if default == DefaultPolicy::Audit { 6 } else { 5 };
            allowing.push(((last, true, None), governs.clone()));
        }
        for (credit, rule, denies, holds) in self.access_rules(pod, port, Transport::Udp, &client) {
            match (denies, holds) {
                (true, true) => denying.push((credit, rule)),
                (false, true) => allowing.push((credit, rule)),
                _ => {}
            }
        }
        denying.sort();
        allowing.sort();
        match (denying.into_iter().next(), allowing.into_iter().next()) {
            (Some((_, rule)), _) => (Answer::Denied, rule),
            (None, Some((_, rule))) => (Answer::Allowed, rule),
            (None, None) if client.names.is_empty() => (Answer::NoIdentity, governs),
            (None, None) => (Answer::Unauthorized, governs),
        }
    }
}
