//! Revocation lists: certificates that are believed no longer although they have not expired.
//!
//! A list speaks for the issuer that bears its key, whatever else has the same name: when a root or an issuer is replaced
//! both have one name for a while. It is looked up along the path that was verified, never in what was presented. An
//! issuer without a list has revoked nothing; one whose list cannot be verified certifies nobody.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, Error, OtherError,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject},
};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ParsedExtension, X509Extension},
    prelude::FromDer,
    revocation_list::CertificateRevocationList,
    x509::SubjectPublicKeyInfo,
};

use crate::profile::{self, Side};

/// A revocation list is none, or not one that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revocation list {index} cannot be used: {problem}")]
pub struct ListError {
    /// Its place in the bundle, from 1.
    pub index: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads the revocation lists of a bundle in PEM; none is no error.
///
/// # Errors
/// One that cannot be read. Whether each may be used is for [`crate::Trust`] to judge.
pub fn lists_from_pem(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem).enumerate();
    lists.map(|(place, list)| list.map_err(|error| wrong(place, error.to_string()))).collect()
}

fn wrong(place: usize, problem: String) -> ListError {
    ListError { index: place + 1, problem }
}

/// A list that was read.
#[derive(Debug)]
struct List {
    der: CertificateRevocationListDer<'static>,
    /// The issuer's name, in DER.
    issuer: Vec<u8>,
    /// Its key's identifier.
    key_id: Vec<u8>,
    revoked: HashSet<Vec<u8>>,
    this_update: SystemTime,
    next_update: SystemTime,
    /// The keys (SubjectPublicKeyInfo in DER) that it was held against, and whether it is signed by them.
    judged: Mutex<Vec<(Vec<u8>, bool)>>,
}

impl List {
    fn read(der: &CertificateRevocationListDer<'static>) -> Result<Self, String> {
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("something stands behind it".to_owned());
        }
        // Lists of changes alone, of a part of the certificates, or for other issuers say so here.
        if list.extensions().iter().any(|extension| extension.critical) {
            return Err("it is not the whole list of one issuer (a critical extension)".to_owned());
        }
        let key_id = list.extensions().iter().find_map(authority_key).ok_or("it names no authority key")?;
        let date = |at: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(at.timestamp()).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let this_update = date(list.last_update()).ok_or("its date is out of bounds")?;
        let next_update =
            list.next_update().and_then(date).ok_or("it does not say when the next one comes")?;
        let mut revoked = HashSet::new();
        for entry in list.iter_revoked_certificates() {
            if entry.extensions().iter().any(|extension| extension.critical) {
                return Err("an entry is of another issuer (a critical extension)".to_owned());
            }
            revoked.insert(number(entry.raw_serial()));
        }
        Ok(Self {
            issuer: list.issuer().as_raw().to_vec(),
            key_id: key_id.to_vec(),
            revoked,
            this_update,
            next_update,
            judged: Mutex::default(),
            der: der.clone(),
        })
    }

    /// Whether it is signed by this key.
    fn is_signed_by(&self, key: &[u8]) -> bool {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, verdict)) = judged.iter().find(|(known, _)| known == key) {
            return *verdict;
        }
        let verdict = CertificateRevocationList::from_der(&self.der).is_ok_and(|(_, list)| {
            SubjectPublicKeyInfo::from_der(key).is_ok_and(|(_, key)| list.verify_signature(&key).is_ok())
        });
        // Only keys on a path that was verified come here: a handful.
        judged.push((key.to_vec(), verdict));
        verdict
    }

    /// A key that it is known to be signed by.
    fn known_key(&self) -> Option<Vec<u8>> {
        let judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        judged.iter().find(|(_, verdict)| *verdict).map(|(key, _)| key.clone())
    }

    fn is_of(&self, other: &Self) -> bool {
        self.issuer == other.issuer && self.key_id == other.key_id
    }
}

fn authority_key<'a>(extension: &X509Extension<'a>) -> Option<&'a [u8]> {
    match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    }
}

/// A serial number without the zeros before it.
fn number(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// A list that was in force and is given no longer: what it revoked is believed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its issuer's name.
    pub issuer: String,
    /// How many certificates it revoked.
    pub revoked: usize,
    /// When its successor was to come.
    pub due: SystemTime,
    name: Vec<u8>,
    key_id: Vec<u8>,
}

impl Withdrawn {
    fn is_of(&self, list: &List) -> bool {
        self.name == list.issuer && self.key_id == list.key_id
    }
}

/// Who signed a certificate.
struct Signer {
    /// SubjectPublicKeyInfo in DER.
    key: Vec<u8>,
    key_id: Option<Vec<u8>>,
}

impl Signer {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Self { key: certificate.public_key().raw.to_vec(), key_id }
    }

    /// Whether it has the key that the list names; without an identifier the signature tells.
    fn bears_the_key_of(&self, list: &List) -> bool {
        match &self.key_id {
            Some(id) => *id == list.key_id,
            None => list.is_signed_by(&self.key),
        }
    }
}

/// The lists in force, with the anchors that paths end at.
#[derive(Debug)]
pub(crate) struct Lists {
    lists: Vec<List>,
    withdrawn: Vec<Withdrawn>,
    anchors: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Lists {
    /// Reads `lists` to take the place of `before`.
    ///
    /// # Errors
    /// One that cannot be read, is not signed by the issuer that it names, or is older than the one in force.
    pub(crate) fn new(
        lists: &[CertificateRevocationListDer<'static>],
        anchors: &[CertificateDer<'static>],
        algorithms: WebPkiSupportedAlgorithms,
        before: Option<&Self>,
    ) -> Result<Self, ListError> {
        let mut read = Vec::new();
        for (place, der) in lists.iter().enumerate() {
            let list = List::read(der).map_err(|problem| wrong(place, problem))?;
            let earlier = before.and_then(|before| before.lists.iter().find(|earlier| earlier.is_of(&list)));
            if earlier.is_some_and(|earlier| earlier.this_update > list.this_update) {
                return Err(wrong(place, "it is older than the list in force".to_owned()));
            }
            let known = anchors.iter().filter_map(|anchor| {
                let anchor = profile::parse(anchor).ok()?;
                let signer = Signer::of(&anchor);
                let named = anchor.subject().as_raw() == list.issuer && signer.bears_the_key_of(&list);
                named.then_some(signer.key)
            });
            // An issuer below an anchor is met on the path of a certificate: until then its list is taken at its word,
            // and refuses what that issuer signed if its signature does not hold.
            let keys: Vec<_> = known.chain(earlier.and_then(List::known_key)).collect();
            if !keys.is_empty() && !keys.iter().any(|key| list.is_signed_by(key)) {
                return Err(wrong(place, "it is not signed by the issuer that it names".to_owned()));
            }
            read.push(list);
        }
        let withdrawn = before.map(|before| before.without(&read, anchors)).unwrap_or_default();
        Ok(Self { lists: read, withdrawn, anchors: anchors.to_vec(), algorithms })
    }

    /// The lists that were given before and are not among these, but for those whose issuer is trusted no longer: whether
    /// an issuer below an anchor still is, is not known once an anchor is gone.
    fn without(&self, lists: &[List], anchors: &[CertificateDer<'static>]) -> Vec<Withdrawn> {
        let all_stay = self.anchors.iter().all(|anchor| anchors.contains(anchor));
        let is_an_anchors = |it: &Withdrawn| {
            anchors.iter().any(|anchor| {
                profile::parse(anchor).is_ok_and(|anchor| {
                    let same_key = Signer::of(&anchor).key_id.is_none_or(|id| id == it.key_id);
                    anchor.subject().as_raw() == it.name && same_key
                })
            })
        };
        let given = self.lists.iter().filter(|list| !list.revoked.is_empty()).filter_map(|list| {
            let (_, parsed) = CertificateRevocationList::from_der(&list.der).ok()?;
            Some(Withdrawn {
                issuer: parsed.issuer().to_string(),
                revoked: list.revoked.len(),
                due: list.next_update,
                name: list.issuer.clone(),
                key_id: list.key_id.clone(),
            })
        });
        let missing = given.chain(self.withdrawn.iter().cloned());
        let missing = missing.filter(|it| !lists.iter().any(|list| it.is_of(list)));
        missing.filter(|it| all_stay || is_an_anchors(it)).collect()
    }

    /// What was in force and is given no longer.
    pub(crate) fn withdrawn(&self) -> &[Withdrawn] {
        &self.withdrawn
    }

    /// As they were given.
    pub(crate) fn ders(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone()).collect()
    }

    /// Until when the next list of each should have come, if that is over.
    pub(crate) fn overdue(&self, now: SystemTime) -> Option<SystemTime> {
        self.lists.iter().map(|list| list.next_update).filter(|due| *due < now).min()
    }

    /// Holds a chain that was verified against the lists.
    ///
    /// # Errors
    /// A certificate of its path is revoked, or a list of its path cannot be verified.
    pub(crate) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let unusable = |error: webpki::Error| match error {
            webpki::Error::CertRevoked => Error::InvalidCertificate(CertificateError::Revoked),
            other => {
                Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(other))))
            }
        };
        let anchors: Vec<TrustAnchor<'_>> =
            self.anchors.iter().filter_map(|anchor| webpki::anchor_from_trusted_cert(anchor).ok()).collect();
        let usage = match side {
            Side::Server => KeyUsage::server_auth(),
            Side::Client => KeyUsage::client_auth(),
        };
        let leaf = EndEntityCert::try_from(leaf).map_err(unusable)?;
        let judge = |path: &VerifiedPath<'_>| self.judge(path);
        leaf.verify_for_usage(self.algorithms.all, &anchors, intermediates, now, usage, None, Some(&judge))
            .map(drop)
            .map_err(unusable)
    }

    /// Each certificate of the path against the lists of its issuer.
    fn judge(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let bad = |_| webpki::Error::BadDer;
        let ders: Vec<CertificateDer<'_>> = std::iter::once(path.end_entity().der())
            .chain(path.intermediate_certificates().map(|certificate| certificate.der()))
            .collect();
        let certificates = ders.iter().map(profile::parse).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let anchor = self.anchor(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
        let signers = certificates.iter().skip(1).map(Signer::of).chain([anchor]);
        for (certificate, signer) in certificates.iter().zip(signers) {
            let of_issuer =
                |list: &&List| list.issuer == certificate.issuer().as_raw() && signer.bears_the_key_of(list);
            for list in self.lists.iter().filter(of_issuer) {
                if !list.is_signed_by(&signer.key) {
                    return Err(webpki::Error::InvalidCrlSignatureForPublicKey);
                }
                if list.revoked.contains(&number(certificate.raw_serial())) {
                    return Err(webpki::Error::CertRevoked);
                }
            }
        }
        Ok(())
    }

    fn anchor(&self, anchor: &TrustAnchor<'_>) -> Option<Signer> {
        self.anchors.iter().find_map(|candidate| {
            let same = webpki::anchor_from_trusted_cert(candidate).is_ok_and(|own| own == *anchor);
            same.then(|| profile::parse(candidate).ok().map(|parsed| Signer::of(&parsed)))?
        })
    }
}

#[cfg(test)]
mod tests;
