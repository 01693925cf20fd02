//! What holds while the agent is away: it leaves a list of the namespaces that are outside the mesh.
//!
//! Unknown namespaces wait, and so does everything after a reboot, when the list is gone with `/run`, but for the
//! namespaces that the installation exempts by name: the authority's own pods must start before any agent is of use.

use super::request::{Config, Pod};
use crate::cluster::resources::FollowedResources;
use heddle_policy::INJECT;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The list, beside the agent's socket.
pub const PLAIN: &str = "plain-namespaces.json";

/// The namespaces that are outside the mesh, as the agent knew them last.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plain {
    namespaces: Vec<String>,
    /// Whether `linkerd.io/inject: enabled` on a pod means this mesh.
    #[serde(default)]
    inject: bool,
}

impl Plain {
    /// What the agent of this socket left; nothing where it cannot be read.
    pub(super) fn read(socket: &Path) -> Self {
        let path = socket.with_file_name(PLAIN);
        std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Whether a pod may start without the agent.
    ///
    /// # Errors
    /// Why it may not, for a person.
    pub(super) fn lets(&self, config: &Config, pod: &Pod) -> Result<(), String> {
        if config.exempt.contains(&pod.namespace) {
            return Ok(());
        }
        if !self.namespaces.contains(&pod.namespace) {
            return Err(format!("namespace {} is not known to be outside the mesh", pod.namespace));
        }
        let annotations: BTreeMap<String, String> = match &config.annotations {
            None => {
                return Err("the container runtime does not tell what the pod is annotated with".to_owned());
            }
            // A pod without annotations has none, and null is how Go writes that.
            Some(Value::Null) => BTreeMap::new(),
            // One of them may say that the pod needs the mesh.
            Some(told) => BTreeMap::deserialize(told)
                .map_err(|error| format!("the pod's annotations cannot be read: {error}"))?,
        };
        match annotations.get(heddle_policy::MESH).map(String::as_str) {
            None if self.inject && annotations.get(INJECT).is_some_and(|it| it == "enabled") => {
                Err(format!("the pod is annotated {INJECT}: enabled"))
            }
            None | Some("disabled") => Ok(()),
            Some(other) => Err(format!("the pod is annotated {}: {other}", heddle_policy::MESH)),
        }
    }
}

/// Keeps the list as the cluster is, for the plugin to find when the agent is away. Does not end; what cannot be written is
/// told, and an old list is taken away then.
pub async fn keep_told(resources: std::sync::Arc<FollowedResources>, run_directory: PathBuf, inject: bool) {
    let Some(cluster) = resources.cluster() else { return };
    let mut plain = cluster.plain_namespaces();
    let path = run_directory.join(PLAIN);
    loop {
        let namespaces = plain.borrow_and_update().iter().cloned().collect();
        let list = Plain { namespaces, inject };
        if let Err(error) = write(&path, &list) {
            tracing::error!(%error, path = %path.display(), "the list of namespaces outside the mesh cannot be written: their pods wait while the agent is away");
            // An error says that there was none.
            let _ = std::fs::remove_file(&path);
        }
        if plain.changed().await.is_err() {
            return;
        }
    }
}

fn write(path: &Path, list: &Plain) -> std::io::Result<()> {
    let unborn = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unborn)?;
    file.write_all(&serde_json::to_vec(list)?)?;
    std::fs::rename(&unborn, path)
}
