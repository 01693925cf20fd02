//! Why a handshake failed: the peer misbehaved, we misused it, or the configuration is wrong.

use heddle_ebpf::codes::Reason;
use rustls::{AlertDescription, CertificateError, Error, OtherError};

use crate::profile::PeerNameError;

/// What the peer did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// It asked for another name than this pod's or for none, or does not speak the mesh's protocol.
    #[error("the peer does not ask for this identity's name over heddle/1")]
    NotOurs,
    /// It presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Its certificate does not chain to a trust anchor, is not valid at this time or not for this use.
    #[error("the peer's certificate does not verify: {0}")]
    Untrusted(String),
    /// Its certificate verifies but does not bear exactly one identity.
    #[error("the peer's certificate is refused: {0}")]
    Name(PeerNameError),
    /// Its certificate verifies but bears another identity than the one expected.
    #[error("the peer is {presented}, not {expected}")]
    WrongIdentity {
        /// Whom the snapshot gives for the address.
        expected: String,
        /// Who answered.
        presented: String,
    },
    /// It refused us, by this alert.
    #[error("the peer refused the handshake: {0}")]
    Refused(String),
    /// It broke TLS or cannot speak what is demanded.
    #[error("the peer broke TLS: {0}")]
    Protocol(String),
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeFault {
    /// The peer misbehaved.
    #[error(transparent)]
    Peer(#[from] PeerFault),
    /// We used TLS wrongly: a defect of this program.
    #[error("TLS was misused: {0}")]
    Misuse(String),
    /// What TLS was configured with, or the machine, does not work.
    #[error("TLS cannot work as configured: {0}")]
    Configuration(String),
}

impl HandshakeFault {
    /// The fault behind an error of a server's connection.
    pub fn accepting(error: &Error) -> Self {
        match error {
            // The certificate resolver's answer to a name or a protocol that is not ours.
            Error::General(_) | Error::NoApplicationProtocol => PeerFault::NotOurs.into(),
            other => Self::of(other),
        }
    }

    /// The fault behind an error of a client's connection.
    pub fn connecting(error: &Error) -> Self {
        match error {
            Error::NoApplicationProtocol => PeerFault::NotOurs.into(),
            other => Self::of(other),
        }
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => PeerFault::NoCertificate.into(),
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                match inner.downcast_ref::<PeerFault>() {
                    Some(fault) => fault.clone().into(),
                    None => PeerFault::Untrusted(inner.to_string()).into(),
                }
            }
            Error::InvalidCertificate(inner) => PeerFault::Untrusted(inner.to_string()).into(),
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) => PeerFault::NotOurs.into(),
            Error::AlertReceived(alert) => PeerFault::Refused(format!("{alert:?}")).into(),
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidEncryptedClientHello(_)
            | Error::InvalidMessage(_)
            | Error::UnsupportedNameType
            | Error::DecryptError
            | Error::PeerIncompatible(_)
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord => PeerFault::Protocol(error.to_string()).into(),
            Error::HandshakeNotComplete | Error::EncryptError | Error::General(_) => {
                Self::Misuse(error.to_string())
            }
            other => Self::Configuration(other.to_string()),
        }
    }

    /// The reason under which it is counted and told.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Peer(PeerFault::WrongIdentity { .. }) => Reason::WrongIdentity,
            Self::Peer(PeerFault::Refused(_)) => Reason::RefusedByPeer,
            Self::Configuration(_) => Reason::NoCertificate,
            Self::Peer(_) | Self::Misuse(_) => Reason::TlsFailed,
        }
    }
}
