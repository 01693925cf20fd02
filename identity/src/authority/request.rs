//! A request for a certificate: the identity asked for, and the proof that the requester holds the key.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PublicKey, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::FromDer,
};

use crate::names::IdentityName;

/// Ours have about 330 bytes.
const MAX_REQUEST: usize = 4 * 1024;

/// Why a request is refused: its sender is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is not one well-formed request.
    #[error("it cannot be parsed: {0}")]
    Malformed(&'static str),
    /// Its signature is not made with its key.
    #[error("its signature does not verify: the sender does not hold the key")]
    Signature,
    /// Its key is not on P-256.
    #[error("its key is not ECDSA on P-256")]
    Key,
    /// It has a subject.
    #[error("it asks for a subject")]
    Subject,
    /// It asks for other names than the identity's two, or its SPIFFE name alone.
    #[error("it asks for other names than exactly the two of {identity}, or the SPIFFE name alone")]
    Names {
        /// The identity that was verified.
        identity: String,
    },
    /// It asks for an extension or bears an attribute, such as being an authority.
    #[error("it asks for more than names")]
    Extension,
    /// The identity is not one of this authority's.
    #[error("{identity} does not belong to this authority's trust domain")]
    OtherTrustDomain {
        /// The identity asked for.
        identity: String,
    },
}

/// Which of its identity's names a certificate bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bears {
    /// Both: what a connection of the mesh is made with.
    Both,
    /// The SPIFFE form alone: a workload's own certificate, which is nobody's in the mesh.
    SpiffeAlone,
}

/// A request for a certificate.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// The identity asked for. Whoever hands the request to an authority has verified that the requester may have it.
    pub identity: IdentityName,
    /// PKCS #10: the public key, the identity's two names or its SPIFFE name alone, signed with the key.
    pub csr: CertificateSigningRequestDer<'static>,
}

impl CertificateRequest {
    /// Asks for `identity` on `key`.
    ///
    /// # Errors
    /// A key that cannot sign.
    pub(crate) fn new(identity: &IdentityName, key: &KeyPair) -> Result<Self, rcgen::Error> {
        let names =
            vec![SanType::DnsName(identity.dns().try_into()?), SanType::URI(identity.spiffe().try_into()?)];
        Self::asking(identity, names, key)
    }

    /// Asks for the SPIFFE name of `identity` alone on `key`.
    ///
    /// # Errors
    /// A key that cannot sign.
    pub(crate) fn spiffe_alone(identity: &IdentityName, key: &KeyPair) -> Result<Self, rcgen::Error> {
        Self::asking(identity, vec![SanType::URI(identity.spiffe().try_into()?)], key)
    }

    fn asking(identity: &IdentityName, names: Vec<SanType>, key: &KeyPair) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        let csr = params.serialize_request(key)?;
        Ok(Self { identity: identity.clone(), csr: csr.into() })
    }

    /// The key and the names, once the request has proved to ask for its identity and nothing else.
    pub(super) fn checked(&self) -> Result<(PublicKey, Bears), RequestError> {
        if self.csr.len() > MAX_REQUEST {
            return Err(RequestError::Malformed("it is larger than 4 KiB"));
        }
        let (rest, parsed) = X509CertificationRequest::from_der(&self.csr)
            .map_err(|_| RequestError::Malformed("not PKCS #10"))?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed("bytes follow it"));
        }
        let info = &parsed.certification_request_info;
        let algorithm = &info.subject_pki.algorithm;
        let curve = algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
        if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
            return Err(RequestError::Key);
        }
        parsed.verify_signature().map_err(|_| RequestError::Signature)?;
        if info.subject.iter_rdn().next().is_some() {
            return Err(RequestError::Subject);
        }
        let bears = self.check_extensions(&parsed)?;
        // rcgen parses it once more, and verifies the signature again, to carry the key into the certificate.
        let request = CertificateSigningRequestParams::from_der(&self.csr)
            .map_err(|_| RequestError::Malformed("its key cannot be used"))?;
        Ok((request.public_key, bears))
    }

    fn check_extensions(&self, parsed: &X509CertificationRequest<'_>) -> Result<Bears, RequestError> {
        let [attribute] = parsed.certification_request_info.attributes() else {
            return Err(RequestError::Extension);
        };
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            return Err(RequestError::Extension);
        };
        let [extension] = &requested.extensions[..] else {
            return Err(RequestError::Extension);
        };
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(RequestError::Extension);
        };
        match &names.general_names[..] {
            [GeneralName::DNSName(dns), GeneralName::URI(uri)]
                if *dns == self.identity.dns() && *uri == self.identity.spiffe() =>
            {
                Ok(Bears::Both)
            }
            [GeneralName::URI(uri)] if *uri == self.identity.spiffe() => Ok(Bears::SpiffeAlone),
            _ => Err(RequestError::Names { identity: self.identity.to_string() }),
        }
    }
}
