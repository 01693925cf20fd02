//! A pod's listeners on their way from capture to the workers.

use crate::{
    capture::{Listening, PodListener},
    proxy::{PodListeners, WorkerListeners, environment::PodId},
};

/// Sorts a pod's listeners by worker.
pub(super) fn by_worker(pod: PodId, listeners: Vec<PodListener>, workers: usize) -> PodListeners {
    let mut sorted: Vec<WorkerListeners> = (0..workers).map(|_| WorkerListeners::default()).collect();
    for listener in listeners {
        let Some(worker) = sorted.get_mut(listener.worker as usize) else { continue };
        match listener.direction {
            Listening::Outbound => worker.outbound.push(listener.socket),
            Listening::Inbound => worker.inbound.push(listener.socket),
        }
    }
    PodListeners { pod, workers: sorted }
}
