//! `--observed FILE`: the flows that were recorded.

use super::{
    Failure, parties,
    picture::{Client, Picture, account_elsewhere},
    port::Port,
};
use crate::{
    cluster::workload::workload_name,
    observe::flows::record::{FlowEnd, FlowLine, FlowOutcome, FlowRecord},
};
use heddle_policy::{ClientIdentity, WorkloadInfo, resources::ObjectName};
use miette::miette;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// A longer line is none of ours.
const LINE: usize = 64 << 10;

/// What was recorded.
#[derive(Default)]
pub(super) struct Observed {
    /// Flows that are alike are one.
    pub flows: Vec<FlowRecord>,
    /// What the recorder says it left out.
    pub left_out: u64,
    /// Whether the last line ends early, as it does while it is being written.
    pub cut: bool,
}

/// What flows are alike by, whenever they were.
type Key = (String, FlowEnd, FlowEnd, FlowOutcome, String, Option<String>, Option<String>);

/// Reads a file of flows.
pub(super) fn read(path: &Path) -> Result<Observed, Failure> {
    let name = path.display();
    let file = File::open(path).map_err(|error| {
        miette!(help = "name a file that `flowLog` or `heddle flows` wrote", "{name}: {error}")
    })?;
    parse(BufReader::new(file), &name.to_string())
}

fn parse(mut lines: impl BufRead, name: &str) -> Result<Observed, Failure> {
    let mut observed = Observed::default();
    let mut flows: BTreeMap<Key, FlowRecord> = BTreeMap::new();
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        number += 1;
        let read = std::io::Read::take(&mut lines, LINE as u64 + 1).read_until(b'\n', &mut line);
        if read.map_err(|error| miette!("{name}: {error}"))? == 0 {
            break;
        }
        let whole = line.ends_with(b"\n");
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        match FlowLine::parse(text.trim()) {
            Ok(FlowLine::LeftOut(it)) => observed.left_out = observed.left_out.saturating_add(it.left_out),
            Ok(FlowLine::Flow(it)) => {
                let key = (
                    it.protocol.clone(),
                    it.source.clone(),
                    it.destination.clone(),
                    it.outcome,
                    it.reason.clone(),
                    it.rule.clone(),
                    it.audit.clone(),
                );
                match flows.entry(key) {
                    std::collections::btree_map::Entry::Vacant(place) => {
                        place.insert(*it);
                    }
                    std::collections::btree_map::Entry::Occupied(mut place) => {
                        let known = place.get_mut();
                        known.count = known.count.saturating_add(it.count);
                        known.first = known.first.min(it.first);
                        known.last = known.last.max(it.last);
                    }
                }
            }
            Err(_) if !whole && line.len() <= LINE => observed.cut = true,
            Err(error) => {
                return Err(miette!(
                    help = "docs/policy.md has the form of each line; nothing is judged by half a record",
                    "{name}:{number}: {error}"
                ));
            }
        }
    }
    observed.flows = flows.into_values().collect();
    Ok(observed)
}

impl Observed {
    /// What a person should know of what is missing; empty: nothing is.
    pub fn caveat(&self) -> String {
        match (self.left_out, self.cut) {
            (0, false) => String::new(),
            (0, true) => "the last line ends early: it is still being written".into(),
            (n, _) => format!(
                "{n} connections or records were left out when this was recorded: it may have more to tell"
            ),
        }
    }

    /// The flows that carried bytes.
    pub fn allowed(&self) -> impl Iterator<Item = &FlowRecord> {
        self.flows.iter().filter(|flow| flow.outcome == FlowOutcome::Allowed)
    }
}

/// Who asked, as a picture knows it.
pub(super) fn client(picture: &Picture, flow: &FlowRecord) -> Client {
    let address = flow.source.address.to_canonical();
    let naming = &picture.settings().naming;
    match flow.source.identity.as_deref().map(|text| (text, naming.parse(text))) {
        Some((_, Ok(identity))) => {
            let name = format!("{}/{}", identity.namespace(), identity.service_account());
            Client { identity: Some(identity), ..Client::unidentified(address, name) }
        }
        Some((text, Err(_))) => {
            let shown = match account_elsewhere(naming, text) {
                // It is told of by this form where it has no other.
                Some(account) if text == account.spiffe() => ClientIdentity::SpiffeAlone(account),
                Some(account) => ClientIdentity::Account(account),
                None if text.contains("://") => {
                    ClientIdentity::Mesh { dns: None, spiffe: Some(text.to_owned()) }
                }
                None => ClientIdentity::Mesh { dns: Some(text.to_owned()), spiffe: None },
            };
            Client { foreign: Some(shown), ..Client::unidentified(address, text.to_owned()) }
        }
        None => {
            let name = match &flow.source.workload {
                Some(workload) => format!("{workload} (not meshed)"),
                None => address.to_string(),
            };
            Client::unidentified(address, name)
        }
    }
}

/// Where a flow leads in a picture: the same pod, or one of the same workload, or whatever has the address.
pub(super) fn server<'a>(picture: &'a Picture, flow: &FlowRecord) -> Option<(&'a WorkloadInfo, Port)> {
    let number = flow.destination.port?;
    let port = match flow.protocol.as_str() {
        "tcp" => Port::tcp(number),
        "udp" => Port::udp(number),
        _ => return None,
    };
    let object = |text: &str| text.split_once('/').map(|(namespace, name)| ObjectName::new(namespace, name));
    let pod = flow.destination.pod.as_deref().and_then(object);
    let workload = flow.destination.workload.as_deref().and_then(object);
    let found = pod
        .and_then(|pod| picture.pod(&pod))
        .or_else(|| workload.and_then(|workload| picture.pods_of(&workload).next()));
    let by_address = || {
        // An address alone says little: only where nothing else was recorded.
        let bare = flow.destination.pod.is_none() && flow.destination.workload.is_none();
        picture.pods().find(|pod| bare && pod.addresses.contains(&flow.destination.address))
    };
    found.or_else(by_address).map(|pod| (pod, port))
}

/// What people call a flow's destination.
pub(super) fn destination(flow: &FlowRecord) -> String {
    flow.destination
        .workload
        .clone()
        .or_else(|| flow.destination.pod.clone())
        .unwrap_or_else(|| flow.destination.address.to_string())
}

/// What people call a pod: its workload.
pub(super) fn named(pod: &WorkloadInfo) -> String {
    parties::workload(pod)
}

/// The labels by which a Server can select exactly a pod's workload: without those that change with each roll-out.
pub(super) fn lasting_labels(pod: &WorkloadInfo) -> BTreeMap<String, String> {
    const PASSING: [&str; 6] = [
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
    ];
    let name = workload_name(&pod.name, &pod.labels);
    let lasting = |key: &str, value: &str| {
        !PASSING.contains(&key)
            && !key.starts_with("batch.kubernetes.io/")
            && (value != pod.name || name == pod.name)
    };
    pod.labels
        .iter()
        .filter(|(key, value)| lasting(key, value))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::testing::{self, flow};

    #[test]
    fn flows_that_are_alike_are_one_and_what_is_missing_is_counted() {
        let line = FlowLine::Flow(Box::new(flow("shop/web", "shop/redis", 6379))).to_json();
        let lost = r#"{"version":1,"node":"a","time":"2026-11-22T05:00:00Z","leftOut":7,"why":"full"}"#;
        let read = |text: String| parse(text.as_bytes(), "f");
        let observed = read(format!("{line}\n\n{line}\n{lost}\n")).unwrap();
        assert_eq!((observed.flows.len(), observed.flows[0].count, observed.left_out), (1, 2, 7));
        assert!(observed.caveat().starts_with("7 connections"));
        let cut = read(format!("{line}\n{}", &line[..40])).unwrap();
        assert!(cut.cut && cut.flows.len() == 1 && !cut.caveat().is_empty());
        for (broken, part) in [
            (format!("{}\n{line}\n", &line[..40]), "f:1: is no record"),
            (format!("{line}\n{}\n", line.replace("\"version\":1", "\"version\":9")), "f:2: is of version 9"),
            (format!("{}\n", line.replace("\"count\"", "\"counts\"")), "counts"),
            (format!("{}\n", "x".repeat(LINE + 10)), "f:1"),
        ] {
            let error = read(broken).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_flow_is_found_again_after_a_roll_out() {
        let picture = testing::shop();
        let mut flow = flow("shop/stranger", "shop/web", 80);
        flow.destination.pod = Some("shop/web-aaaa-bbbbb".into());
        assert_eq!(server(&picture, &flow).unwrap().0.name, "web-7d9f-x2x4z");
        flow.destination.workload = None;
        flow.destination.address = "10.1.0.2".parse().unwrap();
        assert!(server(&picture, &flow).is_none(), "another pod has the address now");
        assert_eq!(client(&picture, &flow).name, "shop/stranger");
    }

    #[test]
    fn a_recorded_client_of_another_trust_domain_is_judged_by_the_name_that_it_showed() {
        let far = "web.shop.serviceaccount.identity.linkerd.far.example";
        let spiffe = "spiffe://far.example/ns/shop/sa/web";
        let with = |name: &str| {
            testing::picture(&format!(
                "{}\n---\n{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: far, namespace: shop}}, spec: \
                 {{action: Allow, podSelector: {{matchLabels: {{app: redis}}}}, from: [{{identities: [\"{name}\"]}}]}}}}\n",
                testing::SHOP
            ))
        };
        let mut flow = flow("shop/stranger", "shop/redis", 6379);
        for (shown, named, allowed) in [
            (far, far, true),
            // The other form of its name, which its certificate bears too.
            (far, spiffe, true),
            (spiffe, spiffe, true),
            (spiffe, far, true),
            (spiffe, "*", false),
            (far, "*", false),
            (far, "other.shop.serviceaccount.identity.linkerd.far.example", false),
            ("vm.example", "vm.example", true),
            ("vm.example", far, false),
            ("spiffe://far.example/vm", "spiffe://far.example/vm", true),
        ] {
            flow.source.identity = Some(shown.to_owned());
            let picture = with(named);
            let (pod, port) = server(&picture, &flow).unwrap();
            let judged = picture.judge(&client(&picture, &flow), pod, port, None);
            assert_eq!(judged.allowed, allowed, "{shown} by a rule for {named}: {judged:?}");
        }
    }
}
