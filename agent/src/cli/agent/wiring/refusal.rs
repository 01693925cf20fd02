//! Why a pod is not captured, in the door's words.

use crate::{
    capture::AttachRefusal,
    cli::door::{AttachError, AttachErrorCode},
};

/// A refusal of the capture's as the door answers it, with the field that it is about and what to do.
pub(super) fn attach_error(refusal: &AttachRefusal) -> AttachError {
    let (code, field, remedy) = match refusal {
        AttachRefusal::NoNamespace(..) => (
            AttachErrorCode::NoNamespace,
            "netns",
            "name the pod's network namespace, such as /run/netns/NAME",
        ),
        AttachRefusal::HostNamespace(_) => (
            AttachErrorCode::HostNamespace,
            "netns",
            "pods on the host's network have no identity and are not meshed",
        ),
        AttachRefusal::OtherPod { .. } => (AttachErrorCode::NamespaceTaken, "netns", "detach that pod first"),
        AttachRefusal::OtherNamespace { .. } => {
            (AttachErrorCode::PodTaken, "netns", "detach the pod first, if its old namespace is really gone")
        }
        AttachRefusal::Addresses { .. } => (
            AttachErrorCode::AddressesDiffer,
            "netns",
            "attach the namespace whose addresses are the pod's; correct status.podIPs if they are wrong",
        ),
        AttachRefusal::Interface(_) | AttachRefusal::NoVeth => (
            AttachErrorCode::NoVeth,
            "netns",
            "only pods whose every way out is a veth to this host can be guarded",
        ),
        AttachRefusal::LongName { .. } => {
            (AttachErrorCode::BadRequest, "name", "give the pod a shorter name")
        }
        AttachRefusal::Full => (AttachErrorCode::Full, "", "move pods to another node"),
        AttachRefusal::Succeeded => (AttachErrorCode::NotReady, "", "ask again: the other agent answers"),
        AttachRefusal::Kernel(_) => (AttachErrorCode::Kernel, "", "`heddle check` says what this host lacks"),
    };
    AttachError::new(code, refusal.to_string()).field(field).remedy(remedy)
}
