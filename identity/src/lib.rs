//! Heddle's workload identity: who a workload is.
//!
//! - [`names`]: an identity's two spellings, as policy knows them.
//! - [`profile`]: what a mesh certificate looks like, and the identity that one bears.
//! - [`authority`]: the certificate authority, in memory, in a folder or with keys that others made.
//! - [`trust`]: the trust anchors, which may be replaced while connections are made.
//! - `revocation`: certificates that are believed no longer although they have not expired.
//! - [`tls`]: rustls configurations that authenticate both sides, and what must hold of a finished handshake.
//! - [`store`]: a certificate for each identity on the node, renewed before it expires.
//!
//! - `svid`: certificates with keys of their own for workloads that speak TLS themselves.
//!
//! - [`files`]: files that decide what is trusted or hold what is secret.
//!
//! The modules import one way: `names <- profile, files <- authority, revocation <- trust <- tls <- store`;
//! `authority <- key <- store, svid`.
#![forbid(unsafe_code)]

pub mod authority;
mod crypto;
pub mod files;
mod inspect;
mod key;
pub use heddle_policy::names;
pub mod profile;
mod revocation;
pub mod store;
mod svid;
pub mod tls;
pub mod trust;

#[cfg(test)]
mod testing;

pub use authority::{
    Authority, AuthorityError, AuthoritySettings, CertificateRequest, GivenKey, IssueError, Issued,
    IssuerFiles, IssuerKeys, KeyLedger, RequestError,
};
pub use crypto::{Module, check_module, module, provider};
pub use inspect::{anchor_of, fingerprint, list_pem, pem};
pub use names::{IdentityName, IdentityNaming, NameError};
pub use profile::{CertificateFacts, PeerIdentity, PeerNameError, Profile, peer_identity};
pub use revocation::{ListError, Withdrawn, lists_from_pem};
pub use store::{
    CertificateStatus, Issue, NoCertificate, RenewalError, RenewalSettings, Store, Workload, is_set_back,
    keep_renewed,
};
pub use svid::{Svid, SvidRequest};
pub use tls::{
    ALPN, AuthorityServer, Client, HandshakeFault, Peer, PeerFault, Standing, Standings, TlsSettings,
    authority_client, confirm, verify_chain,
};
pub use trust::{FederationError, Trust, TrustError, anchors_from_der, anchors_from_pem};
