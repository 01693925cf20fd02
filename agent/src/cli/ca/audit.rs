//! The record of every certificate that was issued and every request that was refused.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The target to select in a filter: `heddle::ca::audit=info`.
pub const TARGET: &str = "heddle::ca::audit";

/// What is known of a request; what is empty was not proved or not read.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Where it came from.
    pub peer: Option<SocketAddr>,
    /// Who asked, as proved.
    pub agent: String,
    /// The node that was proved.
    pub node: String,
    /// The node that was claimed.
    pub claimed_node: String,
    /// The account that was asked for, as `namespace/name`.
    pub account: String,
}

/// A certificate was issued.
pub fn issued(asked: &Asked, identity: &str, serial: &str, not_after: SystemTime) {
    tracing::info!(
        target: TARGET,
        outcome = "issued",
        agent = asked.agent,
        node = asked.node,
        account = asked.account,
        identity,
        serial,
        not_after = OffsetDateTime::from(not_after).format(&Rfc3339).unwrap_or_default(),
        peer = asked.peer.map(|peer| peer.to_string()),
        "certificate issued"
    );
}

/// A request was refused, or so many `times` several that were alike.
pub fn refused(asked: &Asked, reason: &str, why: &str, times: u64) {
    tracing::warn!(
        target: TARGET,
        outcome = "refused",
        reason,
        times,
        agent = asked.agent,
        node = asked.node,
        claimed_node = asked.claimed_node,
        account = asked.account,
        peer = asked.peer.map(|peer| peer.to_string()),
        "{why}"
    );
}

/// More requests from an address, none for several, were refused for a reason that was recorded before.
pub fn refused_again(address: Option<IpAddr>, reason: &str, times: u64) {
    let peer = address.map_or_else(|| "several".to_owned(), |address| address.to_string());
    tracing::warn!(target: TARGET, outcome = "refused", reason, times, peer, "more requests were refused for the same reason");
}
