//! `heddle cni`: the plugin that stands last in the node's chain, so that a meshed pod starts only when it is captured.
//!
//! The container runtime calls it as `heddle-cni` with its request in the environment and on standard input, as CNI's
//! specification has it. It holds no state and decides nothing that the agent can be asked: the agent knows by its watch
//! whether the pod is meshed, and captures it before it answers. Only where the agent is away it decides, and then by
//! what the agent left ([`away`]): a pod that is not known to be outside the mesh waits.

mod away;
mod install;
mod request;
#[cfg(test)]
mod tests;

pub use away::keep_told;
pub use install::{PLUGIN, Places, uninstall};

use super::{
    client::{Away, Client},
    door::api::{AttachBody, ErrorBody},
};
use away::Plain;
use hyper::{Method, StatusCode};
use request::{Config, Fault, Request, SUPPORTED};
use serde_json::{Value, json};
use std::{io::Read, process::ExitCode};

/// What the runtime may send at most.
const MAX_REQUEST: u64 = 4 << 20;

/// Answers the request that the environment and standard input hold.
pub fn run() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_REQUEST).read_to_string(&mut text);
    let answer = match read {
        Ok(_) => answer(|name| std::env::var(name).ok(), &text),
        Err(error) => Err(Fault::new(5, format!("the request cannot be read: {error}"))),
    };
    let (answer, code) = match answer {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(fault) => (fault.to_json(&text), ExitCode::FAILURE),
    };
    if !answer.is_null() {
        println!("{answer}");
    }
    code
}

/// The answer to a request; null: there is nothing to say.
fn answer(variable: impl Fn(&str) -> Option<String>, text: &str) -> Result<Value, Fault> {
    let command = variable("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        return Ok(json!({ "cniVersion": "1.1.0", "supportedVersions": SUPPORTED }));
    }
    let config = Config::read(text)?;
    match command.as_str() {
        // The node stays ready while the agent is started anew: pods wait one by one.
        "STATUS" => Ok(Value::Null),
        // What a sandbox that is gone left is swept by the agent, which sees its namespace go.
        "GC" => Ok(Value::Null),
        "ADD" => add(&config, &Request::read(variable)?),
        "CHECK" => check(&config, &Request::read(variable)?),
        "DEL" => delete(&config, &Request::read(variable)?),
        other => Err(Fault::new(4, format!("CNI_COMMAND is {other:?}"))
            .details("one of ADD, DEL, CHECK, GC, STATUS, VERSION")),
    }
}

fn add(config: &Config, request: &Request) -> Result<Value, Fault> {
    let previous = config.previous.clone().ok_or_else(|| {
        Fault::new(7, "there is no prevResult")
            .details("this plugin gives no pod a network: chain it after the one that does")
    })?;
    let netns = request.netns()?;
    let pod = request.pod.clone().ok_or_else(|| {
        Fault::new(4, "CNI_ARGS names no pod")
            .details("K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID are needed")
    })?;
    let body = AttachBody {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        netns,
        uid: Some(pod.uid.clone()),
        addresses: config.addresses()?,
    };
    let body = serde_json::to_vec(&body).map_err(|error| Fault::new(6, error.to_string()))?;
    match ask(config, Method::POST, "/v1/pods", body) {
        Ok((StatusCode::OK, _)) => Ok(previous),
        Ok((_, told)) if told.code == "not_meshed" => Ok(previous),
        Ok((_, told)) => Err(Fault::new(
            11,
            format!("Heddle's agent did not take pod {pod} into the mesh: {}", told.error),
        )
        .details(told.remedy)),
        Err(away) => match Plain::read(&config.socket).lets(config, &pod) {
            Ok(()) => Ok(previous),
            Err(why) => Err(Fault::new(
                11,
                format!("pod {pod} waits for Heddle's agent on this node, which is away: {away}"),
            )
            .details(why)),
        },
    }
}

/// The runtime asks whether a pod's network is as it left it.
fn check(config: &Config, request: &Request) -> Result<Value, Fault> {
    let netns = request.netns()?;
    let Some(pod) = &request.pod else { return Ok(Value::Null) };
    let client = Client::new(&config.socket);
    let asked = super::client::run(async { client.ask(Method::GET, "/v1/status", Vec::new()).await });
    // Nothing is known to be wrong.
    let Ok(status) = asked else { return Ok(Value::Null) };
    let status: Value = serde_json::from_slice(&status)
        .map_err(|error| Fault::new(100, format!("the agent's status cannot be read: {error}")))?;
    let pods = status.get("pods").and_then(Value::as_array).into_iter().flatten();
    let mut own = pods.filter(|it| it["namespace"] == *pod.namespace && it["name"] == *pod.name);
    match own.next() {
        Some(found) if found["netns"] == *netns.to_string_lossy() && found["inForce"] == false => {
            Err(Fault::new(100, format!("the capture of pod {pod} is not in force: {}", found["problems"])))
        }
        _ => Ok(Value::Null),
    }
}

/// Asked for again and again until it succeeds, and for what was never added too.
fn delete(config: &Config, request: &Request) -> Result<Value, Fault> {
    // Without a namespace there is nothing that could be captured.
    let (Some(pod), Ok(netns)) = (&request.pod, request.netns()) else { return Ok(Value::Null) };
    let netns: String = netns.to_string_lossy().bytes().map(percent).collect();
    let path = format!("/v1/pods/{}/{}?netns={netns}", pod.namespace, pod.name);
    match ask(config, Method::DELETE, &path, Vec::new()) {
        Ok((StatusCode::OK, _)) => Ok(Value::Null),
        Ok((_, told)) if told.code == "unknown_pod" => Ok(Value::Null),
        Ok((_, told)) => {
            Err(Fault::new(11, format!("Heddle's agent did not let pod {pod} go: {}", told.error))
                .details(told.remedy))
        }
        // The next agent finds that the namespace is gone.
        Err(_) => Ok(Value::Null),
    }
}

/// A byte as it stands in a query.
fn percent(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

fn ask(config: &Config, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, ErrorBody), Away> {
    let client = Client::new(&config.socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Away(error.to_string()))?;
    let (status, body) = runtime.block_on(client.exchange(method, path, body))?;
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}
