//! What identity costs: certificates signed, handshakes on both sides beside rustls' own bare ones, memory for an identity
//! and for a connection that is kept for the next stream.
//!
//! All on one thread, in turns within one run, by the processor's time: a busy machine stretches it less than the wall's.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_identity::{
    Authority, AuthoritySettings, IdentityName, IdentityNaming, RenewalSettings, Store, SvidRequest,
    TlsSettings, Trust, Workload, provider,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustix::time::{ClockId, clock_gettime};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection,
    client::{Resumption, UnbufferedClientConnection},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    server::{UnbufferedServerConnection, WebPkiClientVerifier},
    unbuffered::{ConnectionState, UnbufferedStatus},
    version::TLS13,
};

const ROUNDS: usize = 9;
const HANDSHAKES: usize = 150;
const CERTIFICATES: usize = 500;
const IDENTITIES: usize = 1000;
const POOLED: usize = 200;

/// The processor's time that this thread has used.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn per_second(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64()
}

/// What both sides of a connection are made with.
struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
}

/// The processor's time of each side.
#[derive(Clone, Copy, Default)]
struct Took {
    client: Duration,
    server: Duration,
}

impl Pair {
    fn handshake(&self, took: &mut Took) {
        let began = used();
        let mut client = ClientConnection::new(Arc::clone(&self.client), self.name.clone()).unwrap();
        took.client += used() - began;
        let began = used();
        let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        took.server += used() - began;
        let mut flight = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            let began = used();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            took.client += used() - began;
            let began = used();
            let mut rest = &flight[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            flight.clear();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            took.server += used() - began;
            let began = used();
            let mut rest = &flight[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            flight.clear();
            took.client += used() - began;
        }
    }

    fn round(&self) -> Took {
        let mut took = Took::default();
        (0..HANDSHAKES).for_each(|_| self.handshake(&mut took));
        took
    }
}

struct Mesh {
    authority: Authority,
    trust: Arc<Trust>,
    store: Store,
}

impl Mesh {
    fn new(provider: Arc<CryptoProvider>) -> Self {
        let now = SystemTime::now();
        let naming = IdentityNaming::default();
        let authority = Authority::in_memory(naming.clone(), AuthoritySettings::default(), now).unwrap();
        let tls = TlsSettings { provider: Arc::clone(&provider), ..TlsSettings::default() };
        let trust = Arc::new(Trust::new(naming, authority.anchors().to_vec(), provider).unwrap());
        let store = Store::new(Arc::clone(&trust), tls, RenewalSettings::default());
        Self { authority, trust, store }
    }

    fn hold(&self, account: &str) -> Arc<Workload> {
        self.store.hold(&name(account), SystemTime::now())
    }

    fn certify(&self) {
        let now = SystemTime::now();
        for renewal in self.store.due(now, usize::MAX) {
            let issued = self.authority.issue(renewal.request(), now);
            self.store.complete(renewal, issued, now).unwrap();
        }
    }
}

fn name(account: &str) -> IdentityName {
    IdentityNaming::default().name("shop", account).unwrap()
}

/// As the mesh does it.
fn ours(provider: Arc<CryptoProvider>) -> Pair {
    let mesh = Mesh::new(provider);
    let (web, db) = (mesh.hold("web"), mesh.hold("db"));
    mesh.certify();
    let now = SystemTime::now();
    let client = web.client(db.identity(), now).unwrap();
    Pair { client: client.config, server: db.server_config(now).unwrap(), name: client.server_name }
}

/// As rustls does it by itself: both sides certified, verified by webpki alone.
fn bare(provider: Arc<CryptoProvider>) -> Pair {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let anchor = root.self_signed(&key).unwrap();
    let issuer = Issuer::new(root, key);
    let certified = |host: &str| {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![leaf.into()];
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()))
    };
    let mut roots = RootCertStore::empty();
    roots.add(anchor.into()).unwrap();
    let roots = Arc::new(roots);
    let (chain, key) = certified("web.example");
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain, key.into())
        .unwrap();
    client.resumption = Resumption::disabled();
    let (chain, key) = certified("db.example");
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key.into())
        .unwrap();
    server.send_tls13_tickets = 0;
    Pair {
        client: Arc::new(client),
        server: Arc::new(server),
        name: ServerName::try_from("db.example").unwrap(),
    }
}

fn handshakes(what: &str, provider: &CryptoProvider) {
    let (ours, bare) = (ours(Arc::new(provider.clone())), bare(Arc::new(provider.clone())));
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    ours.round();
    bare.round();
    for _ in 0..ROUNDS {
        mine.push(ours.round());
        theirs.push(bare.round());
    }
    for (side, of) in
        [("client", (|took| took.client) as fn(&Took) -> Duration), ("server", |took| took.server)]
    {
        let speed =
            |rounds: &[Took]| median(rounds.iter().map(|it| per_second(HANDSHAKES, of(it))).collect());
        let ratio = median(
            mine.iter().zip(&theirs).map(|(a, b)| of(b).as_secs_f64() / of(a).as_secs_f64()).collect(),
        );
        println!(
            "handshakes, {what}, {side}: {:.0} a second and core, rustls by itself {:.0}: {ratio:.2}",
            speed(&mine),
            speed(&theirs)
        );
    }
}

fn certificates() {
    let mesh = Mesh::new(Arc::new(provider()));
    let requests: Vec<_> = (0..CERTIFICATES).map(|_| SvidRequest::new(&name("web")).unwrap()).collect();
    let speeds = (0..ROUNDS)
        .map(|_| {
            let (now, began) = (SystemTime::now(), used());
            for request in &requests {
                mesh.authority.issue(request.request(), now).unwrap();
            }
            per_second(CERTIFICATES, used() - began)
        })
        .collect();
    println!("certificates: {:.0} judged and signed a second and core", median(speeds));
    let began = used();
    for _ in 0..CERTIFICATES {
        let request = SvidRequest::new(&name("web")).unwrap();
        let issued = mesh.authority.issue(request.request(), SystemTime::now()).unwrap();
        request.complete(issued, &mesh.trust, SystemTime::now()).unwrap();
    }
    let whole = per_second(CERTIFICATES, used() - began);
    println!("certificates: {whole:.0} a second and core with the key made and the answer verified");
}

fn memory() {
    let mesh = Mesh::new(Arc::new(provider()));
    // What is made once.
    let _first = mesh.hold("first");
    mesh.certify();
    let mut held = Vec::with_capacity(IDENTITIES);
    let info = allocation_counter::measure(|| {
        held.extend((0..IDENTITIES).map(|number| mesh.hold(&format!("account-{number}"))));
        mesh.certify();
    });
    let each = info.bytes_current / i64::try_from(IDENTITIES).unwrap();
    println!(
        "memory: {each} bytes for an identity with its certificate and both configurations (keys in AWS-LC's own memory not counted)"
    );
}

/// Takes one step of a handshake: how many bytes of the input are done with, and whether there is another step to take.
fn step<D>(status: UnbufferedStatus<'_, '_, D>, output: &mut Vec<u8>) -> (usize, bool) {
    let discard = status.discard;
    let more = match status.state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let start = output.len();
            output.resize(start + 16 * 1024, 0);
            let written = data.encode(&mut output[start..]).unwrap();
            output.truncate(start + written);
            true
        }
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            true
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => false,
        _ => panic!("no step of a handshake"),
    };
    (discard, more)
}

/// One side, without buffers of its own, as the agents keep it.
trait Side {
    fn advance(&mut self, input: &mut [u8], output: &mut Vec<u8>) -> (usize, bool);
}

impl Side for UnbufferedClientConnection {
    fn advance(&mut self, input: &mut [u8], output: &mut Vec<u8>) -> (usize, bool) {
        step(self.process_tls_records(input), output)
    }
}

impl Side for UnbufferedServerConnection {
    fn advance(&mut self, input: &mut [u8], output: &mut Vec<u8>) -> (usize, bool) {
        step(self.process_tls_records(input), output)
    }
}

/// Takes every step that the bytes in `input` allow.
fn steps(side: &mut impl Side, input: &mut Vec<u8>, output: &mut Vec<u8>) {
    loop {
        let (done, more) = side.advance(input, output);
        input.drain(..done);
        if !more && done == 0 {
            break;
        }
    }
}

/// What TLS keeps of connections that wait for their next stream, on each side.
fn pooled() {
    let pair = ours(Arc::new(provider()));
    let measure = |keep_client: bool| {
        let mut kept: (Vec<UnbufferedClientConnection>, Vec<UnbufferedServerConnection>) = Default::default();
        let info = allocation_counter::measure(|| {
            for _ in 0..POOLED {
                let client = Arc::clone(&pair.client);
                let mut client = UnbufferedClientConnection::new(client, pair.name.clone()).unwrap();
                let mut server = UnbufferedServerConnection::new(Arc::clone(&pair.server)).unwrap();
                let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
                while client.is_handshaking() || server.is_handshaking() || !to_server.is_empty() {
                    steps(&mut client, &mut to_client, &mut to_server);
                    steps(&mut server, &mut to_server, &mut to_client);
                }
                if keep_client {
                    kept.0.push(client);
                } else {
                    kept.1.push(server);
                }
            }
            kept.0.shrink_to_fit();
            kept.1.shrink_to_fit();
        });
        info.bytes_current / i64::try_from(POOLED).unwrap()
    };
    println!(
        "memory: {} bytes of TLS for a pooled connection of a client, {} of a server (what AWS-LC keeps for its keys not counted)",
        measure(true),
        measure(false)
    );
}

fn main() {
    let hybrid = provider();
    let mut classical = provider();
    classical.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    certificates();
    handshakes("X25519MLKEM768", &hybrid);
    let group = classical.kx_groups[0].name();
    handshakes(group.as_str().unwrap_or("classical"), &classical);
    memory();
    pooled();
}
