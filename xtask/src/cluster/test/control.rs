//! k, m, n: what a person is told of a cluster, what Heddle takes, and names.

use super::scene::{NODE_A, NODE_B, Scene};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::eventually;

const SYSTEM: &str = "--namespace=heddle-system";
const DANGLING: &str = "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\n\
    metadata: {name: dangling, namespace: shop}\n\
    spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: nowhere}, \
    requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: nobody}]}\n";
/// It owns its node: whoever looks at the mesh should know.
const OWNER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: owner, namespace: plain}\n\
    spec:\n  nodeName: node-a\n  hostPID: true\n  terminationGracePeriodSeconds: 1\n  \
    containers: [{name: shell, image: \"heddle.local/apps:1\", securityContext: {privileged: true}}]\n";
/// n. Names.
pub fn names(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("shop/client asks for http://web.shop/ by its name, through CoreDNS and the Service");
    let mut last = String::new();
    let answered = eventually("an answer by name", Duration::from_secs(30), || {
        let output = scene.curl("shop", "client", "http://web.shop.svc.cluster.local/")?;
        last = output.last_line().to_owned();
        Ok(output.succeeded() && output.stdout.contains("served"))
    });
    step.check("the name leads to the pod that may be asked", answered.is_ok(), last);
    let stranger = scene.curl("bank", "stranger", "http://web.shop.svc.cluster.local/")?;
    step.check("and to nobody who may not", !stranger.succeeded(), stranger.last_line());
    let routes =
        scene.kubectl(&["api-resources", "--api-group=gateway.networking.k8s.io", "--output=name"])?;
    step.check(
        "the Gateway API's routes are served",
        routes.contains("httproutes"),
        routes.replace('\n', " "),
    );
    Ok(())
}

/// What `heddle check cluster` finds, by name: how it stands and what was said.
fn check(scene: &Scene) -> Result<(bool, Value)> {
    let output = scene.heddle(&["check", "cluster", "--json"])?;
    let told: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{}{}", output.stdout, output.stderr))?;
    Ok((output.succeeded(), told))
}

fn finding<'a>(told: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = told["findings"].as_array().into_iter().flatten();
    all.filter(|it| it["name"] == name && it["outcome"] != "ok").collect()
}

fn said(findings: &[&Value]) -> String {
    findings.iter().map(|it| it["found"].as_str().unwrap_or_default()).collect::<Vec<_>>().join("; ")
}

/// k. `heddle check cluster`, `heddle policy check --cluster` and the controller.
pub fn told(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("heddle check cluster");
    let (sound, all) = check(scene)?;
    let wrong: Vec<&Value> =
        all["findings"].as_array().into_iter().flatten().filter(|it| it["outcome"] == "missing").collect();
    step.check("a mesh that is as it should be is found so", sound && wrong.is_empty(), said(&wrong));

    scene.apply("owner.yaml", OWNER)?;
    step.does("a privileged pod beside the mesh, an agent that is away, a kind that is gone");
    let listed = eventually("it to be listed", Duration::from_secs(30), || {
        Ok(check(scene)?.1["podsNotHeld"]["plain/owner"].is_array())
    });
    let pods = check(scene)?.1["podsNotHeld"]["plain/owner"].to_string();
    step.check("a pod that owns its node is listed with what it has", listed.is_ok(), pods);
    scene.kubectl(&["delete", "pod", "-n", "plain", "owner", "--wait=false"])?;

    let label = |node: &str, value: &str| {
        scene.kubectl(&["label", "node", node, &format!("heddle-test{value}"), "--overwrite"])
    };
    label(NODE_B, "=there")?;
    let select = |selector: &str| {
        let patch = format!("{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{selector}}}}}}}}}");
        scene.kubectl(&["patch", SYSTEM, "daemonset", "heddle", "--type=merge", "--patch", &patch])
    };
    select("{\"heddle-test\":\"there\"}")?;
    let mut found = String::new();
    let seen = eventually("the node without an agent to be named", Duration::from_secs(90), || {
        let (sound, all) = check(scene)?;
        found = said(&finding(&all, "agents"));
        Ok(!sound && found.contains(NODE_A))
    });
    step.check("a node without an agent is named", seen.is_ok(), found);
    select("null")?;
    label(NODE_B, "-")?;
    let back = eventually("both agents", Duration::from_secs(180), || Ok(check(scene)?.0));
    step.check("and no longer once it has one", back.is_ok(), said(&finding(&check(scene)?.1, "agents")));

    scene.kubectl(&["delete", "validatingadmissionpolicybinding", "networks.heddle.io"])?;
    let admission = said(&finding(&check(scene)?.1, "admission"));
    step.check("a policy that is missing is named", admission.contains("networks.heddle.io"), admission);
    let manifests = scene.state.folder.join("heddle.yaml").display().to_string();
    scene.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", &manifests])?;

    rules(scene, step)
}

fn rules(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("kubectl apply an AuthorizationPolicy that refers to what is not there");
    scene.apply("dangling.yaml", DANGLING)?;
    let applied = Instant::now();
    let events = || {
        scene.kubectl(&[
            "get",
            "events.events.k8s.io",
            "-n",
            "shop",
            "-o",
            "jsonpath={range .items[?(@.regarding.name=='dangling')]}{.reportingInstance}: {.note}{'\\n'}{end}",
        ])
    };
    let told = eventually("an Event on it", Duration::from_secs(60), || Ok(!events()?.trim().is_empty()));
    let took = applied.elapsed();
    let lines = events()?;
    step.check(
        "the controller tells it on the object",
        told.is_ok(),
        lines.lines().next().unwrap_or_default(),
    );
    step.fact("event_after_ms", json!(took.as_millis()));
    let mut tellers: Vec<&str> = lines.lines().filter_map(|it| it.split(':').next()).collect();
    tellers.dedup();
    step.check("one replica of two tells", tellers.len() == 1, tellers.join(", "));

    let output = scene.heddle(&["policy", "check", "--cluster", "--output=json"])?;
    let told: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let problems = told["problems"].as_array().into_iter().flatten();
    let own: Vec<&Value> =
        problems.filter(|it| it["file"] == "authorizationpolicies.policy.linkerd.io/shop/dangling").collect();
    let same = own.iter().any(|it| it["reason"].as_str().is_some_and(|reason| lines.contains(reason)));
    let first = own.first().map_or_else(String::new, |it| format!("{}: {}", it["field"], it["reason"]));
    step.check("heddle policy check --cluster prints the same", same, first);
    scene.kubectl(&["delete", "authorizationpolicy", "-n", "shop", "dangling"]).map(drop)
}

/// m. What Heddle's own pods take.
pub fn resources(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("the memory and processor time of Heddle's own processes, for half a minute");
    let before = usage(scene)?;
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(30));
    let (after, took) = (usage(scene)?, began.elapsed().as_secs_f64());
    step.check("they are seen", after.len() >= 6, format!("{} processes", after.len()));
    for (name, (memory, ticks)) in &after {
        let spent = before.get(name).map_or(0, |(_, before)| ticks.saturating_sub(*before));
        let cores = f64::from(u32::try_from(spent).unwrap_or(u32::MAX)) / 100.0 / took;
        step.shows(&format!("{name}: {} KiB of its own, {cores:.3} of a core", memory));
        step.fact(name, json!({"private_kib": memory, "cores": cores}));
    }
    Ok(())
}

/// Of each process of Heddle's on the nodes, what it holds alone (in KiB) and the ticks that it has run.
pub fn usage(scene: &Scene) -> Result<std::collections::BTreeMap<String, (u64, u64)>> {
    let mut all = std::collections::BTreeMap::new();
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let path = process.path();
        let Ok(line) = fs::read(path.join("cmdline")) else { continue };
        let words: Vec<String> =
            line.split(|it| *it == 0).map(|it| String::from_utf8_lossy(it).into_owned()).collect();
        let role = match words.get(..2) {
            Some([program, role]) if program == "/heddle" => role.clone(),
            _ => continue,
        };
        if !["agent", "ca", "controller"].contains(&role.as_str()) || !of(scene, &path) {
            continue;
        }
        let (Some(memory), Some(ticks)) = (private(&path), ticks(&path)) else { continue };
        all.insert(format!("{role} {}", process.file_name().to_string_lossy()), (memory, ticks));
    }
    Ok(all)
}

/// Whether a process belongs to this cluster: others may be up beside it.
fn of(scene: &Scene, process: &Path) -> bool {
    let id = scene.state.folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    fs::read_to_string(process.join("cgroup")).is_ok_and(|it| it.contains(&id))
}

fn private(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let of = |line: &str| line.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok());
    Some(text.lines().filter(|it| it.starts_with("Private_")).filter_map(of).sum())
}

fn ticks(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
