//! d and e: the agent killed, and rolled out anew.

use super::measured::supervisor_of;
use super::scene::{Inside, MARKER, NODE_A, NODE_B, Scene};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::{Capture, eventually};

fn late(namespace: &str, name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}\n\
         spec: {{nodeName: {NODE_A}, terminationGracePeriodSeconds: 1, containers: [{{name: shell, image: \"heddle.local/apps:1\"}}]}}\n---\n"
    )
}

fn phase(scene: &Scene, namespace: &str, name: &str) -> Result<String> {
    scene.kubectl(&["get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.phase}"])
}

/// d. The agent of a node killed with its supervisor, and again when the kubelet starts it: the kubelet then waits.
pub fn killed(scene: &Scene, step: &mut Step) -> Result<()> {
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let url = format!("http://{}:8080/?{MARKER}", scene.address("shop", "web")?);
    step.check("the control: shop/client is answered", inside.reaches(&url)?, "served");
    step.does(
        "SIGKILL to node-a's agent and its supervisor, once more when the kubelet has started them, and pods that start meanwhile",
    );
    // A kubelet that knows of no end before starts the agent at once, and waits after the second.
    scene.restart("node-a/kubelet")?;
    let mut first = 0;
    eventually("the agent to be asked", Duration::from_secs(60), || {
        first = scene.agent_process(NODE_A).unwrap_or_default();
        Ok(first != 0)
    })?;
    scene.signal(supervisor_of(first)?, Signal::KILL)?;
    let mut second = first;
    eventually("the kubelet to start the agent anew", Duration::from_secs(60), || {
        second = scene.agent_process(NODE_A).unwrap_or(first);
        Ok(second != first)
    })?;
    let capture = Capture::start(&scene.state.router, &format!("to-{NODE_A}"), &scene.state.folder)?;
    scene.signal(supervisor_of(second)?, Signal::KILL)?;
    scene.apply(
        "late.yaml",
        &(late("shop", "late", "")
            + &late("plain", "required", "heddle.io/mesh: required")
            + &late("plain", "late", "")),
    )?;
    let mut answered = 0;
    for _ in 0..5 {
        answered += usize::from(inside.reaches(&url)?);
    }
    step.check(
        "an existing pod is refused, not let out",
        answered == 0,
        format!("{answered} of 5 requests answered"),
    );
    let mut event = String::new();
    let waits = eventually("the event of a pod that waits", Duration::from_secs(20), || {
        event = scene.kubectl(&[
            "get",
            "events",
            "-n",
            "shop",
            "--field-selector=involvedObject.name=late",
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        Ok(event.contains("waits for Heddle's agent"))
    });
    let away = scene.status(NODE_A).is_err();
    let came =
        event.split("waits for").nth(1).map_or_else(|| event.clone(), |rest| format!("waits for{rest}"));
    step.check(
        "a new pod of the mesh waits, and its event says why",
        waits.is_ok(),
        came.chars().take(200).collect::<String>(),
    );
    for (namespace, name) in [("shop", "late"), ("plain", "required")] {
        let phase = phase(scene, namespace, name)?;
        step.check(
            &format!("{namespace}/{name} does not run"),
            phase.trim() == "Pending",
            format!("{}, the agent away: {away}", phase.trim()),
        );
    }
    let plain = eventually("the plain pod to run", Duration::from_secs(15), || {
        Ok(phase(scene, "plain", "late")?.trim() == "Running")
    });
    step.check(
        "a pod outside the mesh starts all the same",
        plain.is_ok(),
        phase(scene, "plain", "late")?.trim(),
    );
    let hits = capture.stop()?.hits(MARKER.as_bytes());
    step.check("nothing in the clear meanwhile", hits == 0, format!("{hits} times the marker"));
    let began = Instant::now();
    eventually("the agent to be back", Duration::from_secs(120), || Ok(scene.status(NODE_A).is_ok()))?;
    eventually("shop/client to be answered again", Duration::from_secs(30), || inside.reaches(&url))?;
    step.check(
        "the agent back, the existing pod is answered again",
        true,
        format!("{:.1} s later, most of it the kubelet's waiting", began.elapsed().as_secs_f64()),
    );
    for (namespace, name) in [("shop", "late"), ("plain", "required")] {
        let runs = eventually("it to run", Duration::from_secs(60), || {
            Ok(phase(scene, namespace, name)?.trim() == "Running")
        });
        let captured = scene.captured(NODE_A)?.contains_key(&format!("{namespace}/{name}"));
        step.check(
            &format!("{namespace}/{name} runs now, captured"),
            runs.is_ok() && captured,
            format!("{}, captured: {captured}", phase(scene, namespace, name)?.trim()),
        );
    }
    Ok(())
}

/// e. `kubectl rollout restart` under load.
pub fn rolled(scene: &Scene, step: &mut Step) -> Result<()> {
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let url = format!("http://{}:8080/?{MARKER}", scene.address("shop", "web")?);
    step.does("kubectl rollout restart daemonset/heddle while shop/client asks without a pause");
    let capture = Capture::start(&scene.state.router, &format!("to-{NODE_A}"), &scene.state.folder)?;
    let before = [(NODE_A, scene.agent_process(NODE_A)?), (NODE_B, scene.agent_process(NODE_B)?)];
    let mut line = inside.line(scene.address("shop", "web")?)?;
    let done = AtomicBool::new(false);
    let ((answered, refused, longest), kept) = std::thread::scope(|scope| {
        let holding = scope.spawn(|| {
            let mut kept = line.asks();
            while kept && !done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(200));
                kept = line.asks();
            }
            kept
        });
        let asking = scope.spawn(|| -> Result<(usize, usize, Duration)> {
            let (mut answered, mut refused, mut longest) = (0, 0, Duration::ZERO);
            let mut last = Instant::now();
            while !done.load(Ordering::Acquire) {
                if inside.reaches(&url)? {
                    answered += 1;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                } else {
                    refused += 1;
                }
            }
            Ok((answered, refused, longest))
        });
        let rolled = scene
            .kubectl(&["rollout", "restart", "-n", "heddle-system", "daemonset/heddle"])
            .and_then(|_| {
                // Not `rollout status`: to that a node is the old pod's until its last connection has ended.
                eventually("the agents to be replaced", Duration::from_secs(180), || {
                    let replaced = |(node, before): (&str, u32)| {
                        scene.agent_process(node).is_ok_and(|now| now != before)
                    };
                    Ok(before.into_iter().all(replaced))
                })
            });
        done.store(true, Ordering::Release);
        let kept = holding.join().unwrap_or(false);
        rolled?;
        match asking.join() {
            Ok(told) => told.map(|told| (told, kept)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let hits = capture.stop()?.hits(MARKER.as_bytes());
    step.check("nothing in the clear meanwhile", hits == 0, format!("{hits} times the marker"));
    step.check(
        "each request is answered",
        answered > 0 && refused == 0,
        format!("{answered} answered, {refused} not, the longest gap {:.1} s", longest.as_secs_f64()),
    );
    step.check("a connection from before went on all the time", kept, "by the agent that was succeeded");
    step.check("and now", inside.reaches(&url)?, "served");
    step.fact(
        "rollout",
        json!({ "answered": answered, "refused": refused, "longest_gap_s": longest.as_secs_f64() }),
    );
    Ok(())
}
