use std::path::PathBuf;

/// Where the agent is on its host.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PlaceFlags {
    /// The agent's configuration: a YAML file; `agent --print-config` shows its fields
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where the agent's socket and lock are [default: /run/heddle]
    #[arg(long, value_name = "DIR")]
    pub run_directory: Option<String>,
    /// Where bpffs is mounted [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<String>,
    /// The cgroup (v2) that the programs are attached to [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<String>,
}

/// Each field of the configuration file as a flag; a flag goes before the file.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Flags {
    /// Where the agent is on its host.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// The node's name, as pods' spec.nodeName has it [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The folder of manifests; it and its files must belong to the agent's user and be writable by nobody else
    #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
    pub manifests: Option<String>,
    /// Take the resources from the API server instead of a folder
    #[arg(long)]
    pub cluster: bool,
    /// How to reach the API server [default: as a pod of the cluster does]
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub kubeconfig: Option<String>,
    /// A network of the cluster's; repeat for several [default: 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16, fd00::/8]
    #[arg(long = "cluster-network", value_name = "CIDR")]
    pub cluster_networks: Vec<String>,
    /// A network of the pods' alone, in which an unknown address is refused; repeat for several
    #[arg(long = "pod-network", value_name = "CIDR")]
    pub pod_networks: Vec<String>,
    /// A network of the Services' alone, in which an unknown address is refused; repeat for several
    #[arg(long = "service-network", value_name = "CIDR")]
    pub service_networks: Vec<String>,
    /// A network of the nodes' own addresses, where they lie in the pods' networks; repeat for several
    #[arg(long = "node-network", value_name = "CIDR")]
    pub node_networks: Vec<String>,
    /// What holds for a port that no Server selects: deny, all-authenticated, all-unauthenticated,
    /// cluster-authenticated, cluster-unauthenticated or audit [default: deny]
    #[arg(long, value_name = "POLICY")]
    pub default_inbound_policy: Option<String>,
    /// Where pods may connect outside the mesh: allow (anywhere), cluster or deny [default: allow]
    #[arg(long, value_name = "WHERE")]
    pub default_outbound: Option<String>,
    /// How two meshed pods of this node speak: direct (the kernel carries what needs no reading) or encrypt [default: direct]
    #[arg(long, value_name = "HOW")]
    pub same_node: Option<String>,
    /// The trust domain at the end of every identity [default: cluster.local]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// The control-plane namespace inside identities; existing rules that spell identities out name it [default: linkerd]
    #[arg(long, value_name = "NAME")]
    pub identity_namespace: Option<String>,
    /// The cluster's DNS Service [default: kube-system/kube-dns]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub dns_service: Option<String>,
    /// Keep the certificate authority in this folder; it is made there if the folder is empty
    #[arg(long, value_name = "DIR", conflicts_with = "ca_memory")]
    pub ca_folder: Option<String>,
    /// Make a certificate authority at the start and forget it at the end: for one node alone
    #[arg(long)]
    pub ca_memory: bool,
    /// Take certificates and anchors from SPIRE's agent on this node: the admin socket of its Delegated Identity API
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["ca_memory", "ca_folder", "ca_url"])]
    pub ca_spire: Option<String>,
    /// Ask this certificate authority (`heddle ca serve`): https://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["ca_memory", "ca_folder"], requires_all = ["ca_trust_bundle", "ca_token_file"])]
    pub ca_url: Option<String>,
    /// The trust anchors, in PEM; followed when they change
    #[arg(long, value_name = "FILE")]
    pub ca_trust_bundle: Option<String>,
    /// The token by which this agent proves itself to the authority; read anew for each certificate
    #[arg(long, value_name = "FILE")]
    pub ca_token_file: Option<String>,
    /// The authority's own service account [default: heddle-system/heddle-ca]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub ca_account: Option<String>,
    /// Other trust domains' bundles: a folder of files TRUST-DOMAIN.pem, each with the anchors of one; followed as it changes
    #[arg(long, value_name = "DIR")]
    pub federation: Option<String>,
    /// After how much of its life a certificate is renewed, 10 to 90; the authority may be away for the rest of it [default: 50]
    #[arg(long, value_name = "N")]
    pub renew_after_percent: Option<u64>,
    /// After how many milliseconds without a sign of life of the agent the kernel refuses what it would carry [default: 2000]
    #[arg(long, value_name = "N")]
    pub heartbeat_milliseconds: Option<u64>,
    /// The kubelet's cgroup on this node, whose health probes pass [default: none, and no probe passes]
    #[arg(long, value_name = "DIR")]
    pub kubelet_cgroup: Option<String>,
    /// Keep the plugin for the container runtime installed, in its usual folders
    #[arg(long)]
    pub cni: bool,
    /// The runtime's plugins [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR", requires = "cni")]
    pub cni_plugins: Option<String>,
    /// The runtime's network configurations [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR", requires = "cni")]
    pub cni_networks: Option<String>,
    /// A namespace whose pods start without the agent; repeat for several [default: kube-system, heddle-system]
    #[arg(long = "cni-exempt", value_name = "NAMESPACE", requires = "cni")]
    pub cni_exempt: Vec<String>,
    /// Take the node over from an agent that runs and hands it over, and hand it over to the next
    #[arg(long)]
    pub hand_over: bool,
    /// For how many seconds an agent that was succeeded goes on with the connections that it has, 1 to 86400 [default: 300]
    #[arg(long, value_name = "N", requires = "hand_over")]
    pub hand_over_drain_seconds: Option<u64>,
    /// Record who reaches whom in this file, for `heddle policy diff` and `suggest`
    #[arg(long, value_name = "FILE")]
    pub flow_log: Option<String>,
    /// Serve the SPIFFE Workload API on a socket in this folder, which pods mount
    #[arg(long, value_name = "DIR")]
    pub workload_api: Option<String>,
    /// Take `linkerd.io/inject: enabled` for this mesh where `heddle.io/mesh` says nothing
    #[arg(long)]
    pub linkerd_inject: bool,
    /// Find pods that run already by their cgroups, and capture them or let them go as they are annotated
    #[arg(long)]
    pub find_pods: bool,
    /// How many seconds each step takes of a pod that comes into the mesh, or leaves it, while it runs, 1 to 60; every agent of
    /// the cluster must see a change within one [default: 3]
    #[arg(long, value_name = "N")]
    pub join_step_seconds: Option<u64>,
    /// Serve the node's metrics, of all tenants, to whoever reaches this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<String>,
    /// Threads of the data plane, 1 to 4 [default: as many as the host has cores, 4 at most]
    #[arg(long, value_name = "N")]
    pub workers: Option<u64>,
    /// How many microseconds a worker goes on asking for the next message of a conversation before it sleeps, 0 to 1000
    /// [default: 200]
    #[arg(long, value_name = "N")]
    pub poll_microseconds: Option<u64>,
    /// The form of the log: text or json [default: text]
    #[arg(long, value_name = "FORM")]
    pub log_format: Option<String>,
    /// What is logged: info, debug, or by module: heddle::cluster=debug,info [default: info]
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG")]
    pub log_filter: Option<String>,
}
