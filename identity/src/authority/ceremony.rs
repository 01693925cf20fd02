//! An offline root, and the intermediates that it signs: how an authority's keys are made by hand.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use zeroize::Zeroizing;

use super::{AuthorityError, IssuerKeys, random_serial};
use crate::names::IdentityNaming;

/// How far the clocks of those who verify may be behind.
const SKEW: Duration = Duration::from_secs(20);

/// A key and its certificate, as PEM.
pub struct Made {
    /// The private key; wiped when it goes.
    pub key: Zeroizing<String>,
    /// The certificate.
    pub certificate: String,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn crypto(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}

fn authority_params(
    name: &str,
    below: u8,
    lifetime: Duration,
    now: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - SKEW).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// A root that signs issuers, to be kept off every machine that is reachable.
///
/// # Errors
/// No randomness.
pub fn offline_root(name: &str, lifetime: Duration, now: SystemTime) -> Result<Made, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let root = authority_params(name, 1, lifetime, now)?.self_signed(&key).map_err(crypto)?;
    Ok(Made { key: Zeroizing::new(key.serialize_pem()), certificate: root.pem() })
}

/// An issuer for the identities of one trust domain, signed by `root`: it can certify nothing else, whoever gets hold of
/// its key.
///
/// # Errors
/// A root that may not sign issuers or expires first; no randomness.
pub fn intermediate(
    root: IssuerKeys,
    naming: &IdentityNaming,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Made, AuthorityError> {
    let content = |problem: String| AuthorityError::Content { path: "the root".to_owned(), problem };
    let expires = root.check().map_err(content)?;
    if now + lifetime > expires {
        return Err(content("it expires before the issuer would: ask for a shorter one".to_owned()));
    }
    let der = root.chain.first().ok_or_else(|| content("there is no certificate".to_owned()))?;
    let parsed = crate::profile::parse(der).map_err(|error| content(error.to_string()))?;
    let below = parsed.basic_constraints().ok().flatten().and_then(|it| it.value.path_len_constraint);
    if below == Some(0) {
        return Err(content(
            "it may sign workloads alone, no issuer: make one with `heddle ca init`".to_owned(),
        ));
    }
    let signer = Issuer::from_ca_cert_der(der, root.key).map_err(crypto)?;
    let name = format!("Heddle issuer of {}", naming.trust_domain());
    let mut params = authority_params(&name, 0, lifetime, now)?;
    let suffix = format!("identity.{}.{}", naming.identity_namespace(), naming.trust_domain());
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(suffix)],
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let issuer = params.signed_by(&key, &signer).map_err(crypto)?;
    Ok(Made { key: Zeroizing::new(key.serialize_pem()), certificate: issuer.pem() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::{
        Authority, AuthoritySettings, CertificateRequest, IssuerFiles, Trust,
        testing::{hours, naming, start, web},
        tls,
    };

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(chain: &str, key: &str, anchors: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in [("tls.crt", chain), ("tls.key", key), ("ca.crt", anchors)] {
                let path = directory.path().join(name);
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
            }
            Self(directory)
        }
        fn read(&self) -> Result<IssuerKeys, AuthorityError> {
            IssuerFiles::in_directory(self.0.path()).read()
        }
    }

    fn ceremony() -> (Made, Made) {
        let root = offline_root("Root", hours(24.0 * 365.0), start()).unwrap();
        let keys = Files::new(&root.certificate, &root.key, &root.certificate).read().unwrap();
        let issuer = intermediate(keys, &naming(), hours(24.0 * 90.0), start()).unwrap();
        (root, issuer)
    }

    fn issue(keys: IssuerKeys, domain: &str) -> (Authority, Result<(), String>) {
        let naming = crate::IdentityNaming::new("linkerd", domain).unwrap();
        let authority = Authority::with_keys(naming.clone(), AuthoritySettings::default(), keys).unwrap();
        let name = naming.name("shop", "web").unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = authority.issue(&CertificateRequest::new(&name, &key).unwrap(), start()).unwrap();
        let provider = Arc::new(crate::provider());
        let trust = Arc::new(Trust::new(naming, authority.anchors().to_vec(), provider).unwrap());
        let verified = tls::verify_chain(&trust, &issued.chain, &name, start());
        (authority, verified)
    }

    #[test]
    fn what_an_intermediate_issues_is_believed_by_the_root() {
        let (root, issuer) = ceremony();
        let files = Files::new(&issuer.certificate, &issuer.key, &root.certificate);
        let (authority, verified) = issue(files.read().unwrap(), "cluster.local");
        verified.unwrap();
        assert_eq!(authority.not_after(), start() + hours(24.0 * 90.0));
        let key = KeyPair::generate().unwrap();
        let issued = authority.issue(&CertificateRequest::new(&web(), &key).unwrap(), start()).unwrap();
        assert_eq!(issued.chain.len(), 2, "the issuer is sent along, the root is not");
    }

    #[test]
    fn an_intermediate_of_one_trust_domain_names_nobody_of_another() {
        let (root, issuer) = ceremony();
        let files = Files::new(&issuer.certificate, &issuer.key, &root.certificate);
        let refused = issue(files.read().unwrap(), "other.local").1.unwrap_err();
        assert!(refused.contains("NameConstraintViolation") || refused.contains("constraint"), "{refused}");
    }

    #[test]
    fn keys_that_make_no_issuer_are_refused() {
        let (root, issuer) = ceremony();
        let (_, other) = ceremony();
        let with = |chain: &str, key: &str| {
            let keys = Files::new(chain, key, &root.certificate).read()?;
            Authority::with_keys(naming(), AuthoritySettings::default(), keys)
        };
        with(&issuer.certificate, &issuer.key).unwrap();
        let error = with(&issuer.certificate, &other.key).unwrap_err().to_string();
        assert!(error.contains("of another key"), "{error}");
        with("", &issuer.key).unwrap_err();
        with(&issuer.certificate, "").unwrap_err();
        // A leaf-only issuer signs no issuer.
        let keys = Files::new(&issuer.certificate, &issuer.key, &root.certificate).read().unwrap();
        intermediate(keys, &naming(), hours(1.0), start()).unwrap_err();
        // Nothing outlives the root.
        let keys = Files::new(&root.certificate, &root.key, &root.certificate).read().unwrap();
        intermediate(keys, &naming(), hours(24.0 * 366.0), start()).unwrap_err();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let (root, issuer) = ceremony();
        let files = Files::new(&issuer.certificate, &issuer.key, &root.certificate);
        let key = files.0.path().join("tls.key");
        for (mode, taken) in [(0o400, true), (0o440, true), (0o444, false), (0o460, false), (0o404, false)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(files.read().is_ok(), taken, "{mode:o}");
        }
    }
}
