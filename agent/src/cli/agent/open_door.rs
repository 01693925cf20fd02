//! What is behind the door of a running agent.

use super::{
    super::door::{
        AttachError, AttachErrorCode, AttachRequest, Attached, Door, Identities, ManifestText, PodName,
        PolicyInForce, PolicySettings, Status,
    },
    Config, Node,
};
use crate::cluster::{manifests::FollowedManifests, snapshot::SnapshotReader};
use crate::observe::flows::record::{FlowLine, LeftOut, VERSION};
use heddle_policy::{ClusterSettings, Compiled};
use std::{collections::BTreeMap, sync::Arc};
use time::OffsetDateTime;
use tokio::sync::broadcast;

pub(super) struct OpenDoor<N> {
    node_name: String,
    started: OffsetDateTime,
    node: Arc<N>,
    rules: SnapshotReader<Compiled>,
    manifests: FollowedManifests,
    settings: PolicySettings,
}

impl<N: Node> OpenDoor<N> {
    pub(super) fn new(
        config: &Config,
        settings: &ClusterSettings,
        node: Arc<N>,
        rules: SnapshotReader<Compiled>,
        manifests: FollowedManifests,
    ) -> Self {
        let (node_name, started) = (config.node.clone(), OffsetDateTime::now_utc());
        Self { node_name, started, node, rules, manifests, settings: settings.into() }
    }

    /// What the snapshot alone can tell: whether the pod is known, meshed and this node's.
    fn admit(&self, pod: &PodName) -> Result<(), AttachError> {
        let Some(snapshot) = self.rules.load() else {
            let error = AttachError::new(AttachErrorCode::NotReady, "no rules are in force yet");
            return Err(error.remedy("try again; `heddle status` says what holds them up"));
        };
        let publication = self.rules.publication();
        if publication.kernel_generation == 0 {
            let error =
                AttachError::new(AttachErrorCode::NotReady, "the kernel holds no rules of this agent's yet");
            return Err(error.remedy(publication.remedy.unwrap_or_else(|| "try again".into())));
        }
        let Some(known) = snapshot.compiled.pod(&pod.namespace, &pod.name) else {
            let error =
                AttachError::new(AttachErrorCode::UnknownPod, format!("no pod {pod} is known")).field("name");
            return Err(error.remedy("put it into the manifests, with its address and node"));
        };
        if !known.local {
            let message = format!("{pod} does not run on {}", self.node_name);
            let error = AttachError::new(AttachErrorCode::NotOnThisNode, message).field("name");
            return Err(error.remedy("ask the agent of its node (spec.nodeName)"));
        }
        if !known.meshed() {
            let error = AttachError::new(AttachErrorCode::NotMeshed, format!("{pod} is not in the mesh"))
                .field("name");
            return Err(error.remedy("annotate it or its namespace with heddle.io/mesh: enabled"));
        }
        Ok(())
    }
}

impl<N: Node> Door for OpenDoor<N> {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        self.admit(&request.pod)?;
        self.node.attach(request).await
    }

    async fn detach(&self, pod: PodName) -> Result<(), AttachError> {
        self.node.detach(pod).await
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            schema: heddle_ebpf::SCHEMA,
            node: self.node_name.clone(),
            pid: std::process::id(),
            started: self.started,
            rules: self.rules.publication(),
            manifests: self.manifests.status(),
            problems: {
                let rules = self.rules.load().map(|snapshot| snapshot.problems.clone()).unwrap_or_default();
                self.node.problems().into_iter().chain(rules).collect()
            },
            pods: self.node.pods(),
            door: BTreeMap::new(),
        }
    }

    fn events(&self) -> broadcast::Receiver<Arc<str>> {
        self.node.events()
    }

    fn metrics(&self) -> String {
        self.node.metrics()
    }

    fn flows(&self) -> broadcast::Receiver<Arc<str>> {
        self.node.flows()
    }

    fn flows_missed(&self, lines: u64) -> String {
        FlowLine::LeftOut(LeftOut {
            version: VERSION,
            node: self.node_name.clone(),
            time: OffsetDateTime::now_utc(),
            left_out: lines,
            why: "they came faster than they were read".into(),
        })
        .to_json()
    }

    fn policy(&self) -> PolicyInForce {
        let files = self.manifests.texts();
        let text =
            |(file, text): &(String, Arc<str>)| ManifestText { file: file.clone(), text: text.to_string() };
        PolicyInForce {
            node: self.node_name.clone(),
            generation: self.rules.publication().proxy_generation,
            settings: self.settings.clone(),
            files: files.iter().map(text).collect(),
        }
    }

    fn identities(&self) -> Identities {
        self.node.identities()
    }

    fn renew_identities(&self) -> usize {
        self.node.renew_identities()
    }
}
