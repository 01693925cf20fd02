//! `heddle attach` and `heddle detach`.

use super::{
    Failure,
    client::{Client, run},
    door::{Attached, PodName, api::AttachBody},
    render::print,
};
use hyper::Method;
use miette::{IntoDiagnostic, miette};
use std::{path::Path, process::ExitCode};

pub(super) fn attach(socket: &Path, pod: &PodName, netns: &Path) -> Result<ExitCode, Failure> {
    let netns = std::path::absolute(netns).into_diagnostic()?;
    let body = AttachBody {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        netns,
        uid: None,
        addresses: Vec::new(),
    };
    let body = serde_json::to_vec(&body).into_diagnostic()?;
    let answer = run(async { Client::new(socket).ask(Method::POST, "/v1/pods", body).await })?;
    let attached: Attached = serde_json::from_slice(&answer).map_err(|error| {
        miette!(help = "are agent and command of one version?", "the answer is not understood: {error}")
    })?;
    let addresses: Vec<_> = attached.addresses.iter().map(ToString::to_string).collect();
    print(&format!(
        "{pod} is in the mesh as {} ({}), under generation {}",
        attached.identity,
        addresses.join(", "),
        attached.generation
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn detach(socket: &Path, pod: &PodName) -> Result<ExitCode, Failure> {
    let path = format!("/v1/pods/{}/{}", pod.namespace, pod.name);
    run(async { Client::new(socket).ask(Method::DELETE, &path, Vec::new()).await })?;
    print(&format!("{pod} is out of the mesh"))?;
    Ok(ExitCode::SUCCESS)
}
