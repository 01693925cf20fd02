//! Flows that two pictures judge differently, and how they read well: alike ones together.

use crate::cli::policy::{
    parties::workload,
    picture::{Client, Judged, Picture},
    port::Port,
};
use heddle_ebpf::Address;
use heddle_policy::{WorkloadInfo, resources::ObjectName};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// How one picture judges a flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Side {
    /// `allowed`, `audit`, `refused`, or `absent`: there is no such workload.
    pub verdict: &'static str,
    /// By which rule, or why.
    pub why: String,
}

impl Side {
    pub fn of(judged: &Judged) -> Self {
        Self { verdict: judged.word(), why: judged.why() }
    }

    pub const fn absent() -> Self {
        Self { verdict: "absent", why: String::new() }
    }

    pub fn allowed(&self) -> bool {
        matches!(self.verdict, "allowed" | "audit")
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.why.is_empty() {
            f.write_str(self.verdict)
        } else {
            write!(f, "{} by {}", self.verdict, self.why)
        }
    }
}

/// A flow that is judged differently.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub from: String,
    pub to: String,
    pub port: String,
    pub before: Side,
    pub after: Side,
    /// How often it happened; 0: it is not known to have happened.
    pub count: u64,
}

/// Flows that read as one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Group {
    pub to: Vec<String>,
    pub port: String,
    pub from: Vec<String>,
    pub before: Side,
    pub after: Side,
    pub count: u64,
}

impl Group {
    /// How many flows it stands for.
    pub fn flows(&self) -> usize {
        self.to.len() * self.from.len()
    }
}

/// Clients that fare alike on one port first, then destinations at which the same clients fare alike.
pub(super) fn grouped(changes: Vec<Change>) -> Vec<Group> {
    type ByEnd = BTreeMap<(String, String, Side, Side), (BTreeSet<String>, u64)>;
    type ByClients = BTreeMap<(String, BTreeSet<String>, Side, Side), (BTreeSet<String>, u64)>;
    let mut by_end = ByEnd::new();
    for change in changes {
        let group = by_end.entry((change.to, change.port, change.before, change.after)).or_default();
        group.0.insert(change.from);
        group.1 += change.count;
    }
    let mut by_clients = ByClients::new();
    for ((to, port, before, after), (from, count)) in by_end {
        let group = by_clients.entry((port, from, before, after)).or_default();
        group.0.insert(to);
        group.1 += count;
    }
    let mut groups: Vec<Group> = by_clients
        .into_iter()
        .map(|((port, from, before, after), (to, count))| Group {
            to: to.into_iter().collect(),
            port,
            from: from.into_iter().collect(),
            before,
            after,
            count,
        })
        .collect();
    groups.sort();
    groups
}

/// What a port is called that stands for every port without rules of its own.
const OTHER: &str = "any other";

/// A port of neither pod that has rules of its own.
fn other_port(interesting: &BTreeSet<Port>, on: fn(u16) -> Port) -> Port {
    on((1..u16::MAX).find(|port| !interesting.contains(&on(*port))).unwrap_or(u16::MAX))
}

/// Every flow between workloads that the two judge differently.
pub(super) fn between(old: &Picture, new: &Picture) -> Vec<Change> {
    let clients = clients(old, new);
    let mut changes = Vec::new();
    // Pods of one workload with the same rules in both are one destination.
    let mut seen = BTreeSet::new();
    let all: BTreeSet<(&str, &str)> =
        old.pods().chain(new.pods()).map(|pod| (&*pod.namespace, &*pod.name)).collect();
    for (namespace, name) in all {
        let id = ObjectName::new(namespace, name);
        let (before, after) = (reachable(old, &id), reachable(new, &id));
        let Some(any) = after.or(before) else { continue };
        let to = workload(any);
        let rules = |picture: &Picture, pod: Option<&WorkloadInfo>| pod.map(|pod| policy(picture, pod));
        if !seen.insert((to.clone(), rules(old, before), rules(new, after))) {
            continue;
        }
        // A pod that a roll-out replaced is the same destination as its successor.
        let before = before.or_else(|| successor(old, &to));
        let after = after.or_else(|| successor(new, &to));
        let mut ports = BTreeSet::new();
        for (picture, pod) in [(old, before), (new, after)] {
            ports.extend(pod.into_iter().flat_map(|pod| picture.interesting_ports(pod)));
        }
        let named = ports.iter().map(|port| (*port, port.to_string()));
        let others = [Port::tcp, Port::udp].map(|on| {
            let other = other_port(&ports, on);
            (other, format!("{OTHER}{}", other.suffix()))
        });
        for (port, label) in named.chain(others) {
            for (in_old, in_new) in &clients {
                let side = |picture: &Picture, pod: Option<&WorkloadInfo>, client: &Option<Client>| match (
                    pod, client,
                ) {
                    (Some(pod), Some(client)) => Side::of(&picture.judge(client, pod, port, None)),
                    _ => Side::absent(),
                };
                let (was, is) = (side(old, before, in_old), side(new, after, in_new));
                let from = in_new.as_ref().or(in_old.as_ref()).map_or("", |client| &client.name);
                // Who comes or goes has nothing refused or allowed that there was before.
                let whole = was.verdict != "absent" && is.verdict != "absent";
                let comes = was.verdict == "absent" && is.allowed();
                if was != is && (whole || comes) {
                    let (from, to, port) = (from.to_owned(), to.clone(), label.clone());
                    changes.push(Change { from, to, port, before: was, after: is, count: 0 });
                }
            }
        }
    }
    changes
}

fn reachable<'a>(picture: &'a Picture, name: &ObjectName) -> Option<&'a WorkloadInfo> {
    picture.pods().find(|pod| pod.namespace == name.namespace && pod.name == name.name)
}

fn successor<'a>(picture: &'a Picture, workload: &str) -> Option<&'a WorkloadInfo> {
    let (namespace, name) = workload.split_once('/')?;
    picture.pods_of(&ObjectName::new(namespace, name)).next()
}

/// The number of a pod's rules in its picture.
fn policy(picture: &Picture, pod: &WorkloadInfo) -> u32 {
    let rows =
        pod.addresses.first().and_then(|ip| picture.compiled.tables.workloads.get(&Address::from(*ip)));
    rows.map_or(0, |row| row.policy)
}

/// Everybody whom either knows, by name, as each knows it. An identity without pods is the same in both.
fn clients(old: &Picture, new: &Picture) -> Vec<(Option<Client>, Option<Client>)> {
    let mut all: BTreeMap<String, (Option<Client>, Option<Client>)> = BTreeMap::new();
    for client in old.clients().into_iter().chain(old.outsiders(new)) {
        let name = client.name.clone();
        all.entry(name).or_default().0 = Some(client);
    }
    for client in new.clients().into_iter().chain(new.outsiders(old)) {
        let name = client.name.clone();
        all.entry(name).or_default().1 = Some(client);
    }
    all.into_values().collect()
}
