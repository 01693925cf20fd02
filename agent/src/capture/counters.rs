//! What the programs counted, summed over the processors.

use aya::maps::{MapData, PerCpuHashMap};
use heddle_ebpf::flows::{Count, CounterKey, maps};

use super::{error::CaptureError, maps::Pins};

/// The programs' counters, readable at any time.
pub struct Counters(PerCpuHashMap<MapData, CounterKey, Count>);

impl Counters {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self(pins.per_cpu(maps::COUNTERS)?))
    }

    /// Takes away what was counted for a pod.
    pub(super) fn forget(&mut self, netns: u64) {
        let keys: Vec<CounterKey> = self.0.keys().flatten().filter(|key| key.netns == netns).collect();
        for key in keys {
            let _ = self.0.remove(&key);
        }
    }

    /// Every counter.
    pub fn read(&self) -> Vec<(CounterKey, Count)> {
        self.0
            .iter()
            .flatten()
            .map(|(key, counts)| {
                let sum = counts.iter().fold(Count::default(), |sum, one| Count {
                    count: sum.count + one.count,
                    bytes: sum.bytes + one.bytes,
                });
                (key, sum)
            })
            .collect()
    }
}
