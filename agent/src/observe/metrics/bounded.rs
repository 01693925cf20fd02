//! Series of one name, bounded in number.

use std::{
    collections::HashSet,
    fmt,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{TypedMetric, family::Family},
    registry::{Metric, Registry},
};

/// Labels that can be told apart by pod, and replaced when there are too many.
pub(super) trait SeriesLabels: EncodeLabelSet + Clone + Hash + Eq {
    /// The one series of everything that does not fit.
    fn overflow(&self) -> Self;
    /// Whether they are of this pod.
    fn is_of(&self, namespace: &str, pod: &str) -> bool;
}

/// Series of one name, whatever their labels and kind.
pub(super) trait Series {
    /// Makes them part of what is told.
    fn register(&self, registry: &mut Registry);
    /// Tells those of a pod.
    fn share(&self, namespace: &str, pod: &str, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result;
    /// Drops those of a pod. A handle that somebody still has counts into nothing.
    fn forget(&self, namespace: &str, pod: &str);
}

#[derive(Debug)]
pub(super) struct Bounded<S, M> {
    name: &'static str,
    help: &'static str,
    family: Family<S, M>,
    known: Mutex<HashSet<S>>,
    most: usize,
}

impl<S: SeriesLabels, M: Clone + Default> Bounded<S, M> {
    pub(super) fn new(name: &'static str, help: &'static str, most: usize) -> Self {
        Self { name, help, family: Family::default(), known: Mutex::new(HashSet::new()), most }
    }

    /// The series of `labels`, or the one for what does not fit.
    pub(super) fn of(&self, labels: &S) -> M {
        let mut known = self.known();
        if known.contains(labels) {
            return self.family.get_or_create_owned(labels);
        }
        if known.len() >= self.most {
            return self.family.get_or_create_owned(&labels.overflow());
        }
        known.insert(labels.clone());
        self.family.get_or_create_owned(labels)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<S>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S, M> Series for Bounded<S, M>
where
    S: SeriesLabels + fmt::Debug + Send + Sync + 'static,
    M: Metric + EncodeMetric + TypedMetric + Clone + Default,
{
    fn register(&self, registry: &mut Registry) {
        registry.register(self.name, self.help, self.family.clone());
    }

    fn share(&self, namespace: &str, pod: &str, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let own: Vec<S> =
            self.known().iter().filter(|labels| labels.is_of(namespace, pod)).cloned().collect();
        if own.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(self.name, self.help, None, M::TYPE)?;
        for labels in &own {
            // Not made if the pod has just been forgotten.
            if let Some(metric) = self.family.get(labels) {
                metric.encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    fn forget(&self, namespace: &str, pod: &str) {
        self.known().retain(|labels| {
            let goes = labels.is_of(namespace, pod);
            if goes {
                self.family.remove(labels);
            }
            !goes
        });
    }
}
