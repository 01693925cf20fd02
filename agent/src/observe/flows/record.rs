//! What is recorded of flows: one JSON object a line, of one documented form (docs/policy.md).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, serde::rfc3339};

/// The version of the form. A reader refuses another.
pub const VERSION: u32 = 1;

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowOutcome {
    /// Bytes were carried.
    Allowed,
    /// None were.
    Refused,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port; absent at the client's end, whose port tells nobody anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `namespace/name` of the pod that had the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `namespace/name` of the workload that the pod is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its verified identity in DNS form; absent: it showed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// Connections that are alike, over an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The node that judged.
    pub node: String,
    /// When the first of them was judged.
    #[serde(with = "rfc3339")]
    pub first: OffsetDateTime,
    /// When the last of them was.
    #[serde(with = "rfc3339")]
    pub last: OffsetDateTime,
    /// How many there were.
    pub count: u64,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub source: FlowEnd,
    /// The server.
    pub destination: FlowEnd,
    /// What became of them.
    pub outcome: FlowOutcome,
    /// Why, as in events.
    pub reason: String,
    /// The rule that allowed, or what governs the port and has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Only `audit` let them pass: the reason for which a `deny` would have refused them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
}

/// Flows that are in no record: nothing is left out in silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeftOut {
    /// [`VERSION`].
    pub version: u32,
    /// The node that judged.
    pub node: String,
    /// When it was noticed.
    #[serde(with = "rfc3339")]
    pub time: OffsetDateTime,
    /// How many connections, or, where records were removed, how many records.
    pub left_out: u64,
    /// Why.
    pub why: String,
}

/// One line of a file of flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// Connections.
    Flow(Box<FlowRecord>),
    /// What is missing.
    LeftOut(LeftOut),
}

/// A line that is not of the form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFlow {
    /// No JSON object, or one of another form.
    #[error("is no record of a flow: {0}")]
    Form(String),
    /// A form of another version.
    #[error("is of version {0}; this command reads version {VERSION}")]
    Version(u64),
}

impl FlowLine {
    /// Reads a line.
    ///
    /// # Errors
    /// If it is of another form or version.
    pub fn parse(line: &str) -> Result<Self, NotAFlow> {
        let form = |error: serde_json::Error| NotAFlow::Form(error.to_string());
        let value: serde_json::Value = serde_json::from_str(line).map_err(form)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => return Err(NotAFlow::Version(version)),
            None => return Err(NotAFlow::Form("it has no version".into())),
        }
        // By what tells them apart, so that the error is about the field that is wrong.
        if value.get("leftOut").is_some() {
            serde_json::from_value(value).map(Self::LeftOut).map_err(form)
        } else {
            serde_json::from_value(value).map(Self::Flow).map_err(form)
        }
    }

    /// The line, without its end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
