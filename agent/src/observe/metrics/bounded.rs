//! Series of one name, bounded in number.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{encoding::EncodeLabelSet, metrics::family::Family};

/// Labels that can be told apart by pod, and replaced when there are too many.
pub(super) trait SeriesLabels: EncodeLabelSet + Clone + Hash + Eq {
    /// The one series of everything that does not fit.
    fn overflow(&self) -> Self;
    /// Whether they are of this pod.
    fn is_of(&self, namespace: &str, pod: &str) -> bool;
}

#[derive(Debug)]
pub(super) struct Bounded<S, M> {
    family: Family<S, M>,
    known: Mutex<HashSet<S>>,
    most: usize,
}

impl<S: SeriesLabels, M: Clone + Default> Bounded<S, M> {
    pub(super) fn new(most: usize) -> Self {
        Self { family: Family::default(), known: Mutex::new(HashSet::new()), most }
    }

    /// The family to register.
    pub(super) fn series(&self) -> Family<S, M> {
        self.family.clone()
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

    /// Drops the series of a pod. A handle that somebody still has counts into nothing.
    pub(super) fn forget(&self, namespace: &str, pod: &str) {
        self.known().retain(|labels| {
            let goes = labels.is_of(namespace, pod);
            if goes {
                self.family.remove(labels);
            }
            !goes
        });
    }

    fn known(&self) -> MutexGuard<'_, HashSet<S>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
