//! e. SIGKILL.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{Line, MARKER, NODE_A, Scene},
        steps::wire::WithoutMesh,
    },
    lab::apps::{Attempt, Outcome},
};

/// "At once": no wait for a time limit of anybody's.
fn soon() -> u64 {
    200_000 * u64::from(crate::lab::slowness())
}

fn at_once(outcome: &Outcome) -> bool {
    outcome.refused() && outcome.microseconds < soon()
}

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    let (web, near) = ((scene.web.v4, 8080).into(), (scene.near.v4, 7000).into());
    let question = format!("GET /?{MARKER} HTTP/1.0\r\n\r\n");
    let before = scene.client.connect(&Attempt::new(web, &question))?;
    step.check("before: the way out works", before.answered(), before.summary());
    let before = scene.buyer.connect(&Attempt::new(near, MARKER))?;
    step.check("before: the way in works", before.answered(), before.summary());
    let mut direct = Line::open(scene.client.place(), near)?;

    let capture = scene.lab.capture(NODE_A)?;
    step.does("kill -9 of the agent of node-a");
    scene.agent(NODE_A)?.kill()?;
    let out = scene.client.connect(&Attempt::new(web, &question))?;
    step.check("out of node-a: refused at once", at_once(&out), out.summary());
    let into = scene.buyer.connect(&Attempt::new(near, MARKER))?;
    step.check("into node-a from node-b: refused at once", at_once(&into), into.summary());
    let plain = scene.plain.connect(&Attempt::new(near, MARKER))?;
    step.check(
        "into the pod from an unmeshed one of the same node: refused at once",
        at_once(&plain),
        plain.summary(),
    );
    step.check("a live direct connection goes on", direct.carries("still").is_ok(), "echoed");
    let same = scene.client.connect(&Attempt::new(near, "direct"))?;
    step.check(
        "a new direct connection keeps the last policy: allowed",
        same.received == "direct",
        same.summary(),
    );
    let twin = scene.stranger.connect(&Attempt::new(near, "direct"))?;
    step.check("and its twin keeps it too: refused", twin.refused(), twin.summary());
    let traffic = capture.stop()?;
    let hits = traffic.hits(MARKER.as_bytes());
    let came = format!("{hits} times the marker in {} packets on the wire", traffic.packets);
    step.check("nothing left in the clear meanwhile", hits == 0, came);
    let pins = scene.lab.at(NODE_A)?.host().check(&["find", "/sys/fs/bpf/heddle", "-type", "f"])?;
    step.why(format!(
        "{} pins stand under /sys/fs/bpf/heddle; whatever would need the agent is refused",
        pins.lines().count()
    ));
    step.fact(
        "dead",
        json!({ "out": out, "into": into, "plain": plain, "direct": same, "twin": twin, "marker_hits": hits,
                "pins": pins.lines().count() }),
    );

    step.does("started again; no pod is attached anew");
    let began = Instant::now();
    let ready = scene.start_again(NODE_A)?;
    let mut outcomes = Vec::new();
    for (way, pod, to, words) in
        [("out", &scene.client, web, question.as_str()), ("in", &scene.buyer, near, MARKER)]
    {
        let mut outcome = pod.connect(&Attempt::new(to, words))?;
        while !outcome.answered() && began.elapsed() < crate::lab::stretched(Duration::from_secs(10)) {
            outcome = pod.connect(&Attempt::new(to, words))?;
        }
        let came = format!("{}; {:.1} s after the start", outcome.summary(), began.elapsed().as_secs_f64());
        step.check(&format!("traffic flows again ({way})"), outcome.answered(), came);
        outcomes.push(outcome);
    }
    step.check("the live direct connection lived through both", direct.carries("alive").is_ok(), "echoed");
    step.fact("again", json!({ "ready_milliseconds": ready.as_secs_f64() * 1e3, "outcomes": outcomes }));
    Ok(())
}
