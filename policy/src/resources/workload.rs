//! Pods and Services.

use std::{collections::BTreeMap, net::IpAddr};

use super::meta::Meta;

/// A transport protocol of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which no meshed pod speaks.
    Sctp,
}

/// A port that a container declares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPort {
    /// Its name; empty: none.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub transport: Transport,
}

/// What a probe asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// GET of this path and query.
    Http {
        /// The path.
        path: String,
        /// What follows the question mark; `None`: there is none.
        query: Option<String>,
        /// Whether over TLS.
        https: bool,
    },
    /// Whether the port is open.
    Tcp,
    /// `grpc.health.v1.Health/Check` of this service.
    Grpc {
        /// The service; empty: the server as a whole.
        service: String,
    },
}

/// A liveness, readiness or startup probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The port.
    pub port: u16,
    /// What is asked there.
    pub check: Check,
}

/// Where a pod is on its way into the mesh or out of it, while it runs. Whoever follows the cluster says so, from when it saw
/// the pod's annotation change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Passage {
    /// On no way: it is in the mesh, or it is not.
    #[default]
    Over,
    /// It is to be in the mesh. Its own agent captures it; the others speak with it in plain text until that must be done.
    Joining,
    /// It is in the mesh, and everybody speaks TLS with it; what was opened in plain text before goes on for a while.
    Settling,
    /// It is to be outside the mesh. Its own agent takes both from now on; it is spoken to in TLS until every agent knows.
    Leaving,
    /// It is spoken to in plain text, and its own agent still takes both.
    Parting,
    /// The same, and its own agent lets it go.
    Left,
}

impl Passage {
    /// Whether it leads out of the mesh.
    pub const fn is_outwards(self) -> bool {
        matches!(self, Self::Leaving | Self::Parting | Self::Left)
    }
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// The node that it runs on; empty: none yet.
    pub node: String,
    /// Its service account.
    pub service_account: String,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// The ports that its containers declare, init containers included.
    pub ports: Vec<PodPort>,
    /// The probes of its containers.
    pub probes: Vec<Probe>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready: its condition says so, or there is no such condition and it is running.
    pub ready: bool,
    /// Whether it has ended (`Succeeded`, `Failed`): its addresses are no longer its own.
    pub finished: bool,
    /// Its start has not ended: it may have no address yet.
    pub starting: bool,
    /// Whether one of its containers is a proxy of Linkerd's.
    pub linkerd_proxy: bool,
    /// Where it is on its way into the mesh or out of it.
    pub passage: Passage,
}

/// Where a Service's port leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// To a number.
    Number(u16),
    /// To the port that each pod declares under a name.
    Name(String),
}

/// A Service's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty: none.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
    /// Where it leads.
    pub target: TargetPort,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// Its cluster addresses; none: it is headless or a mere name.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The labels of its pods; empty: it selects none.
    pub selector: BTreeMap<String, String>,
    /// Whether pods that are not ready count as endpoints.
    pub publish_not_ready: bool,
}

/// The port at which a pod's share of the agent's metrics is read: Linkerd's, where the sidecar's were.
pub const ADMIN_PORT: u16 = 4191;
/// The name by which a Server means [`ADMIN_PORT`]: that of the port of Linkerd's sidecar.
pub const ADMIN_PORT_NAME: &str = "linkerd-admin";

impl Pod {
    /// The ports that it has under a name: those that it declares, and [`ADMIN_PORT`].
    pub fn named_ports<'a>(&'a self, name: &'a str, transport: Transport) -> impl Iterator<Item = u16> + 'a {
        let declared = self.ports.iter().filter(move |port| port.transport == transport && port.name == name);
        let admin = (transport == Transport::Tcp && name == ADMIN_PORT_NAME).then(|| self.admin_port());
        declared.map(|port| port.number).chain(admin.flatten())
    }

    /// The TCP ports that it has under a name.
    pub fn named_tcp_ports<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u16> + 'a {
        self.named_ports(name, Transport::Tcp)
    }

    /// The port at which the agent answers for the pod; `None`: it declares a port of that number or name, or a probe at it,
    /// and it is the application's.
    pub fn admin_port(&self) -> Option<u16> {
        let own = |port: &PodPort| {
            port.transport == Transport::Tcp && (port.number == ADMIN_PORT || port.name == ADMIN_PORT_NAME)
        };
        let probed = self.probes.iter().any(|probe| probe.port == ADMIN_PORT);
        (!probed && !self.ports.iter().any(own)).then_some(ADMIN_PORT)
    }

    /// Whether it declares a TCP port.
    pub fn declares_tcp(&self, number: u16) -> bool {
        self.ports.iter().any(|port| port.transport == Transport::Tcp && port.number == number)
    }
}
