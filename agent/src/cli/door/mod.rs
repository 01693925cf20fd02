//! The one door by which pods enter the mesh: HTTP/1.1 and JSON on a unix socket.
//!
//! The door hands out identities, so it asks who is there before it reads a byte: the socket has mode 0600 in a folder
//! of mode 0700, and the caller must be root (or the agent's own user) in the agent's own pid and user namespaces
//! ([`caller`]). Whoever is not is refused, counted and told in the log. Everything that a caller may send is bounded
//! in size, number and time.
//!
//! | route | answers |
//! |---|---|
//! | `POST /v1/pods` `{"namespace","name","netns"}` | 200 when capture and guard are in force for the pod |
//! | the same with `"uid","addresses"` | for a pod that starts, whose addresses the API server does not know yet |
//! | `GET /v1/pods/{namespace}/{name}` | 200 and how it is captured when capture and guard are in force for it |
//! | the same with `?netns=PATH` | only if it is captured in that network namespace |
//! | `DELETE /v1/pods/{namespace}/{name}` | 200 when nothing is in force for it any more |
//! | the same with `?netns=PATH` | only if it is captured in that network namespace |
//! | `GET /v1/status` | what is in force, what is wrong |
//! | `GET /v1/events` | refusals and drops as they happen, one JSON object a line |
//! | `GET /v1/flows` | who reaches whom, one JSON object a line for connections that are alike, each second |
//! | `GET /v1/metrics` | OpenMetrics text |
//! | `GET /v1/policy` | the resources in force, as they are written, and the settings that rules depend on |
//! | `GET /v1/identities` | certificates and anchors in force |
//! | `POST /v1/identities/renew` | 200 when every certificate is being renewed |
//!
//! Errors are `{"error","code","field","remedy"}`.

pub mod api;
mod bounds;
pub mod caller;
mod routes;
mod serve;
mod socket;
#[cfg(test)]
mod tests;

pub use api::{
    AnchorStatus, AttachError, AttachErrorCode, AttachRequest, Attached, CertificateStatus, CheckRequest,
    DetachRequest, Identities, IdentityStatus, ManifestText, PodName, PodStatus, PolicyInForce,
    PolicySettings, RepairStatus, SandboxRequest, Status,
};
pub use bounds::{Bounds, Counts};
pub use serve::Server;
pub use socket::{Approach, Candidate, RunDirectory, RunDirectoryError, SOCKET, SUCCESSION};

use std::{future::Future, sync::Arc};
use tokio::sync::broadcast;

/// What is behind the door. The wiring implements it over capture, cluster and observe.
pub trait Door: Send + Sync + 'static {
    /// Captures a pod. Returns when capture and guard are in force; asking again for the same pod and namespace is no
    /// error. It is not cancelled when the caller goes away.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<Attached, AttachError>> + Send;

    /// How a pod is captured, where capture and guard are in force for it. Of a pod that is not captured and is to be, or
    /// not wholly, it is [`AttachErrorCode::NotCaptured`].
    fn check(&self, request: &CheckRequest) -> Result<PodStatus, AttachError>;

    /// Ends a pod's capture. A pod that is not captured is [`AttachErrorCode::UnknownPod`].
    fn detach(&self, request: DetachRequest) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// What is in force and what is wrong.
    fn status(&self) -> Status;

    /// Refusals and drops from now on, each one JSON object without a line break.
    fn events(&self) -> broadcast::Receiver<Arc<str>>;

    /// Flows from now on, each a line of [`crate::observe::flows::record::FlowLine`].
    fn flows(&self) -> broadcast::Receiver<Arc<str>>;

    /// The line for flows that a listener was too slow for.
    fn flows_missed(&self, lines: u64) -> String;

    /// Every metric as OpenMetrics text.
    fn metrics(&self) -> String;

    /// The resources in force, as they are written.
    fn policy(&self) -> PolicyInForce;

    /// The certificates and anchors in force.
    fn identities(&self) -> Identities;

    /// Has every certificate renewed; gives how many.
    fn renew_identities(&self) -> usize;
}
