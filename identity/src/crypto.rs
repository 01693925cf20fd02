//! The cryptography that connections and certificates use.

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{cipher_suite, default_provider, kx_group},
};

/// aws-lc-rs with TLS 1.3's suites alone and the hybrid post-quantum key exchange first; in a build for FIPS without what
/// the module's validation does not cover (ChaCha20-Poly1305, X25519 by itself).
///
/// AES-128 stands first because bulk is what costs, and 128 bits are what the certificates' P-256 keys are worth.
pub fn provider() -> CryptoProvider {
    let mut provider = CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    };
    if cfg!(feature = "fips") {
        provider.cipher_suites.retain(|suite| suite.fips());
        provider.kx_groups.retain(|group| group.fips());
    }
    provider
}

/// The module that does the cryptography.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The version of AWS-LC.
    pub version: &'static str,
    /// Which FIPS module it is built from; `None`: from none.
    pub fips: Option<u32>,
    /// It is a FIPS module, and it says that its mode is on.
    pub in_force: bool,
}

impl Module {
    /// The certificate of NIST's that the module of this version has where it is linked statically, as it is here; `None`:
    /// none is known to this program, and none is claimed. What was certified is for the certificate's security policy to
    /// say.
    pub fn certificate(&self) -> Option<u32> {
        match self.fips? {
            2 => Some(4816),
            3 => Some(5314),
            _ => None,
        }
    }
}

/// What this program is linked with.
pub fn module() -> Module {
    let in_force = aws_lc_rs::try_fips_mode().is_ok();
    let fips = aws_lc_rs::fips_version().filter(|_| in_force);
    Module { version: aws_lc_rs::awslc_version(), fips, in_force }
}

/// Whether the cryptography is what this program was built for; to be asked before anything is served.
///
/// # Errors
/// A build for FIPS whose module is not in force, or whose suites and groups are not all the module's.
pub fn check_module() -> Result<(), &'static str> {
    if !cfg!(feature = "fips") {
        return Ok(());
    }
    in_force(aws_lc_rs::try_fips_mode(), &provider())
}

/// What a build for FIPS demands of the module's own word and of what is used.
fn in_force(mode: Result<(), &'static str>, provider: &CryptoProvider) -> Result<(), &'static str> {
    mode?;
    if provider.cipher_suites.is_empty() || provider.kx_groups.is_empty() || !provider.fips() {
        return Err("suites or groups that are not the FIPS module's are in use");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_what_it_says() {
        let (module, fips) = (module(), cfg!(feature = "fips"));
        assert_eq!(module.in_force, fips, "{module:?}");
        assert_eq!(provider().fips(), fips);
        assert_eq!(module.fips.is_some(), fips);
        assert_eq!(provider().cipher_suites.len(), if fips { 2 } else { 3 });
        assert!(module.version.starts_with(|c: char| c.is_ascii_digit()), "{module:?}");
        check_module().unwrap();
    }

    /// A build for FIPS does not start with a module that is not in force, nor with what is not the module's.
    #[test]
    fn what_is_not_the_modules_is_refused() {
        assert!(in_force(Err("off"), &provider()).is_err());
        // Of whatever build: what the module's validation does not cover is in use.
        let mut with_others = provider();
        with_others.kx_groups.push(kx_group::X25519);
        assert!(in_force(Ok(()), &with_others).is_err());
        let nothing = CryptoProvider { cipher_suites: Vec::new(), ..provider() };
        assert!(in_force(Ok(()), &nothing).is_err());
        // This program's own: refused as it is built ordinarily, taken as it is built for FIPS (the control).
        let fips = cfg!(feature = "fips");
        assert_eq!(in_force(aws_lc_rs::try_fips_mode(), &provider()).is_ok(), fips);
        assert_eq!(in_force(Ok(()), &provider()).is_ok(), fips);
    }

    #[test]
    fn no_certificate_is_claimed_but_the_modules_own() {
        let of = |fips| Module { version: "1", fips, in_force: fips.is_some() }.certificate();
        assert_eq!([None, Some(2), Some(3), Some(4)].map(of), [None, Some(4816), Some(5314), None]);
    }
}
