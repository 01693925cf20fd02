//! Where the rooms are wired together: the one place that names capture, proxy, observe and identity at once.

use super::super::{
    config::{Config, Place},
    door::{AttachError, AttachRequest, Attached, PodName, PodStatus},
};
use super::{Failure, Node, Opened};
use crate::cluster::snapshot::{Enforcer, SnapshotReader};
use heddle_policy::Compiled;
use miette::miette;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::broadcast;

/// Nothing can be opened without capture: there is no value of this type.
pub(super) struct Wired(Infallible);

/// Opens this node's kernel side.
///
/// # Errors
/// Always, in a build without capture: an agent that captures nothing must not look like one that does.
pub(super) fn open(config: &Config) -> Result<Wired, Failure> {
    Err(miette!(
        help = "use a build with capture",
        "this build of heddle cannot capture pods on {}",
        config.node
    ))
}

/// Takes down what is not pinned; says what was removed.
///
/// # Errors
/// If something cannot be removed.
pub(super) fn release(_place: &Place) -> Result<Vec<String>, Failure> {
    Ok(Vec::new())
}

impl Opened for Wired {
    type Node = Self;

    fn last_generation(&self) -> u64 {
        match self.0 {}
    }

    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>> {
        match self.0 {}
    }

    async fn start(self, _rules: SnapshotReader<Compiled>) -> Result<Self, Failure> {
        match self.0 {}
    }
}

impl Node for Wired {
    async fn attach(&self, _request: AttachRequest) -> Result<Attached, AttachError> {
        match self.0 {}
    }

    async fn detach(&self, _pod: PodName) -> Result<(), AttachError> {
        match self.0 {}
    }

    fn pods(&self) -> Vec<PodStatus> {
        match self.0 {}
    }

    fn events(&self) -> broadcast::Receiver<Arc<str>> {
        match self.0 {}
    }

    fn metrics(&self) -> String {
        match self.0 {}
    }

    async fn drain(&self, _at_most: Duration) {
        match self.0 {}
    }
}
