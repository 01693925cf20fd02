//! Where a node's resources come from.

use super::{
    folder::FolderStatus,
    kubernetes::{ClusterStatus, FollowedCluster},
    manifests::FollowedManifests,
};
use std::sync::Arc;

/// Resources that are in force and followed: a folder's or a cluster's, never both.
pub enum FollowedResources {
    /// A folder's.
    Folder(FollowedManifests),
    /// The API server's.
    Cluster(FollowedCluster),
}

impl FollowedResources {
    /// Which files are in force and which are stale.
    pub fn folder_status(&self) -> Option<FolderStatus> {
        match self {
            Self::Folder(folder) => Some(folder.status()),
            Self::Cluster(_) => None,
        }
    }

    /// Which kinds are watched.
    pub fn cluster_status(&self) -> Option<ClusterStatus> {
        self.cluster().map(FollowedCluster::status)
    }

    /// The resources in force, as they are written or kept, by file or object.
    pub fn texts(&self) -> Vec<(String, Arc<str>)> {
        match self {
            Self::Folder(folder) => folder.texts().to_vec(),
            Self::Cluster(cluster) => cluster.texts(),
        }
    }

    /// The API server's.
    pub const fn cluster(&self) -> Option<&FollowedCluster> {
        match self {
            Self::Folder(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }
}
