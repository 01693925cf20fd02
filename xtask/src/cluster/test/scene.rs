//! What the steps share: the shop's pods, kubectl, curl in a pod, the agents.

use crate::cluster::install;
use crate::cluster::programs::Programs;
use crate::cluster::state::State;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use xtask::lab::{Output, Place, Running, eventually, stretched};

pub const SHOP: &str = include_str!("shop.yaml");
/// Unlike anything that a protocol says by itself.
pub const MARKER: &str = "THE-LOOM-IS-OPEN-7f3a9c";
pub const NODE_A: &str = "node-a";
pub const NODE_B: &str = "node-b";
/// The namespaces of the shop.
const NAMESPACES: [&str; 3] = ["shop", "bank", "plain"];

/// A cluster with the shop in it.
pub struct Scene<'a> {
    pub state: &'a State,
    pub programs: &'a Programs,
    /// The program that the image holds.
    heddle: &'a Path,
}

impl<'a> Scene<'a> {
    /// Starts the shop, anew if it is there.
    pub fn set(state: &'a State, programs: &'a Programs, heddle: &'a Path) -> Result<Self> {
        let scene = Self { state, programs, heddle };
        scene.clear()?;
        scene.apply("shop.yaml", SHOP)?;
        eventually("the shop's pods to be ready", Duration::from_secs(60), || scene.all_ready(&NAMESPACES))
            .with_context(|| scene.said().unwrap_or_default())?;
        Ok(scene)
    }

    /// Removes the shop.
    pub fn clear(&self) -> Result<()> {
        self.clear_namespaces(&NAMESPACES)
    }

    /// Removes namespaces and what is in them.
    pub fn clear_namespaces(&self, names: &[&str]) -> Result<()> {
        let mut words = vec!["delete", "namespace", "--ignore-not-found", "--wait=false"];
        words.extend(names);
        self.kubectl(&words)?;
        eventually("the namespaces to be gone", Duration::from_secs(90), || {
            let there = self.kubectl(&["get", "namespaces", "-o", "name"])?;
            Ok(!names.iter().any(|name| there.lines().any(|line| line == format!("namespace/{name}"))))
        })
    }

    /// Whether every pod of some namespaces is ready.
    pub fn all_ready(&self, names: &[&str]) -> Result<bool> {
        for namespace in names {
            let ready = self.kubectl(&[
                "get",
                "pods",
                "-n",
                namespace,
                "-o",
                "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
            ])?;
            if ready.is_empty() || ready.contains("False") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Pods and events, for a failure's report.
    pub fn said(&self) -> Result<String> {
        let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"])?;
        Ok(pods + &self.kubectl(&["get", "events", "-A", "--field-selector=type=Warning"])?)
    }

    /// kubectl, which must succeed.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.state.check(self.programs, words)
    }

    /// heddle, as a person at the cluster calls it.
    pub fn heddle(&self, words: &[&str]) -> Result<Output> {
        self.state.heddle(self.heddle, words)
    }

    /// Applies manifests.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let path = self.state.folder.join(name);
        fs::write(&path, yaml)?;
        self.kubectl(&["apply", "--filename", &path.display().to_string()]).map(drop)
    }

    /// A pod's address.
    pub fn address(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        let text = self.kubectl(&["get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.podIP}"])?;
        text.trim().parse().with_context(|| format!("pod {namespace}/{name} has no address: {text:?}"))
    }

    /// A pod's addresses, one of each family.
    pub fn addresses(&self, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
        let path = "jsonpath={.status.podIPs[*].ip}";
        let text = self.kubectl(&["get", "pod", "-n", namespace, name, "-o", path])?;
        let addresses: Result<Vec<IpAddr>, _> = text.split_whitespace().map(str::parse).collect();
        let addresses = addresses.with_context(|| format!("pod {namespace}/{name}: {text:?}"))?;
        ensure!(
            addresses.len() == self.state.network.pod_networks().len(),
            "pod {namespace}/{name} has {addresses:?}, and pods here are connected by {}",
            self.state.network
        );
        Ok(addresses)
    }

    /// A Service's addresses, one of each family.
    pub fn service(&self, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
        let path = "jsonpath={.spec.clusterIPs[*]}";
        let text = self.kubectl(&["get", "service", "-n", namespace, name, "-o", path])?;
        let addresses: Result<Vec<IpAddr>, _> = text.split_whitespace().map(str::parse).collect();
        addresses.with_context(|| format!("service {namespace}/{name}: {text:?}"))
    }

    /// A node's own place.
    pub fn node(&self, name: &str) -> Result<&Place> {
        self.state.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// curl in a pod, by the way of the kubelet as a person would.
    pub fn curl(&self, namespace: &str, pod: &str, url: &str) -> Result<Output> {
        self.state.kubectl_output(
            self.programs,
            &["exec", "--quiet", "-n", namespace, pod, "--", "curl", "-sS", "--max-time", "5", url],
        )
    }

    /// The name of a node's agent's pod: of the younger, where one takes over from another.
    pub fn agent(&self, node: &str) -> Result<String> {
        let path = format!("jsonpath={{.items[?(@.spec.nodeName=='{node}')].metadata.name}}");
        let by_age = "--sort-by=.metadata.creationTimestamp";
        let words = ["get", "pods", "-n", "heddle-system", "-l", "app=heddle", by_age, "-o", &path];
        let names = self.kubectl(&words)?;
        let name = names.split_whitespace().last().with_context(|| format!("there is no agent on {node}"))?;
        Ok(name.to_owned())
    }

    /// What a node's agent says of itself.
    pub fn status(&self, node: &str) -> Result<Value> {
        let agent = self.agent(node)?;
        let said =
            self.kubectl(&["exec", "-n", "heddle-system", &agent, "--", "/heddle", "status", "--json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// What is answered at the door of a node's agent, asked on the node itself: the kubelet need not run.
    pub fn door(&self, node: &str, path: &str) -> Result<String> {
        let url = format!("http://heddle{path}");
        let socket = "/run/heddle/agent/agent.sock";
        self.node(node)?.check(&["curl", "-sS", "--max-time", "10", "--unix-socket", socket, &url])
    }

    /// The network namespaces of a node's captured pods, by name.
    pub fn captured(&self, node: &str) -> Result<BTreeMap<String, String>> {
        Ok(netns_of(&self.status(node)?))
    }

    /// The same, asked at the door.
    pub fn captured_at_door(&self, node: &str) -> Result<BTreeMap<String, String>> {
        Ok(netns_of(&serde_json::from_str(&self.door(node, "/v1/status")?)?))
    }

    /// Sets a field of the agents' configuration and lets them start with it.
    pub fn configure(&self, field: &str, value: &str) -> Result<()> {
        let object = ["configmap", "-n", "heddle-system", "heddle-agent"];
        let path = "jsonpath={.data.heddle\\.yaml}";
        let known = self.kubectl(&[&["get"], &object[..], &["-o", path]].concat())?;
        let line = known.lines().find(|line| line.starts_with(&format!("{field}:")));
        let line = line.with_context(|| format!("the agents' configuration has no {field}"))?;
        let changed = known.replace(line, &format!("{field}: {value}"));
        let patch = json!({ "data": { "heddle.yaml": changed } }).to_string();
        self.kubectl(&[&["patch"], &object[..], &["--type=merge", "--patch", &patch]].concat())?;
        install::restart(self.state, self.programs, "daemonset/heddle")
    }

    /// Kills one of the programs that the cluster is made of, and starts it again.
    pub fn restart(&self, name: &str) -> Result<()> {
        let daemon = self.state.daemon(name)?;
        daemon.kill()?;
        daemon.start_again(self.programs)
    }

    /// Sends a signal to a process.
    pub fn signal(&self, process: u32, signal: Signal) -> Result<()> {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw).context("no such process")?;
        kill_process(process, signal).context("it cannot be signalled")
    }

    /// The process of a node's agent, a restarted one's too, also while no kubelet runs.
    pub fn agent_process(&self, node: &str) -> Result<u32> {
        let told: Value = serde_json::from_str(&self.door(node, "/v1/status")?)?;
        let pid = told["pid"].as_u64().context("the agent tells no process")?;
        Ok(u32::try_from(pid)?)
    }
}

fn netns_of(status: &Value) -> BTreeMap<String, String> {
    let pods = status["pods"].as_array().into_iter().flatten();
    let text = |pod: &Value, field: &str| pod[field].as_str().unwrap_or_default().to_owned();
    pods.map(|pod| (format!("{}/{}", text(pod, "namespace"), text(pod, "name")), text(pod, "netns")))
        .collect()
}

/// Where HTTP is asked for.
pub fn url(address: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}{path}", SocketAddr::new(address, port))
}

/// A client inside a captured pod's network namespace: started quickly, as often as one likes.
pub struct Inside<'a> {
    pub place: &'a Place,
    pub netns: String,
}

impl Inside<'_> {
    /// Whether a request is answered.
    pub fn reaches(&self, url: &str) -> Result<bool> {
        let netns = format!("--net={}", self.netns);
        let limit = stretched(Duration::from_secs(2)).as_secs().to_string();
        let output = self.place.run(&["nsenter", &netns, "curl", "-sS", "--max-time", &limit, url])?;
        Ok(output.succeeded() && output.stdout.contains("served"))
    }

    /// One connection, for one request after the other.
    pub fn line(&self, server: IpAddr) -> Result<Line> {
        let netns = format!("--net={}", self.netns);
        let program = self.place.spawn(&["nsenter", &netns, "ncat", &server.to_string(), "8080"])?;
        Ok(Line { program, answered: 0 })
    }
}

/// A connection that is kept open.
pub struct Line {
    program: Running,
    answered: usize,
}

impl Line {
    /// Whether a request is answered over it.
    pub fn asks(&mut self) -> bool {
        if self.program.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").is_err() {
            return false;
        }
        self.answered += 1;
        let all = |program: &Running| program.stdout().matches("served").count() >= self.answered;
        eventually("the answer", Duration::from_secs(5), || Ok(all(&self.program))).is_ok()
    }
}
