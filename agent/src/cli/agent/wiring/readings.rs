//! What metrics ask for at each scrape.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use heddle_ebpf::flows::{Count, CounterKey};
use heddle_identity::{CertificateFacts, Store, fingerprint};
use heddle_policy::Compiled;
use rustls::pki_types::CertificateDer;

use super::{federation::Federation, pods::Pods, stale::Staleness};
use crate::{
    capture::{Capture, Counters},
    cli::workload_api::Counts,
    cluster::snapshot::SnapshotReader,
    observe::metrics::{CertificateReading, Readings, TablesReading},
    proxy::environment::PodId,
};

pub(super) struct NodeReadings {
    pub pods: Arc<Pods>,
    pub capture: Arc<Capture>,
    pub counters: Counters,
    pub store: Arc<Store>,
    pub rules: SnapshotReader<Compiled>,
    pub anchors: Option<Staleness>,
    pub federation: Option<Federation>,
    /// What workloads were answered.
    pub workloads: Arc<Counts>,
    /// How often the heartbeat came too late.
    pub late: Arc<AtomicU64>,
}

impl Readings for NodeReadings {
    fn counters(&self) -> Vec<(CounterKey, Count)> {
        self.counters.read()
    }

    fn pod(&self, netns: u64) -> Option<Arc<str>> {
        self.pods.get(PodId(netns)).map(|entry| Arc::clone(&entry.name))
    }

    fn certificates(&self) -> Vec<CertificateReading> {
        let status = self.store.status();
        status
            .into_iter()
            .map(|one| CertificateReading {
                identity: one.identity.dns().to_owned(),
                not_after: one.not_after,
                failures: one.failures,
            })
            .collect()
    }

    fn anchors(&self) -> Vec<(String, SystemTime)> {
        let trust = self.store.trust();
        let others = trust.federated().into_iter().flat_map(|(_, anchors)| anchors);
        let told = |anchor: &CertificateDer<'_>| {
            let facts = CertificateFacts::of(std::slice::from_ref(anchor)).ok()?;
            Some((fingerprint(anchor), facts.not_after))
        };
        trust.anchors().into_iter().chain(others).filter_map(|anchor| told(&anchor)).collect()
    }

    fn trust_stale(&self) -> bool {
        self.anchors.as_ref().is_some_and(|followed| followed.get().is_some())
            || self.federation.as_ref().is_some_and(|folder| !folder.stale().is_empty())
            || self.store.trust().overdue(SystemTime::now()).is_some()
            || !self.store.trust().withdrawn(SystemTime::now()).is_empty()
    }

    fn workloads(&self) -> (u64, Vec<(&'static str, u64)>) {
        self.workloads.read()
    }

    fn tables(&self) -> TablesReading {
        let generation = self.capture.generation().unwrap_or(0);
        let snapshot = self.rules.peek();
        let entries = snapshot.as_ref().map_or_else(Vec::new, |snapshot| {
            let tables = &snapshot.compiled.tables;
            vec![
                ("workloads", tables.workloads.len() as u64),
                ("ports", tables.ports.len() as u64),
                ("allows", tables.allows.len() as u64),
                ("networks", tables.networks.len() as u64),
                ("services", tables.services.len() as u64),
                ("backends", tables.backends.len() as u64),
            ]
        });
        TablesReading { generation, entries }
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        self.capture.kernel().heartbeat_age()
    }

    fn heartbeats_late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }
}
