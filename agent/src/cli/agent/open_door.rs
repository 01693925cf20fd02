//! What is behind the door of a running agent.

use super::{
    super::door::{
        AttachError, AttachErrorCode, AttachRequest, Attached, CheckRequest, DetachRequest, Door, Identities,
        ManifestText, PodName, PodStatus, PolicyInForce, PolicySettings, Status,
    },
    Config, Node,
};
use crate::cluster::{
    kubernetes::{Sandbox, Unfit},
    resources::FollowedResources,
    snapshot::SnapshotReader,
};
use crate::observe::flows::record::{FlowLine, LeftOut, VERSION};
use heddle_policy::{ClusterSettings, Compiled};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::broadcast;

/// How long a pod that the kubelet starts may take to be seen by the watch.
const POD_APPEARS: Duration = Duration::from_secs(5);

pub(super) struct OpenDoor<N> {
    node_name: String,
    started: OffsetDateTime,
    node: Arc<N>,
    rules: SnapshotReader<Compiled>,
    resources: Arc<FollowedResources>,
    settings: PolicySettings,
}

impl<N: Node> OpenDoor<N> {
    pub(super) fn new(
        config: &Config,
        settings: &ClusterSettings,
        node: Arc<N>,
        rules: SnapshotReader<Compiled>,
        resources: Arc<FollowedResources>,
    ) -> Self {
        let (node_name, started) = (config.node.clone(), OffsetDateTime::now_utc());
        Self { node_name, started, node, rules, resources, settings: settings.into() }
    }

    /// A sandbox's addresses are known to its runtime before they are to the API server. Whose pod it is, says the API
    /// server alone.
    async fn take_addresses(&self, request: &AttachRequest) -> Result<(), AttachError> {
        let Some(sandbox) = &request.sandbox else { return Ok(()) };
        let Some(cluster) = self.resources.cluster() else {
            let message = "this agent takes pods from a folder of manifests, addresses included";
            return Err(AttachError::new(AttachErrorCode::BadRequest, message)
                .field("uid")
                .remedy("leave out `uid` and `addresses`"));
        };
        let PodName { namespace, name } = request.pod.clone();
        let (uid, addresses) = (sandbox.uid.clone(), sandbox.addresses.clone());
        let sandbox = Sandbox { namespace, name, uid, addresses };
        cluster.admit(&sandbox, POD_APPEARS).await.map_err(|unfit| {
            let (code, field) = match unfit {
                Unfit::Unknown => (AttachErrorCode::UnknownPod, "name"),
                Unfit::Another(_) => (AttachErrorCode::UnknownPod, "uid"),
                Unfit::Elsewhere(_) => (AttachErrorCode::NotOnThisNode, "name"),
                Unfit::Unconfirmed(_) => (AttachErrorCode::NotReady, "namespace"),
            };
            AttachError::new(code, format!("{}: {unfit}", request.pod))
                .field(field)
                .remedy("the kubelet asks again; is the pod still there?")
        })
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
            let remedy = match self.resources.cluster() {
                None => "put it into the manifests, with its address and node",
                Some(_) => "the kubelet asks again; is the pod still there?",
            };
            return Err(error.remedy(remedy));
        };
        if !known.local {
            let message = format!("{pod} does not run on {}", self.node_name);
            let error = AttachError::new(AttachErrorCode::NotOnThisNode, message).field("name");
            return Err(error.remedy("ask the agent of its node (spec.nodeName)"));
        }
        pod.to_be_captured(known)
    }
}

impl<N: Node> Door for OpenDoor<N> {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        self.take_addresses(&request).await?;
        self.admit(&request.pod)?;
        self.node.attach(request).await
    }

    fn check(&self, request: &CheckRequest) -> Result<PodStatus, AttachError> {
        let CheckRequest { pod, netns } = request;
        let not_captured = |why: String, remedy: &str| {
            AttachError::new(AttachErrorCode::NotCaptured, why).field("name").remedy(remedy)
        };
        let Some(captured) = self.node.pod(pod) else {
            self.admit(pod)?;
            let remedy = "delete the pod: one that starts anew is captured; the agent's log says more";
            return Err(not_captured(format!("{pod} is in the mesh and is not captured"), remedy));
        };
        if netns.as_ref().is_some_and(|netns| netns.as_os_str() != captured.netns.as_str()) {
            let message = format!("{pod} is captured in another network namespace, {}", captured.netns);
            return Err(not_captured(message, "ask for the pod's sandbox of now").field("netns"));
        }
        if !captured.in_force {
            let message = format!("the capture of {pod} is not in force: {}", captured.problems.join("; "));
            return Err(not_captured(message, "the agent puts it back or says in its log why it cannot"));
        }
        Ok(captured)
    }

    async fn detach(&self, request: DetachRequest) -> Result<(), AttachError> {
        self.node.detach(request).await
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            schema: heddle_ebpf::SCHEMA,
            node: self.node_name.clone(),
            pid: std::process::id(),
            started: self.started,
            rules: self.rules.publication(),
            manifests: self.resources.folder_status(),
            cluster: self.resources.cluster_status(),
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
        let files = self.resources.texts();
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
