//! A namespace joins the mesh while its pods run, and leaves it: nothing is started anew, no permitted request fails,
//! what was open and is forbidden from then on is ended and told, and once the pods are in, nothing is in the clear.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shop::{A, B, MARKER, OPAQUE, PATIENCE, SPARE, Shop, carries, echoes, text};
use xtask::lab::{
    Pod, Running,
    apps::{self, Attempt},
    eventually, stretched,
};

/// How long a step takes of a pod that joins or leaves.
const STEP: Duration = Duration::from_secs(3);
/// Three of them, and a little more.
const WAY: Duration = Duration::from_secs(11);

fn annotate(shop: &Shop, mesh: &str) -> Result<()> {
    shop.lab.apply(
        "namespace-shop.yaml",
        &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{heddle.io/mesh: {mesh}}}}}\n"),
    )
}

fn captured(shop: &Shop) -> Result<usize> {
    let mut captured = 0;
    for node in [A, B] {
        let status = shop.lab.agent(node)?.status()?;
        let pods = status.pointer("/pods").and_then(Value::as_array).cloned().unwrap_or_default();
        captured += pods.iter().filter(|pod| pod["inForce"] == true).count();
    }
    Ok(captured)
}

fn to(pod: &Pod, port: u16) -> SocketAddr {
    (pod.v4, port).into()
}

/// Connections without a pause until `done`: how many, and what failed.
fn press(from: &Pod, to: SocketAddr, done: &AtomicBool) -> Result<(u64, Vec<String>)> {
    let (began, mut succeeded, mut failed) = (Instant::now(), 0, Vec::new());
    while !done.load(Ordering::Acquire) {
        match apps::burst(from.place(), to, 1, stretched(Duration::from_millis(250))) {
            Ok(burst) if burst.failed == 0 => succeeded += burst.succeeded,
            told => {
                failed.push(format!(
                    "{} to {to}: {told:?}, {:?} after the beginning",
                    from.name,
                    began.elapsed()
                ));
            }
        }
    }
    Ok((succeeded, failed))
}

/// What the client may do across the nodes, on its own node, and back from another node, without a pause while `work` is
/// done. None may fail.
fn pressed<T>(shop: &Shop, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    let ways = [(&shop.client, &shop.far), (&shop.client, &shop.near), (&shop.buyer, &shop.near)];
    std::thread::scope(|scope| {
        let done = &done;
        let pressing =
            ways.map(|(from, server)| scope.spawn(move || press(from, to(server, SPARE[0]), done)));
        let worked = work();
        done.store(true, Ordering::Release);
        for it in pressing {
            let (succeeded, failed) = it.join().unwrap_or_else(|_| bail!("it panicked"))?;
            ensure!(failed.is_empty(), "{failed:#?} (beside {succeeded} that succeeded)");
            ensure!(succeeded > 50, "hardly any load: {succeeded}");
        }
        worked
    })
}

fn running(shop: &Shop) -> Result<Vec<Running>> {
    let mut all = Vec::new();
    for server in [&shop.near, &shop.far] {
        all.extend(echoes(server)?);
        all.push(server.app(&["once", &format!("[::]:{}", SPARE[0])])?);
    }
    // A pod without a process is none.
    for idle in [&shop.client, &shop.stranger, &shop.buyer] {
        all.push(idle.spawn(&["sleep", "600"])?);
    }
    Ok(all)
}

fn hits(shop: &Shop) -> Result<usize> {
    let capture = shop.lab.capture(A)?;
    let outcome = shop.client.connect(&Attempt::new(to(&shop.far, OPAQUE), MARKER))?;
    ensure!(outcome.received == MARKER, "{outcome:?}");
    Ok(capture.stop()?.hits(MARKER.as_bytes()))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn without_a_restart_a_failed_request_or_a_word_in_the_clear() -> Result<()> {
    let mut shop = Shop::outside("joining")?;
    // A machine that is slow is slow to tell, too.
    let step = stretched(STEP).as_secs().min(60);
    shop.lab.settings().set("findPods", true).set("joinStepSeconds", step);
    shop.lab.start_agents()?;
    let _running = running(&shop)?;
    ensure!(hits(&shop)? >= 2, "outside the mesh the wire shows the words");
    let strangers = shop.stranger.connect(&Attempt::new(to(&shop.far, OPAQUE), "knock"))?;
    ensure!(strangers.answered(), "outside the mesh everybody is let in: {strangers:?}");
    ensure!(captured(&shop)? == 0);

    // Into the mesh.
    let mut kept = Shop::line(&shop.client, to(&shop.far, OPAQUE))?;
    let mut forbidden = Shop::line(&shop.stranger, to(&shop.far, OPAQUE))?;
    let (on_a, on_b) = (shop.lab.agent(A)?.events()?, shop.lab.agent(B)?.events()?);
    pressed(&shop, || {
        forbidden.tell("finish")?;
        let annotated = Instant::now();
        annotate(&shop, "enabled")?;
        eventually("all pods to be captured", PATIENCE, || Ok(captured(&shop)? == 5))?;
        let came = forbidden.answer(PATIENCE)?;
        ensure!(
            came.starts_with("ECONNRESET") || came.starts_with("ECONNABORTED"),
            "the stranger saw {came:?}"
        );
        ensure!(annotated.elapsed() < stretched(Duration::from_secs(5)), "{:?}", annotated.elapsed());
        carries(&mut kept, "still").context("what the rules let in goes on while the others switch")?;
        kept.tell("finish")?;
        std::thread::sleep(stretched(WAY).saturating_sub(annotated.elapsed()));
        Ok(())
    })
    .context("into the mesh")?;
    let came = kept.answer(PATIENCE)?;
    ensure!(
        came.starts_with("ECONNRESET") || came.starts_with("ECONNABORTED"),
        "the plain line saw {came:?}"
    );
    let mut heard = Vec::new();
    for (what, name) in [("the stranger's", "shop/stranger"), ("the client's", "shop/client")] {
        eventually(&format!("an event that tells of {what} end"), PATIENCE, || {
            heard.extend(on_a.drain().into_iter().chain(on_b.drain()));
            Ok(heard
                .iter()
                .any(|event| text(event, "/reason") == "revoked" && text(event, "/source/workload") == name))
        })
        .with_context(|| format!("{heard:#?}"))?;
    }
    ensure!(hits(&shop)? == 0, "in the mesh the wire shows nothing");
    let outcome = shop.stranger.connect(&Attempt::new(to(&shop.far, OPAQUE), "knock"))?;
    ensure!(outcome.refused(), "a stranger: {outcome:?}");
    let outcome = shop.plain.connect(&Attempt::new(to(&shop.far, OPAQUE), "knock"))?;
    ensure!(outcome.refused(), "who is outside: {outcome:?}");

    // And out of it.
    pressed(&shop, || {
        let annotated = Instant::now();
        annotate(&shop, "disabled")?;
        eventually("all pods to be let go", stretched(WAY) + PATIENCE, || Ok(captured(&shop)? == 0))?;
        std::thread::sleep(stretched(WAY).saturating_sub(annotated.elapsed()));
        Ok(())
    })
    .context("out of the mesh")?;
    ensure!(hits(&shop)? >= 2, "outside the mesh again");
    let outcome = shop.stranger.connect(&Attempt::new(to(&shop.far, OPAQUE), "knock"))?;
    ensure!(outcome.answered(), "outside the mesh everybody is let in again: {outcome:?}");
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn pods_that_left_while_no_agent_was_there_are_let_go_by_the_next() -> Result<()> {
    let mut shop = Shop::outside("left-alone")?;
    let step = stretched(STEP).as_secs().min(60);
    shop.lab.settings().set("findPods", true).set("joinStepSeconds", step);
    annotate(&shop, "enabled")?;
    shop.lab.start_agents()?;
    let _running = running(&shop)?;
    eventually("all pods to be captured", stretched(WAY) + PATIENCE, || Ok(captured(&shop)? == 5))?;
    let knock = Attempt::new(to(&shop.far, OPAQUE), "knock");
    ensure!(shop.stranger.connect(&knock)?.refused(), "in the mesh the rules hold");
    for node in [A, B] {
        shop.lab.agent(node)?.kill()?;
    }
    annotate(&shop, "disabled")?;
    ensure!(shop.stranger.connect(&knock)?.refused(), "what is captured stays refused without an agent");
    shop.lab.start_agents()?;
    eventually("outside the mesh everybody to be let in", stretched(WAY) + PATIENCE, || {
        Ok(captured(&shop)? == 0 && shop.stranger.connect(&knock)?.answered())
    })?;
    ensure!(hits(&shop)? >= 2, "outside the mesh again");
    shop.shut()
}
