//! A key that comes with its certificate.

use zeroize::Zeroizing;

/// A key that whoever issued a certificate made for it (PKCS #8 in DER); wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct GivenKey(Zeroizing<Vec<u8>>);

impl GivenKey {
    /// Of PKCS #8 in DER.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// For whoever wipes it in this one's place.
    pub(crate) fn into_pkcs8(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

impl std::fmt::Debug for GivenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GivenKey")
    }
}
