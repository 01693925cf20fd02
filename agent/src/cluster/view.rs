//! From where an agent looks at the cluster's resources.

use std::time::Duration;

use heddle_policy::{Capacity, ClusterSettings};

/// What says, beside the resources, what they mean on a node.
#[derive(Clone, Debug)]
pub struct View {
    /// What holds for the whole cluster.
    pub settings: ClusterSettings,
    /// The node, as pods' `spec.nodeName` has it.
    pub node: String,
    /// How many places the kernel's tables have.
    pub capacity: Capacity,
    /// How long each step takes of a pod that comes into the mesh, or leaves it, while it runs.
    pub join_step: Duration,
}

#[cfg(test)]
impl View {
    /// Node a's.
    pub(super) fn of_a(settings: ClusterSettings) -> Self {
        let capacity = Capacity::default();
        Self { settings, node: "a".to_owned(), capacity, join_step: Duration::from_secs(3) }
    }
}
