//! Who asks: an agent proves itself and its node by a token.

mod review;
mod signed;

use std::{fmt, future::Future, pin::Pin, time::SystemTime};

pub use review::TokenReviews;
pub use signed::{SignedTokens, sign};

/// An agent that has proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Who it is, for the record.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
}

/// Why nobody was proved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The token does not prove an agent.
    #[error("{0}")]
    Refused(String),
    /// Whoever would know cannot be asked now.
    #[error("{0}")]
    Away(String),
}

/// The outcome of an attestation, when it comes.
pub type Attesting<'a> = Pin<Box<dyn Future<Output = Result<Agent, AttestError>> + Send + 'a>>;

/// Tells agents from others.
pub trait Attest: Send + Sync + fmt::Debug {
    /// Whose token it is.
    fn attest<'a>(&'a self, token: &'a str, now: SystemTime) -> Attesting<'a>;
}
