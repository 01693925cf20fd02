//! From what was given to what holds, with every problem named.

mod authority;

use super::{
    ApiServer, Ca, Cni, Config, Flags, FlowLog, HandOver, Log, LogFormat, Place, PlaceFlags, Resources,
    file::File,
};
use heddle_ebpf::{attach, flows, policy};
use heddle_policy::{
    DefaultOutbound, SameNode,
    names::{IdentityNaming, check_dns_name},
    problems::{Origin, Problem, Severity},
    resources::{DefaultPolicy, ObjectName},
};
use ipnet::IpNet;
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr};

/// As Linkerd has it: RFC 1918, carriers' NAT and unique local addresses.
const CLUSTER_NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];
/// Shorter ones would refuse whenever the host is busy, longer ones leave clients hanging.
const HEARTBEAT: std::ops::RangeInclusive<u64> = 100..=60_000;
/// A day is the longest that a certificate lives.
const DRAIN: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Longer than it takes an API server to tell a change, and no longer than somebody waits for a namespace to be in.
const JOIN_STEP: std::ops::RangeInclusive<u64> = 1..=60;
const POLL: std::ops::RangeInclusive<u64> = 0..=1_000;
/// In hundredths of a certificate's life; what is left is what an authority may be away for.
const RENEW_AFTER: std::ops::RangeInclusive<u64> = 10..=90;
pub(super) const WORKERS: std::ops::RangeInclusive<u64> = 1..=attach::WORKERS as u64;
/// Less holds no busy minute, more is nothing that a person reads.
const FLOW_MEGABYTES: std::ops::RangeInclusive<u64> = 1..=10_240;
/// A map of 16 million places takes gigabytes.
pub(super) const PLACES: std::ops::RangeInclusive<u64> = 1..=16_777_216;
/// Maps whose size depends on the cluster or on the traffic.
pub(super) const SIZED: [&str; 16] = [
    policy::maps::WORKLOADS,
    policy::maps::PORTS,
    policy::maps::ALLOWS,
    policy::maps::NETWORKS,
    policy::maps::SERVICES,
    policy::maps::BACKENDS,
    policy::maps::IDENTITIES,
    policy::maps::RULES,
    attach::maps::LISTENING,
    attach::maps::LISTENING_SOCKETS,
    flows::maps::PROXIED,
    flows::maps::DIRECT_FLOWS,
    flows::maps::DIRECT_SEEN,
    flows::maps::HOPS,
    flows::maps::UDP_FLOWS,
    flows::maps::COUNTERS,
];

/// A value and where it was given: a line of the file, or 0 for a flag or a default.
struct Given<T> {
    value: T,
    line: u32,
    flag: bool,
}

struct Check<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

fn given<T: Clone>(flag: Option<&T>, file: Option<Spanned<T>>, default: T) -> Given<T> {
    match (flag, file) {
        (Some(flag), _) => Given { value: flag.clone(), line: 0, flag: true },
        (None, Some(file)) => Given { line: line(&file), value: file.value, flag: false },
        (None, None) => Given { value: default, line: 0, flag: false },
    }
}

fn line<T>(given: &Spanned<T>) -> u32 {
    u32::try_from(given.referenced.line()).unwrap_or(0)
}

impl Check<'_> {
    fn wrong<T>(&mut self, field: &str, at: &Given<T>, reason: impl Into<String>, remedy: impl Into<String>) {
        let file = if at.flag || at.line == 0 { "" } else { self.file };
        let origin = Origin::new(file, 0);
        let problem = Problem::new(Severity::Error, &origin, reason).field(field, at.line).remedy(remedy);
        self.problems.push(problem);
    }

    fn one_of<T: Copy>(&mut self, field: &str, given: &Given<String>, values: &[(&str, T)]) -> Option<T> {
        let found = values.iter().find(|(name, _)| *name == given.value).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            self.wrong(
                field,
                given,
                format!("`{}` is not known", given.value),
                format!("one of {}", names.join(", ")),
            );
        }
        found
    }

    fn within(&mut self, field: &str, given: &Given<u64>, range: &std::ops::RangeInclusive<u64>) -> u64 {
        if !range.contains(&given.value) {
            let remedy = format!("a number from {} to {}", range.start(), range.end());
            self.wrong(field, given, format!("{} is out of range", given.value), remedy);
        }
        given.value
    }

    fn path(&mut self, field: &str, given: &Given<String>) -> PathBuf {
        let path = PathBuf::from(&given.value);
        if !path.is_absolute() {
            self.wrong(
                field,
                given,
                format!("`{}` is not an absolute path", given.value),
                "write it from / on",
            );
        }
        path
    }

    fn optional_path(
        &mut self,
        field: &str,
        flag: Option<&String>,
        file: Option<Spanned<String>>,
    ) -> Option<PathBuf> {
        let given = given(flag, file, String::new());
        (!given.value.is_empty() || given.line != 0 || given.flag).then(|| self.path(field, &given))
    }

    fn name(&mut self, field: &str, given: &Given<String>) {
        if let Err(error) = check_dns_name(&given.value) {
            self.wrong(
                field,
                given,
                format!("`{}` is no name: {error}", given.value),
                "lower-case letters, digits, `-` and `.`",
            );
        }
    }

    fn networks(
        &mut self,
        field: &str,
        flags: &[String],
        file: Option<Vec<Spanned<String>>>,
        default: &[&str],
    ) -> Vec<IpNet> {
        let all: Vec<Given<String>> = match file {
            _ if !flags.is_empty() => {
                flags.iter().map(|value| Given { value: value.clone(), line: 0, flag: true }).collect()
            }
            Some(file) => file
                .into_iter()
                .map(|value| Given { line: line(&value), value: value.value, flag: false })
                .collect(),
            None => {
                default.iter().map(|value| Given { value: (*value).into(), line: 0, flag: false }).collect()
            }
        };
        let mut networks = Vec::new();
        for (index, given) in all.iter().enumerate() {
            match IpNet::from_str(&given.value) {
                Ok(network) if network.trunc() == network => networks.push(network),
                Ok(network) => {
                    let remedy = format!("write {}", network.trunc());
                    self.wrong(
                        &format!("{field}[{index}]"),
                        given,
                        format!("`{}` has bits set outside its prefix", given.value),
                        remedy,
                    );
                }
                Err(_) => {
                    let reason = format!("`{}` is no network", given.value);
                    self.wrong(
                        &format!("{field}[{index}]"),
                        given,
                        reason,
                        "write it like 10.0.0.0/8 or fd00::/8",
                    );
                }
            }
        }
        networks
    }

    fn place(
        &mut self,
        run_directory: Option<Spanned<String>>,
        bpffs: Option<Spanned<String>>,
        cgroup: Option<Spanned<String>>,
        flags: &PlaceFlags,
    ) -> Place {
        let run_directory = given(flags.run_directory.as_ref(), run_directory, "/run/heddle".into());
        let bpffs = given(flags.bpffs.as_ref(), bpffs, "/sys/fs/bpf".into());
        Place {
            run_directory: self.path("runDirectory", &run_directory),
            bpffs: self.path("bpffs", &bpffs),
            cgroup: self.optional_path("cgroup", flags.cgroup.as_ref(), cgroup),
        }
    }

    fn required(&mut self, field: &str, remedy: impl Display) {
        let at = Given { value: (), line: 0, flag: false };
        self.wrong(field, &at, "is required", remedy.to_string());
    }
}

/// The fields that say where an agent is, alone.
pub(super) fn place(name: &str, file: File, flags: &PlaceFlags) -> Result<Place, Vec<Problem>> {
    let mut check = Check { file: name, problems: Vec::new() };
    let place = check.place(file.run_directory, file.bpffs, file.cgroup, flags);
    if check.problems.is_empty() { Ok(place) } else { Err(check.problems) }
}

/// Lays `flags` over `file` (called `name`), checks every field and fills in what was left out.
pub(super) fn validate(name: &str, file: File, flags: &Flags) -> Result<Config, Vec<Problem>> {
    let mut check = Check { file: name, problems: Vec::new() };
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let node = given(flags.node.as_ref(), file.node, host);
    check.name("node", &node);

    let resources = resources(&mut check, file.manifests, file.cluster, flags);
    let cluster_networks =
        check.networks("clusterNetworks", &flags.cluster_networks, file.cluster_networks, &CLUSTER_NETWORKS);
    let pod_networks = check.networks("podNetworks", &flags.pod_networks, file.pod_networks, &[]);
    let service_networks =
        check.networks("serviceNetworks", &flags.service_networks, file.service_networks, &[]);
    let node_networks = check.networks("nodeNetworks", &flags.node_networks, file.node_networks, &[]);

    let inbound = given(flags.default_inbound_policy.as_ref(), file.default_inbound_policy, "deny".into());
    let inbounds = DefaultPolicy::ALL.map(|policy| (policy.as_str(), policy));
    let inbound = check.one_of("defaultInboundPolicy", &inbound, &inbounds);
    let outbound = given(flags.default_outbound.as_ref(), file.default_outbound, "allow".into());
    let outbounds = [
        ("allow", DefaultOutbound::Allow),
        ("cluster", DefaultOutbound::Cluster),
        ("deny", DefaultOutbound::Deny),
    ];
    let default_outbound = check.one_of("defaultOutbound", &outbound, &outbounds);
    let same_node = given(flags.same_node.as_ref(), file.same_node, "direct".into());
    let same_node =
        check.one_of("sameNode", &same_node, &[("direct", SameNode::Direct), ("encrypt", SameNode::Encrypt)]);

    let trust_domain = given(flags.trust_domain.as_ref(), file.trust_domain, "cluster.local".into());
    check.name("trustDomain", &trust_domain);
    let identity_namespace =
        given(flags.identity_namespace.as_ref(), file.identity_namespace, "linkerd".into());
    check.name("identityNamespace", &identity_namespace);
    if check.problems.is_empty()
        && let Err(error) = IdentityNaming::new(&identity_namespace.value, &trust_domain.value)
    {
        check.wrong(
            "identityNamespace",
            &identity_namespace,
            error.to_string(),
            "shorten it or the trust domain",
        );
    }
    let dns_service = given(flags.dns_service.as_ref(), file.dns_service, "kube-system/kube-dns".into());
    let dns = object_name(&mut check, "dnsService", &dns_service, "Service");
    let ca = authority::ca(&mut check, file.ca.unwrap_or_default(), flags);
    let federation = check.optional_path("federation", flags.federation.as_ref(), file.federation);

    let renew_after = given(flags.renew_after_percent.as_ref(), file.renew_after_percent, 50);
    let renew_after_percent = check.within("renewAfterPercent", &renew_after, &RENEW_AFTER);

    let Place { run_directory, bpffs, cgroup } =
        check.place(file.run_directory, file.bpffs, file.cgroup, &flags.place);
    let kubelet_cgroup =
        check.optional_path("kubeletCgroup", flags.kubelet_cgroup.as_ref(), file.kubelet_cgroup);

    let heartbeat = given(flags.heartbeat_milliseconds.as_ref(), file.heartbeat_milliseconds, 2_000);
    let heartbeat_milliseconds = check.within("heartbeatMilliseconds", &heartbeat, &HEARTBEAT);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let workers = given(flags.workers.as_ref(), file.workers, cores.min(*WORKERS.end()));
    let workers = check.within("workers", &workers, &WORKERS);
    let poll = given(flags.poll_microseconds.as_ref(), file.poll_microseconds, 200);
    let poll_microseconds = check.within("pollMicroseconds", &poll, &POLL);
    let capacity = capacity(&mut check, file.capacity);
    let cni = cni(&mut check, file.cni, flags);
    let hand_over = hand_over(&mut check, file.hand_over, flags);
    let flow_log = flow_log(&mut check, file.flow_log, flags);
    let workload_api = check.optional_path("workloadApi", flags.workload_api.as_ref(), file.workload_api);
    if workload_api.is_some() && matches!(ca, Some(Ca::Spire(_))) {
        check.wrong(
            "workloadApi",
            &Given { value: (), line: 0, flag: false },
            "is given beside `ca.spire`: SPIRE's agent serves workloads itself",
            "leave it out, and mount SPIRE's own socket into pods",
        );
    }
    let inject = flags.linkerd_inject.then_some(&true);
    let linkerd_inject = given(inject, file.linkerd_inject, false).value;
    let find_pods = given(flags.find_pods.then_some(&true), file.find_pods, false).value;
    let step = given(flags.join_step_seconds.as_ref(), file.join_step_seconds, 3);
    let join_step_seconds = check.within("joinStepSeconds", &step, &JOIN_STEP);
    let metrics_address = metrics_address(&mut check, file.metrics_address, flags);
    let log = log(&mut check, file.log, flags);

    if !check.problems.is_empty() {
        return Err(check.problems);
    }
    let complete = || {
        Some(Config {
            node: node.value,
            resources: resources?,
            cluster_networks,
            pod_networks,
            service_networks,
            node_networks,
            default_inbound_policy: inbound?,
            default_outbound: default_outbound?,
            same_node: same_node?,
            trust_domain: trust_domain.value,
            identity_namespace: identity_namespace.value,
            dns_service: dns?,
            ca: ca?,
            federation,
            renew_after_percent,
            run_directory,
            bpffs,
            cgroup,
            heartbeat_milliseconds,
            kubelet_cgroup,
            workers: u32::try_from(workers).ok()?,
            poll_microseconds,
            capacity,
            cni,
            hand_over,
            flow_log,
            workload_api,
            linkerd_inject,
            find_pods,
            join_step_seconds,
            metrics_address,
            log: log?,
        })
    };
    complete().ok_or_else(Vec::new)
}

fn metrics_address(
    check: &mut Check<'_>,
    file: Option<Spanned<String>>,
    flags: &Flags,
) -> Option<SocketAddr> {
    let given = given(flags.metrics_address.as_ref(), file, String::new());
    if given.value.is_empty() && given.line == 0 && !given.flag {
        return None;
    }
    let address = given.value.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    if address.is_none() {
        let remedy =
            "write an address of the node's and a port, like 10.0.0.1:9991, or [::]:9991 for all of them";
        check.wrong("metricsAddress", &given, "is not an address and a port", remedy);
    }
    address
}

fn hand_over(check: &mut Check<'_>, file: Option<super::file::HandOver>, flags: &Flags) -> Option<HandOver> {
    if file.is_none() && !flags.hand_over {
        return None;
    }
    let drain = file.unwrap_or_default().drain_seconds;
    let drain = given(flags.hand_over_drain_seconds.as_ref(), drain, 300);
    Some(HandOver { drain_seconds: check.within("handOver.drainSeconds", &drain, &DRAIN) })
}

/// What must start before any agent is of use: the cluster's own pods and the authority.
const EXEMPT: [&str; 2] = ["kube-system", "heddle-system"];

fn cni(check: &mut Check<'_>, file: Option<super::file::Cni>, flags: &Flags) -> Option<Cni> {
    if file.is_none() && !flags.cni {
        return None;
    }
    let file = file.unwrap_or_default();
    let plugins = given(flags.cni_plugins.as_ref(), file.plugins, "/opt/cni/bin".into());
    let networks = given(flags.cni_networks.as_ref(), file.networks, "/etc/cni/net.d".into());
    let exempt: Vec<Given<String>> = match file.exempt {
        _ if !flags.cni_exempt.is_empty() => {
            flags.cni_exempt.iter().map(|name| Given { value: name.clone(), line: 0, flag: true }).collect()
        }
        Some(names) => names
            .into_iter()
            .map(|name| Given { line: line(&name), value: name.value, flag: false })
            .collect(),
        None => EXEMPT.iter().map(|name| Given { value: (*name).into(), line: 0, flag: false }).collect(),
    };
    for (index, name) in exempt.iter().enumerate() {
        check.name(&format!("cni.exempt[{index}]"), name);
    }
    Some(Cni {
        plugins: check.path("cni.plugins", &plugins),
        networks: check.path("cni.networks", &networks),
        exempt: exempt.into_iter().map(|name| name.value).collect(),
    })
}

/// Exactly one of a folder and the API server: two sources could contradict each other.
fn resources(
    check: &mut Check<'_>,
    manifests: Option<Spanned<String>>,
    cluster: Option<super::file::Cluster>,
    flags: &Flags,
) -> Option<Resources> {
    // A flag goes before the file, whatever the file names.
    let (manifests, cluster) = match (flags.manifests.is_some(), flags.cluster) {
        (true, _) => (manifests, None),
        (_, true) => (None, Some(cluster.unwrap_or_default())),
        _ => (manifests, cluster),
    };
    let folder = check.optional_path("manifests", flags.manifests.as_ref(), manifests);
    match (folder, cluster) {
        (Some(folder), None) => Some(Resources::Manifests(folder)),
        (None, Some(cluster)) => {
            let kubeconfig =
                check.optional_path("cluster.kubeconfig", flags.kubeconfig.as_ref(), cluster.kubeconfig);
            Some(Resources::Cluster(ApiServer { kubeconfig }))
        }
        (None, None) => {
            check.required(
                "manifests",
                "name the folder of manifests: `manifests: /etc/heddle/manifests` or --manifests DIR; or take them \
                 from the API server: `cluster: {}` or --cluster",
            );
            None
        }
        (Some(_), Some(_)) => {
            check.wrong(
                "cluster",
                &Given { value: (), line: 0, flag: false },
                "is given beside `manifests`: the resources come from one place",
                "remove one of them",
            );
            None
        }
    }
}

fn flow_log(check: &mut Check<'_>, file: Option<super::file::FlowLog>, flags: &Flags) -> Option<FlowLog> {
    let written = file.is_some();
    let file = file.unwrap_or_default();
    let megabytes = given(None, file.megabytes, 64);
    let megabytes = check.within("flowLog.megabytes", &megabytes, &FLOW_MEGABYTES);
    let path = check.optional_path("flowLog.file", flags.flow_log.as_ref(), file.file);
    if written && path.is_none() {
        check.required("flowLog.file", "name the file that flows are recorded in");
    }
    path.map(|file| FlowLog { file, megabytes })
}

/// `namespace/name`.
fn object_name(check: &mut Check<'_>, field: &str, given: &Given<String>, what: &str) -> Option<ObjectName> {
    let parts = given
        .value
        .split_once('/')
        .filter(|(namespace, name)| check_dns_name(namespace).is_ok() && check_dns_name(name).is_ok());
    let name = parts.map(|(namespace, name)| ObjectName::new(namespace, name));
    if name.is_none() {
        let reason = format!("`{}` names no {what}", given.value);
        check.wrong(field, given, reason, "write it like kube-system/kube-dns");
    }
    name
}

fn capacity(check: &mut Check<'_>, file: BTreeMap<String, Spanned<u64>>) -> BTreeMap<String, u32> {
    let mut capacity = BTreeMap::new();
    for (map, places) in file {
        let field = format!("capacity.{map}");
        let places = Given { line: line(&places), value: places.value, flag: false };
        if !SIZED.contains(&map.as_str()) {
            check.wrong(
                &field,
                &places,
                "is no map whose size can be set",
                format!("one of {}", SIZED.join(", ")),
            );
        }
        let places = check.within(&field, &places, &PLACES);
        capacity.insert(map, u32::try_from(places).unwrap_or(u32::MAX));
    }
    capacity
}

fn log(check: &mut Check<'_>, file: super::file::Log, flags: &Flags) -> Option<Log> {
    let format = given(flags.log_format.as_ref(), file.format, "text".into());
    let format = check.one_of("log.format", &format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let filter = given(flags.log_filter.as_ref(), file.filter, "info".into());
    if let Err(error) = filter.value.parse::<tracing_subscriber::filter::Targets>() {
        check.wrong(
            "log.filter",
            &filter,
            format!("`{}`: {error}", filter.value),
            "write it like info or heddle::cluster=debug,info",
        );
    }
    format.map(|format| Log { format, filter: filter.value })
}
