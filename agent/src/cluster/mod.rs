//! What exists in the cluster, turned into one immutable snapshot after another: from a folder of manifests or from
//! the API server.

pub mod folder;
pub mod kubernetes;
pub mod manifests;
mod passages;
pub mod resources;
mod rules;
pub mod snapshot;
pub mod view;
pub mod workload;
