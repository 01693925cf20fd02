//! The cluster that the commands' tests look at.

use super::{
    picture::Picture,
    source::{Source, SourceFile},
};
use heddle_policy::ClusterSettings;

/// A shop whose web may reach its redis, and whose port 80 is in audit.
pub(super) const SHOP: &str = include_str!("testing/shop.yaml");

/// One file's resources.
pub(super) fn source(name: &str, text: &str) -> Source {
    let files = vec![SourceFile::new(name.into(), text.into())];
    Source { name: name.into(), settings: ClusterSettings::default(), files, unread: Vec::new() }
}

/// A picture of one file.
pub(super) fn picture(text: &str) -> Picture {
    Picture::of(source("manifests/shop.yaml", text))
}

/// The shop.
pub(super) fn shop() -> Picture {
    picture(SHOP)
}

/// One connection that was let pass, from a service account to a workload of the shop.
pub(super) fn flow(from: &str, to: &str, port: u16) -> crate::observe::flows::record::FlowRecord {
    use crate::observe::flows::record::{FlowEnd, FlowOutcome, FlowRecord, VERSION};
    let picture = shop();
    let (namespace, account) = from.split_once('/').unwrap();
    let identity = picture.settings().naming.name(namespace, account).unwrap();
    let of = |name: &str| picture.pods().find(|pod| super::parties::workload(pod) == name).cloned();
    let (source, destination) = (of(from), of(to).unwrap());
    let source_address = source.as_ref().map_or(super::picture::UNKNOWN_ADDRESS, |pod| pod.addresses[0]);
    FlowRecord {
        version: VERSION,
        node: "a".into(),
        first: time::OffsetDateTime::UNIX_EPOCH,
        last: time::OffsetDateTime::UNIX_EPOCH,
        count: 1,
        protocol: "tcp".into(),
        source: FlowEnd {
            address: source_address,
            port: None,
            pod: source.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            workload: Some(from.into()),
            identity: Some(identity.dns().into()),
        },
        destination: FlowEnd {
            address: destination.addresses[0],
            port: Some(port),
            pod: Some(format!("{}/{}", destination.namespace, destination.name)),
            workload: Some(to.into()),
            identity: destination.identity.as_ref().map(|it| it.dns().into()),
        },
        outcome: FlowOutcome::Allowed,
        reason: "authorized".into(),
        rule: None,
        audit: None,
    }
}
