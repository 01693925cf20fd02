//! t: what is promised in seconds, often enough to tell the median and the worst. On demand: it takes minutes.

use super::control;
use super::rules;
use super::scene::{Inside, NODE_A, Scene};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::{eventually, stretched};

/// How often a rule is applied and deleted.
const RULES: usize = 50;
/// How often an agent is killed.
const KILLS: usize = 20;
/// Pods on the agent's node that ask without a pause.
const CROWD: usize = 20;
const ASKING: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd, namespace: shop}
spec:
  replicas: CROWD
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      nodeName: node-a
      serviceAccountName: client
      terminationGracePeriodSeconds: 1
      containers:
        - {name: shell, image: "heddle.local/apps:1", command: [sh, -c, "while :; do curl -s --max-time 2 http://WEB:8080/; sleep 0.2; done"]}
"#;

/// t. Rules that come, and an agent that is killed.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    rules::held(scene, step, RULES)?;
    killed(scene, step, "the agent", Ok)?;
    killed(scene, step, "the agent's container", supervisor_of)?;
    for (name, (memory, _)) in control::usage(scene)? {
        step.shows(&format!("{name}: {memory} KiB of its own"));
        step.fact(&name, json!({ "private_kib": memory }));
    }
    scene.kubectl(&["delete", "deployment", "-n", "shop", "crowd"]).map(drop)
}

/// From SIGKILL to the first connection that is carried again, with the part of what starts the agent and the agent's own.
fn killed(
    scene: &Scene,
    step: &mut Step,
    whose: &str,
    process_of: impl Fn(u32) -> Result<u32>,
) -> Result<()> {
    let web = scene.address("shop", "web")?;
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let url = format!("http://{web}:8080/");
    step.does(format!(
        "{CROWD} pods on node-a that ask five times a second each; {KILLS} times SIGKILL to {whose}"
    ));
    scene
        .apply("crowd.yaml", &ASKING.replace("CROWD", &CROWD.to_string()).replace("WEB", &web.to_string()))?;
    eventually("the crowd to be there", Duration::from_secs(180), || {
        let path = "jsonpath={.status.availableReplicas}";
        let words = ["get", "deployment", "-n", "shop", "crowd", "-o", path];
        Ok(scene.kubectl(&words)?.trim() == CROWD.to_string())
    })?;
    let (mut total, mut started, mut carried) = (Vec::new(), Vec::new(), Vec::new());
    let after = |before: u32| {
        let mut agent = 0;
        eventually("the agent to be asked", Duration::from_secs(60), || {
            agent = scene.agent_process(NODE_A).unwrap_or_default();
            Ok(agent != 0 && agent != before && inside.reaches(&url)?)
        })?;
        Ok::<_, anyhow::Error>(agent)
    };
    for kill in 0..KILLS {
        // A kubelet that knows nothing of the kills before does not wait ever longer to start the agent's container anew.
        scene.restart("node-a/kubelet")?;
        let mut old = after(0)?;
        // Nor has this supervisor seen as many deaths as it answers.
        if kill % 4 == 0 {
            scene.signal(supervisor_of(old)?, Signal::KILL)?;
            old = after(old)?;
        }
        let (began, uptime) = (Instant::now(), uptime()?);
        scene.signal(process_of(old)?, Signal::KILL)?;
        let until = began + stretched(Duration::from_secs(120));
        while fs::metadata(format!("/proc/{old}/fd")).is_ok() || !inside.reaches(&url)? {
            ensure!(Instant::now() < until, "nothing is carried after two minutes");
        }
        let took = began.elapsed();
        // It says that it is not sound for as long as some of the pods are still to be taken over.
        let mut process = 0;
        eventually("the new agent to be asked", Duration::from_secs(60), || {
            process = scene.agent_process(NODE_A).unwrap_or_default();
            Ok(process != 0)
        })?;
        ensure!(process != old, "the agent was not killed");
        let start = started_at(process)?.saturating_sub(uptime);
        total.push(took);
        started.push(start);
        carried.push(took.saturating_sub(start));
    }
    for (what, times) in [
        (format!("from SIGKILL to {whose} to the first connection that is carried"), total),
        ("of it until the agent is started anew".to_owned(), started),
        ("of it the agent's own".to_owned(), carried),
    ] {
        let (median, worst) = rules::median_and_worst(times);
        let came = format!("median {median:.0} ms, worst {worst:.0} ms of {KILLS}");
        step.check(&what, worst < stretched(Duration::from_secs(60)).as_secs_f64() * 1000.0, came);
        step.fact(&format!("{whose}: {what}"), json!({ "median_ms": median, "worst_ms": worst }));
    }
    Ok(())
}

/// How long the machine has been up.
fn uptime() -> Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|it| it.parse().ok()).context("no uptime")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// The process that starts the agent anew: the first of its container.
pub fn supervisor_of(process: u32) -> Result<u32> {
    stat(process, 1)?.try_into().context("no parent")
}

/// When a process was started, by the same clock.
fn started_at(process: u32) -> Result<Duration> {
    Ok(Duration::from_millis(stat(process, 19)? * 10))
}

/// What `/proc` tells of a process, by the number of its field behind the name.
fn stat(process: u32, field: usize) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let value = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(field)?.parse().ok());
    value.with_context(|| format!("/proc/{process}/stat has no such field"))
}
