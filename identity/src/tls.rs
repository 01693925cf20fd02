//! rustls configurations that authenticate both sides, and what must hold of a finished handshake.
//!
//! TLS 1.3 alone, no resumption, no tickets, no early data: a handshake is always whole, so that a certificate or an
//! anchor that is gone is refused by the next connection. The client's configuration serves every peer: whom it expects
//! is the server name of the connection, the DNS form of the peer's identity, which is the SNI as well.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, CommonState, ProtocolVersion, ServerConfig,
    client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::TLS13,
};

mod authority;
mod fault;
mod standing;
mod verify;

pub use authority::{AuthorityServer, authority_client};
pub use fault::{HandshakeFault, PeerFault};
pub use standing::{Standing, Standings};

use crate::{
    crypto::provider,
    names::{IdentityName, IdentityNaming},
    profile::{self, PeerIdentity, peer_identity},
    trust::Trust,
};

/// The protocol inside TLS between two agents.
pub const ALPN: &[u8] = b"heddle/1";

/// What TLS is made with.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Suites, key exchange groups and signatures.
    pub provider: Arc<CryptoProvider>,
    /// The clock that peers' certificates are held against.
    pub time: Arc<dyn TimeProvider>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { provider: Arc::new(provider()), time: Arc::new(DefaultTimeProvider) }
    }
}

/// What a connection to one peer is made with; both parts belong together.
#[derive(Clone, Debug)]
pub struct Client {
    /// The own identity's configuration.
    pub config: Arc<ClientConfig>,
    /// The peer's identity: sent as SNI, demanded of its certificate.
    pub server_name: ServerName<'static>,
}

/// The configuration of the server that is `name`.
pub(crate) fn server_config(
    name: &IdentityName,
    key: Arc<CertifiedKey>,
    trust: &Arc<Trust>,
    settings: &TlsSettings,
) -> Result<ServerConfig, rustls::Error> {
    let mut config =
        ServerConfig::builder_with_details(Arc::clone(&settings.provider), Arc::clone(&settings.time))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verify::Clients::new(Arc::clone(trust))))
            .with_cert_resolver(Arc::new(OwnName { name: name.clone(), key }));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The configuration of a client with `key`.
pub(crate) fn client_config(
    key: Arc<CertifiedKey>,
    trust: &Arc<Trust>,
    settings: &TlsSettings,
) -> Result<ClientConfig, rustls::Error> {
    let mut config =
        ClientConfig::builder_with_details(Arc::clone(&settings.provider), Arc::clone(&settings.time))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Servers::new(Arc::clone(trust))))
            .with_client_cert_resolver(Arc::new(OwnKey(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = true;
    Ok(config)
}

/// The server name under which `peer` is reached.
pub(crate) fn server_name(
    peer: &IdentityName,
) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
    ServerName::try_from(peer.dns().to_owned())
}

/// Holds the own certificate of `identity` against what peers will demand of it: of both sides, or, where it bears a SPIFFE
/// name alone, of a client. Gives which.
pub(crate) fn verify_as_peers_do(
    trust: &Arc<Trust>,
    chain: &[CertificateDer<'_>],
    identity: &IdentityName,
    now: SystemTime,
) -> Result<PeerIdentity, String> {
    let (leaf, intermediates) = chain.split_first().ok_or("there is no certificate")?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|error| error.to_string())?;
    let at = UnixTime::since_unix_epoch(since);
    let text = |error: rustls::Error| HandshakeFault::connecting(&error).to_string();
    let borne = trust.peer_identity(chain);
    if !matches!(borne, Ok(PeerIdentity::SpiffeAlone(_))) {
        let name = server_name(identity).map_err(|error| error.to_string())?;
        let servers = verify::Servers::new(Arc::clone(trust));
        servers.verify_server_cert(leaf, intermediates, &name, &[], at).map_err(text)?;
    }
    let clients = verify::Clients::new(Arc::clone(trust));
    clients.verify_client_cert(leaf, intermediates, at).map_err(text)?;
    let borne = borne.map_err(|error| error.to_string())?;
    if borne.name() == identity { Ok(borne) } else { Err(format!("it is {}'s", borne.name())) }
}

/// Holds `chain` against what peers of both sides would demand of `identity` at `now`.
///
/// # Errors
/// What they would say.
pub fn verify_chain(
    trust: &Arc<Trust>,
    chain: &[CertificateDer<'_>],
    identity: &IdentityName,
    now: SystemTime,
) -> Result<(), String> {
    match verify_as_peers_do(trust, chain, identity, now)? {
        PeerIdentity::Whole(_) => Ok(()),
        PeerIdentity::SpiffeAlone(_) => Err(format!(
            "it bears the SPIFFE name alone: nobody can connect to it, and rules that allow it must name it whole; its entry must have the DNS name {identity}"
        )),
    }
}

/// Serves the own certificate to those alone who ask for the own name and speak the own protocol.
#[derive(Debug)]
struct OwnName {
    name: IdentityName,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for OwnName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls goes on without a protocol where a client offers none: refused here, before anything is shown.
        let speaks = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN));
        (speaks && hello.server_name() == Some(self.name.dns())).then(|| Arc::clone(&self.key))
    }
}

/// Shows the own certificate to whoever asks for one: the server has shown its own by then.
#[derive(Debug)]
struct OwnKey(Arc<CertifiedKey>);

impl ResolvesClientCert for OwnKey {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Who is at the other end of a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub identity: IdentityName,
    /// When its certificate expires: a connection that is kept for reuse proves nothing after that.
    pub not_after: SystemTime,
}

/// Holds a finished handshake against what must be true of it and gives the peer. Call it on each side before
/// the first byte of application data: a server that chose no protocol is noticed only here.
///
/// # Errors
/// A handshake that is not finished ([`HandshakeFault::Misuse`]), another version or protocol, a peer without identity.
pub fn confirm(connection: &CommonState, naming: &IdentityNaming) -> Result<Peer, HandshakeFault> {
    if connection.is_handshaking() {
        return Err(HandshakeFault::Misuse("the handshake is not finished".to_owned()));
    }
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return Err(PeerFault::Protocol("the connection is not TLS 1.3".to_owned()).into());
    }
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(PeerFault::NotOurs.into());
    }
    let certificates = connection.peer_certificates().unwrap_or_default();
    let peer = peer_identity(naming, certificates)
        .and_then(|identity| Ok(Peer { identity, not_after: profile::not_after(certificates)? }));
    peer.map_err(|error| PeerFault::Name(error).into())
}

#[cfg(test)]
mod tests;
