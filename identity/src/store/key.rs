//! A key that exists in memory alone.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{crypto::CryptoProvider, pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey};
use zeroize::Zeroize;

use crate::{
    authority::{CertificateRequest, Issued},
    names::IdentityName,
};

/// A key that was never used; its encoding is wiped when it goes.
pub(super) struct FreshKey(KeyPair);

impl std::fmt::Debug for FreshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FreshKey")
    }
}

impl FreshKey {
    pub(super) fn with_request(identity: &IdentityName) -> Result<(Self, CertificateRequest), rcgen::Error> {
        let key = Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let request = CertificateRequest::new(identity, &key.0)?;
        Ok((key, request))
    }

    /// Joins the key with its certificate; rustls checks that they belong together and wipes the copy that it is handed.
    pub(super) fn certified(
        self,
        issued: Issued,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, rustls::Error> {
        let der = PrivatePkcs8KeyDer::from(self.0.serialize_der());
        CertifiedKey::from_der(issued.chain, der.into(), provider)
    }
}

impl Drop for FreshKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
