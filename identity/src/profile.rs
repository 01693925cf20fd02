//! What a mesh certificate looks like, and the identity that one bears.
//!
//! A leaf has no subject, exactly one DNS name and one URI name that spell the same identity, is no authority, signs
//! digitally, and says for which side it serves. Whatever has more, less or something else bears no identity. Only
//! names of a certificate whose chain was verified may be used: the TLS verifiers call this on that certificate.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::names::{IdentityName, IdentityNaming, NameError, trust_domain_of};

/// Longest chain that is looked at: two intermediates between a leaf and its anchor, and one to spare.
const MAX_CHAIN: usize = 4;
/// Largest certificate that is looked at; ours have about 600 bytes.
const MAX_CERTIFICATE: usize = 8 * 1024;

/// Why a certificate bears no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerNameError {
    /// No certificate was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The chain is longer, or one of its certificates larger, than is looked at.
    #[error(
        "the certificate chain is too large: at most {MAX_CHAIN} certificates of {MAX_CERTIFICATE} bytes are read"
    )]
    TooLarge,
    /// It is not one well-formed X.509 version 3 certificate.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(&'static str),
    /// It has a subject. A common name never names anybody here.
    #[error("the certificate has a subject ({0}): names stand in the alternative names alone")]
    Subject(String),
    /// Its alternative names are not one DNS name and one URI name.
    #[error(
        "the certificate has {dns} DNS, {uri} URI and {other} other names instead of exactly one DNS and one URI name"
    )]
    Names {
        /// How many DNS names.
        dns: usize,
        /// How many URI names.
        uri: usize,
        /// How many names of other kinds.
        other: usize,
    },
    /// A name is not an identity's.
    #[error("the certificate bears the name {name:?}, which is no identity: {error}")]
    NotAnIdentity {
        /// The name.
        name: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// The DNS name and the URI name spell two identities.
    #[error("the certificate bears two identities, {dns} and {uri}")]
    TwoIdentities {
        /// The DNS name.
        dns: String,
        /// The URI name.
        uri: String,
    },
    /// It may act as an authority.
    #[error("the certificate is an authority's, not a workload's")]
    Authority,
    /// It lacks a usage, or grants one that a workload never has.
    #[error("the certificate's usages do not fit: {0}")]
    Usage(&'static str),
}

/// Which side a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer is a server.
    Server,
    /// The peer is a client.
    Client,
}

/// Who makes the certificates of a trust domain, and so what they look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Heddle: exactly one DNS name and one URI name, and no subject.
    #[default]
    Heddle,
    /// SPIRE: a subject, which names nobody, and the DNS name only where the entry has it.
    Spire,
}

/// The identity that a peer's certificate bears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// In both forms.
    Whole(IdentityName),
    /// In its SPIFFE form alone: nobody can ask for it by name, so that it serves a client alone, and what allows must
    /// name it whole.
    SpiffeAlone(IdentityName),
}

impl PeerIdentity {
    /// Who it is.
    pub const fn name(&self) -> &IdentityName {
        match self {
            Self::Whole(name) | Self::SpiffeAlone(name) => name,
        }
    }
}

/// The names that a certificate bears, as they stand in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// `None`: it bears the URI name alone.
    dns: Option<String>,
    uri: String,
}

impl Names {
    /// The one identity of `naming` that every name spells.
    pub(crate) fn identity(&self, naming: &IdentityNaming) -> Result<PeerIdentity, PeerNameError> {
        let no_identity = |name: &str| {
            let name = name.to_owned();
            |error| PeerNameError::NotAnIdentity { name, error }
        };
        let by_dns = self.dns.as_deref().map(|dns| naming.parse_dns(dns).map_err(no_identity(dns)));
        let by_dns = by_dns.transpose()?;
        let by_uri = naming.parse_spiffe(&self.uri).map_err(no_identity(&self.uri))?;
        match by_dns {
            None => Ok(PeerIdentity::SpiffeAlone(by_uri)),
            Some(by_dns) if by_dns == by_uri => Ok(PeerIdentity::Whole(by_dns)),
            Some(by_dns) => {
                Err(PeerNameError::TwoIdentities { dns: by_dns.dns().to_owned(), uri: self.uri.clone() })
            }
        }
    }
}

/// Bounds what a peer may make us parse, before anything is parsed.
pub(crate) fn bounded(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), PeerNameError> {
    let large = |der: &CertificateDer<'_>| der.len() > MAX_CERTIFICATE;
    if 1 + rest.len() > MAX_CHAIN || large(leaf) || rest.iter().any(large) {
        return Err(PeerNameError::TooLarge);
    }
    Ok(())
}

/// Parses one whole certificate.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerNameError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| PeerNameError::Malformed("not X.509"))?;
    if !rest.is_empty() {
        return Err(PeerNameError::Malformed("bytes follow it"));
    }
    if certificate.version() != x509_parser::x509::X509Version::V3 {
        return Err(PeerNameError::Malformed("not version 3"));
    }
    Ok(certificate)
}

/// Holds a certificate against what an authority's must be; gives what is wrong with it.
pub(crate) fn check_authority(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    let broken = |_| "an extension stands in it twice or cannot be parsed";
    if !certificate.basic_constraints().map_err(broken)?.is_some_and(|it| it.value.ca) {
        return Err("it is not an authority's (CA:TRUE is missing)");
    }
    if !certificate.key_usage().map_err(broken)?.is_some_and(|it| it.value.key_cert_sign()) {
        return Err("its key may not sign certificates (keyCertSign is missing)");
    }
    Ok(())
}

/// The trust domain that a certificate's one URI name claims, verified or not.
pub(crate) fn claimed_domain(der: &CertificateDer<'_>) -> Option<String> {
    let certificate = parse(der).ok()?;
    let mut uris = alternative_names(&certificate).ok()?.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => trust_domain_of(uri).map(str::to_owned),
        _ => None,
    }
}

/// Holds a leaf against the profile and gives its names.
pub(crate) fn leaf(der: &CertificateDer<'_>, side: Side, profile: Profile) -> Result<Names, PeerNameError> {
    let certificate = parse(der)?;
    let names = names(&certificate, profile)?;
    usages(&certificate, side, profile)?;
    Ok(names)
}

/// Holds a workload's own certificate against the profile: a leaf that bears the SPIFFE name of `identity` and no other,
/// for both sides.
pub(crate) fn svid(der: &CertificateDer<'_>, identity: &IdentityName) -> Result<(), PeerNameError> {
    let certificate = parse(der)?;
    no_subject(&certificate)?;
    match alternative_names(&certificate)? {
        [GeneralName::URI(uri)] if *uri == identity.spiffe() => {}
        other => return Err(counted(other)),
    }
    usages(&certificate, Side::Server, Profile::Heddle)?;
    usages(&certificate, Side::Client, Profile::Heddle)
}

/// The key usage of a signature alone: bit 0.
const DIGITAL_SIGNATURE: u16 = 1;

fn usages(certificate: &X509Certificate<'_>, side: Side, profile: Profile) -> Result<(), PeerNameError> {
    let twice = |_| PeerNameError::Malformed("an extension stands in it twice or cannot be parsed");
    if certificate.basic_constraints().map_err(twice)?.is_some_and(|it| it.value.ca) {
        return Err(PeerNameError::Authority);
    }
    let usage = certificate.key_usage().map_err(twice)?.ok_or(PeerNameError::Usage("no key usage"))?.value;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(PeerNameError::Authority);
    }
    if !usage.digital_signature() {
        return Err(PeerNameError::Usage("no digital signature"));
    }
    let extended = certificate
        .extended_key_usage()
        .map_err(twice)?
        .ok_or(PeerNameError::Usage("no extended key usage"))?;
    // SPIRE's have more: key encipherment and key agreement.
    if profile == Profile::Heddle {
        let extended = extended.value;
        let more = extended.any
            || extended.code_signing
            || extended.email_protection
            || extended.time_stamping
            || extended.ocsp_signing
            || !extended.other.is_empty();
        if usage.flags != DIGITAL_SIGNATURE || more {
            return Err(PeerNameError::Usage("for more than a digital signature in TLS"));
        }
    }
    match side {
        Side::Server if !extended.value.server_auth => Err(PeerNameError::Usage("not for TLS servers")),
        Side::Client if !extended.value.client_auth => Err(PeerNameError::Usage("not for TLS clients")),
        Side::Server | Side::Client => Ok(()),
    }
}

fn names(certificate: &X509Certificate<'_>, profile: Profile) -> Result<Names, PeerNameError> {
    let names = match (alternative_names(certificate)?, profile) {
        (
            [GeneralName::DNSName(dns), GeneralName::URI(uri)]
            | [GeneralName::URI(uri), GeneralName::DNSName(dns)],
            _,
        ) => Names { dns: Some((*dns).to_owned()), uri: (*uri).to_owned() },
        ([GeneralName::URI(uri)], Profile::Spire) => Names { dns: None, uri: (*uri).to_owned() },
        (other, _) => return Err(counted(other)),
    };
    match profile {
        Profile::Heddle => no_subject(certificate)?,
        Profile::Spire => common_name_is(certificate, names.dns.as_deref())?,
    }
    Ok(names)
}

fn no_subject(certificate: &X509Certificate<'_>) -> Result<(), PeerNameError> {
    match certificate.subject().iter_rdn().next() {
        None => Ok(()),
        Some(_) => Err(PeerNameError::Subject(certificate.subject().to_string())),
    }
}

/// A common name that is there says what the DNS name says, as SPIRE has it: nobody who reads that can take it for somebody
/// else.
fn common_name_is(certificate: &X509Certificate<'_>, dns: Option<&str>) -> Result<(), PeerNameError> {
    let mut names = certificate.subject().iter_common_name();
    if names.all(|name| dns.is_some() && name.as_str().ok() == dns) {
        return Ok(());
    }
    Err(PeerNameError::Subject(certificate.subject().to_string()))
}

fn alternative_names<'a, 'b>(
    certificate: &'a X509Certificate<'b>,
) -> Result<&'a [GeneralName<'b>], PeerNameError> {
    Ok(certificate
        .subject_alternative_name()
        .map_err(|_| PeerNameError::Malformed("the alternative names stand in it twice or cannot be parsed"))?
        .map_or(&[][..], |it| &it.value.general_names[..]))
}

fn counted(names: &[GeneralName<'_>]) -> PeerNameError {
    let dns = names.iter().filter(|name| matches!(name, GeneralName::DNSName(_))).count();
    let uri = names.iter().filter(|name| matches!(name, GeneralName::URI(_))).count();
    PeerNameError::Names { dns, uri, other: names.len() - dns - uri }
}

/// What is told of a certificate: for records and for people, never to decide by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// The subject of whoever signed it.
    pub issuer: String,
    /// Its subject; empty: none.
    pub subject: String,
    /// Its public key (SubjectPublicKeyInfo in DER).
    pub public_key: Vec<u8>,
    /// Its DNS and URI names, in their order.
    pub names: Vec<String>,
}

impl CertificateFacts {
    /// Of the first certificate.
    ///
    /// # Errors
    /// There is none, or it cannot be parsed.
    pub fn of(certificates: &[CertificateDer<'_>]) -> Result<Self, PeerNameError> {
        let certificate = parse(certificates.first().ok_or(PeerNameError::NoCertificate)?)?;
        let time = |seconds: i64| {
            let seconds =
                u64::try_from(seconds).map_err(|_| PeerNameError::Malformed("a date is before 1970"))?;
            SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .ok_or(PeerNameError::Malformed("its dates are out of bounds"))
        };
        Ok(Self {
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
            issuer: certificate.issuer().to_string(),
            subject: certificate.subject().to_string(),
            public_key: certificate.public_key().raw.to_vec(),
            names: certificate.subject_alternative_name().ok().flatten().map_or_else(Vec::new, |names| {
                let names = names.value.general_names.iter();
                names
                    .filter_map(|name| match name {
                        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
                        _ => None,
                    })
                    .collect()
            }),
        })
    }
}

/// When the first of `certificates` expires.
pub(crate) fn not_after(certificates: &[CertificateDer<'_>]) -> Result<SystemTime, PeerNameError> {
    CertificateFacts::of(certificates).map(|facts| facts.not_after)
}

/// The identity of a peer from the certificates of a *finished* handshake, the leaf first, by whoever makes them.
pub(crate) fn identity_by(
    profile: Profile,
    naming: &IdentityNaming,
    certificates: &[CertificateDer<'_>],
) -> Result<PeerIdentity, PeerNameError> {
    let leaf = certificates.first().ok_or(PeerNameError::NoCertificate)?;
    names(&parse(leaf)?, profile)?.identity(naming)
}

/// The identity of a peer from the certificates of a *finished* handshake, the leaf first.
///
/// Both TLS verifiers have held that leaf against the same profile; this reads the name again from what was verified.
///
/// # Errors
/// No certificate, or one that does not bear exactly one identity of `naming`.
pub fn peer_identity(
    naming: &IdentityNaming,
    certificates: &[CertificateDer<'_>],
) -> Result<IdentityName, PeerNameError> {
    identity_by(Profile::Heddle, naming, certificates).map(|identity| identity.name().clone())
}

#[cfg(test)]
mod tests;
