//! `heddle cni`: the plugin that stands last in the node's chain, so that a meshed pod starts only when it is captured.
//!
//! The container runtime calls it as `heddle-cni` with its request in the environment and on standard input, as CNI's
//! specification has it. It decides nothing that the agent can be asked: the agent knows by its watch whether the pod is
//! meshed, and captures it before it answers. Only where the agent is away it decides, and then by what the agent left
//! ([`away`]): a pod that is not known to be outside the mesh waits. What it keeps is whose each of the runtime's
//! attachments is ([`attachments`]).

mod attachments;
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
use attachments::{Attachments, Owner};
use away::Plain;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use request::{Config, Fault, Pod, Request, SUPPORTED};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{io::Read, net::IpAddr, path::Path, process::ExitCode};

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
        "GC" => collect(&config),
        "ADD" => {
            let request = Request::read(variable)?;
            let answer = add(&config, &request)?;
            keep(&config, &request);
            Ok(answer)
        }
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
        Ok((_, told)) => {
            let told: ErrorBody = serde_json::from_slice(&told).unwrap_or_default();
            if told.code == "not_meshed" {
                return Ok(previous);
            }
            let message = format!("Heddle's agent did not take pod {pod} into the mesh: {}", told.error);
            Err(Fault::new(11, message).details(told.remedy))
        }
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

/// Remembers whose the attachment is. One that is outside the mesh may come into it.
fn keep(config: &Config, request: &Request) {
    let (Some(pod), Ok(netns)) = (request.pod.clone(), request.netns()) else { return };
    let Pod { namespace, name, uid } = pod;
    let owner = Owner { namespace, name, uid, netns };
    // What is not remembered is let go when its namespace is gone, and not before.
    let _ = Attachments::of(&config.socket).keep(&request.attachment, &owner);
}

/// The runtime asks whether a pod's network is as it left it.
fn check(config: &Config, request: &Request) -> Result<Value, Fault> {
    let netns = request.netns()?;
    if config.previous.is_none() {
        return Err(Fault::new(7, "there is no prevResult").details("CHECK is told what ADD answered"));
    }
    let mut given = config.addresses()?;
    let Some(pod) = &request.pod else { return Ok(Value::Null) };
    let answer = ask(config, Method::GET, &of_pod(pod, &netns), Vec::new());
    let (status, told) = match answer {
        Ok(answer) => answer,
        // Nothing is known to be wrong: what the agent before left in the kernel refuses what it would refuse.
        Err(_) => return Ok(Value::Null),
    };
    if status == StatusCode::OK {
        let captured: Captured = serde_json::from_slice(&told)
            .map_err(|error| Fault::new(100, format!("the agent's answer cannot be read: {error}")))?;
        let mut guarded = captured.addresses;
        given.sort();
        guarded.sort();
        if given == guarded {
            return Ok(Value::Null);
        }
        let message = format!("pod {pod} is captured with the addresses {guarded:?}, not {given:?}");
        return Err(Fault::new(100, message).details("delete the pod: one that starts anew is captured"));
    }
    let told: ErrorBody = serde_json::from_slice(&told).unwrap_or_default();
    match told.code.as_str() {
        // Before the agent has any rules it cannot tell who is in the mesh.
        "not_meshed" | "not_ready" => Ok(Value::Null),
        // Of the specification: the container is unknown.
        "unknown_pod" => Err(Fault::new(3, told.error).details(told.remedy)),
        _ => Err(Fault::new(100, told.error).details(told.remedy)),
    }
}

/// What of a captured pod is compared with what the runtime knows.
#[derive(Deserialize)]
struct Captured {
    addresses: Vec<IpAddr>,
}

/// Asked for again and again until it succeeds, and for what was never added too.
fn delete(config: &Config, request: &Request) -> Result<Value, Fault> {
    // Without a namespace there is nothing that could be captured.
    if let (Some(pod), Ok(netns)) = (&request.pod, request.netns()) {
        match let_go(config, pod, &netns) {
            // The next agent finds that the namespace is gone.
            Ok(()) | Err(Kept::Away(_)) => {}
            Err(Kept::Refused(fault)) => return Err(fault),
        }
    }
    Attachments::of(&config.socket).forget(&request.attachment);
    Ok(Value::Null)
}

/// Whoever is attached and is not in the runtime's list is let go: its `DEL` never came.
fn collect(config: &Config) -> Result<Value, Fault> {
    let attachments = Attachments::of(&config.socket);
    let Some(valid) = &config.valid else {
        return Err(Fault::new(7, "there is no list of valid attachments")
            .details("cni.dev/valid-attachments is needed: without it nobody is let go"));
    };
    let stale = attachments
        .stale(valid)
        .map_err(|error| Fault::new(5, format!("the attachments cannot be read: {error}")))?;
    // All are tried, and the first fault is told.
    let mut answer = Ok(Value::Null);
    for (attachment, owner) in stale {
        let Owner { namespace, name, uid, netns } = owner;
        let pod = Pod { namespace, name, uid };
        let fault = match let_go(config, &pod, &netns) {
            Ok(()) => {
                attachments.forget(&attachment);
                continue;
            }
            Err(Kept::Refused(fault)) => fault,
            Err(Kept::Away(away)) => {
                Fault::new(11, format!("pod {pod} is not let go: Heddle's agent is away: {away}"))
                    .details("it is tried again at the next GC")
            }
        };
        answer = answer.and(Err(fault));
    }
    answer
}

/// Why a pod was not let go.
enum Kept {
    Away(Away),
    Refused(Fault),
}

/// Has the agent let go a pod that is captured in this network namespace, or finds that it is not.
fn let_go(config: &Config, pod: &Pod, netns: &Path) -> Result<(), Kept> {
    match ask(config, Method::DELETE, &of_pod(pod, netns), Vec::new()) {
        Ok((StatusCode::OK, _)) => Ok(()),
        Ok((_, told)) => {
            let told: ErrorBody = serde_json::from_slice(&told).unwrap_or_default();
            if told.code == "unknown_pod" {
                return Ok(());
            }
            let message = format!("Heddle's agent did not let pod {pod} go: {}", told.error);
            Err(Kept::Refused(Fault::new(11, message).details(told.remedy)))
        }
        Err(away) => Err(Kept::Away(away)),
    }
}

/// A pod's path at the door, in one network namespace.
fn of_pod(pod: &Pod, netns: &Path) -> String {
    let netns: String = netns.to_string_lossy().bytes().map(percent).collect();
    format!("/v1/pods/{}/{}?netns={netns}", pod.namespace, pod.name)
}

/// A byte as it stands in a query.
fn percent(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

fn ask(config: &Config, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), Away> {
    let client = Client::new(&config.socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Away(error.to_string()))?;
    runtime.block_on(client.exchange(method, path, body))
}
