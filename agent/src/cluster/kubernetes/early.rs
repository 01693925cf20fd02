//! Addresses of pods that start: the container runtime knows them before the API server does.
//!
//! A pod is captured before it runs, and `status.podIPs` is written after. So the addresses that the runtime gives are
//! laid over the pod as the API server has it, until that says the same. Where it comes to say something else, it is
//! believed: the captured pod's addresses then belong to nobody, and everything from and to them is refused.

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Why a pod's addresses are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No such pod is known yet.
    #[error("no such pod is known yet")]
    Unknown,
    /// A pod of the same name, but another.
    #[error("the API server's pod of this name is another: its UID is {0:?}")]
    Another(String),
    /// Whether its namespace is in the mesh is not known for certain.
    #[error("whether its namespace is in the mesh is not known for certain: {0}")]
    Unconfirmed(String),
    /// Another node's.
    #[error("the pod is scheduled on {0:?}")]
    Elsewhere(String),
}

/// A pod as the API server has it.
pub(super) struct Known<'a>(&'a Value);

impl<'a> Known<'a> {
    pub(super) fn of(pod: &'a Value) -> Self {
        Self(pod)
    }

    fn text(&self, pointer: &str) -> &'a str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it is the pod with this UID, on this node.
    pub(super) fn is(&self, uid: &str, node: &str) -> Result<(), Unfit> {
        let (known, on) = (self.text("/metadata/uid"), self.text("/spec/nodeName"));
        if known.is_empty() || known != uid {
            return Err(Unfit::Another(known.to_owned()));
        }
        if on != node {
            return Err(Unfit::Elsewhere(on.to_owned()));
        }
        Ok(())
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        let listed = self.0.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
        let listed = listed.filter_map(|it| it.get("ip").and_then(Value::as_str));
        listed.chain([self.text("/status/podIP")]).filter_map(|text| text.parse().ok()).collect()
    }
}

struct Early {
    uid: String,
    addresses: BTreeSet<IpAddr>,
    /// What the API server said when they came: of an earlier sandbox, if anything.
    before: BTreeSet<IpAddr>,
}

/// The early addresses, by pod.
#[derive(Default)]
pub(super) struct EarlyPods(BTreeMap<String, Early>);

impl EarlyPods {
    pub(super) fn admit(&mut self, file: &str, pod: &Value, uid: &str, addresses: &[IpAddr]) {
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let early = Early { uid: uid.to_owned(), addresses, before: Known::of(pod).addresses() };
        self.0.insert(file.to_owned(), early);
    }

    /// The pod with its early addresses, unless the API server says another thing by now.
    pub(super) fn lay_over(&mut self, file: &str, pod: &Value) -> Value {
        let Some(early) = self.0.get(file) else { return pod.clone() };
        let known = Known::of(pod);
        let told = known.addresses();
        if known.text("/metadata/uid") != early.uid {
            self.0.remove(file);
            return pod.clone();
        }
        if told == early.addresses {
            self.0.remove(file);
            return pod.clone();
        }
        if told != early.before && !told.is_empty() {
            tracing::error!(
                pod = file, ?told, captured = ?early.addresses,
                "the API server gives the pod other addresses than the container runtime did: it is refused"
            );
            self.0.remove(file);
            return pod.clone();
        }
        let mut shown = pod.clone();
        let listed: Vec<Value> = early.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        if let Some(status) = shown.get_mut("status").and_then(Value::as_object_mut) {
            status.remove("podIP");
            status.insert("podIPs".to_owned(), Value::Array(listed));
        }
        shown
    }

    pub(super) fn forget(&mut self, file: &str) {
        self.0.remove(file);
    }
}
