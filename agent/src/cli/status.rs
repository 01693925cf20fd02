//! `heddle status`.

use super::{
    Failure,
    client::{Client, run},
    render::{plain, print},
};
use hyper::Method;
use miette::miette;
use serde_json::Value;
use std::{fmt::Write, os::unix::fs::MetadataExt, path::Path, process::ExitCode};

/// Ends with 1 where something is wrong, or where the agent is to be this container's `own` and is not.
pub(super) fn show(socket: &Path, json: bool, own: bool) -> Result<ExitCode, Failure> {
    let answer = run(async { Client::new(socket).ask(Method::GET, "/v1/status", Vec::new()).await })?;
    let status: Value = serde_json::from_slice(&answer).map_err(|error| {
        miette!(help = "are agent and command of one version?", "the answer is not understood: {error}")
    })?;
    if own && !in_this_container(&status)? {
        print("the node's agent is in another container")?;
        return Ok(ExitCode::FAILURE);
    }
    let (text, sound) = readable(&status);
    if json {
        print(String::from_utf8_lossy(&answer).trim_end())?;
    } else {
        print(text.trim_end())?;
    }
    Ok(ExitCode::from(u8::from(!sound)))
}

/// Containers share what they like, but none the other's mounts.
fn in_this_container(status: &Value) -> Result<bool, Failure> {
    let mounts = |process: &str| {
        let path = format!("/proc/{process}/ns/mnt");
        std::fs::metadata(&path).map(|it| (it.dev(), it.ino())).map_err(|error| {
            miette!(help = "ask as root, in the host's pid namespace", "{path} cannot be read: {error}")
        })
    };
    Ok(mounts(&status["pid"].to_string())? == mounts("self")?)
}

struct Reader<'a>(&'a Value);

impl<'a> Reader<'a> {
    fn at(&self, pointer: &str) -> String {
        match self.0.pointer(pointer) {
            None | Some(Value::Null) => "-".into(),
            Some(Value::String(text)) => plain(text),
            Some(other) => plain(&other.to_string()),
        }
    }

    fn list(&self, pointer: &str) -> Vec<Reader<'a>> {
        let list = self.0.pointer(pointer).and_then(Value::as_array);
        list.map(|list| list.iter().map(Reader).collect()).unwrap_or_default()
    }

    fn is(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The status as text, and whether everything is as it should be.
fn readable(status: &Value) -> (String, bool) {
    let status = Reader(status);
    let mut out = String::new();
    let mut sound = true;
    let mut line = |text: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "node {}: heddle {} (process {}, since {})",
        status.at("/node"),
        status.at("/version"),
        status.at("/pid"),
        status.at("/started")
    ));
    let (proxy, kernel) = (status.at("/rules/proxyGeneration"), status.at("/rules/kernelGeneration"));
    if proxy == kernel && proxy != "0" {
        line(format!(
            "rules: generation {proxy} in force in kernel and proxy since {}",
            status.at("/rules/since")
        ));
    } else {
        sound = false;
        line(format!(
            "RULES: the proxy judges by generation {proxy}, the kernel by {kernel}: {}",
            status.at("/rules/kernelError")
        ));
        line(format!("  do: {}", status.at("/rules/remedy")));
    }
    if status.0.pointer("/manifests").is_some() {
        line(format!(
            "manifests: {} files of {} in force",
            status.at("/manifests/files"),
            status.at("/manifests/folder")
        ));
    }
    let served = status.list("/cluster/kinds").into_iter().filter(|kind| kind.is("/served"));
    let watched: Vec<String> =
        served.map(|kind| format!("{} {}", kind.at("/objects"), kind.at("/kind"))).collect();
    if !watched.is_empty() {
        line(format!("cluster: {}", watched.join(", ")));
    }
    for kind in status.list("/cluster/kinds").into_iter().filter(|kind| kind.0.pointer("/error").is_some()) {
        sound = false;
        line(format!(
            "  STALE: {}: {} (what was known last is in force)",
            kind.at("/kind"),
            kind.at("/error")
        ));
    }
    for alarm in status.list("/manifests/alarms") {
        sound = false;
        let kind = if alarm.is("/insecure") { "ALARM" } else { "STALE" };
        line(format!(
            "  {kind}: {}: {} (since {}; what it held last is in force)",
            alarm.at("/folder"),
            alarm.at("/error"),
            alarm.at("/since")
        ));
        line(format!("    do: {}", alarm.at("/remedy")));
    }
    for stale in status.list("/manifests/stale") {
        sound = false;
        let kind = if stale.is("/insecure") { "ALARM" } else { "STALE" };
        let held = if stale.is("/lastGoodInForce") {
            "its last good content is in force"
        } else {
            "nothing of it is in force"
        };
        line(format!(
            "  {kind}: {}: {} (since {}; {held})",
            stale.at("/file"),
            stale.at("/error"),
            stale.at("/since")
        ));
        line(format!("    do: {}", stale.at("/remedy")));
    }
    if status.0.pointer("/manifests/slow").is_some() {
        line(format!("  slow: {}", status.at("/manifests/slow")));
    }
    for problem in status.list("/problems") {
        let severity = problem.at("/severity");
        sound &= severity != "error";
        let about = [problem.at("/resource"), problem.at("/field")]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>();
        line(format!(
            "{severity}: {}:{}: {}: {}",
            problem.at("/file"),
            problem.at("/line"),
            about.join(": "),
            problem.at("/reason")
        ));
    }
    let pods = status.list("/pods");
    line(format!("pods: {}", pods.len()));
    for pod in pods {
        let held = pod.is("/inForce");
        sound &= held;
        let addresses: Vec<_> = pod.list("/addresses").iter().map(|address| address.at("")).collect();
        let held = if held { "in force" } else { "NOT IN FORCE" };
        line(format!(
            "  {}/{} {} {} {held}",
            pod.at("/namespace"),
            pod.at("/name"),
            addresses.join(","),
            pod.at("/identity")
        ));
        for problem in pod.list("/problems") {
            sound = false;
            line(format!("    {}", problem.at("")));
        }
        for repair in pod.list("/repairs") {
            let missing: Vec<_> = repair.list("/missing").iter().map(|what| what.at("")).collect();
            let done = if repair.0.pointer("/failed").is_some() { "cannot be put back" } else { "put back" };
            line(format!(
                "    at {} taken away by somebody, {done}: {}",
                repair.at("/time"),
                missing.join("; ")
            ));
        }
    }
    if let Some(door) = status.0.pointer("/door").and_then(Value::as_object).filter(|door| !door.is_empty()) {
        let counts: Vec<_> = door.iter().map(|(name, count)| format!("{} {count}", plain(name))).collect();
        line(format!("door: {}", counts.join(", ")));
    }
    (out, sound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_is_said_and_ends_with_another_code() {
        let mut status = json!({
            "node": "a", "version": "0.1.0", "pid": 7, "started": "then",
            "rules": {"proxyGeneration": 3, "kernelGeneration": 3, "since": "now"},
            "manifests": {"folder": "/m", "files": 2, "stale": [], "alarms": []},
            "problems": [], "door": {"refused_user": 2},
            "pods": [{"namespace": "shop", "name": "web", "addresses": ["10.0.0.1", "fd00::1"], "identity": "i", "inForce": true, "problems": []}],
        });
        let (text, sound) = readable(&status);
        assert!(sound, "{text}");
        assert!(text.contains("generation 3 in force in kernel and proxy"), "{text}");
        assert!(
            text.contains("shop/web 10.0.0.1,fd00::1 i in force") && text.contains("refused_user 2"),
            "{text}"
        );

        for (pointer, value, said) in [
            ("/rules/kernelGeneration", json!(2), "the proxy judges by generation 3, the kernel by 2"),
            (
                "/manifests/stale",
                json!([{"file": "/m/a", "error": "bad", "since": "then", "lastGoodInForce": true}]),
                "STALE: /m/a: bad (since then; its last good content is in force)",
            ),
            (
                "/manifests/alarms",
                json!([{"folder": "/m", "error": "mode", "since": "then", "insecure": true}]),
                "ALARM: /m: mode",
            ),
            (
                "/problems",
                json!([{"severity": "error", "file": "f", "line": 3, "resource": "Server a/b", "field": "spec", "reason": "why"}]),
                "error: f:3: Server a/b: spec: why",
            ),
            ("/pods/0/inForce", json!(false), "NOT IN FORCE"),
        ] {
            let before = status.clone();
            *status.pointer_mut(pointer).unwrap() = value;
            let (text, sound) = readable(&status);
            assert!(!sound && text.contains(said), "{said} is not in {text}");
            status = before;
        }
    }
}
