//! The two nodes of the bench, and the proof that each load takes the way that its figure is named after.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::lab::{Lab, Pod, PodSpec, Running, apps, cpu_time};

/// 64 B questions and answers.
pub const ECHO: u16 = 7000;
/// One stream.
pub const SINK: u16 = 7001;
/// One byte a connection.
pub const ONCE: u16 = 7002;

/// Where the two ends of a load are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// On two nodes.
    Across,
    /// On one node.
    SameNode,
}

/// Where a relay of a pair listens for a server's port.
const fn relayed(port: u16) -> u16 {
    port + 100
}

/// What is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// Between two pods that are in no mesh.
    Nothing,
    /// Between the same two, by a relay in each of them that copies and does not encrypt: only across nodes.
    Relays,
    /// Between two meshed pods on the same nodes.
    Heddle,
}

struct Ends {
    client: Pod,
    near: Pod,
    far: Pod,
}

/// Two nodes, on each a server with the mesh and one without, and two clients.
pub struct Field {
    pub lab: Lab,
    bare: Ends,
    meshed: Ends,
    servers: Vec<Running>,
    relays: Vec<Running>,
}

/// What was seen of the ways before anything was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// How often the questions' bytes stood on the wire between two bare pods: must not be 0, or the look is blind.
    pub bare_hits: usize,
    /// The same between two meshed pods: must be 0.
    pub meshed_hits: usize,
    /// Every byte between the meshed pods was in a TLS 1.3 record.
    pub meshed_is_tls13: bool,
    /// What the agent of the client's node carried of [`Self::asked_bytes`] across nodes.
    pub agent_bytes_across: f64,
    /// The same on one node: must be 0.
    pub agent_bytes_same_node: f64,
    /// Bytes of questions and answers that were sent for each of these.
    pub asked_bytes: f64,
}

impl Proof {
    /// Every way is what it is called.
    pub fn holds(&self) -> bool {
        self.bare_hits > 0
            && self.meshed_hits == 0
            && self.meshed_is_tls13
            && self.agent_bytes_across >= self.asked_bytes
            && self.agent_bytes_same_node == 0.0
    }
}

const RULES: &str = "apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: PORT, namespace: bench}
spec: {podSelector: {matchLabels: {role: server}}, port: PORT, proxyProtocol: opaque}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: PORT, namespace: bench}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: PORT}
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: client}]
---
";
const CLIENT: &str = "apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {name: client, namespace: bench}
spec: {identities: [client.bench.serviceaccount.identity.linkerd.cluster.local]}
";
/// A question of the load, whole.
const QUESTION: [u8; 64] = [7; 64];

impl Field {
    pub fn make(heddle: Option<&Path>) -> Result<Self> {
        let mut lab = Lab::new("bench")?.node("node-a")?.node("node-b")?;
        if let Some(path) = heddle {
            lab.binary(path);
        }
        lab.heddle()?;
        lab.apply("client.yaml", CLIENT)?;
        for port in [ECHO, SINK, ONCE] {
            let name = format!("p{port}");
            let rules =
                RULES.replace("name: PORT", &format!("name: {name}")).replace("PORT", &port.to_string());
            lab.apply(&format!("{name}.yaml"), &rules)?;
        }
        let mut ends = |prefix: &str, meshed: bool| -> Result<Ends> {
            let mut pod = |name: &str, node: &str, account: &str, role: &str| {
                let spec = PodSpec::new(&format!("{prefix}-{name}"), node)
                    .namespace(if meshed { "bench" } else { "bare" })
                    .account(account)
                    .label("role", role);
                lab.pod(&if meshed { spec.meshed() } else { spec })
            };
            Ok(Ends {
                client: pod("client", "node-a", "client", "client")?,
                near: pod("near", "node-a", "server", "server")?,
                far: pod("far", "node-b", "server", "server")?,
            })
        };
        let (bare, meshed) = (ends("bare", false)?, ends("mesh", true)?);
        let mut servers = Vec::new();
        for pod in [&bare.near, &bare.far, &meshed.near, &meshed.far] {
            for (application, port) in [("echo", ECHO), ("sink", SINK), ("once", ONCE)] {
                servers.push(pod.app(&[application, &format!("{}:{port}", pod.v4)])?);
            }
        }
        let mut relays = Vec::new();
        for port in [ECHO, SINK] {
            let at = |pod: &Pod, port: u16| format!("{}:{port}", pod.v4);
            let (near, far) = (at(&bare.client, relayed(port)), at(&bare.far, relayed(port)));
            relays.push(bare.far.app(&["relay", &far, &at(&bare.far, port)])?);
            relays.push(bare.client.app(&["relay", &near, &far])?);
        }
        lab.start_agents()?;
        Ok(Self { lab, bare, meshed, servers, relays })
    }

    /// The client of a load, and the server's address.
    pub fn ends(&self, way: Way, through: Through, port: u16) -> (&Pod, SocketAddr) {
        let ends = match through {
            Through::Nothing => &self.bare,
            Through::Relays => return (&self.bare.client, (self.bare.client.v4, relayed(port)).into()),
            Through::Heddle => &self.meshed,
        };
        let server = match way {
            Way::Across => &ends.far,
            Way::SameNode => &ends.near,
        };
        (&ends.client, (server.v4, port).into())
    }

    /// CPU time of those who carried: of the relays, or of both agents.
    pub fn carriers_cpu(&self, through: Through) -> Result<Duration> {
        match through {
            Through::Nothing => Ok(Duration::ZERO),
            Through::Relays => self.relays.iter().map(|relay| cpu_time(relay.pid())).sum(),
            Through::Heddle => {
                Ok(self.lab.agent("node-a")?.cpu_time()? + self.lab.agent("node-b")?.cpu_time()?)
            }
        }
    }

    /// Bytes that the agent of the client's node has carried.
    fn carried(&self) -> Result<f64> {
        let agent = self.lab.agent("node-a")?;
        Ok(agent.metric("tcp_read_bytes_total", &[])? + agent.metric("tcp_write_bytes_total", &[])?)
    }

    /// Looks at the wire and at the agent's counters while the load's questions are sent.
    pub fn prove(&self) -> Result<Proof> {
        const COUNT: u32 = 200;
        let look = |way: Way, through: Through| -> Result<(usize, bool, f64)> {
            let (client, to) = self.ends(way, through, ECHO);
            let before = self.carried()?;
            let capture = self.lab.capture("node-a")?;
            apps::volley(client.place(), to, COUNT)?;
            let traffic = capture.stop()?;
            let records: Vec<_> =
                traffic.between(client.v4.into(), to.ip()).iter().map(|stream| stream.records()).collect();
            let tls = !records.is_empty()
                && records.iter().all(Result::is_ok)
                && records.iter().flatten().any(|records| records.tls13);
            Ok((traffic.hits(&QUESTION), tls, self.carried()? - before))
        };
        let (bare_hits, ..) = look(Way::Across, Through::Nothing)?;
        let (meshed_hits, meshed_is_tls13, agent_bytes_across) = look(Way::Across, Through::Heddle)?;
        let (_, _, agent_bytes_same_node) = look(Way::SameNode, Through::Heddle)?;
        Ok(Proof {
            bare_hits,
            meshed_hits,
            meshed_is_tls13,
            agent_bytes_across,
            agent_bytes_same_node,
            asked_bytes: f64::from(COUNT) * 128.0,
        })
    }

    pub fn close(mut self) -> Result<()> {
        self.relays.clear();
        self.servers.clear();
        self.lab.close()
    }
}
