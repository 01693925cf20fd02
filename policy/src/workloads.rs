//! The pods and who they are: which address belongs to whom, and whom no address can be believed for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::{
    defaults::is_meshed,
    names::IdentityName,
    problems::{Problem, Severity},
    resources::{ExternalWorkload, Kind, Meta, Passage, Pod, Probe},
    settings::ClusterSettings,
};

/// What a pod is to the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has an identity.
    Meshed,
    /// It has none and needs none.
    Plain,
    /// It shares its node's network, and is judged by the node's address.
    HostNetwork,
    /// It has ended: its addresses are no longer its own.
    Finished,
    /// It has no address yet.
    NoAddress,
    /// Another pod claims one of its addresses: neither is believed, and the addresses are refused.
    Contested,
    /// It is meant to be meshed, but its name makes no identity: its addresses are refused.
    NoIdentity,
}

impl Standing {
    /// Whether a Service may lead to it.
    pub(crate) fn serves(self) -> bool {
        matches!(self, Self::Meshed | Self::Plain | Self::HostNetwork)
    }
}

/// A pod as data plane, door and status see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkloadInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, as the API server gave it; empty where a manifest has none.
    pub uid: String,
    /// What the kernel's tables hold of it.
    pub digest: u64,
    /// Its node.
    pub node: String,
    /// Whether that is the node that was compiled for.
    pub local: bool,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What it is to the mesh.
    pub standing: Standing,
    /// Where it is on its way into the mesh or out of it.
    pub passage: Passage,
    /// Its identity, where it is [`Standing::Meshed`].
    pub identity: Option<IdentityName>,
    /// Its probes, which pass from the kubelet's own sockets only.
    pub probes: Vec<Probe>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
}

impl WorkloadInfo {
    /// Whether it has an identity, so that nobody speaks with it in the clear.
    pub fn meshed(&self) -> bool {
        self.standing == Standing::Meshed
    }
}

/// Tells a pod from another that takes over its name or address: FNV-1a (64 bits) of `namespace/name/uid`; never 0.
pub fn uid_digest(namespace: &str, name: &str, uid: &str) -> u64 {
    let bytes = [namespace, "/", name, "/", uid].into_iter().flat_map(str::bytes);
    let digest = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    digest.max(1)
}

/// Who has which address.
#[derive(Default)]
pub(crate) struct Claims {
    contested: BTreeMap<IpAddr, BTreeSet<String>>,
}

impl Claims {
    /// Takes the claims of every pod that has not ended. Pods on one node's network share its address; nobody else
    /// shares one.
    pub(crate) fn of(pods: &[&Pod], externals: &[&ExternalWorkload]) -> Self {
        let living = || pods.iter().filter(|pod| !pod.finished);
        let claims = || living().flat_map(|pod| pod.addresses.iter().map(move |address| (*address, *pod)));
        // Hardly any address is claimed twice: whoever else claims one of those is looked for a second time.
        let mut first: HashMap<IpAddr, bool, RandomState> =
            HashMap::with_capacity_and_hasher(pods.len(), RandomState::default());
        let mut twice: HashSet<IpAddr, RandomState> = HashSet::default();
        for (address, pod) in claims() {
            match first.entry(address) {
                Entry::Vacant(entry) => {
                    entry.insert(pod.host_network);
                }
                Entry::Occupied(mut entry) => {
                    let all_nodes = *entry.get() && pod.host_network;
                    entry.insert(all_nodes);
                    if !all_nodes {
                        twice.insert(address);
                    }
                }
            }
        }
        let mut outside: HashMap<IpAddr, BTreeSet<String>, RandomState> = HashMap::default();
        for external in externals {
            for address in &external.addresses {
                let name = format!("ExternalWorkload {}", external.meta.object_name());
                outside.entry(*address).or_default().insert(name);
            }
        }
        twice.extend(outside.keys().filter(|address| first.contains_key(address)));
        let mut contested: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (address, pod) in claims().filter(|(address, _)| !twice.is_empty() && twice.contains(address)) {
            contested.entry(address).or_default().insert(pod.meta.object_name().to_string());
        }
        for (address, names) in outside {
            if names.len() > 1 || contested.contains_key(&address) {
                contested.entry(address).or_default().extend(names);
            }
        }
        Self { contested }
    }

    /// Whether more than one claims an address.
    pub(crate) fn is_contested(&self, address: &IpAddr) -> bool {
        self.contested.contains_key(address)
    }

    fn contested(&self, pod: &Pod) -> Option<(&IpAddr, &BTreeSet<String>)> {
        pod.addresses.iter().find_map(|address| self.contested.get_key_value(address))
    }
}

/// Works out what a pod is.
pub(crate) fn workload<'a>(
    pod: &'a Pod,
    namespace: Option<&Meta>,
    claims: &Claims,
    settings: &ClusterSettings,
    node: Option<&str>,
    names: &mut HashMap<(&'a str, &'a str), IdentityName, RandomState>,
    problems: &mut Vec<Problem>,
) -> WorkloadInfo {
    let meta = &pod.meta;
    let (naming, inject) = (&settings.naming, settings.linkerd_inject);
    let mut tell = |severity, field: &str, reason: String, remedy: &str| {
        problems.push(meta.problem(Kind::Pod, severity, field, reason).remedy(remedy));
    };
    let mut identity = None;
    let standing = if pod.finished {
        Standing::Finished
    } else if pod.host_network {
        Standing::HostNetwork
    } else if let Some((address, pods)) = claims.contested(pod) {
        let others: Vec<&str> =
            pods.iter().map(String::as_str).filter(|name| *name != meta.object_name().to_string()).collect();
        let reason = format!(
            "{address} is claimed by pod {} as well: neither has an identity, and the address is refused",
            others.join(", ")
        );
        tell(Severity::Error, "status.podIP", reason, "remove the pod that is gone");
        Standing::Contested
    } else if pod.addresses.is_empty() {
        let reason = "has no address: nothing is known of it in the network".to_owned();
        // One that starts is as it should be.
        let severity = if pod.starting { Severity::Note } else { Severity::Warning };
        tell(severity, "status.podIP", reason, "write status.podIP in a manifest, or wait");
        Standing::NoAddress
    } else {
        let mut found = Vec::new();
        let meshed = is_meshed(pod, namespace, inject, &mut found) || pod.passage.is_outwards();
        let key = (&*meta.namespace, &*pod.service_account);
        let named = || match names.get(&key) {
            Some(name) => Ok(name.clone()),
            None => naming.name(key.0, key.1),
        };
        let standing = match meshed.then(named) {
            None => Standing::Plain,
            Some(Ok(name)) => {
                identity = Some(name.clone());
                names.entry(key).or_insert(name);
                Standing::Meshed
            }
            Some(Err(error)) => {
                let reason = format!("{error}: the pod has no identity, and its addresses are refused");
                tell(Severity::Error, "spec.serviceAccountName", reason, "choose another name");
                Standing::NoIdentity
            }
        };
        problems.append(&mut found);
        standing
    };
    if standing == Standing::HostNetwork && is_meshed(pod, namespace, inject, &mut Vec::new()) {
        let reason =
            "is on the node's network: it has no identity and is judged by the node's address".to_owned();
        problems.push(meta.problem(Kind::Pod, Severity::Warning, "spec.hostNetwork", reason));
    }
    WorkloadInfo {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        digest: uid_digest(&meta.namespace, &meta.name, &meta.uid),
        node: pod.node.clone(),
        local: node.is_none_or(|node| !pod.node.is_empty() && pod.node == node),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.clone(),
        standing,
        passage: if standing == Standing::Meshed { pod.passage } else { Passage::Over },
        identity,
        probes: pod.probes.clone(),
        labels: Arc::clone(&meta.labels),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_pods_apart_and_stay_what_they_are() {
        let digest = uid_digest("shop", "web", "u1");
        // Written down, since pinned maps outlive the agent that filled them.
        assert_eq!(digest, 0x28eb_7fb9_36e2_e747, "{digest:#x}");
        for (namespace, name, uid) in
            [("shop", "web", "u2"), ("shop", "we", "bu1"), ("sho", "pweb", "u1"), ("shop", "web", "")]
        {
            assert_ne!(uid_digest(namespace, name, uid), digest);
        }
    }
}
