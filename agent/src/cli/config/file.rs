//! What the file says, field by field, each with its line.

use heddle_policy::problems::{Origin, Problem, Severity};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fs::File as Handle, io::Read, os::linux::fs::MetadataExt, path::Path};

/// More is no configuration.
const MAX_BYTES: u64 = 1 << 20;

/// The file's fields. Whatever is not here is an error: a field that is misspelt must not pass for one left out.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: Option<Spanned<String>>,
    pub(super) manifests: Option<Spanned<String>>,
    pub(super) cluster: Option<Cluster>,
    pub(super) cluster_networks: Option<Vec<Spanned<String>>>,
    pub(super) pod_networks: Option<Vec<Spanned<String>>>,
    pub(super) service_networks: Option<Vec<Spanned<String>>>,
    pub(super) node_networks: Option<Vec<Spanned<String>>>,
    pub(super) default_inbound_policy: Option<Spanned<String>>,
    pub(super) default_outbound: Option<Spanned<String>>,
    pub(super) same_node: Option<Spanned<String>>,
    pub(super) trust_domain: Option<Spanned<String>>,
    pub(super) identity_namespace: Option<Spanned<String>>,
    pub(super) dns_service: Option<Spanned<String>>,
    pub(super) ca: Option<Ca>,
    pub(super) federation: Option<Spanned<String>>,
    pub(super) renew_after_percent: Option<Spanned<u64>>,
    pub(super) run_directory: Option<Spanned<String>>,
    pub(super) bpffs: Option<Spanned<String>>,
    pub(super) cgroup: Option<Spanned<String>>,
    pub(super) heartbeat_milliseconds: Option<Spanned<u64>>,
    pub(super) kubelet_cgroup: Option<Spanned<String>>,
    pub(super) workers: Option<Spanned<u64>>,
    pub(super) poll_microseconds: Option<Spanned<u64>>,
    pub(super) capacity: BTreeMap<String, Spanned<u64>>,
    pub(super) cni: Option<Cni>,
    pub(super) hand_over: Option<HandOver>,
    pub(super) flow_log: Option<FlowLog>,
    pub(super) workload_api: Option<Spanned<String>>,
    pub(super) linkerd_inject: Option<Spanned<bool>>,
    pub(super) find_pods: Option<Spanned<bool>>,
    pub(super) join_step_seconds: Option<Spanned<u64>>,
    pub(super) metrics_address: Option<Spanned<String>>,
    pub(super) log: Log,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Cluster {
    pub(super) kubeconfig: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Cni {
    pub(super) plugins: Option<Spanned<String>>,
    pub(super) networks: Option<Spanned<String>>,
    pub(super) exempt: Option<Vec<Spanned<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct HandOver {
    pub(super) drain_seconds: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct FlowLog {
    pub(super) file: Option<Spanned<String>>,
    pub(super) megabytes: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Ca {
    pub(super) folder: Option<Spanned<String>>,
    pub(super) memory: Option<Spanned<bool>>,
    pub(super) spire: Option<Spanned<String>>,
    pub(super) url: Option<Spanned<String>>,
    pub(super) trust_bundle: Option<Spanned<String>>,
    pub(super) token_file: Option<Spanned<String>>,
    pub(super) account: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<Spanned<String>>,
    pub(super) filter: Option<Spanned<String>>,
}

fn problem(path: &Path, reason: String, remedy: &str) -> Box<Problem> {
    let origin = Origin::new(path.display().to_string(), 0);
    Box::new(Problem::new(Severity::Error, &origin, reason).remedy(remedy))
}

/// Reads the file, which decides what the agent trusts: nobody but root and the agent's user may write to it.
pub(super) fn read(path: &Path) -> Result<String, Box<Problem>> {
    let failed = |error: std::io::Error| {
        problem(
            path,
            format!("the configuration cannot be read: {error}"),
            "name a file that the agent's user can read",
        )
    };
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let file = Handle::from(fd);
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(problem(path, "the configuration is not a regular file".into(), "name a YAML file"));
    }
    let user = rustix::process::geteuid().as_raw();
    if meta.st_uid() != 0 && meta.st_uid() != user {
        let reason = format!(
            "the configuration belongs to uid {}, neither to root nor to the agent's user",
            meta.st_uid()
        );
        return Err(problem(path, reason, &format!("chown {user} {}", path.display())));
    }
    if meta.st_mode() & 0o022 != 0 {
        let reason =
            format!("the configuration's mode is {:04o}: others may write to it", meta.st_mode() & 0o7777);
        return Err(problem(path, reason, &format!("chmod go-w {}", path.display())));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(problem(
            path,
            format!("the configuration is longer than {MAX_BYTES} bytes"),
            "name the right file",
        ));
    }
    Ok(text)
}

/// Parses the file's text.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, Box<Problem>> {
    let options = serde_saphyr::options! { with_snippet: false };
    // An empty file, or one of comments only, gives nothing.
    let parsed: Result<Option<File>, _> = serde_saphyr::from_str_with_options(text, options);
    parsed.map(Option::unwrap_or_default).map_err(|error| {
        let line = error.location().map_or(0, |at| u32::try_from(at.line()).unwrap_or(0));
        let remedy = "`heddle agent --help` lists the fields, `heddle agent --print-config` shows a file";
        let mut problem = problem(path, error.to_string(), remedy);
        problem.line = line;
        problem
    })
}
