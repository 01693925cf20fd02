//! Two nodes with the pods that the tests of capture and guard play with, and whom the rules let in.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::lab::{
    Events, Lab, Pod, PodSpec,
    apps::{Attempt, Outcome},
};

pub const A: &str = "node-a";
pub const B: &str = "node-b";
/// Where the servers listen.
pub const PORT: u16 = 7000;
/// Long enough for a slow machine; a test that passes does not wait so long.
pub const SOON: Duration = Duration::from_secs(20);

pub struct Loom {
    pub lab: Lab,
    /// On node a: meshed; every server lets it in.
    pub client: Pod,
    /// On node a: meshed.
    pub near: Pod,
    /// On node b: meshed.
    pub far: Pod,
    /// On node b: in no mesh.
    pub plain: Pod,
}

impl Loom {
    /// Nodes and pods; no agent runs yet. Every port of a meshed pod takes meshed clients;
    /// [`PORT`] is opaque, so that the kernel carries it between pods of one node.
    pub fn new(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name)?.node(A)?.node(B)?;
        lab.binary(env!("CARGO_BIN_EXE_heddle"));
        lab.settings().set("defaultInboundPolicy", "all-authenticated");
        let meshed = |name: &str, node: &str| {
            PodSpec::new(name, node)
                .namespace("shop")
                .account(name)
                .meshed()
                .annotation("config.linkerd.io/opaque-ports", "7000")
        };
        let client = lab.pod(&meshed("client", A))?;
        let near = lab.pod(&meshed("near", A).port("echo", PORT))?;
        let far = lab.pod(&meshed("far", B).port("echo", PORT))?;
        let plain = lab.pod(&PodSpec::new("plain", B))?;
        Ok(Self { lab, client, near, far, plain })
    }

    /// How often the guard or another program on a node gave this reason for a refusal.
    pub fn refused(&self, node: &str, hook: &str, reason: &str) -> Result<f64> {
        let labels =
            [format!("hook=\"{hook}\""), "outcome=\"refuse\"".into(), format!("reason=\"{reason}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.lab.agent(node)?.metric("heddle_kernel_decisions_total", &labels)
    }
}

/// The next event with this hook and reason.
pub fn told(events: &Events, hook: &str, reason: &str) -> Result<Value> {
    let field =
        |event: &Value, name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    events
        .next(SOON, |event| field(event, "hook") == hook && field(event, "reason") == reason)
        .with_context(|| format!("nobody told of {hook}: {reason}"))
}

/// Whether what was sent came back.
pub fn echoed(pod: &Pod, attempt: &Attempt) -> Result<Outcome> {
    let outcome = pod.connect(attempt)?;
    anyhow::ensure!(outcome.received == attempt.send, "{} to {}: {outcome:?}", pod.name, attempt.to);
    Ok(outcome)
}
