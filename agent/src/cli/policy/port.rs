//! A port and the protocol that it is one of.

use heddle_policy::resources::Transport;
use std::fmt;

/// A port of TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Port {
    pub number: u16,
    pub transport: Transport,
}

impl Port {
    pub const fn tcp(number: u16) -> Self {
        Self { number, transport: Transport::Tcp }
    }

    pub const fn udp(number: u16) -> Self {
        Self { number, transport: Transport::Udp }
    }

    pub fn is_udp(self) -> bool {
        self.transport == Transport::Udp
    }

    /// What follows the number or name of a port; TCP goes without saying.
    pub fn suffix(self) -> &'static str {
        if self.is_udp() { "/udp" } else { "" }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.number, self.suffix())
    }
}

/// The number or name of a port, and the protocol written behind it. `None`: none that is known.
pub(super) fn split(text: &str) -> Option<(&str, Transport)> {
    match text.split_once('/') {
        None => Some((text, Transport::Tcp)),
        Some((port, "udp" | "UDP")) => Some((port, Transport::Udp)),
        Some((port, "tcp" | "TCP")) => Some((port, Transport::Tcp)),
        Some(_) => None,
    }
}
