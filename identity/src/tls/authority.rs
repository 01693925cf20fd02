//! The authority's own conversation: a server that proves to be the authority, and clients who prove themselves by a token.

use std::{sync::Arc, time::SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    pki_types::PrivatePkcs8KeyDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use zeroize::Zeroize;

use super::{Client, TlsSettings, server_name, verify, verify_chain};
use crate::{
    authority::{Authority, CertificateRequest},
    names::IdentityName,
    profile,
    trust::Trust,
};

/// HTTP/2, which gRPC goes over.
const ALPN_HTTP2: &[u8] = b"h2";

/// What the authority is served with: a key of its own, and a certificate that it issued to itself.
#[derive(Debug)]
pub struct AuthorityServer {
    /// TLS 1.3, HTTP/2; demands no certificate.
    pub config: Arc<ServerConfig>,
    /// When its certificate expires.
    pub not_after: SystemTime,
}

impl AuthorityServer {
    /// Makes a key and has it certified for `own`. Also the proof that what `authority` issues is believed by whoever
    /// trusts its anchors.
    ///
    /// # Errors
    /// What is wrong with the authority.
    pub fn new(
        authority: &Authority,
        own: &IdentityName,
        settings: &TlsSettings,
        now: SystemTime,
    ) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| text(&error))?;
        let request = CertificateRequest::new(own, &key).map_err(|error| text(&error))?;
        let issued = authority.issue(&request, now).map_err(|error| text(&error))?;
        let trust = Trust::new(
            authority.naming().clone(),
            authority.anchors().to_vec(),
            Arc::clone(&settings.provider),
        )
        .map_err(|error| text(&error))?;
        verify_chain(&Arc::new(trust), &issued.chain, own, now)?;
        let not_after = profile::not_after(&issued.chain).map_err(|error| text(&error))?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        let key = CertifiedKey::from_der(issued.chain, der.into(), &settings.provider)
            .map_err(|error| text(&error))?;
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(&settings.provider), Arc::clone(&settings.time))
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| text(&error))?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(Own { name: own.clone(), key: Arc::new(key) }));
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), not_after })
    }
}

/// What the authority `own` is reached with: it must show a certificate of the mesh's for that identity.
///
/// # Errors
/// A provider without TLS 1.3, or an identity that is no server name.
pub fn authority_client(
    trust: &Arc<Trust>,
    own: &IdentityName,
    settings: &TlsSettings,
) -> Result<Client, rustls::Error> {
    let mut config =
        ClientConfig::builder_with_details(Arc::clone(&settings.provider), Arc::clone(&settings.time))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Servers::new(Arc::clone(trust))))
            .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let server_name = server_name(own).map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(Client { config: Arc::new(config), server_name })
}

/// Serves the authority's certificate to those alone who ask for the authority.
#[derive(Debug)]
struct Own {
    name: IdentityName,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Own {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let speaks = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN_HTTP2));
        (speaks && hello.server_name() == Some(self.name.dns())).then(|| Arc::clone(&self.key))
    }
}
