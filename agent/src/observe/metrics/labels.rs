//! Labels, by Linkerd's names.

use std::{fmt::Write, sync::Arc};

use heddle_ebpf::codes::{Hook, Outcome, Reason};
use prometheus_client::encoding::{
    EncodeLabelKey, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

use super::{super::record::outcome_text, bounded::SeriesLabels};

/// Stands for every name in the series of what did not fit.
const OVERFLOW: &str = "overflow";

macro_rules! label_values {
    ($(#[doc = $doc:literal] $name:ident { $(#[doc = $value_doc:literal] $value:ident = $text:literal,)+ })+) => { $(
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = $value_doc] $value,)+ }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                encoder.write_str(match self { $(Self::$value => $text,)+ })
            }
        }
    )+ };
}

label_values! {
    #[doc = "Which way a connection goes, seen from the pod."]
    Direction {
        #[doc = "Into the pod."]
        Inbound = "inbound",
        #[doc = "Out of the pod."]
        Outbound = "outbound",
    }
    #[doc = "Which of the agent's two sockets of a connection."]
    Peer {
        #[doc = "The one that was accepted."]
        Source = "src",
        #[doc = "The one that was opened."]
        Destination = "dst",
    }
    #[doc = "Whether a socket is encrypted by the mesh."]
    Tls {
        #[doc = "Mutual TLS, both identities known."]
        Mutual = "true",
        #[doc = "Plain: the other side has no identity."]
        NoIdentity = "no_identity",
        #[doc = "TLS of the application's own, not read."]
        Opaque = "opaque",
        #[doc = "Plain by configuration, or inside the pod."]
        Disabled = "disabled",
    }
}

/// A rule or a Server. Empty: none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleLabels {
    /// `policy.linkerd.io`, or empty.
    pub group: Arc<str>,
    /// `server`, `authorizationpolicy`, `default`, ….
    pub kind: Arc<str>,
    /// The resource's name, or the default policy's value.
    pub name: Arc<str>,
}

impl RuleLabels {
    /// No rule.
    pub fn none() -> Self {
        let empty: Arc<str> = Arc::from("");
        Self { group: Arc::clone(&empty), kind: Arc::clone(&empty), name: empty }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowLabels {
    /// Which way it goes.
    pub direction: Direction,
    /// Which of its sockets.
    pub peer: Peer,
    /// How it is encrypted.
    pub tls: Tls,
    /// The pod on this node, as `namespace/name`.
    pub pod: Arc<str>,
    /// The client's identity; empty: none.
    pub client_id: Arc<str>,
    /// The server's identity; empty: none.
    pub server_id: Arc<str>,
    /// The port that the Server governs, or that was asked for; 0: none.
    pub server_port: u16,
    /// The Server or default policy that governs the port.
    pub server: RuleLabels,
    /// The rule that allowed.
    pub authorization: RuleLabels,
    /// The destination pod of an outbound connection, as `namespace/name`; empty: not known.
    pub destination_pod: Arc<str>,
    /// The Service that an outbound connection asked for, as `namespace/name`; empty: none.
    pub destination_service: Arc<str>,
}

/// `namespace/name` in two.
pub(super) fn split(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or(("", pod))
}

impl EncodeLabelSet for FlowLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (namespace, pod) = split(&self.pod);
        let (dst_namespace, dst_pod) = split(&self.destination_pod);
        let (service_namespace, service) = split(&self.destination_service);
        let dst_namespace = if service_namespace.is_empty() { dst_namespace } else { service_namespace };
        let mut label = |name: &'static str, value: &dyn Label| value.put(name, encoder);
        label("direction", &self.direction)?;
        label("peer", &self.peer)?;
        label("tls", &self.tls)?;
        label("namespace", &Text(namespace))?;
        label("pod", &Text(pod))?;
        label("client_id", &Text(&self.client_id))?;
        label("server_id", &Text(&self.server_id))?;
        label("srv_group", &Text(&self.server.group))?;
        label("srv_kind", &Text(&self.server.kind))?;
        label("srv_name", &Text(&self.server.name))?;
        label("srv_port", &u64::from(self.server_port))?;
        label("authz_group", &Text(&self.authorization.group))?;
        label("authz_kind", &Text(&self.authorization.kind))?;
        label("authz_name", &Text(&self.authorization.name))?;
        label("dst_namespace", &Text(dst_namespace))?;
        label("dst_pod", &Text(dst_pod))?;
        label("dst_service", &Text(service))
    }
}

/// A name as a label's value. The encoder escapes nothing, so that what could end the value becomes `_`; no name that
/// Kubernetes accepts has such a character.
pub(super) struct Text<'a>(pub(super) &'a str);

impl EncodeLabelValue for Text<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let harmful = |c: char| c.is_control() || matches!(c, '"' | '\\');
        for (place, part) in self.0.split(harmful).enumerate() {
            if place > 0 {
                encoder.write_char('_')?;
            }
            encoder.write_str(part)?;
        }
        Ok(())
    }
}

/// A label's value of whatever kind.
trait Label {
    fn put(&self, name: &'static str, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error>;
}

impl<T: EncodeLabelValue> Label for T {
    fn put(&self, name: &'static str, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut label = encoder.encode_label();
        let mut key = label.encode_label_key()?;
        EncodeLabelKey::encode(&name, &mut key)?;
        let mut value = key.encode_label_value()?;
        self.encode(&mut value)?;
        value.finish()
    }
}

impl SeriesLabels for FlowLabels {
    fn overflow(&self) -> Self {
        let overflow: Arc<str> = Arc::from(OVERFLOW);
        let rule = RuleLabels { name: Arc::clone(&overflow), ..RuleLabels::none() };
        Self {
            pod: Arc::from("overflow/overflow"),
            client_id: Arc::clone(&overflow),
            server_id: Arc::clone(&overflow),
            server_port: 0,
            server: rule.clone(),
            authorization: rule,
            destination_pod: Arc::clone(&overflow),
            destination_service: overflow,
            ..*self
        }
    }

    fn is_of(&self, namespace: &str, pod: &str) -> bool {
        split(&self.pod) == (namespace, pod)
    }
}

/// What is known of a connection that closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CloseLabels {
    flow: FlowLabels,
    errno: &'static str,
}

impl CloseLabels {
    pub(super) fn of(flow: &FlowLabels, errno: &'static str) -> Self {
        Self { flow: flow.clone(), errno }
    }
}

impl EncodeLabelSet for CloseLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.flow.encode(encoder)?;
        self.errno.put("errno", encoder)
    }
}

impl SeriesLabels for CloseLabels {
    fn overflow(&self) -> Self {
        Self { flow: self.flow.overflow(), errno: OVERFLOW }
    }

    fn is_of(&self, namespace: &str, pod: &str) -> bool {
        self.flow.is_of(namespace, pod)
    }
}

/// What was decided where, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DecisionLabels {
    hook: &'static str,
    outcome: &'static str,
    reason: &'static str,
    namespace: Arc<str>,
    pod: Arc<str>,
}

impl EncodeLabelSet for DecisionLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.hook.put("hook", encoder)?;
        self.outcome.put("outcome", encoder)?;
        self.reason.put("reason", encoder)?;
        Text(&self.namespace).put("namespace", encoder)?;
        Text(&self.pod).put("pod", encoder)
    }
}

impl DecisionLabels {
    pub(super) fn new(hook: Hook, outcome: Outcome, reason: Reason, pod: &str) -> Self {
        Self::named(hook.as_str(), outcome_text(outcome), reason.as_str(), pod)
    }

    pub(super) fn named(hook: &'static str, outcome: &'static str, reason: &'static str, pod: &str) -> Self {
        let (namespace, pod) = split(pod);
        Self { hook, outcome, reason, namespace: namespace.into(), pod: pod.into() }
    }
}

impl SeriesLabels for DecisionLabels {
    fn overflow(&self) -> Self {
        Self { namespace: OVERFLOW.into(), pod: OVERFLOW.into(), ..self.clone() }
    }

    fn is_of(&self, namespace: &str, pod: &str) -> bool {
        &*self.namespace == namespace && &*self.pod == pod
    }
}

/// What a `deny` would have refused, and which rule let it pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AuditLabels {
    reason: &'static str,
    rule: Arc<str>,
    namespace: Arc<str>,
    pod: Arc<str>,
}

impl AuditLabels {
    pub(super) fn new(reason: Reason, rule: &str, pod: &str) -> Self {
        let (namespace, pod) = split(pod);
        Self { reason: reason.as_str(), rule: rule.into(), namespace: namespace.into(), pod: pod.into() }
    }
}

impl EncodeLabelSet for AuditLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.reason.put("reason", encoder)?;
        Text(&self.rule).put("rule", encoder)?;
        Text(&self.namespace).put("namespace", encoder)?;
        Text(&self.pod).put("pod", encoder)
    }
}

impl SeriesLabels for AuditLabels {
    fn overflow(&self) -> Self {
        Self { rule: OVERFLOW.into(), namespace: OVERFLOW.into(), pod: OVERFLOW.into(), ..self.clone() }
    }

    fn is_of(&self, namespace: &str, pod: &str) -> bool {
        &*self.namespace == namespace && &*self.pod == pod
    }
}
