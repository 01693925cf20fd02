//! The matrix itself: clients, ends, and an answer for each pair.

use crate::cli::policy::{
    parties::workload,
    picture::{Client, Picture},
    port::Port,
};
use heddle_ebpf::Address;
use heddle_policy::WorkloadInfo;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Who may talk to whom.
#[derive(Debug, Serialize)]
pub(super) struct Grid {
    /// As a person named the rules.
    pub name: String,
    pub clients: Vec<String>,
    pub ends: Vec<End>,
    /// By end, then by client: an index into `answers`.
    pub cells: Vec<Vec<usize>>,
    pub answers: Vec<Answer>,
}

/// A port of a workload.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct End {
    pub to: String,
    pub port: String,
    /// What governs the port.
    pub governs: String,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Answer {
    pub verdict: &'static str,
    pub reason: &'static str,
    /// What the reason means.
    pub means: &'static str,
    pub rule: String,
}

/// What a port is called that stands for every port without rules of its own.
const OTHER: &str = "others";

impl Grid {
    /// The matrix of the pods of some namespaces; none named: of all.
    pub fn of(picture: &Picture, namespaces: &[String]) -> Self {
        let mut clients: Vec<Client> = picture.clients();
        clients.extend(picture.outsiders(picture));
        let mut ends: BTreeMap<End, (&WorkloadInfo, Port)> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for pod in picture.pods() {
            let wanted = namespaces.is_empty() || namespaces.contains(&pod.namespace);
            let address = pod.addresses.first().map(|ip| Address::from(*ip));
            let policy = address
                .and_then(|address| picture.compiled.tables.workloads.get(&address))
                .map_or(0, |row| row.policy);
            // Pods of one workload with the same rules are one destination.
            let Some(address) = address.filter(|_| wanted && seen.insert((workload(pod), policy))) else {
                continue;
            };
            let ports = picture.interesting_ports(pod);
            let other = |on: fn(u16) -> Port| {
                on((1..u16::MAX).find(|port| !ports.contains(&on(*port))).unwrap_or(u16::MAX))
            };
            let mut others = vec![(other(Port::tcp), OTHER.to_owned())];
            if picture.rules_datagrams(pod) {
                others.push((other(Port::udp), format!("{OTHER}/udp")));
            }
            let names = picture.declared_ports(pod);
            let label = |port: &Port| match names.get(port).filter(|name| !name.is_empty()) {
                Some(name) => format!("{port} ({name})"),
                None => port.to_string(),
            };
            for (port, label) in ports.iter().map(|port| (*port, label(port))).chain(others) {
                let governs = picture.compiled.governs(&address, port.number, port.transport);
                let governs = governs.unwrap_or("not meshed").to_owned();
                ends.insert(End { to: workload(pod), port: label, governs }, (pod, port));
            }
        }
        let mut answers: BTreeMap<Answer, usize> = BTreeMap::new();
        let cells = ends
            .values()
            .map(|(pod, port)| {
                let mut judge = |client: &Client| {
                    let judged = picture.judge(client, pod, *port, None);
                    let answer = Answer {
                        verdict: judged.word(),
                        reason: judged.reason.as_str(),
                        means: judged.reason.explain().trim(),
                        rule: judged.rule,
                    };
                    let next = answers.len();
                    *answers.entry(answer).or_insert(next)
                };
                clients.iter().map(&mut judge).collect()
            })
            .collect();
        let mut listed: Vec<(usize, Answer)> = answers.into_iter().map(|(answer, i)| (i, answer)).collect();
        listed.sort();
        Self {
            name: picture.name.clone(),
            clients: clients.into_iter().map(|client| client.name).collect(),
            ends: ends.into_keys().collect(),
            cells,
            answers: listed.into_iter().map(|(_, answer)| answer).collect(),
        }
    }
}
