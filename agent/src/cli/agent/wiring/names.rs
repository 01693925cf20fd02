//! Names for what the kernel knows by numbers: from the captured pods and the snapshots of late.

use std::{net::IpAddr, sync::Arc};

use heddle_ebpf::Address;
use heddle_policy::Compiled;

use super::pods::Pods;
use crate::{
    cluster::{snapshot::SnapshotReader, workload::workload_name},
    observe::record::{Names, WorkloadName},
    proxy::environment::PodId,
};

pub(super) struct KnownNames {
    pub pods: Arc<Pods>,
    pub rules: SnapshotReader<Compiled>,
}

impl Names for KnownNames {
    fn pod(&self, netns: u64) -> Option<Arc<str>> {
        self.pods.get(PodId(netns)).map(|entry| Arc::clone(&entry.name))
    }

    fn workload(&self, address: IpAddr) -> Option<WorkloadName> {
        let snapshot = self.rules.peek();
        let info = snapshot.as_ref()?.compiled.workload(&Address::from(address.to_canonical()))?;
        Some(WorkloadName {
            name: format!("{}/{}", info.namespace, info.name).into(),
            workload: format!("{}/{}", info.namespace, workload_name(&info.name, &info.labels)).into(),
            identity: info.identity.as_ref().map(|identity| identity.dns().into()),
        })
    }

    fn rule(&self, generation: u64, rule: u32) -> Option<Arc<str>> {
        if rule == 0 {
            return None;
        }
        let snapshot = self.rules.generation(generation)?;
        let text = snapshot.compiled.tables.rule(rule);
        (!text.is_empty()).then(|| text.into())
    }
}
