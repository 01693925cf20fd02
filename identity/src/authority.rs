//! The certificate authority: in memory, in a folder that several agents may share, or with keys that others made.
//!
//! It signs keys that others made. Every name, usage and date in a certificate comes from the identity asked for and
//! from the authority's settings; a request only proves that its sender holds the key. A request that asks for
//! anything else than exactly that identity is refused, not corrected.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

mod ceremony;
mod folder;
mod given;
mod keys;
mod ledger;
mod request;
mod revoke;

pub use ceremony::{Made, intermediate, offline_root};
pub use given::GivenKey;
pub use keys::{IssuerFiles, IssuerKeys};
pub use ledger::KeyLedger;
use request::Bears;
pub use request::{CertificateRequest, RequestError};
pub use revoke::{Revocations, revoke};

use crate::{
    files::FileError,
    names::{IdentityName, IdentityNaming},
};

/// How long a root is valid. Its replacement is a matter of trust bundles, not of this date.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The shortest lifetime of a certificate: below it renewing never ends.
const SHORTEST: Duration = Duration::from_secs(60);
/// And the longest: nothing but its end takes a stolen key's certificate from whoever has no revocation list.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The service account whose identity an authority that is asked has by default, as `namespace/name`.
pub const OWN_ACCOUNT: &str = "heddle-system/heddle-ca";

/// What an authority puts into certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// How long a workload's certificate is valid; 24 hours by default.
    pub lifetime: Duration,
    /// How far clocks may be apart: certificates are valid from that much before they are made; 20 s by default.
    pub clock_skew: Duration,
}

impl Default for AuthoritySettings {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(24 * 3600), clock_skew: Duration::from_secs(20) }
    }
}

impl AuthoritySettings {
    fn check(&self) -> Result<(), AuthorityError> {
        if self.lifetime < SHORTEST {
            return Err(AuthorityError::Setting {
                setting: "certificate lifetime",
                reason: "it is shorter than a minute",
            });
        }
        if self.lifetime > LONGEST {
            return Err(AuthorityError::Setting {
                setting: "certificate lifetime",
                reason: "it is longer than 30 days",
            });
        }
        if self.clock_skew >= self.lifetime {
            return Err(AuthorityError::Setting {
                setting: "clock skew",
                reason: "it is as long as a certificate's lifetime",
            });
        }
        Ok(())
    }
}

/// Why there is no authority: its configuration or its folder is wrong.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The settings contradict themselves.
    #[error("the authority's {setting} is not usable: {reason}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The folder, or a file in it, is not safe to take a key from.
    #[error("{path}: {problem}; {remedy}")]
    Unsafe {
        /// Which.
        path: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The folder cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What is in the folder is not a key and its root certificate.
    #[error(
        "{path}: {problem}; restore it from a copy, or remove it so that a new root is made (every workload must then get a new certificate)"
    )]
    Content {
        /// Which.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A file of an issuer's keys is not taken.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key or a certificate could not be made.
    #[error("the authority's key or certificate could not be made: {0}")]
    Crypto(String),
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request asks for something that is not given.
    #[error("the certificate request is refused: {0}")]
    Refused(#[from] RequestError),
    /// The authority does not give a certificate for this identity to whoever asks.
    #[error("the certificate authority refuses: {0}")]
    Denied(String),
    /// The authority cannot be reached or did not answer in time.
    #[error("the certificate authority is away: {0}")]
    Away(String),
    /// The authority itself is not able to issue.
    #[error("the certificate authority cannot issue: {0}")]
    Unable(String),
}

/// A certificate as it was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, then its intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key that it is for, where the issuer makes keys itself; `None`: it is for the key of the request.
    pub key: Option<GivenKey>,
}

/// An issuing key with its certificate.
pub struct Authority {
    naming: IdentityNaming,
    settings: AuthoritySettings,
    /// What everything issued here rests on.
    anchors: Vec<CertificateDer<'static>>,
    /// What is sent along with each certificate: the issuer's own and its intermediates; none if the issuer is the root.
    intermediates: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("naming", &self.naming)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority that exists only in this process; its root is new.
    ///
    /// # Errors
    /// Settings that contradict themselves, or no randomness.
    pub fn in_memory(
        naming: IdentityNaming,
        settings: AuthoritySettings,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        settings.check()?;
        let (key, root) = make_root(&naming, &settings, now)?;
        let keys = IssuerKeys { key, chain: vec![root.der().clone()], anchors: vec![root.into()] };
        Self::assemble(naming, settings, keys, "the new root")
    }

    /// The authority that issues with `keys`.
    ///
    /// # Errors
    /// Settings that contradict themselves, or keys that make no authority.
    pub fn with_keys(
        naming: IdentityNaming,
        settings: AuthoritySettings,
        keys: IssuerKeys,
    ) -> Result<Self, AuthorityError> {
        settings.check()?;
        Self::assemble(naming, settings, keys, "the issuer's keys")
    }

    /// The authority in `folder`, made there if there is none. Agents that start on one folder at once end with the
    /// same root.
    ///
    /// # Errors
    /// A folder or a file that somebody else owns, may read or may write, a symbolic link, something that is not an
    /// authority's, or an error of the file system.
    pub fn in_folder(
        folder: &Path,
        naming: IdentityNaming,
        settings: AuthoritySettings,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        settings.check()?;
        let folder = folder::Folder::open(folder)?;
        let found = match folder.read()? {
            Some(found) => found,
            None => {
                let (key, root) = make_root(&naming, &settings, now)?;
                folder.write_once(&key, &root)?
            }
        };
        let path = folder.file_path();
        let (key, root) = folder::decode(&found, &path)?;
        Self::assemble(
            naming,
            settings,
            IssuerKeys { key, chain: vec![root.clone()], anchors: vec![root] },
            &path,
        )
    }

    fn assemble(
        naming: IdentityNaming,
        settings: AuthoritySettings,
        keys: IssuerKeys,
        path: &str,
    ) -> Result<Self, AuthorityError> {
        let content = |problem: String| AuthorityError::Content { path: path.to_owned(), problem };
        let not_after = keys.check().map_err(content)?;
        let IssuerKeys { key, chain, anchors } = keys;
        let own = chain.first().ok_or_else(|| content("there is no certificate".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(own, key)
            .map_err(|error| content(format!("the issuer's certificate cannot be used: {error}")))?;
        let intermediates = chain.into_iter().filter(|certificate| !anchors.contains(certificate)).collect();
        Ok(Self { naming, settings, anchors, intermediates, not_after, issuer })
    }

    /// The trust anchors of everything issued here.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// Until when it can issue.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whose identities are issued.
    pub fn naming(&self) -> &IdentityNaming {
        &self.naming
    }

    /// Signs the key of `request` for the identity that `request` names. Whoever calls has verified that the requester may
    /// have that identity.
    ///
    /// # Errors
    /// A request that is malformed or asks for more than its identity, an identity of another trust domain, an issuer
    /// that expires within a minute: nothing outlives what it rests on.
    pub fn issue(&self, request: &CertificateRequest, now: SystemTime) -> Result<Issued, IssueError> {
        if self.naming.parse_dns(request.identity.dns()).ok().as_ref() != Some(&request.identity) {
            return Err(RequestError::OtherTrustDomain { identity: request.identity.to_string() }.into());
        }
        let (public_key, bears) = request.checked()?;
        if now + SHORTEST > self.not_after {
            return Err(IssueError::Unable(
                "the issuer's certificate has expired, or does so within a minute: replace it".to_owned(),
            ));
        }
        let not_after = (now + self.settings.lifetime).min(self.not_after);
        let mut params = leaf_params(&request.identity, now - self.settings.clock_skew, not_after)
            .map_err(|error| IssueError::Unable(error.to_string()))?;
        if bears == Bears::SpiffeAlone {
            params.subject_alt_names.retain(|name| matches!(name, SanType::URI(_)));
        }
        let certificate = params
            .signed_by(&public_key, &self.issuer)
            .map_err(|error| IssueError::Unable(error.to_string()))?;
        let leaf = CertificateDer::from(certificate);
        let chain = [leaf].into_iter().chain(self.intermediates.iter().cloned()).collect();
        Ok(Issued { chain, key: None })
    }
}

#[cfg(test)]
impl Authority {
    /// Signs whatever it is given: how tests forge certificates of the right authority.
    pub(crate) fn sign_anything(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().into()
    }

    /// The list of the certificates that it has revoked.
    pub(crate) fn revoking(
        &self,
        params: &rcgen::CertificateRevocationListParams,
    ) -> rustls::pki_types::CertificateRevocationListDer<'static> {
        params.signed_by(&self.issuer).unwrap().into()
    }
}

/// Everything in a workload's certificate but its key.
pub(crate) fn leaf_params(
    identity: &IdentityName,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let crypto = |error: rcgen::Error| AuthorityError::Crypto(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![
        SanType::DnsName(identity.dns().try_into().map_err(crypto)?),
        SanType::URI(identity.spiffe().try_into().map_err(crypto)?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// A new key and a root certificate of it, for leaves alone.
fn make_root(
    naming: &IdentityNaming,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<(KeyPair, rcgen::Certificate), AuthorityError> {
    let crypto = |error: rcgen::Error| AuthorityError::Crypto(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Heddle root of {}", naming.trust_domain()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now - settings.clock_skew);
    params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
    params.serial_number = Some(random_serial()?);
    let root = params.self_signed(&key).map_err(crypto)?;
    Ok((key, root))
}

/// 127 random bits: positive, and never the same twice.
fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Crypto("no randomness".to_owned()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
