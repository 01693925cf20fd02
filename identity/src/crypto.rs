//! The cryptography that mesh connections use.

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{cipher_suite, default_provider, kx_group},
};

/// aws-lc-rs with TLS 1.3's suites alone and the hybrid post-quantum key exchange first.
///
/// AES-128 stands first because bulk is what costs, and 128 bits are what the certificates' P-256 keys are worth.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    }
}
