//! What exists in the cluster: a folder of manifests, turned into one immutable snapshot after another.

pub mod folder;
pub mod manifests;
pub mod snapshot;
pub mod workload;
