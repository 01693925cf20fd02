//! v: the plugin's other verbs, asked as a container runtime asks: CHECK, GC and STATUS.

use super::faults::Stopped;
use super::measured::supervisor_of;
use super::pods::ready;
use super::scene::{NODE_A, Scene};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::{Output, eventually};

/// Its sandbox is to be left behind.
const LEFT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: left-behind, namespace: shop}\n\
    spec: {nodeName: node-a, serviceAccountName: client, terminationGracePeriodSeconds: 1, \
    containers: [{name: shell, image: \"heddle.local/apps:1\"}]}\n";
/// The versions of the specification that have the verbs, and what the error of a pod that is not as it should be is.
const WITH_CHECK: [&str; 2] = ["1.0.0", "1.1.0"];
const WITH_ALL: &str = "1.1.0";
const NOT_AS_IT_SHOULD: u64 = 100;
const TRY_AGAIN: u64 = 11;

/// What the runtime remembers of an attachment, and where its pod's network namespace is.
pub struct Attached {
    container: String,
    interface: String,
    arguments: String,
    result: Value,
    /// Its network namespace.
    pub netns: String,
}

impl Attached {
    fn name(&self) -> Value {
        json!({ "containerID": self.container, "ifname": self.interface })
    }
}

/// The attachments on a node, by their pods' names, from the runtime's own cache.
pub fn attached(scene: &Scene, node: &str) -> Result<BTreeMap<String, Attached>> {
    let node = scene.node(node)?;
    let mut namespaces = BTreeMap::new();
    for path in node.shell("ls -d /run/netns/*")?.split_whitespace() {
        let netns = format!("--net={path}");
        let told = node.check(&["nsenter", &netns, "ip", "-json", "address", "show", "dev", "eth0"]);
        let told: Value = serde_json::from_str(&told.unwrap_or_default()).unwrap_or_default();
        let addresses = told[0]["addr_info"].as_array().into_iter().flatten();
        namespaces
            .extend(addresses.filter_map(|it| Some((it["local"].as_str()?.to_owned(), path.to_owned()))));
    }
    let mut all = BTreeMap::new();
    for file in node.shell("ls /var/lib/cni/results/*")?.split_whitespace() {
        let cached: Value = serde_json::from_str(&node.check(&["cat", file])?)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let arguments: BTreeMap<String, String> = cached["cniArgs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pair| (text(&pair[0]), text(&pair[1])))
            .collect();
        let of = |name: &str| arguments.get(name).cloned().unwrap_or_default();
        let name = format!("{}/{}", of("K8S_POD_NAMESPACE"), of("K8S_POD_NAME"));
        let address = text(&cached["result"]["ips"][0]["address"]);
        let Some(netns) = namespaces.get(address.split('/').next().unwrap_or_default()) else { continue };
        let pairs: Vec<String> = arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let attached = Attached {
            container: text(&cached["containerId"]),
            interface: text(&cached["ifName"]),
            arguments: pairs.join(";"),
            result: cached["result"].clone(),
            netns: netns.clone(),
        };
        all.insert(name, attached);
    }
    Ok(all)
}

/// The plugin's answer: nothing, or the error's code and message.
fn told(output: &Output) -> Result<Option<(u64, String)>> {
    if output.succeeded() {
        ensure!(output.stdout.trim().is_empty(), "it has nothing to say: {}", output.stdout);
        return Ok(None);
    }
    let fault: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("no error of the specification's: {}{}", output.stdout, output.stderr))?;
    Ok(Some((fault["code"].as_u64().unwrap_or_default(), fault["msg"].to_string())))
}

/// Calls the plugin that is installed, with the configuration that is installed and what is laid over it.
fn call(
    scene: &Scene,
    verb: &str,
    version: &str,
    of: Option<&Attached>,
    over: &Value,
) -> Result<Option<(u64, String)>> {
    let node = scene.node(NODE_A)?;
    let list: Value = serde_json::from_str(&node.check(&["cat", "/etc/cni/net.d/00-heddle.conflist"])?)?;
    let plugins = list["plugins"].as_array().context("the chain has no plugins")?;
    let mut request = plugins.last().context("the chain is empty")?.clone();
    ensure!(request["type"] == "heddle-cni", "the plugin is not the last: {request}");
    request["name"] = list["name"].clone();
    request["cniVersion"] = version.into();
    if let Some(of) = of {
        request["prevResult"] = of.result.clone();
    }
    for (name, value) in over.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    let file = scene.state.folder.join("request.json");
    fs::write(&file, request.to_string())?;
    let mut words = vec!["env".to_owned(), format!("CNI_COMMAND={verb}"), "CNI_PATH=/opt/cni/bin".to_owned()];
    if let Some(of) = of {
        words.push(format!("CNI_CONTAINERID={}", of.container));
        words.push(format!("CNI_IFNAME={}", of.interface));
        words.push(format!("CNI_NETNS={}", of.netns));
        words.push(format!("CNI_ARGS={}", of.arguments));
    }
    words.extend(["sh", "-c", "exec /opt/cni/bin/heddle-cni <\"$0\""].map(str::to_owned));
    words.push(file.display().to_string());
    told(&node.run(&words)?)
}

fn said(answer: &Option<(u64, String)>) -> String {
    answer.as_ref().map_or_else(|| "success".to_owned(), |(code, message)| format!("{code}: {message}"))
}

/// v. CHECK, GC and STATUS, the agent there and away.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    scene.apply("left-behind.yaml", LEFT)?;
    ready(scene, "left-behind")?;
    let pods = attached(scene, NODE_A)?;
    let pod =
        |name: &str| pods.get(name).with_context(|| format!("the runtime knows no attachment of {name}"));
    let (client, outside, left) = (pod("shop/client")?, pod("plain/client")?, pod("shop/left-behind")?);
    step.does("/opt/cni/bin/heddle-cni on node-a, called with the chain's configuration and what containerd cached of its pods");
    checks(scene, step, client, outside)?;
    let status = call(scene, "STATUS", WITH_ALL, None, &json!({}))?;
    step.check("STATUS: the plugin is ready", status.is_none(), said(&status));

    let valid = |but: &str| -> Value {
        let others = pods.iter().filter(|(name, _)| *name != but).map(|(_, it)| it.name());
        json!({ "cni.dev/valid-attachments": others.collect::<Vec<_>>() })
    };
    step.does("node-a's kubelet stopped, and every process of shop/left-behind killed: its sandbox's namespace stays");
    let kubelet = Stopped::new(scene.state.daemon("node-a/kubelet")?)?;
    empty(scene, left)?;
    let before = scene.captured_at_door(NODE_A)?;
    step.check(
        "it is captured still",
        before.contains_key("shop/left-behind"),
        format!("{} pods", before.len()),
    );
    let answer = call(scene, "GC", WITH_ALL, None, &valid(""))?;
    let same = scene.captured_at_door(NODE_A)? == before;
    step.check("GC with a list of all: nobody is let go", answer.is_none() && same, said(&answer));
    let answer = call(scene, "GC", WITH_ALL, None, &valid("shop/left-behind"))?;
    let mut kept = before.clone();
    kept.remove("shop/left-behind");
    let after = scene.captured_at_door(NODE_A)?;
    step.check(
        "GC with a list without it: it is let go, and nobody else",
        answer.is_none() && after == kept,
        format!("{}, {} of {} captured", said(&answer), after.len(), before.len()),
    );

    step.does("the agent and its supervisor killed, the kubelet that would start them stopped");
    scene.signal(supervisor_of(scene.agent_process(NODE_A)?)?, Signal::KILL)?;
    let away = eventually("the agent to be gone", Duration::from_secs(10), || {
        Ok(call(scene, "GC", WITH_ALL, None, &valid("shop/client"))?.is_some())
    });
    let answer = call(scene, "GC", WITH_ALL, None, &valid("shop/client"))?;
    step.check(
        "GC of one that is attached says that the agent is away, to be tried again",
        away.is_ok() && answer.as_ref().is_some_and(|(code, _)| *code == TRY_AGAIN),
        said(&answer),
    );
    let status = call(scene, "STATUS", WITH_ALL, None, &json!({}))?;
    step.check("STATUS: the node stays ready", status.is_none(), said(&status));
    let answer = call(scene, "CHECK", WITH_ALL, Some(client), &json!({}))?;
    step.check("CHECK: nothing is known to be wrong", answer.is_none(), said(&answer));
    drop(kubelet);
    let back = eventually("all to be captured again", Duration::from_secs(180), || {
        let captured = scene.captured_at_door(NODE_A).unwrap_or_default();
        Ok(before.keys().all(|name| captured.contains_key(name)))
    });
    step.check("the kubelet goes on: the agent is back, and so are all pods", back.is_ok(), "heddle status");
    scene.kubectl(&["delete", "pod", "-n", "shop", "left-behind", "--wait=false"]).map(drop)
}

fn checks(scene: &Scene, step: &mut Step, client: &Attached, outside: &Attached) -> Result<()> {
    for version in WITH_CHECK {
        for (name, of) in [("shop/client, captured", client), ("plain/client, outside the mesh", outside)] {
            let answer = call(scene, "CHECK", version, Some(of), &json!({}))?;
            step.check(
                &format!("CHECK of {name}, by version {version}: as it should be"),
                answer.is_none(),
                said(&answer),
            );
        }
    }
    let other = json!({ "prevResult": outside.result });
    let answer = call(scene, "CHECK", WITH_ALL, Some(client), &other)?;
    step.check(
        "CHECK of shop/client with another pod's addresses fails",
        answer.as_ref().is_some_and(|(code, _)| *code == NOT_AS_IT_SHOULD),
        said(&answer),
    );
    step.does("heddle detach --pod shop/client, by hand in node-a's agent");
    let agent = scene.agent(NODE_A)?;
    let mut answer = None;
    // The agent finds the pod within five seconds.
    let failed = eventually("CHECK to fail", Duration::from_secs(30), || {
        scene.kubectl(&[
            "exec",
            "-n",
            "heddle-system",
            &agent,
            "--",
            "/heddle",
            "detach",
            "--pod",
            "shop/client",
        ])?;
        answer = call(scene, "CHECK", WITH_ALL, Some(client), &json!({}))?;
        Ok(answer.is_some())
    });
    let named = answer.as_ref().is_some_and(|(code, message)| {
        *code == NOT_AS_IT_SHOULD && message.contains("shop/client is in the mesh and is not captured")
    });
    step.check(
        "CHECK of a pod of the mesh that is not captured fails",
        failed.is_ok() && named,
        said(&answer),
    );
    let again = eventually("it to be captured again", Duration::from_secs(30), || {
        answer = call(scene, "CHECK", WITH_ALL, Some(client), &json!({}))?;
        Ok(answer.is_none())
    });
    step.check("the agent finds it and captures it again: CHECK succeeds", again.is_ok(), said(&answer));
    Ok(())
}

/// Kills every process in an attachment's network namespace.
fn empty(scene: &Scene, of: &Attached) -> Result<()> {
    let netns = format!("--net={}", of.netns);
    let own = scene.node(NODE_A)?.check(&["nsenter", &netns, "readlink", "/proc/self/ns/net"])?;
    let inside = || -> Result<Vec<u32>> {
        let processes = fs::read_dir("/proc")?.filter_map(Result::ok);
        let numbers = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        let there = |pid: &u32| {
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net"));
            namespace.is_ok_and(|it| it.as_os_str() == own.trim())
        };
        Ok(numbers.filter(there).collect())
    };
    eventually("its processes to end", Duration::from_secs(20), || {
        let processes = inside()?;
        for process in &processes {
            // It may have ended meanwhile.
            let _ = scene.signal(*process, Signal::KILL);
        }
        Ok(processes.is_empty())
    })
}
