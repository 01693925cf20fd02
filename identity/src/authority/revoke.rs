//! Revocation lists, signed with an issuer's key: how a certificate is taken back by hand.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, PublicKeyData, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_parser::{
    extensions::ParsedExtension, prelude::FromDer, revocation_list::CertificateRevocationList,
    x509::SubjectPublicKeyInfo,
};

use super::{AuthorityError, IssuerKeys};
use crate::profile;

/// A list that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// In PEM.
    pub list: String,
    /// How many certificates it revokes.
    pub revoked: usize,
    /// How many of these it did not revoke before.
    pub added: usize,
}

fn wrong(problem: impl Into<String>) -> AuthorityError {
    AuthorityError::Content { path: "the revocation list".to_owned(), problem: problem.into() }
}

/// Revokes the certificates of `keys` with these serial numbers (hexadecimal, as `heddle identity show` tells them), and
/// all that `list` (in PEM) revokes already. Without serial numbers the list is signed anew.
///
/// # Errors
/// Keys that make no issuer, a serial number that is none, a list that this issuer has not signed or that is of later.
pub fn revoke(
    keys: IssuerKeys,
    list: Option<&[u8]>,
    serials: &[String],
    valid: Duration,
    now: SystemTime,
) -> Result<Revocations, AuthorityError> {
    let issuer_keys =
        |problem: String| AuthorityError::Content { path: "the issuer's keys".to_owned(), problem };
    keys.check().map_err(issuer_keys)?;
    let (number, mut revoked_certs) = match list {
        Some(list) => earlier(list, &keys, now)?,
        None => (1, Vec::new()),
    };
    let before = revoked_certs.len();
    for text in serials {
        let serial = serial(text)?;
        if !revoked_certs.iter().any(|known: &RevokedCertParams| known.serial_number == serial) {
            revoked_certs.push(RevokedCertParams {
                serial_number: serial,
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            });
        }
    }
    let own = keys.chain.first().ok_or_else(|| issuer_keys("there is no certificate".to_owned()))?;
    let revoked = revoked_certs.len();
    let params = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + valid).into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: key_identifier(own)?,
    };
    let issuer = Issuer::from_ca_cert_der(own, keys.key).map_err(|error| issuer_keys(error.to_string()))?;
    let signed = params.signed_by(&issuer).and_then(|list| list.pem());
    let list = signed.map_err(|error| AuthorityError::Crypto(error.to_string()))?;
    Ok(Revocations { list, revoked, added: revoked - before })
}

/// The next number, and what a list of the issuer's own revokes.
fn earlier(
    pem: &[u8],
    keys: &IssuerKeys,
    now: SystemTime,
) -> Result<(u64, Vec<RevokedCertParams>), AuthorityError> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists = lists.map_err(|error| wrong(error.to_string()))?;
    let [der] = &lists[..] else {
        return Err(wrong(format!("it holds {} lists instead of one", lists.len())));
    };
    let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| wrong(error.to_string()))?;
    let key = keys.key.subject_public_key_info();
    let (_, key) = SubjectPublicKeyInfo::from_der(&key).map_err(|error| wrong(error.to_string()))?;
    if !rest.is_empty() || list.verify_signature(&key).is_err() {
        return Err(wrong("it is not signed by this issuer: each issuer has a list of its own"));
    }
    let number =
        list.crl_number().map_or(Ok(0), u64::try_from).map_err(|_| wrong("its number is too large"))?;
    if list.last_update().to_datetime() > now {
        return Err(wrong("it is of later than this machine's clock"));
    }
    let revoked = list.iter_revoked_certificates().map(|entry| RevokedCertParams {
        serial_number: SerialNumber::from_slice(entry.raw_serial()),
        revocation_time: entry.revocation_date.to_datetime(),
        reason_code: None,
        invalidity_date: None,
    });
    Ok((number.saturating_add(1), revoked.collect()))
}

/// The identifier that the issuer's certificate gives its key, whoever made it: lists are told apart by it.
fn key_identifier(own: &rustls::pki_types::CertificateDer<'_>) -> Result<KeyIdMethod, AuthorityError> {
    let certificate = profile::parse(own).map_err(|error| wrong(error.to_string()))?;
    let id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    Ok(id.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified))
}

fn serial(text: &str) -> Result<SerialNumber, AuthorityError> {
    let wrong =
        || wrong(format!("{text:?} is no serial number: hexadecimal, as `heddle identity show` tells it"));
    let digits = text.as_bytes();
    if digits.is_empty() || digits.len() > 40 || digits.len() % 2 == 1 {
        return Err(wrong());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|two| u8::try_from(digit(*two.first()?)? << 4 | digit(*two.get(1)?)?).ok())
        .collect();
    bytes.map(|bytes| SerialNumber::from_slice(&bytes)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
    use rustls::pki_types::CertificateDer;

    use super::*;
    use crate::{
        CertificateFacts, Standings, Trust, lists_from_pem,
        testing::{Mesh, hours, naming, start, web},
    };

    /// An issuer that is a root, whose key has the identifier that somebody else's tool gave it.
    struct Own {
        key: String,
        certificate: CertificateDer<'static>,
    }

    impl Own {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "issuer");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
            params.not_before = start().into();
            params.not_after = (start() + hours(2400.0)).into();
            let certificate = params.self_signed(&key).unwrap().into();
            Self { key: key.serialize_pem(), certificate }
        }

        fn keys(&self) -> IssuerKeys {
            let certificates = vec![self.certificate.clone()];
            let key = KeyPair::from_pem(&self.key).unwrap();
            IssuerKeys { key, chain: certificates.clone(), anchors: certificates }
        }

        fn revoke(&self, list: Option<&str>, serials: &[&str], hour: f64) -> Result<Revocations, String> {
            let serials: Vec<String> = serials.iter().map(|&serial| serial.to_owned()).collect();
            let now = start() + hours(hour);
            revoke(self.keys(), list.map(str::as_bytes), &serials, hours(24.0), now)
                .map_err(|error| error.to_string())
        }
    }

    #[test]
    fn who_is_on_the_list_falls_and_stays_on_it() {
        let (own, mesh) = (Own::new(), Mesh::new());
        let issuer =
            Issuer::from_ca_cert_der(&own.certificate, KeyPair::from_pem(&own.key).unwrap()).unwrap();
        let chain = || -> Vec<CertificateDer<'static>> {
            let leaf = crate::authority::leaf_params(&web(), start(), start() + hours(24.0)).unwrap();
            vec![leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().into()]
        };
        let anchors = vec![own.certificate.clone()];
        let provider = std::sync::Arc::clone(&mesh.tls.provider);
        let trust = std::sync::Arc::new(Trust::new(naming(), anchors.clone(), provider).unwrap());
        let (one, other, third) = (chain(), chain(), chain());
        let standings = Standings::new(std::sync::Arc::clone(&trust));
        let holds = || [&one, &other, &third].map(|chain| standings.of(chain, start()).holds());
        let serial = |chain: &[CertificateDer<'_>]| CertificateFacts::of(chain).unwrap().serial;
        let put =
            |list: &str| trust.reload(anchors.clone(), &lists_from_pem(list.as_bytes()).unwrap()).unwrap();
        assert_eq!(holds(), [true; 3]);
        let first = own.revoke(None, &[&serial(&one)], 1.0).unwrap();
        assert_eq!((first.revoked, first.added), (1, 1));
        put(&first.list);
        assert_eq!(holds(), [false, true, true]);
        let second = own.revoke(Some(&first.list), &[&serial(&other), &serial(&one)], 2.0).unwrap();
        assert_eq!((second.revoked, second.added), (2, 1));
        put(&second.list);
        assert_eq!(holds(), [false, false, true]);
        // Signed anew, it says the same for longer.
        let again = own.revoke(Some(&second.list), &[], 20.0).unwrap();
        assert_eq!((again.revoked, again.added), (2, 0));
        assert!(trust.overdue(start() + hours(30.0)).is_some());
        put(&again.list);
        assert_eq!(trust.overdue(start() + hours(30.0)), None);
        assert_eq!(holds(), [false, false, true]);
    }

    #[test]
    fn what_is_no_serial_number_or_no_list_of_the_issuers_own_is_refused() {
        let (own, other) = (Own::new(), Own::new());
        for serial in ["", "4", "4g", "0x4a", "4a:4b", &"4a".repeat(21), "\u{e9}"] {
            let error = own.revoke(None, &[serial], 1.0).unwrap_err();
            assert!(error.contains("no serial number"), "{serial}: {error}");
        }
        let foreign = other.revoke(None, &["4a"], 1.0).unwrap().list;
        assert!(own.revoke(Some(&foreign), &[], 1.0).unwrap_err().contains("not signed by this issuer"));
        let mine = own.revoke(None, &["4a"], 1.0).unwrap().list;
        assert!(own.revoke(Some(&format!("{mine}{mine}")), &[], 1.0).unwrap_err().contains("2 lists"));
        assert!(own.revoke(Some(""), &[], 1.0).unwrap_err().contains("0 lists"));
        assert!(own.revoke(Some(&mine), &[], 0.5).unwrap_err().contains("clock"));
        own.revoke(Some(&mine), &["4B"], 1.0).unwrap();
    }
}
