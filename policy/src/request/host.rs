//! Host names, which compare without case, port and the dot at the end.

use std::net::Ipv6Addr;

use crate::{names::MAX_DNS_NAME, resources::HostMatch};

/// Why a host is not judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadHost {
    /// More than 253 bytes.
    #[error("is too long")]
    TooLong,
    /// Neither a name nor an address, with or without a port.
    #[error("is neither a name nor an address")]
    NotAHost,
}

/// A host in the one form that everything compares. Takes no memory but its own.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    bytes: [u8; MAX_DNS_NAME],
    length: usize,
}

impl Host {
    /// Reads `:authority`, `Host` or an SNI.
    ///
    /// # Errors
    /// What is no host.
    pub fn read(text: &str) -> Result<Self, BadHost> {
        let name = if text.starts_with('[') {
            let (address, port) = text.split_once(']').ok_or(BadHost::NotAHost)?;
            if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
                return Err(BadHost::NotAHost);
            }
            let address = address.get(1..).unwrap_or_default();
            // A name in brackets is one to some who read it, and none to others.
            address.parse::<Ipv6Addr>().map_err(|_| BadHost::NotAHost)?;
            address
        } else {
            match text.split_once(':') {
                Some((name, port)) if is_port(port) => name,
                Some(_) => return Err(BadHost::NotAHost),
                None => text,
            }
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut it = Self { bytes: [0; MAX_DNS_NAME], length: name.len() };
        let place = it.bytes.get_mut(..name.len()).ok_or(BadHost::TooLong)?;
        for (to, from) in place.iter_mut().zip(name.bytes()) {
            if !from.is_ascii_alphanumeric() && !matches!(from, b'-' | b'_' | b'.' | b':') {
                return Err(BadHost::NotAHost);
            }
            *to = from.to_ascii_lowercase();
        }
        if name.starts_with('.') || name.ends_with('.') || name.contains("..") {
            return Err(BadHost::NotAHost);
        }
        Ok(it)
    }

    /// Lower case, no port, no dot at the end; empty: there is none.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|it| std::str::from_utf8(it).ok()).unwrap_or_default()
    }
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Whether a host is what a rule means.
pub(crate) fn host_matches(wanted: &HostMatch, host: &str) -> bool {
    match wanted {
        HostMatch::Exact(name) => name == host,
        // It begins with a dot, as no host does.
        HostMatch::Suffix(suffix) => host.ends_with(suffix.as_str()),
    }
}
