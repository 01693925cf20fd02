//! Verification of the peer: webpki for the chain, the dates and the use, then the profile and the identity, read from
//! the very certificate that was verified. The anchors are those in force at the time of the handshake, for the trust domain
//! whose names the certificate must then bear.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::PeerFault;
use crate::{
    names::{IdentityName, IdentityNaming},
    profile::{self, PeerIdentity, PeerNameError, Profile, Side},
    trust::{Bundle, Domain, Trust},
};

/// Verifies servers: exactly the identity that the connection's server name spells.
#[derive(Debug)]
pub(crate) struct Servers {
    trust: Arc<Trust>,
}

/// Verifies clients: exactly one identity, whichever; policy judges it.
#[derive(Debug)]
pub(crate) struct Clients {
    trust: Arc<Trust>,
}

fn refuse(fault: PeerFault) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

fn misnamed(error: PeerNameError) -> Error {
    refuse(PeerFault::Name(error))
}

/// Whose names, by whose anchors and in which form: another trust domain's, or the own.
fn by<'a>(
    trust: &'a Trust,
    own: &'a Bundle,
    domain: Option<&'a Domain>,
) -> (&'a IdentityNaming, &'a Bundle, Profile) {
    domain.map_or((trust.naming(), own, trust.profile()), |domain| {
        (&domain.naming, &domain.bundle, Profile::Heddle)
    })
}

impl Servers {
    pub(crate) fn new(trust: Arc<Trust>) -> Self {
        Self { trust }
    }

    /// The identity that a server name spells, and its trust domain where that is another's.
    fn expected(&self, asked: &str) -> Result<(IdentityName, Option<Arc<Domain>>), Error> {
        match self.trust.naming().parse_dns(asked) {
            Ok(expected) => Ok((expected, None)),
            Err(error) => match self.trust.domain_of(asked) {
                Some((expected, domain)) => Ok((expected, Some(domain))),
                None => Err(Error::General(error.to_string())),
            },
        }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ServerName::DnsName(asked) = server_name else {
            return Err(Error::UnsupportedNameType);
        };
        let (expected, domain) = self.expected(asked.as_ref())?;
        profile::bounded(leaf, intermediates).map_err(misnamed)?;
        let own = self.trust.bundle();
        let (naming, bundle, profile) = by(&self.trust, &own, domain.as_deref());
        let verified = bundle.servers.verify_server_cert(leaf, intermediates, server_name, ocsp, now);
        let wrong = |presented: String| {
            refuse(PeerFault::WrongIdentity { expected: expected.to_string(), presented })
        };
        let verified = verified.map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                wrong(presented.join(", "))
            }
            Error::InvalidCertificate(CertificateError::NotValidForName) => wrong("somebody else".to_owned()),
            other => other,
        })?;
        bundle.lists.check(leaf, intermediates, Side::Server, now)?;
        let names = profile::leaf(leaf, Side::Server, profile).map_err(misnamed)?;
        match names.identity(naming).map_err(misnamed)? {
            PeerIdentity::Whole(identity) if identity == expected => Ok(verified),
            other => Err(wrong(other.name().to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.bundle().servers.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.bundle().servers.supported_verify_schemes()
    }
}

impl Clients {
    pub(crate) fn new(trust: Arc<Trust>) -> Self {
        Self { trust }
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// None: a client of the mesh has one certificate, and a stranger need not learn whose anchors are trusted.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        profile::bounded(leaf, intermediates).map_err(misnamed)?;
        let (own, domain) = (self.trust.bundle(), self.trust.claimed(leaf));
        let (naming, bundle, profile) = by(&self.trust, &own, domain.as_deref());
        let verified = bundle.clients.verify_client_cert(leaf, intermediates, now)?;
        bundle.lists.check(leaf, intermediates, Side::Client, now)?;
        let names = profile::leaf(leaf, Side::Client, profile).map_err(misnamed)?;
        names.identity(naming).map_err(misnamed)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.bundle().clients.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.bundle().clients.supported_verify_schemes()
    }
}
