//! A key that exists in memory alone.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{crypto::CryptoProvider, pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    authority::{CertificateRequest, Issued},
    names::IdentityName,
};

/// A key that was never used; its encoding is wiped when it goes.
pub(crate) struct FreshKey(KeyPair);

impl std::fmt::Debug for FreshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FreshKey")
    }
}

impl FreshKey {
    pub(crate) fn with_request(identity: &IdentityName) -> Result<(Self, CertificateRequest), rcgen::Error> {
        let key = Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let request = CertificateRequest::new(identity, &key.0)?;
        Ok((key, request))
    }

    /// With a request for the identity's SPIFFE name alone.
    pub(crate) fn with_svid_request(
        identity: &IdentityName,
    ) -> Result<(Self, CertificateRequest), rcgen::Error> {
        let key = Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let request = CertificateRequest::spiffe_alone(identity, &key.0)?;
        Ok((key, request))
    }

    /// Its public half (SubjectPublicKeyInfo in DER).
    pub(crate) fn public(&self) -> Vec<u8> {
        PublicKeyData::subject_public_key_info(&self.0)
    }

    /// PKCS #8 in DER; wiped when it goes.
    pub(crate) fn into_pkcs8(self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// Joins the key with its certificate, or the one that was given with it where the issuer makes keys; rustls checks that they belong together and wipes the copy that it is handed.
    pub(crate) fn certified(
        self,
        issued: Issued,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, rustls::Error> {
        let der = match issued.key {
            Some(given) => given.into_pkcs8(),
            None => self.0.serialize_der(),
        };
        let der = PrivatePkcs8KeyDer::from(der);
        CertifiedKey::from_der(issued.chain, der.into(), provider)
    }
}

impl Drop for FreshKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
