//! Which rules of Heddle's are about which ports of a pod.

use std::collections::{BTreeMap, BTreeSet};

use crate::resources::{AccessRule, Pod, PortMatch, Transport};

/// Of a pod for which more ports than this have rules of their own, the lowest keep theirs; every other is closed.
pub(crate) const MAX_PORTS: usize = 8192;

/// A rule of Heddle's by its number in the namespace, and the ports that it is about (`None`: every one).
pub(crate) type About = (usize, Option<Vec<u16>>);

/// The rules that are about a pod, by port.
pub(crate) struct Applying {
    /// Those about every port.
    pub(crate) everywhere: Vec<usize>,
    by_port: BTreeMap<u16, Vec<usize>>,
}

impl Applying {
    pub(crate) fn of(about: &[About]) -> Self {
        let mut it = Self { everywhere: Vec::new(), by_port: BTreeMap::new() };
        for (index, ports) in about {
            match ports {
                None => it.everywhere.push(*index),
                Some(ports) => {
                    for port in ports {
                        it.by_port.entry(*port).or_default().push(*index);
                    }
                }
            }
        }
        it
    }

    /// Those that name a port.
    pub(crate) fn listed(&self, port: u16) -> &[usize] {
        self.by_port.get(&port).map_or(&[], Vec::as_slice)
    }

    /// The same with those about every port, in their order.
    pub(crate) fn with(&self, listed: &[usize]) -> Vec<usize> {
        let mut all: Vec<usize> = self.everywhere.iter().chain(listed).copied().collect();
        all.sort_unstable();
        all
    }

    /// What it costs to go through the ports that the rules name, each for itself: little beside a rule that is worked out.
    pub(crate) fn weight(&self) -> usize {
        self.by_port.values().map(Vec::len).sum::<usize>() / 16
    }
}

/// Adds the ports that rules list. `true`: they are too many.
pub(crate) fn add_listed(listed: &mut BTreeSet<u16>, access: &Applying) -> bool {
    listed.extend(access.by_port.keys());
    listed.len() > MAX_PORTS
}

/// The ports of a pod that a rule of Heddle's is about; `None`: every one.
pub(crate) fn ports_of(rule: &AccessRule, pod: &Pod, transport: Transport) -> Option<Vec<u16>> {
    let spec = rule.spec.as_ref()?;
    if spec.ports.is_empty() {
        return None;
    }
    let mut ports = Vec::new();
    for port in &spec.ports {
        match port {
            PortMatch::Range(first, last) => ports.extend(*first..=*last),
            PortMatch::Name(name) => ports.extend(pod.named_ports(name, transport)),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

#[cfg(test)]
mod tests;
