//! A client's node, a server's node, and everything that a test may turn.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use heddle_ebpf::codes::{Hook, Reason};
use heddle_policy::resources::Check;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use crate::proxy::{PodListeners, Settings, WorkerListeners, Workers, environment::*, wire};

pub const CLIENT: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
pub const SERVER: &str = "api.shop.serviceaccount.identity.linkerd.cluster.local";
pub const OTHER: &str = "other.shop.serviceaccount.identity.linkerd.cluster.local";
pub const POD_A: PodId = PodId(1);
pub const POD_B: PodId = PodId(2);
/// Of [`World::neighbor`].
const NEIGHBORS: [PodId; 2] = [PodId(3), PodId(4)];

/// A certificate authority and what it has issued.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub fn issue(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// A client's configuration; without a certificate if there is none.
pub fn client_config(
    roots: Arc<RootCertStore>,
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

#[derive(Debug)]
struct OwnName(String, Arc<CertifiedKey>);

impl ResolvesServerCert for OwnName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (hello.server_name() == Some(&self.0)).then(|| Arc::clone(&self.1))
    }
}

pub fn server_config(
    roots: Arc<RootCertStore>,
    name: &str,
    own: (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> Arc<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().unwrap();
    let key = CertifiedKey::from_der(vec![own.0], own.1, &provider()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(OwnName(name.to_owned(), Arc::new(key))));
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// What was recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    Opened(Flow),
    Closed(Flow, Ending),
    Refused(Flow, Refusal),
}

type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

/// Everything that the workers are told.
pub struct State {
    own: Weak<State>,
    pub authority: Authority,
    pub origin: Mutex<Option<SocketAddr>>,
    pub upstream: Mutex<Result<Upstream, Refusal>>,
    /// Where the neighbor's connections lead.
    neighbor: Mutex<Option<Upstream>>,
    pub outbound_revoked: Mutex<Option<Refusal>>,
    pub class: Mutex<Result<InboundClass, Refusal>>,
    pub allowed: Mutex<HashSet<Option<PeerName>>>,
    pub application: Mutex<SocketAddr>,
    /// Where connections to pod B's node are made instead.
    pub by_way_of: Mutex<Option<SocketAddr>>,
    pub probe: AtomicBool,
    /// The pod has just started.
    pub new: AtomicBool,
    /// Every peer's certificate has expired.
    pub expired: AtomicBool,
    pub checks: Mutex<Vec<Check>>,
    pub client_identity: Mutex<&'static str>,
    pub server_identity: Mutex<&'static str>,
    pub changes: watch::Sender<u64>,
    pub log: Mutex<Vec<Entry>>,
    pub handshakes: [AtomicUsize; 2],
    pub sent: [AtomicU64; 2],
    pub received: [AtomicU64; 2],
    issued: Mutex<HashMap<Vec<u8>, PeerName>>,
    configs: Mutex<HashMap<&'static str, Configs>>,
}

impl State {
    pub fn issue(&self, name: &'static str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let own = self.authority.issue(name);
        self.issued.lock().unwrap().insert(own.0.to_vec(), PeerName::new(name));
        own
    }

    fn configs(&self, name: &'static str) -> Configs {
        let mut configs = self.configs.lock().unwrap();
        let made = configs.entry(name).or_insert_with(|| {
            let roots = self.authority.roots();
            let own = self.issue(name);
            let copy = (own.0.clone(), own.1.clone_key());
            (client_config(Arc::clone(&roots), Some(own)), server_config(roots, name, copy))
        });
        made.clone()
    }

    /// Another certificate for `name`, as after a renewal, and tells the workers.
    pub fn renew(&self, name: &'static str) {
        self.configs.lock().unwrap().remove(name);
        self.changes.send_modify(|generation| *generation += 1);
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.log.lock().unwrap().clone()
    }

    pub fn refusals(&self, hook: Hook) -> Vec<Reason> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter_map(|entry| match entry {
                Entry::Refused(flow, refusal) if flow.hook == hook => Some(refusal.reason),
                _ => None,
            })
            .collect()
    }

    pub fn handshakes(&self) -> (usize, usize) {
        (self.handshakes[0].load(Ordering::SeqCst), self.handshakes[1].load(Ordering::SeqCst))
    }

    /// Allows exactly these clients, and tells the workers.
    pub fn allow(&self, names: &[Option<&str>]) {
        *self.allowed.lock().unwrap() = names.iter().map(|name| name.map(PeerName::new)).collect();
        self.changes.send_modify(|generation| *generation += 1);
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error)
        }
        _ => Ok(socket.into()),
    }
}

impl Sockets for State {
    fn take_origin(&self, _: PodId, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        *self.origin.lock().unwrap()
    }
    fn take_probe(&self, _: PodId, _: SocketAddr, _: SocketAddr) -> bool {
        self.probe.load(Ordering::SeqCst)
    }
    fn connect_upstream(&self, _: PodId, destination: SocketAddr) -> io::Result<TcpStream> {
        connect(self.by_way_of.lock().unwrap().unwrap_or(destination))
    }
    fn connect_application(&self, _: PodId, _: SocketAddr, _: SocketAddr, _: bool) -> io::Result<TcpStream> {
        connect(*self.application.lock().unwrap())
    }
}

impl Policy for State {
    fn resolve(&self, pod: PodId, _: SocketAddr) -> Result<Upstream, Refusal> {
        if pod == NEIGHBORS[0] {
            return self.neighbor.lock().unwrap().clone().ok_or(Refusal::new(Reason::TablesClosed));
        }
        self.upstream.lock().unwrap().clone()
    }
    fn may_continue(&self, _: PodId, _: &Upstream) -> Result<(), Refusal> {
        self.outbound_revoked.lock().unwrap().clone().map_or(Ok(()), Err)
    }
    fn is_new(&self, _: PodId) -> bool {
        self.new.load(Ordering::SeqCst)
    }
    fn inbound_class(&self, _: PodId, _: IpAddr, _: u16) -> Result<InboundClass, Refusal> {
        self.class.lock().unwrap().clone()
    }
    fn probes(&self, _: PodId, _: IpAddr, _: u16) -> Vec<Check> {
        self.checks.lock().unwrap().clone()
    }
    fn authorize(&self, _: PodId, _: u16, identity: Option<&PeerName>, _: IpAddr) -> Decision {
        let allowed = self.allowed.lock().unwrap().contains(&identity.cloned());
        let reason = if allowed { Reason::Authorized } else { Reason::Unauthorized };
        Decision { allowed, reason, rule: Arc::from("AuthorizationPolicy shop/web") }
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Credentials for State {
    fn client(&self, _: PodId, _: &PeerName) -> Option<ClientCredentials> {
        let name = *self.client_identity.lock().unwrap();
        Some(ClientCredentials { config: self.configs(name).0, own: PeerName::new(name) })
    }
    fn server(&self, _: PodId) -> Option<ServerCredentials> {
        let name = *self.server_identity.lock().unwrap();
        Some(ServerCredentials { config: self.configs(name).1, own: PeerName::new(name) })
    }
    fn peer_identity(&self, chain: &[CertificateDer<'_>]) -> Option<Proven> {
        let name = self.issued.lock().unwrap().get(chain.first()?.as_ref()).cloned()?;
        Some(Proven { name, standing: Arc::new(Lasting(self.own.clone())) })
    }
}

/// These peers are believed until their certificates expire.
struct Lasting(Weak<State>);

impl std::fmt::Debug for Lasting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lasting")
    }
}

impl Standing for Lasting {
    fn holds(&self) -> bool {
        true
    }
    fn may_begin(&self) -> bool {
        self.0.upgrade().is_some_and(|state| !state.expired.load(Ordering::SeqCst))
    }
}

fn side(hook: Hook) -> usize {
    usize::from(hook == Hook::Inbound)
}

/// One connection of a [`State`]'s.
#[derive(Debug)]
struct Stream {
    state: Weak<State>,
    hook: Hook,
}

impl Carried for Stream {
    fn bytes(&self, sent: u64, received: u64) {
        let state = self.state.upgrade().unwrap();
        state.sent[side(self.hook)].fetch_add(sent, Ordering::SeqCst);
        state.received[side(self.hook)].fetch_add(received, Ordering::SeqCst);
    }
    fn closed(&mut self, flow: &Flow, ending: &Ending) {
        let state = self.state.upgrade().unwrap();
        state.log.lock().unwrap().push(Entry::Closed(flow.clone(), ending.clone()));
    }
}

impl Recorder for State {
    fn opened(&self, flow: &Flow) -> Box<dyn Carried> {
        self.log.lock().unwrap().push(Entry::Opened(flow.clone()));
        Box::new(Stream { state: self.own.clone(), hook: flow.hook })
    }
    fn refused(&self, flow: &Flow, refusal: &Refusal) {
        self.log.lock().unwrap().push(Entry::Refused(flow.clone(), refusal.clone()));
    }
    fn handshake(&self, hook: Hook, _: PodId) {
        self.handshakes[side(hook)].fetch_add(1, Ordering::SeqCst);
    }
}

/// Two nodes.
pub struct World {
    pub state: Arc<State>,
    pub client_node: Option<Workers>,
    pub server_node: Option<Workers>,
    /// Where applications of pod A connect to.
    pub outbound: SocketAddr,
    /// Pod B's address and port.
    pub inbound: SocketAddr,
}

/// A machine that is busy with something else runs into no bound.
pub fn patient() -> Settings {
    Settings {
        handshake_timeout: Duration::from_secs(30),
        first_byte_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(30),
        accept_patience: Duration::from_secs(5),
        settle_timeout: Duration::from_secs(30),
        ..Settings::default()
    }
}

/// For those who wait until a bound is reached.
pub fn quick() -> Settings {
    Settings {
        handshake_timeout: Duration::from_millis(600),
        first_byte_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_secs(2),
        accept_patience: Duration::from_millis(500),
        settle_timeout: Duration::from_secs(2),
        ..patient()
    }
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

impl World {
    pub fn new() -> Self {
        Self::with(patient())
    }

    pub fn with(settings: Settings) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
        let state = Arc::new_cyclic(|own| State {
            own: own.clone(),
            authority: Authority::new(),
            origin: Mutex::new(Some("10.9.0.1:80".parse().unwrap())),
            upstream: Mutex::new(Err(Refusal::new(Reason::TablesClosed))),
            neighbor: Mutex::default(),
            outbound_revoked: Mutex::new(None),
            class: Mutex::new(Ok(InboundClass::MeshTls)),
            allowed: Mutex::new(HashSet::from([Some(PeerName::new(CLIENT))])),
            application: Mutex::new("127.0.0.1:9".parse().unwrap()),
            by_way_of: Mutex::default(),
            probe: AtomicBool::new(false),
            new: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            checks: Mutex::default(),
            client_identity: Mutex::new(CLIENT),
            server_identity: Mutex::new(SERVER),
            changes: watch::Sender::new(1),
            log: Mutex::default(),
            handshakes: Default::default(),
            sent: Default::default(),
            received: Default::default(),
            issued: Mutex::default(),
            configs: Mutex::default(),
        });
        let environment = Environment {
            sockets: state.clone(),
            policy: state.clone(),
            credentials: state.clone(),
            recorder: state.clone(),
        };
        let (client_node, outbound) = node(&environment, &settings, POD_A, Hook::Outbound);
        let (server_node, inbound) = node(&environment, &settings, POD_B, Hook::Inbound);
        *state.upstream.lock().unwrap() =
            Ok(Upstream { address: inbound, expected: Some(PeerName::new(SERVER)) });
        Self { state, client_node: Some(client_node), server_node: Some(server_node), outbound, inbound }
    }

    /// Has connections to pod B end at an application that does `serve` with each.
    pub fn serve(&self, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        *self.state.application.lock().unwrap() = listener.local_addr().unwrap();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
    }

    /// An application that sends back what it gets, and half-closes when its client does.
    pub fn serve_echo(&self) {
        self.serve(|mut stream| drop(io::copy(&mut stream.try_clone().unwrap(), &mut stream)));
    }

    /// An application of pod A's connects.
    pub fn connect(&self) -> TcpStream {
        client(self.outbound)
    }

    /// Somebody connects to pod B directly.
    pub fn connect_inbound(&self) -> TcpStream {
        client(self.inbound)
    }

    /// One question and its answer.
    pub fn ask(&self, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.connect();
        stream.write_all(question)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }

    /// Waits until the log holds what is looked for.
    pub fn eventually(&self, what: &str, found: impl Fn(&State) -> bool) {
        let start = Instant::now();
        while !found(&self.state) {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}; seen: {:#?}", self.state.entries());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A pod beside pod A whose connections lead to a pod beside pod B; where its applications connect to.
    pub fn neighbor(&self) -> SocketAddr {
        let inbound = attach(self.server_node.as_ref().unwrap(), NEIGHBORS[1], Hook::Inbound);
        let expected = Some(PeerName::new(SERVER));
        *self.state.neighbor.lock().unwrap() = Some(Upstream { address: inbound, expected });
        attach(self.client_node.as_ref().unwrap(), NEIGHBORS[0], Hook::Outbound)
    }

    /// Has both nodes carry everything in plain text, or in mesh TLS.
    pub fn plain(&self, plain: bool) {
        let expected = (!plain).then(|| PeerName::new(SERVER));
        if let Some(neighbor) = &mut *self.state.neighbor.lock().unwrap() {
            neighbor.expected.clone_from(&expected);
        }
        *self.state.upstream.lock().unwrap() = Ok(Upstream { address: self.inbound, expected });
        let class = if plain { InboundClass::Plain { server_first: true } } else { InboundClass::MeshTls };
        *self.state.class.lock().unwrap() = Ok(class);
        self.state.allow(if plain { &[None] } else { &[Some(CLIENT)] });
    }

    /// Waits until the client's node has told of this many ends.
    pub fn wait_closed(&self, count: usize) {
        self.eventually("streams end", |state| {
            let entries = state.entries();
            let ends =
                entries.iter().filter(|e| matches!(e, Entry::Closed(flow, _) if flow.hook == Hook::Outbound));
            ends.count() == count
        });
    }

    pub fn wait_refusal(&self, hook: Hook, reason: Reason) {
        self.eventually(&format!("no {reason:?}"), |state| state.refusals(hook).contains(&reason));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let nodes = [self.client_node.take(), self.server_node.take()];
        block_on(async {
            for node in nodes.into_iter().flatten() {
                node.drain(Duration::ZERO).await;
            }
        });
    }
}

pub fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn node(environment: &Environment, settings: &Settings, pod: PodId, hook: Hook) -> (Workers, SocketAddr) {
    let workers = Workers::start(1, environment, settings).unwrap();
    let address = attach(&workers, pod, hook);
    (workers, address)
}

/// Has a pod's connections accepted at new listeners.
pub fn attach(workers: &Workers, pod: PodId, hook: Hook) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut listeners = WorkerListeners::default();
    match hook {
        Hook::Outbound => listeners.outbound.push(listener),
        _ => listeners.inbound.push(listener),
    }
    block_on(workers.attach(PodListeners { pod, workers: vec![listeners] })).unwrap();
    address
}

/// As [`assert_reset`] for a connection that may be reset before `bytes` are written: whoever meets the reset first is told.
pub fn assert_reset_by(stream: &mut TcpStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Ok(()) => assert_reset(stream),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// The connection was reset, or closed without a byte.
pub fn assert_reset(stream: &mut TcpStream) {
    let mut byte = [0; 1];
    let error = stream.read(&mut byte).expect_err("a reset, not an orderly end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}
