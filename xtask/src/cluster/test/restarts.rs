//! r: what the cluster is made of ends and comes back, and the mesh goes on.

use super::scene::{Inside, NODE_A, NODE_B, Scene};
use crate::cluster::control_plane::ETCD;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

const DENY: &str = "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {name: nobody, namespace: shop}\n\
    spec: {action: Deny, podSelector: {matchLabels: {app: web}}, from: [{serviceAccounts: [{name: client}]}]}\n";
const SECOND: &str = "runDirectory: /run/heddle/agent\ncluster: {}\ncgroup: /sys/fs/cgroup\n\
    ca: {url: https://127.0.0.1:1, trustBundle: /var/run/heddle/roots/ca.crt, tokenFile: /var/run/heddle/token/token}\n";
/// In what steps the memory of the agent's container is bounded.
const ROOM: u64 = 1 << 20;

/// Who may reach shop/web and who may not, both from node-a.
struct Pair<'a> {
    client: Inside<'a>,
    stranger: Inside<'a>,
    url: String,
}

impl<'a> Pair<'a> {
    fn of(scene: &'a Scene) -> Result<Self> {
        let mut captured = scene.captured(NODE_A)?;
        let mut inside = |name: &str| -> Result<Inside<'a>> {
            let netns = captured.remove(name).with_context(|| format!("{name} is not captured"))?;
            Ok(Inside { place: scene.node(NODE_A)?, netns })
        };
        let url = format!("http://{}:8080/", scene.address("shop", "web")?);
        Ok(Self { client: inside("shop/client")?, stranger: inside("bank/stranger")?, url })
    }

    /// Both ask without a pause while something is done. How often the client was answered and was not, and how often
    /// the stranger was let in.
    fn meanwhile(&self, act: impl FnOnce() -> Result<()>) -> Result<(usize, usize, usize)> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| -> Result<(usize, usize, usize)> {
                let (mut answered, mut refused, mut let_in) = (0, 0, 0);
                while !done.load(Ordering::Acquire) || answered + refused == 0 {
                    let reached = self.client.reaches(&self.url)?;
                    (answered, refused) = (answered + usize::from(reached), refused + usize::from(!reached));
                    let_in += usize::from(self.stranger.reaches(&self.url)?);
                }
                Ok((answered, refused, let_in))
            });
            let acted = act();
            done.store(true, Ordering::Release);
            match asking.join() {
                Ok(told) => acted.and(told),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// r. One after the other.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    let pair = Pair::of(scene)?;
    let goes_on = |step: &mut Step, what: &str, act: &dyn Fn() -> Result<()>| -> Result<()> {
        step.does(what);
        let (answered, refused, let_in) = pair.meanwhile(act)?;
        step.check(
            "the rules stay in force",
            answered > 0 && refused == 0 && let_in == 0,
            format!("the client answered {answered} times, not {refused}, the stranger let in {let_in}"),
        );
        Ok(())
    };
    goes_on(step, "etcd killed and started again", &|| {
        scene.restart(ETCD)?;
        api_is_back(scene)
    })?;
    a_rule_holds(scene, step, &pair)?;
    goes_on(step, "every connection to the API server reset, the agents' watches among them", &|| {
        let cut =
            scene.state.router.check(&["ss", "-K", "-Htn", "state", "established", "sport", "=", ":6443"])?;
        ensure!(cut.lines().count() > 2, "no connection was cut: {cut:?}");
        api_is_back(scene)
    })?;
    a_rule_holds(scene, step, &pair)?;
    // An agent that cannot watch a kind says so by how `heddle status` ends, which is its readiness too.
    let sound = || [NODE_A, NODE_B].iter().all(|node| scene.status(node).is_ok());
    let both = eventually("both agents to be sound", Duration::from_secs(60), || Ok(sound()));
    step.check(
        "both agents say that they watch, though of most kinds nothing changed",
        both.is_ok(),
        "heddle status",
    );
    goes_on(step, "node-a's kubelet killed and started again", &|| scene.restart("node-a/kubelet"))?;
    a_pod_starts(scene, step, "after-kubelet")?;
    goes_on(step, "node-a's containerd killed and started again", &|| scene.restart("node-a/containerd"))?;
    a_pod_starts(scene, step, "after-containerd")?;
    wiped(scene, step, &pair)?;
    made_anew(scene, step, &pair)?;
    second_agent(scene, step, &pair)?;
    out_of_memory(scene, step, &pair)
}

fn api_is_back(scene: &Scene) -> Result<()> {
    eventually("the API server to answer", Duration::from_secs(60), || {
        Ok(scene.state.kubectl_output(scene.programs, &["get", "--raw", "/readyz"])?.succeeded())
    })
}

/// The agents watch again: what is applied now holds.
fn a_rule_holds(scene: &Scene, step: &mut Step, pair: &Pair) -> Result<()> {
    scene.apply("deny.yaml", DENY)?;
    let denied =
        eventually("the rule to hold", Duration::from_secs(60), || Ok(!pair.client.reaches(&pair.url)?));
    scene.kubectl(&["delete", "accessrule", "-n", "shop", "nobody"])?;
    let allowed =
        eventually("it to hold no more", Duration::from_secs(60), || pair.client.reaches(&pair.url));
    step.check(
        "a rule that is applied afterwards holds, and one that is deleted does not",
        denied.is_ok() && allowed.is_ok(),
        format!("denied: {}, allowed again: {}", denied.is_ok(), allowed.is_ok()),
    );
    Ok(())
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{nodeName: {NODE_A}, serviceAccountName: client, terminationGracePeriodSeconds: 1, \
         containers: [{{name: shell, image: \"heddle.local/apps:1\"}}]}}\n"
    )
}

/// A pod that comes now is captured, and is answered.
fn a_pod_starts(scene: &Scene, step: &mut Step, name: &str) -> Result<()> {
    scene.apply("pod.yaml", &pod(name))?;
    runs_captured(scene, step, name)
}

fn runs_captured(scene: &Scene, step: &mut Step, name: &str) -> Result<()> {
    let phase = ["get", "pod", "-n", "shop", name, "-o", "jsonpath={.status.phase}"];
    let runs = eventually("the pod to run", Duration::from_secs(90), || {
        Ok(scene.kubectl(&phase)?.trim() == "Running")
    });
    // An agent says that it is not sound while a sandbox is being taken away beneath it.
    let captured = eventually("the pod to be captured", Duration::from_secs(30), || {
        Ok(scene.captured(NODE_A).is_ok_and(|it| it.contains_key(&format!("shop/{name}"))))
    });
    let captured = captured.is_ok();
    let url = format!("http://{}:8080/", scene.address("shop", "web")?);
    let output = scene.curl("shop", name, &url)?;
    step.check(
        "a pod that comes afterwards starts, captured, and is answered",
        runs.is_ok() && captured && output.stdout.contains("served"),
        format!("runs: {}, captured: {captured}, {}", runs.is_ok(), output.last_line()),
    );
    scene.kubectl(&["delete", "pod", "-n", "shop", name, "--wait=false"]).map(drop)
}

/// Configurations and plugins of the CNI are taken away, Heddle's and the others'; the others' come back.
fn wiped(scene: &Scene, step: &mut Step, pair: &Pair) -> Result<()> {
    step.does("node-a's folders of network configurations and plugins emptied, and a pod applied");
    let node = scene.node(NODE_A)?;
    node.shell("mkdir /run/aside && cp -a /etc/cni/net.d/10-pods.conflist /opt/cni/bin /run/aside && rm /run/aside/bin/heddle-cni")?;
    node.shell("rm -rf /etc/cni/net.d/* /opt/cni/bin/*")?;
    scene.apply("pod.yaml", &pod("after-wiping"))?;
    let (answered, refused, let_in) = pair.meanwhile(|| {
        std::thread::sleep(Duration::from_secs(4));
        Ok(())
    })?;
    step.check(
        "the rules stay in force",
        answered > 0 && refused == 0 && let_in == 0,
        format!("the client answered {answered} times, not {refused}, the stranger let in {let_in}"),
    );
    let waits =
        scene.kubectl(&["get", "pod", "-n", "shop", "after-wiping", "-o", "jsonpath={.status.phase}"])?;
    step.check("the pod does not start", waits.trim() == "Pending", waits.trim());
    step.does("the other plugins and their configuration put back, as who installed them does");
    node.shell("cp -a /run/aside/bin/. /opt/cni/bin && cp -a /run/aside/10-pods.conflist /etc/cni/net.d/ && rm -r /run/aside")?;
    runs_captured(scene, step, "after-wiping")?;
    let plugins = node.shell("ls /opt/cni/bin /etc/cni/net.d")?;
    step.check(
        "plugin and chain are back",
        ["heddle-cni", "00-heddle.conflist"].iter().all(|name| plugins.contains(name)),
        plugins.split_whitespace().collect::<Vec<_>>().join(" "),
    );
    Ok(())
}

/// The CNI's folders themselves are removed and made anew: the agent's mounts are of the ones above.
fn made_anew(scene: &Scene, step: &mut Step, pair: &Pair) -> Result<()> {
    step.does(
        "node-a's /etc/cni/net.d and /opt/cni/bin removed and made anew as folders, without Heddle's files",
    );
    let node = scene.node(NODE_A)?;
    let inodes = || node.shell("stat -c %i /etc/cni/net.d /opt/cni/bin");
    let before = inodes()?;
    let (answered, refused, let_in) = pair.meanwhile(|| {
        for (folder, own) in [("/etc/cni/net.d", "00-heddle.conflist"), ("/opt/cni/bin", "heddle-cni")] {
            // In one step: whatever is removed from it one by one comes back meanwhile.
            node.shell(&format!(
                "cp -a {folder} /run/aside && rm /run/aside/{own} && mv {folder} {folder}.gone && sleep 1 && \
                mkdir -p {folder} && cp -a /run/aside/. {folder} && rm -r /run/aside {folder}.gone"
            ))?;
        }
        Ok(())
    })?;
    step.check("they are others", inodes()? != before, format!("{before} {}", inodes()?).replace('\n', " "));
    step.check(
        "the rules stay in force",
        answered > 0 && refused == 0 && let_in == 0,
        format!("the client answered {answered} times, not {refused}, the stranger let in {let_in}"),
    );
    let list = || node.shell("ls /opt/cni/bin /etc/cni/net.d");
    let back = eventually("plugin and chain to be back", Duration::from_secs(20), || {
        let list = list()?;
        Ok(["heddle-cni", "00-heddle.conflist"].iter().all(|name| list.lines().any(|line| line == *name)))
    });
    let list = list()?.split_whitespace().collect::<Vec<_>>().join(" ");
    step.check("plugin and chain are back", back.is_ok(), list);
    step.does("node-a's containerd, which looks at the folder of before, killed and started again");
    scene.restart("node-a/containerd")?;
    a_pod_starts(scene, step, "after-making-anew")
}

/// An agent that is not the successor finds the node taken.
fn second_agent(scene: &Scene, step: &mut Step, pair: &Pair) -> Result<()> {
    step.does("a second agent started on node-a, with a configuration without handOver");
    let (agent, before) = (scene.agent(NODE_A)?, scene.agent_process(NODE_A)?);
    let node = scene.node(NODE_A)?;
    node.shell(&format!("printf '%s' '{SECOND}' >/run/heddle/second.yaml"))?;
    let second = ["/heddle", "agent", "--config=/run/heddle/second.yaml", "--node=node-a"];
    let words = [&["exec", "-n", "heddle-system", agent.as_str(), "--"], &second[..]].concat();
    let output = scene.state.kubectl_output(scene.programs, &words)?;
    node.shell("rm /run/heddle/second.yaml")?;
    let said = output.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    step.check(
        "it refuses to start, and says who is there",
        !output.succeeded() && said.contains(&format!("another agent (process {before})")),
        said.chars().take(200).collect::<String>(),
    );
    let same = scene.agent_process(NODE_A)? == before && pair.client.reaches(&pair.url)?;
    step.check("the first one serves on", same, "served");
    Ok(())
}

/// The kernel ends the agent for the memory that it takes.
fn out_of_memory(scene: &Scene, step: &mut Step, pair: &Pair) -> Result<()> {
    step.does(
        "the memory of node-a's agent bounded to little more than it has, and many connections at once",
    );
    let before = scene.agent_process(NODE_A)?;
    let agent = scene.agent(NODE_A)?;
    bound_memory(before)?;
    let crowd = format!("{}?[1-2000]", pair.url);
    let netns = format!("--net={}", pair.client.netns);
    let many = ["nsenter", &netns, "curl", "-s", "--parallel", "--parallel-max", "300", "--max-time", "30"];
    let mut load = pair.client.place.spawn(&[&many[..], &["-o", "/dev/null", &crowd]].concat())?;
    let reason = || {
        let path = "jsonpath={.status.containerStatuses[0].lastState.terminated.reason}";
        scene.kubectl(&["get", "pod", "-n", "heddle-system", &agent, "-o", path])
    };
    let (mut let_in, mut asked) = (0, 0);
    let killed = eventually("the agent to be killed", Duration::from_secs(60), || {
        let_in += usize::from(pair.stranger.reaches(&pair.url)?);
        asked += 1;
        Ok(reason()?.trim() == "OOMKilled")
    });
    load.end();
    step.check("the kernel kills it, and the kubelet says so", killed.is_ok(), reason()?.trim());
    let back = eventually("the agent to be back", Duration::from_secs(120), || {
        let_in += usize::from(pair.stranger.reaches(&pair.url)?);
        asked += 1;
        Ok(scene.agent_process(NODE_A).is_ok_and(|now| now != before) && pair.client.reaches(&pair.url)?)
    });
    step.check("it is back, and the client is answered", back.is_ok(), "served");
    step.check("the stranger is let in at no time", let_in == 0 && asked > 0, format!("{let_in} of {asked}"));
    Ok(())
}

/// Lowers what a process' own group of processes may take of memory.
fn bound_memory(process: u32) -> Result<()> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path = |line: &str| line.splitn(3, ':').nth(2).map(|it| it.trim_start_matches('/').to_owned());
    let of_v1 = groups.lines().find(|line| line.split(':').nth(1) == Some("memory")).and_then(path);
    let (folder, used, limit) = match of_v1 {
        Some(path) => {
            let root = PathBuf::from("/sys/fs/cgroup/memory");
            (root.join(path), "memory.usage_in_bytes", "memory.limit_in_bytes")
        }
        None => {
            let path = groups.lines().find(|line| line.starts_with("0::")).and_then(path);
            (PathBuf::from("/sys/fs/cgroup").join(path.context("no cgroup")?), "memory.current", "memory.max")
        }
    };
    let used = folder.join(used);
    let used = fs::read_to_string(&used).with_context(|| format!("cannot read {}", used.display()))?;
    let mut bound: u64 = used.trim().parse()?;
    // What can be given back is, until no more can.
    while bound > ROOM && fs::write(folder.join(limit), (bound - ROOM).to_string()).is_ok() {
        bound -= ROOM;
    }
    ensure!(bound > ROOM, "the agent's memory could be bounded to nothing");
    Ok(())
}
