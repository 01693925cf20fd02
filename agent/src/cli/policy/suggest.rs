//! `heddle policy suggest`: the least rules that allow what was recorded.

use super::{Failure, observed, picture::Picture, port::Port, source::Rules};
use crate::{cli::render::print, observe::flows::record::FlowRecord};
use heddle_ebpf::{Address, policy::PORT_L4_ONLY};
use heddle_policy::{
    WorkloadInfo,
    resources::{DefaultPolicy, Kind, ObjectName, Resource},
    verdict::{self, TCP},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
};

pub(super) const ABOUT: &str = "Writes the least rules, as YAML, that allow the flows that were recorded and nothing more: a Server for each port that has \
none, and an AuthorizationPolicy that names exactly the service accounts (or, for clients without identity, the addresses) that were seen; \
for datagrams an AccessRule. \
Flows that a rule of DIR allows already need none. What only `audit` or a default policy let pass does.

Look at what it writes before it is put in force: what was recorded is what happened, not what should.

  heddle policy suggest --observed flows.jsonl ./manifests > manifests/observed.yaml
  heddle policy check ./manifests && heddle policy diff ./manifests ./manifests --observed flows.jsonl

Ends with 0; with 1 if a flow can be allowed by no rule, which is told on standard error; with 2 if it could not run.";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Flows that were recorded (`flowLog`, or `heddle flows`)
    #[arg(long, value_name = "FILE")]
    observed: PathBuf,
    #[command(flatten)]
    rules: Rules,
}

/// What was seen at one place that needs a rule.
#[derive(Default)]
struct Seen {
    /// Service accounts of ours.
    accounts: BTreeSet<ObjectName>,
    /// Identities of other trust domains.
    foreign: BTreeSet<String>,
    addresses: BTreeSet<std::net::IpAddr>,
    count: u64,
}

/// Where a rule is to be attached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A Server that governs the port already.
    Server(ObjectName),
    /// A port of a workload that no Server governs.
    Port { workload: ObjectName, port: u16 },
    /// A port of a workload's for UDP, of which no Server says anything.
    Datagrams { workload: ObjectName, port: u16 },
}

/// What to write, and what could not be said.
struct Suggestion {
    yaml: String,
    unsaid: Vec<String>,
}

fn suggest(picture: &Picture, observed: &observed::Observed) -> Suggestion {
    let mut places: BTreeMap<Place, (Seen, &WorkloadInfo, Port)> = BTreeMap::new();
    let mut unsaid = Vec::new();
    let (mut flows, mut allowed) = (0, 0);
    for flow in observed.allowed() {
        flows += 1;
        let Some((pod, port)) = observed::server(picture, flow) else {
            unsaid.push(format!("{} is not in {}", observed::destination(flow), picture.name));
            continue;
        };
        // Who reaches a pod that is not meshed is nobody's to judge.
        if !pod.meshed() {
            continue;
        }
        let place = place(picture, pod, port);
        if has_rule(picture, flow, pod, port) {
            allowed += 1;
            continue;
        }
        let (seen, ..) = places.entry(place).or_insert_with(|| (Seen::default(), pod, port));
        seen.count += flow.count;
        match (&observed::client(picture, flow).identity, &flow.source.identity) {
            (Some(identity), _) => {
                seen.accounts.insert(ObjectName::new(identity.namespace(), identity.service_account()));
            }
            (None, Some(foreign)) => {
                seen.foreign.insert(foreign.clone());
            }
            (None, None) => {
                seen.addresses.insert(flow.source.address.to_canonical());
            }
        }
    }
    let mut yaml = format!(
        "# Suggested by `heddle policy suggest`: {flows} sorts of flows were recorded, {allowed} of them are allowed by a rule \
         already.\n# Look at each before it is put in force: what was recorded is what happened, not what should.\n"
    );
    if !observed.caveat().is_empty() {
        yaml += &format!("# {}\n", observed.caveat());
    }
    for (place, (seen, pod, port)) in places {
        match manifests(picture, &place, &seen, pod, port) {
            Ok(text) => yaml += &text,
            Err(why) => unsaid.push(why),
        }
    }
    unsaid.sort();
    unsaid.dedup();
    Suggestion { yaml, unsaid }
}

fn address(pod: &WorkloadInfo) -> Option<Address> {
    pod.addresses.first().map(|ip| Address::from(*ip))
}

fn place(picture: &Picture, pod: &WorkloadInfo, on: Port) -> Place {
    let port = on.number;
    if on.is_udp() {
        return Place::Datagrams { workload: workload(pod), port };
    }
    let governs = address(pod).and_then(|address| picture.compiled.governs(&address, port, on.transport));
    let governs = governs.unwrap_or_default();
    let server = governs.strip_prefix("Server ").and_then(|name| name.split_once('/'));
    match server {
        Some((namespace, name)) => Place::Server(ObjectName::new(namespace, name)),
        None => Place::Port { workload: workload(pod), port },
    }
}

fn workload(pod: &WorkloadInfo) -> ObjectName {
    let workload = observed::named(pod);
    ObjectName::new(&*pod.namespace, workload.split_once('/').map_or("", |(_, name)| name))
}

/// Whether a rule that somebody wrote allows a flow, not `audit` and not a default.
fn has_rule(picture: &Picture, flow: &FlowRecord, pod: &WorkloadInfo, port: Port) -> bool {
    let judged = picture.judge(&observed::client(picture, flow), pod, port, None);
    let written = match place(picture, pod, port) {
        Place::Server(_) => true,
        Place::Port { .. } => false,
        Place::Datagrams { .. } => judged.rule.contains("AccessRule "),
    };
    judged.allowed && !judged.audited && written
}

/// Whether nobody reads what the port carries.
fn opaque(picture: &Picture, pod: &WorkloadInfo, port: u16) -> bool {
    let Some(address) = address(pod) else { return false };
    let tables = &picture.compiled.tables;
    let policy = tables.workloads.get(&address).map_or(0, |row| row.policy);
    verdict::port_policy(&tables.with_captured(|_| None), policy, port, TCP)
        .is_some_and(|row| row.flags & PORT_L4_ONLY != 0)
}

const POLICY: &str = "policy.linkerd.io";

fn document(kind: &str, version: &str, name: &ObjectName, spec: Value) -> String {
    of_group(POLICY, kind, version, name, spec)
}

fn of_group(group: &str, kind: &str, version: &str, name: &ObjectName, spec: Value) -> String {
    let manifest = json!({
        "apiVersion": format!("{group}/{version}"), "kind": kind,
        "metadata": {"name": name.name, "namespace": name.namespace}, "spec": spec,
    });
    format!("---\n{}", serde_saphyr::to_string(&manifest).unwrap_or_default())
}

fn manifests(
    picture: &Picture,
    at: &Place,
    seen: &Seen,
    pod: &WorkloadInfo,
    port: Port,
) -> Result<String, String> {
    let mut out = format!("# Seen {} times: {}:{port}\n", seen.count, observed::named(pod));
    let server = match at {
        Place::Datagrams { workload, port } => {
            let rule = access_rule(picture, seen, pod, workload, *port)?;
            return Ok(out + &rule);
        }
        Place::Server(server) => {
            let governs = |other: &&WorkloadInfo| {
                other.meshed()
                    && observed::named(other) != observed::named(pod)
                    && place(picture, other, port) == Place::Server(server.clone())
            };
            let others: BTreeSet<String> = picture.pods().filter(governs).map(observed::named).collect();
            if !others.is_empty() {
                let others: Vec<_> = others.into_iter().collect();
                out += &format!(
                    "# Server {server} governs {} too, where this allows the same: divide it where that is too much.\n",
                    others.join(", ")
                );
            }
            server.clone()
        }
        Place::Port { workload, port } => {
            let (labels, others) = selecting(picture, pod, workload, "Server")?;
            if !others.is_empty() {
                out += &format!(
                    "# The labels of {workload} select {} too: the Server governs port {port} there as well.\n",
                    others.join(", ")
                );
            }
            let server =
                ObjectName::new(&*workload.namespace, unused(picture, workload, *port, Kind::Server));
            let mut spec = json!({"podSelector": {"matchLabels": labels}, "port": port});
            if opaque(picture, pod, *port)
                && let Some(spec) = spec.as_object_mut()
            {
                spec.insert("proxyProtocol".into(), "opaque".into());
            }
            out += &document("Server", "v1beta3", &server, spec);
            server
        }
    };
    if in_audit(picture, &server) {
        out +=
            &format!("# Server {server} lets everybody in until `accessPolicy: audit` is taken out of it.\n");
    }
    let mut allow = |suffix: &str, kind: &str, spec: Value| {
        let name = ObjectName::new(&*server.namespace, format!("{}-{suffix}", server.name));
        out += &document(kind, "v1alpha1", &name, spec);
        let policy = json!({
            "targetRef": {"group": POLICY, "kind": "Server", "name": server.name},
            "requiredAuthenticationRefs": [{"group": POLICY, "kind": kind, "name": name.name}],
        });
        out += &document("AuthorizationPolicy", "v1alpha1", &name, policy);
    };
    if !seen.accounts.is_empty() {
        let reference =
            |it: &ObjectName| json!({"kind": "ServiceAccount", "name": it.name, "namespace": it.namespace});
        let references: Vec<_> = seen.accounts.iter().map(reference).collect();
        allow("observed", "MeshTLSAuthentication", json!({"identityRefs": references}));
    }
    if !seen.foreign.is_empty() {
        allow("observed-elsewhere", "MeshTLSAuthentication", json!({"identities": seen.foreign}));
    }
    if !seen.addresses.is_empty() {
        let network = |ip: &std::net::IpAddr| json!({"cidr": ipnet::IpNet::from(*ip).to_string()});
        let networks: Vec<_> = seen.addresses.iter().map(network).collect();
        allow("observed-addresses", "NetworkAuthentication", json!({"networks": networks}));
    }
    Ok(out)
}

/// The labels that select a workload's pods for a resource of some kind, and what else they select.
fn selecting(
    picture: &Picture,
    pod: &WorkloadInfo,
    workload: &ObjectName,
    kind: &str,
) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
    let labels = observed::lasting_labels(pod);
    if labels.is_empty() {
        return Err(format!(
            "pods of {workload} have no label that lasts, so that no {kind} can select them alone: give them one"
        ));
    }
    let others: BTreeSet<String> = picture
        .pods()
        .filter(|other| other.namespace == pod.namespace && observed::named(other) != observed::named(pod))
        .filter(|other| labels.iter().all(|(key, value)| other.labels.get(key) == Some(value)))
        .map(observed::named)
        .collect();
    Ok((labels, others.into_iter().collect()))
}

/// The rule that lets the datagrams pass that were seen.
fn access_rule(
    picture: &Picture,
    seen: &Seen,
    pod: &WorkloadInfo,
    workload: &ObjectName,
    port: u16,
) -> Result<String, String> {
    let (labels, others) = selecting(picture, pod, workload, "AccessRule")?;
    let mut out = String::new();
    if !others.is_empty() {
        let others = others.join(", ");
        out += &format!("# The labels of {workload} select {others} too: the rule holds there as well.\n");
    }
    let mut from = Vec::new();
    if !seen.accounts.is_empty() {
        let account = |it: &ObjectName| json!({"name": it.name, "namespace": it.namespace});
        from.push(json!({"serviceAccounts": seen.accounts.iter().map(account).collect::<Vec<_>>()}));
    }
    if !seen.foreign.is_empty() {
        from.push(json!({"identities": seen.foreign}));
    }
    if !seen.addresses.is_empty() {
        let network = |ip: &std::net::IpAddr| json!({"cidr": ipnet::IpNet::from(*ip).to_string()});
        from.push(json!({"networks": seen.addresses.iter().map(network).collect::<Vec<_>>()}));
    }
    let name = ObjectName::new(&*workload.namespace, unused(picture, workload, port, Kind::AccessRule));
    let spec = json!({
        "action": "Allow", "protocol": "UDP", "podSelector": {"matchLabels": labels}, "ports": [port], "from": from,
    });
    Ok(out + &of_group("heddle.io", "AccessRule", "v1alpha1", &name, spec))
}

/// Whether a Server lets everybody in for now.
fn in_audit(picture: &Picture, server: &ObjectName) -> bool {
    picture.index.resources().any(|it| {
        matches!(it, Resource::Server(it)
            if it.meta.object_name() == *server && it.access == DefaultPolicy::Audit)
    })
}

/// A name that no other of its kind has.
fn unused(picture: &Picture, workload: &ObjectName, port: u16, kind: Kind) -> String {
    let mut base = workload.name.clone();
    base.truncate(40);
    let base = base.trim_end_matches(['-', '.']);
    let taken = |name: &str| {
        picture.index.resources().any(|it| {
            it.kind() == kind && it.meta().namespace == workload.namespace && it.meta().name == name
        })
    };
    let first = format!("{base}-{port}");
    std::iter::once(first.clone())
        .chain((2..).map(|n| format!("{first}-{n}")))
        .find(|name| !taken(name))
        .unwrap_or(first)
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let picture = Picture::of(arguments.rules.read()?);
    if picture.unread {
        return Err(miette::miette!(
            help = "`heddle policy check` names the file",
            "part of {} cannot be read: rules that are there already would be suggested again",
            picture.name
        ));
    }
    let suggestion = suggest(&picture, &observed::read(&arguments.observed)?);
    print(suggestion.yaml.trim_end())?;
    for unsaid in &suggestion.unsaid {
        eprintln!("not suggested: {unsaid}");
    }
    Ok(ExitCode::from(u8::from(!suggestion.unsaid.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::{
        picture::{Client, UNKNOWN_ADDRESS},
        testing::{self, SHOP, flow},
    };

    fn seen() -> observed::Observed {
        let mut office = flow("shop/web", "shop/web", 80);
        office.source.identity = None;
        office.source.address = "198.51.100.9".parse().unwrap();
        office.source.workload = None;
        office.source.pod = None;
        let flows = vec![
            flow("shop/web", "shop/redis", 6379),
            flow("shop/stranger", "shop/redis", 6379),
            flow("shop/stranger", "shop/web", 80),
            flow("shop/redis", "shop/web", 8443),
            office,
        ];
        observed::Observed { flows, ..Default::default() }
    }

    #[test]
    fn the_least_rules_are_valid_and_allow_what_happened_and_nothing_more() {
        let observed = seen();
        let before = testing::shop();
        let suggestion = suggest(&before, &observed);
        assert_eq!(suggestion.unsaid, [""; 0]);
        insta::assert_snapshot!(suggestion.yaml);

        // Put in force with everything else closed: what was in audit is no longer.
        let closed = SHOP.replace("  accessPolicy: audit\n", "");
        assert_ne!(closed, SHOP);
        let text = format!("{closed}\n{}", suggestion.yaml);
        let after = testing::picture(&text);
        assert_eq!(after.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
        let judge = |picture: &Picture, flow: &FlowRecord| {
            let (pod, port) = observed::server(picture, flow).unwrap();
            picture.judge(&observed::client(picture, flow), pod, port, None).allowed
        };
        let control = testing::picture(&closed);
        let broken = observed.flows.iter().filter(|flow| !judge(&control, flow)).count();
        assert_eq!(broken, 4, "without the suggestion they break");
        for flow in &observed.flows {
            assert!(judge(&after, flow), "{flow:?}");
        }
        for (pod, port) in [("redis-0", 6379), ("web-7d9f-x2x4z", 80), ("web-7d9f-x2x4z", 8443)] {
            let pod = after.pods().find(|it| it.name == pod).unwrap();
            let naming = &after.settings().naming;
            let other = Client {
                identity: Some(naming.name("shop", "other").unwrap()),
                ..Client::unidentified(UNKNOWN_ADDRESS, "other".into())
            };
            assert!(
                !after.judge(&other, pod, Port::tcp(port), None).allowed,
                "{} {port}: another client is refused",
                pod.name
            );
        }
        // What is suggested on top of it is nothing.
        assert!(!suggest(&after, &observed).yaml.contains("kind:"));
    }

    #[test]
    fn datagrams_take_a_rule_that_names_udp_and_the_accounts_that_were_seen() {
        let mut seen = flow("shop/web", "shop/redis", 8125);
        seen.protocol = "udp".into();
        let observed = observed::Observed { flows: vec![seen.clone()], ..Default::default() };
        let shop = SHOP.replace("nodeName: b", "nodeName: a");
        let before = testing::picture(&shop);
        let judge = |picture: &Picture, who: &str, port: Port| {
            let (pod, _) = observed::server(picture, &seen).unwrap();
            let from = super::super::parties::from(picture, who).unwrap();
            picture.judge(&from.client, pod, port, None).allowed
        };
        assert!(!judge(&before, "sa/shop/web", Port::udp(8125)), "the control");
        let suggestion = suggest(&before, &observed);
        assert_eq!(suggestion.unsaid, [""; 0]);
        let after = testing::picture(&format!("{shop}\n{}", suggestion.yaml));
        let worse: Vec<_> =
            after.problems.iter().filter(|it| it.severity != heddle_policy::Severity::Note).collect();
        assert!(worse.is_empty(), "{worse:?}");
        assert!(judge(&after, "sa/shop/web", Port::udp(8125)), "{}", suggestion.yaml);
        assert!(
            !judge(&after, "sa/shop/web", Port::udp(8126)) && !judge(&after, "sa/shop/web", Port::tcp(8125))
        );
        assert!(!judge(&after, "sa/shop/stranger", Port::udp(8125)));
        assert!(!suggest(&after, &observed).yaml.contains("kind:"), "nothing is left to suggest");
    }

    #[test]
    fn what_no_rule_can_say_is_told() {
        let before = testing::picture(&SHOP.replace("labels: {app: stranger}", "labels: {}"));
        let mut to_nowhere = flow("shop/web", "shop/redis", 6379);
        to_nowhere.destination.pod = Some("shop/gone".into());
        to_nowhere.destination.workload = None;
        let mut unlabelled = flow("shop/web", "shop/redis", 6379);
        unlabelled.destination.pod = Some("shop/stranger".into());
        let observed = observed::Observed { flows: vec![to_nowhere, unlabelled], ..Default::default() };
        let suggestion = suggest(&before, &observed);
        assert!(!suggestion.yaml.contains("kind:"), "{}", suggestion.yaml);
        assert_eq!(suggestion.unsaid.len(), 2, "{:?}", suggestion.unsaid);
        assert!(suggestion.unsaid[0].contains("no label"), "{:?}", suggestion.unsaid);
    }
}
