//! An issuer's key, certificate and anchors, as others made them: three PEM files.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::AuthorityError;
use crate::{
    files::{self, FileError, Readers},
    profile,
};

/// A chain of four certificates has about 3 KiB; a bundle of anchors may hold some more.
const MAX_FILE: usize = 256 * 1024;

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// The issuer's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The trust anchors.
    pub anchors: PathBuf,
}

/// An issuer's keys.
pub struct IssuerKeys {
    pub(super) key: KeyPair,
    /// The issuer's certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for IssuerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuerKeys")
            .field("chain", &self.chain.len())
            .field("anchors", &self.anchors.len())
            .finish_non_exhaustive()
    }
}

impl IssuerFiles {
    /// `tls.crt`, `tls.key` and `ca.crt` in a directory: the layout of a Secret of the type `kubernetes.io/tls`, such as
    /// cert-manager's.
    pub fn in_directory(directory: &Path) -> Self {
        let file = |name| directory.join(name);
        Self { certificate: file("tls.crt"), key: file("tls.key"), anchors: file("ca.crt") }
    }

    /// Reads all three.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be, or a key that others may read.
    pub fn read(&self) -> Result<IssuerKeys, AuthorityError> {
        let certificates = |path: &Path| {
            let found: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(&files::read(path, Readers::Anybody, MAX_FILE)?).collect();
            match found {
                Ok(found) if !found.is_empty() => Ok(found),
                Ok(_) => Err(content(path, "it holds no certificate".to_owned())),
                Err(error) => Err(content(path, format!("a certificate in it cannot be read: {error}"))),
            }
        };
        let chain = certificates(&self.certificate)?;
        let anchors = certificates(&self.anchors)?;
        let key = PrivateKeyDer::from_pem_slice(&files::read(&self.key, Readers::Group, MAX_FILE)?)
            .map_err(|error| content(&self.key, format!("it holds no private key: {error}")))?;
        let key = KeyPair::try_from(&key)
            .map_err(|error| content(&self.key, format!("its key cannot be used: {error}")))?;
        Ok(IssuerKeys { key, chain, anchors })
    }
}

impl IssuerKeys {
    /// Holds the certificate against its key; gives when the first of the chain expires.
    pub(super) fn check(&self) -> Result<SystemTime, String> {
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384].contains(&self.key.algorithm()) {
            return Err("the key is not ECDSA on P-256 or P-384".to_owned());
        }
        let mut expires: Option<SystemTime> = None;
        for (place, der) in self.chain.iter().enumerate() {
            let certificate = profile::parse(der).map_err(|error| error.to_string())?;
            profile::check_authority(&certificate)
                .map_err(|problem| format!("certificate {} of the chain: {problem}", place + 1))?;
            if place == 0 && certificate.public_key().raw != self.key.subject_public_key_info() {
                return Err("the certificate is of another key".to_owned());
            }
            let end: SystemTime = certificate.validity().not_after.to_datetime().into();
            expires = Some(expires.map_or(end, |known| known.min(end)));
        }
        expires.ok_or_else(|| "there is no certificate".to_owned())
    }
}

fn content(path: &Path, problem: String) -> AuthorityError {
    FileError::new(path, problem, "see `heddle ca init` and `heddle ca issuer`").into()
}
