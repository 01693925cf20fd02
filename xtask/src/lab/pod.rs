//! A pod: a network namespace, a cgroup, addresses, and its description in the manifests.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    agent::Agent,
    apps,
    door::Answer,
    network::{self, PodLink},
    node::Node,
    place::Place,
    program::{Output, Running, stretched},
    sweep::Claim,
};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) meshed: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) ports: Vec<(String, u16)>,
    pub(super) probe: Option<String>,
    pub(super) reuse: Option<(Ipv4Addr, Ipv6Addr)>,
}

impl PodSpec {
    /// An unmeshed pod in namespace `default` with service account `default` and the label `app: <name>`.
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.into(),
            node: node.into(),
            namespace: "default".into(),
            account: "default".into(),
            meshed: false,
            labels: BTreeMap::from([("app".into(), name.into())]),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            probe: None,
            reuse: None,
        }
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// In this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// With this service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = account.into();
        self
    }

    /// Annotated `heddle.io/mesh: enabled`, and attached when agents are started.
    #[must_use]
    pub fn meshed(mut self) -> Self {
        self.meshed = true;
        self
    }

    /// With this label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With this annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// With this TCP container port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.into(), port));
        self
    }

    /// With this YAML (flow style) as the container's `readinessProbe`, such as `{tcpSocket: {port: 80}}`.
    #[must_use]
    pub fn readiness_probe(mut self, yaml: &str) -> Self {
        self.probe = Some(yaml.into());
        self
    }

    /// With the addresses of a pod that was removed from the same node.
    #[must_use]
    pub const fn addresses(mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        self.reuse = Some((v4, v6));
        self
    }
}

/// What a pod's manifest says beyond what the pod is to be.
pub(super) struct Placed<'a> {
    pub(super) uid: &'a str,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    /// Its node's address.
    pub(super) host: IpAddr,
}

/// A pod of the lab. Cheap to clone; it lives until the lab removes it or ends.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Its node's name.
    pub node: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    /// Its node's addresses.
    pub host_addresses: [IpAddr; 2],
    /// Whether it is in the mesh.
    pub meshed: bool,
    /// The node's end of its veth.
    pub host_interface: String,
    /// The path of its network namespace inside the node's mount namespace: what the door is told.
    pub netns: PathBuf,
    netns_name: String,
    place: Place,
    host: Place,
    directory: PathBuf,
}

impl Pod {
    pub(super) fn new(claim: &Claim, node: &Node, spec: &PodSpec) -> Result<Self> {
        let (number, [v4, gateway_v4], [v6, gateway_v6]) = node.next_addresses()?;
        let (v4, v6) = spec.reuse.unwrap_or((v4, v6));
        let netns_name = format!("{}-{}-{number}", node.name, spec.name);
        let host = node.host();
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read a random uid")?;
        let uid = uid.trim().to_owned();
        // As the kubelet names a pod's cgroup.
        let cgroup = node.cgroup().child("pods")?.child(&format!("pod{uid}"))?;
        let place = host.new_netns(&netns_name)?.in_cgroup(cgroup);
        network::prepare(&place, false)?;
        let host_interface = format!("veth{number}");
        let link = PodLink {
            host_interface: &host_interface,
            interface: "eth0",
            v4,
            v6,
            gateway_v4,
            gateway_v6,
            default_route: true,
        };
        network::connect_pod(host, &place, &link)?;
        let directory = claim.directory().join("pods").join(&netns_name);
        fs::create_dir_all(&directory)?;
        Ok(Self {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            account: spec.account.clone(),
            node: spec.node.clone(),
            uid,
            v4,
            v6,
            host_addresses: [node.v4.into(), node.v6.into()],
            meshed: spec.meshed,
            host_interface,
            netns: host.netns_path(&netns_name),
            netns_name,
            place,
            host: host.clone(),
            directory,
        })
    }

    pub(super) fn placed(&self) -> Placed<'_> {
        let [host, _] = self.host_addresses;
        Placed { uid: &self.uid, v4: self.v4, v6: self.v6, host }
    }

    pub(super) fn delete(&self) -> Result<()> {
        self.place.cgroup().kill()?;
        self.host.shell(&format!("ip link del {}", self.host_interface))?;
        self.host.delete_netns(&self.netns_name)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The DNS form of its identity, in the trust domain and identity namespace that labs use.
    pub fn identity(&self) -> String {
        format!("{}.{}.serviceaccount.identity.linkerd.cluster.local", self.account, self.namespace)
    }

    /// Where its programs run.
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// Its folder in the lab's: for the files of its applications.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// Runs a program in the pod to its end. See [`Place::run`].
    ///
    /// # Errors
    /// As [`Place::run`].
    pub fn run<S: AsRef<str>>(&self, program: &[S]) -> Result<Output> {
        self.place.run(program)
    }

    /// Starts a program in the pod. See [`Place::spawn`].
    ///
    /// # Errors
    /// As [`Place::spawn`].
    pub fn spawn<S: AsRef<str>>(&self, program: &[S]) -> Result<Running> {
        self.place.spawn(program)
    }

    /// Starts one of the lab's own applications in the pod and waits until it is ready. See [`apps`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn app(&self, arguments: &[&str]) -> Result<Running> {
        apps::start(&self.place, arguments)
    }

    /// Connects from the pod and tells what came of it. See [`apps::Attempt`].
    ///
    /// # Errors
    /// When the application cannot be run; that the connection failed is an outcome.
    pub fn connect(&self, attempt: &apps::Attempt) -> Result<apps::Outcome> {
        apps::connect(&self.place, attempt)
    }

    /// Connects from the pod and holds the connection. See [`apps::Talk`].
    ///
    /// # Errors
    /// When the application cannot be run; that the connection failed is in its outcome.
    pub fn call(&self, attempt: &apps::Attempt) -> Result<apps::Talk> {
        apps::Talk::call(&self.place, attempt)
    }

    /// Listens in the pod and attends to one connection after the other. See [`apps::Talk`].
    ///
    /// # Errors
    /// When the application cannot be run or cannot listen.
    pub fn attend(&self, address: &str) -> Result<apps::Talk> {
        apps::Talk::attend(&self.place, address, "")
    }

    /// Starts nginx on a port of all the pod's addresses; it answers every path with `body`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn nginx(&self, port: u16, body: &str) -> Result<Running> {
        apps::nginx(&self.place, &self.directory, port, body)
    }

    /// Gives the pod a second interface, `eth1`, with addresses `10.80.<node>.<pod>` and `fd80:<node>::<pod>` and
    /// no default route. Returns them with the name of the node's end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn second_interface(&self) -> Result<(Ipv4Addr, Ipv6Addr, String)> {
        let [_, _, node, last] = self.v4.octets();
        let v6 = |last: u8| Ipv6Addr::new(0xfd80, node.into(), 0, 0, 0, 0, 0, last.into());
        let host_interface = format!("second{last}");
        ensure!(last > 1, "no address is left for a second interface");
        let link = PodLink {
            host_interface: &host_interface,
            interface: "eth1",
            v4: Ipv4Addr::new(10, 80, node, last),
            v6: v6(last),
            gateway_v4: Ipv4Addr::new(10, 80, node, 1),
            gateway_v6: v6(1),
            default_route: false,
        };
        network::connect_pod(&self.host, &self.place, &link)?;
        Ok((link.v4, link.v6, host_interface.clone()))
    }

    /// Sends one Ethernet frame from a packet socket on the pod's `eth0`, past every hook inside the pod.
    ///
    /// # Errors
    /// When socat cannot send it.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let mut child = self
            .place
            // SOL_PACKET, PACKET_QDISC_BYPASS: not even the pod's own egress hooks see it.
            .command(&["socat", "-u", "-b", "65535", "STDIN", "INTERFACE:eth0,setsockopt=263:20:1"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no pipe")?.write_all(frame)?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "cannot send a frame: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The MAC address of an interface of the pod's.
    ///
    /// # Errors
    /// When it has none of this name.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        mac_of(&self.place, interface)
    }

    /// The MAC address of the node's end of its veth.
    ///
    /// # Errors
    /// When the veth is gone.
    pub fn gateway_mac(&self) -> Result<[u8; 6]> {
        mac_of(&self.host, &self.host_interface)
    }

    /// Pings an address from the pod once; the lab's own proof that the network works where no mesh is.
    ///
    /// # Errors
    /// When ping cannot be run.
    pub fn pings(&self, address: IpAddr) -> Result<bool> {
        let output = self.spawn(&["ping", "-c", "1", "-W", "2", &address.to_string()])?;
        Ok(output.finish(Duration::from_secs(5))?.succeeded())
    }
}

fn mac_of(place: &Place, interface: &str) -> Result<[u8; 6]> {
    let text = place.check(&["ip", "-j", "link", "show", "dev", interface])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let address =
        links.pointer("/0/address").and_then(serde_json::Value::as_str).context("no MAC address")?;
    let bytes: Vec<u8> = address.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    <[u8; 6]>::try_from(bytes).map_err(|_| anyhow::anyhow!("{address:?} is no MAC address"))
}

impl Agent {
    /// `POST /v1/pods` for a pod of the lab.
    ///
    /// # Errors
    /// With the agent's own words where it refuses.
    pub fn attach(&self, pod: &Pod) -> Result<Answer> {
        let asked = json!({ "namespace": pod.namespace, "name": pod.name, "netns": pod.netns });
        // A manifest that was written just now may not be in the agent's snapshot yet.
        let until = Instant::now() + stretched(Duration::from_secs(3));
        loop {
            let answer = self.request("POST", "/v1/pods", Some(&asked))?;
            if !matches!(answer.status, 404 | 503) || Instant::now() >= until {
                return answer.accepted().with_context(|| format!("cannot attach pod {}", pod.full_name()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `DELETE /v1/pods/{namespace}/{name}`.
    ///
    /// # Errors
    /// With the agent's own words where it refuses.
    pub fn detach(&self, pod: &Pod) -> Result<Answer> {
        let path = format!("/v1/pods/{}/{}", pod.namespace, pod.name);
        self.request("DELETE", &path, None)?
            .accepted()
            .with_context(|| format!("cannot detach pod {}", pod.full_name()))
    }
}
