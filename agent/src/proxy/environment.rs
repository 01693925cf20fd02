//! What the data plane asks of the rest of the agent: a narrow trait for each privilege.
//!
//! All of them are called on the workers' threads, once or a few times a connection, and must not block.

use std::{
    fmt,
    hash::{Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_ebpf::codes::{Hook, Reason};
use heddle_policy::{names::IdentityName, resources::Check};
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::sync::watch;

/// A captured pod, by whatever number the agent knows it (its network namespace's cookie).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodId(pub u64);

/// An identity in its DNS form: what a certificate says first and what a client names in SNI.
#[derive(Clone)]
pub struct PeerName(Spelled);

#[derive(Clone)]
enum Spelled {
    /// A service account's of this mesh, read once: nothing that asks about it has to read it again.
    Account(IdentityName),
    /// Anybody else's.
    Other(Arc<str>),
}

impl PeerName {
    /// The identity of this name, which the caller has checked.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(Spelled::Other(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Spelled::Account(name) => name.dns(),
            Spelled::Other(name) => name,
        }
    }

    /// The service account of this mesh's, where it was made of one.
    pub const fn account(&self) -> Option<&IdentityName> {
        match &self.0 {
            Spelled::Account(name) => Some(name),
            Spelled::Other(_) => None,
        }
    }
}

impl From<&IdentityName> for PeerName {
    fn from(name: &IdentityName) -> Self {
        Self(Spelled::Account(name.clone()))
    }
}

// However it was made, a name is a name.
impl PartialEq for PeerName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for PeerName {}

impl Hash for PeerName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a connection out of a pod leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// The endpoint to connect to.
    pub address: SocketAddr,
    /// The identity that the endpoint's certificate must bear; `None`: it is not meshed, and policy lets plain text
    /// pass to it.
    pub expected: Option<PeerName>,
}

/// Why a connection is not carried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The reason, as everywhere.
    pub reason: Reason,
    /// The rule that refused, or the one whose absence did; empty: none.
    pub rule: Arc<str>,
    /// More than the reason says, for a person: what was wrong with a certificate.
    pub because: Option<Box<str>>,
}

impl Refusal {
    /// A refusal that no rule made.
    pub fn new(reason: Reason) -> Self {
        Self::by(reason, Arc::from(""))
    }

    /// A refusal by this rule, or by its absence.
    pub fn by(reason: Reason, rule: Arc<str>) -> Self {
        Self { reason, rule, because: None }
    }

    /// The same, with what was the matter.
    #[must_use]
    pub fn because(mut self, what: impl std::fmt::Display) -> Self {
        let mut text = what.to_string();
        // Some of it may be the peer's own words.
        text.truncate(text.floor_char_boundary(BECAUSE));
        self.because = Some(text.into());
        self
    }
}

/// Bytes of an explanation at most.
const BECAUSE: usize = 300;

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

/// What a connection into a pod must show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InboundClass {
    /// The client is at a meshed address: a ClientHello for this pod's name, and a certificate.
    MeshTls,
    /// The client or the pod is on its way into the mesh or out of it: the same, or plain text, as policy says.
    Either,
    /// Policy may allow the client without an identity.
    Plain {
        /// The port is opaque: its server may speak first, so that the application is connected to at once.
        server_first: bool,
    },
}

/// Whether a client may use a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// It may.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: Reason,
    /// The rule that decided; empty: none.
    pub rule: Arc<str>,
}

/// Makes sockets inside pods. Each is marked for the guard before it connects, and is non-blocking with its connect
/// under way (`EINPROGRESS` is no error).
pub trait Sockets: Send + Sync {
    /// The destination that the application asked for when its connection was turned to the agent, and forgets it.
    /// `local` and `peer` are the accepted socket's addresses. `None`: the connection is not one of ours.
    fn take_origin(&self, pod: PodId, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr>;

    /// Whether a connection that the pod's inbound listener accepted was made by this node's kubelet, and forgets it.
    /// `local` and `peer` are the accepted socket's addresses.
    fn take_probe(&self, pod: PodId, local: SocketAddr, peer: SocketAddr) -> bool;

    /// Connects from the pod to `destination`.
    ///
    /// # Errors
    /// What the kernel says.
    fn connect_upstream(&self, pod: PodId, destination: SocketAddr) -> io::Result<std::net::TcpStream>;

    /// Connects to the pod's application that listens at `destination` (the pod's own address), which is shown
    /// `client` as its peer. The hop leaves from an address of loopback where there are many, so that the pod's range of
    /// ports does not bound it, unless `from_own_address` asks for the pod's own.
    ///
    /// # Errors
    /// What the kernel says.
    fn connect_application(
        &self,
        pod: PodId,
        destination: SocketAddr,
        client: SocketAddr,
        from_own_address: bool,
    ) -> io::Result<std::net::TcpStream>;
}

/// Decides over the present snapshot.
pub trait Policy: Send + Sync {
    /// Where a connection from the pod to `destination` leads: chooses a Service's endpoint.
    ///
    /// # Errors
    /// The refusal.
    fn resolve(&self, pod: PodId, destination: SocketAddr) -> Result<Upstream, Refusal>;

    /// Whether a live connection from the pod to `upstream` may go on: it is still the same identity (or still not
    /// meshed), and the pod may still reach it.
    ///
    /// # Errors
    /// The refusal.
    fn may_continue(&self, pod: PodId, upstream: &Upstream) -> Result<(), Refusal>;

    /// Whether the pod started so lately that other nodes' agents may not know yet whose its address is: they refuse
    /// it, and will not in a moment.
    fn is_new(&self, pod: PodId) -> bool;

    /// What a client at this address must show on this port of the pod.
    ///
    /// # Errors
    /// The refusal.
    fn inbound_class(&self, pod: PodId, client: IpAddr, port: u16) -> Result<InboundClass, Refusal>;

    /// The health probes that the pod at `address` declares for a port: what its node's kubelet may ask there.
    fn probes(&self, pod: PodId, address: IpAddr, port: u16) -> Vec<Check>;

    /// Whether the client, with the identity of its certificate or with none, may use this port of the pod.
    fn authorize(&self, pod: PodId, port: u16, identity: Option<&PeerName>, client: IpAddr) -> Decision;

    /// Changes with the rules and with the anchors in force; every live connection is judged again then.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// A pod's side of a TLS connection to one identity.
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    /// TLS 1.3, the pod's certificate, ALPN [`super::wire::ALPN`], no resumption, and a verifier that accepts only
    /// the expected identity.
    pub config: Arc<ClientConfig>,
    /// The pod's own identity.
    pub own: PeerName,
}

/// A pod's side of the TLS connections that it is sent.
#[derive(Clone, Debug)]
pub struct ServerCredentials {
    /// TLS 1.3, ALPN [`super::wire::ALPN`], client certificates demanded, no tickets, and a resolver that answers
    /// only to `own` in SNI.
    pub config: Arc<ServerConfig>,
    /// The pod's own identity.
    pub own: PeerName,
}

/// Pods' identities.
pub trait Credentials: Send + Sync {
    /// What `pod` shows to `expected`; `None`: the pod has no valid certificate.
    fn client(&self, pod: PodId, expected: &PeerName) -> Option<ClientCredentials>;

    /// What `pod` shows to its clients; `None`: the pod has no valid certificate.
    fn server(&self, pod: PodId) -> Option<ServerCredentials>;

    /// The identity that a verified chain bears, and what that rests on.
    fn peer_identity(&self, chain: &[CertificateDer<'_>]) -> Option<Proven>;
}

/// What a live connection's peer was believed by.
pub trait Standing: Send + Sync + fmt::Debug {
    /// Whether it still would be, its certificate's dates aside: a stream may outlive them. Asked when [`Policy::changes`]
    /// tells.
    fn holds(&self) -> bool;

    /// Whether another stream may begin: it holds, and the certificate has not expired.
    fn may_begin(&self) -> bool;

    /// The same, as a judgement.
    ///
    /// # Errors
    /// The peer is believed no longer.
    fn judge(&self) -> Result<(), Refusal> {
        if self.holds() { Ok(()) } else { Err(Refusal::new(Reason::Revoked)) }
    }
}

/// A peer's identity, and what it rests on.
#[derive(Clone, Debug)]
pub struct Proven {
    /// Who it is.
    pub name: PeerName,
    /// By what.
    pub standing: Arc<dyn Standing>,
}

/// One connection of an application's, as it is told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// [`Hook::Outbound`] or [`Hook::Inbound`].
    pub hook: Hook,
    /// The pod on this node.
    pub pod: PodId,
    /// The application's (outbound) or the real client's (inbound) address.
    pub client: SocketAddr,
    /// What was asked for (outbound) or the pod's address and port (inbound).
    pub destination: SocketAddr,
    /// The far side's identity, from its certificate; `None`: plain, or not known yet.
    pub peer: Option<PeerName>,
    /// The rule that allowed it; empty: none, or not judged yet.
    pub rule: Arc<str>,
}

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Both sides had said all they had.
    Closed,
    /// One of the applications gave it up, or its machine did.
    Reset,
    /// The connection between the agents broke.
    Lost,
    /// The rules in force do not allow it any more.
    Terminated(Refusal),
    /// The pod is gone from this agent, or the agent stops.
    Detached,
}

/// A connection that is open, as it is told of. It counts as closed when this is dropped.
pub trait Carried: fmt::Debug {
    /// Bytes were carried since the last time: `sent` from the client to the server, `received` back. Called while
    /// bytes are under way: nothing is locked, hashed or allocated.
    fn bytes(&self, sent: u64, received: u64);

    /// It ended like this.
    fn closed(&mut self, flow: &Flow, ending: &Ending);
}

/// Is told what happens; must be cheap.
pub trait Recorder: Send + Sync {
    /// A connection was allowed and its stream is open.
    fn opened(&self, flow: &Flow) -> Box<dyn Carried>;
    /// A connection was not carried.
    fn refused(&self, flow: &Flow, refusal: &Refusal);
    /// A TLS handshake was made.
    fn handshake(&self, hook: Hook, pod: PodId);
}

/// Everything that the data plane needs of the rest of the agent.
#[derive(Clone)]
pub struct Environment {
    /// Sockets inside pods.
    pub sockets: Arc<dyn Sockets>,
    /// Decisions.
    pub policy: Arc<dyn Policy>,
    /// Identities.
    pub credentials: Arc<dyn Credentials>,
    /// Metrics and events.
    pub recorder: Arc<dyn Recorder>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}
