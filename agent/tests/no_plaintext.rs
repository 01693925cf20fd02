//! Between meshed pods nothing crosses the wire in the clear: while all is well, while agents come, go and die, and
//! without the certificate authority.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use shop::{A, B, MARKER, OPAQUE, PATIENCE, SPARE, Shop, UNKNOWN, answered, echoes};
use xtask::lab::{
    Pod,
    apps::{Attempt, Talk},
    eventually,
    pcap::Traffic,
};

/// The wire between the nodes, while something is done.
fn watched<T>(shop: &Shop, act: impl FnOnce() -> Result<T>) -> Result<(Traffic, T)> {
    let capture = shop.lab.capture(A)?;
    let done = act()?;
    Ok((capture.stop()?, done))
}

fn marked(to: SocketAddr) -> Attempt {
    Attempt::new(to, MARKER)
}

fn hits(traffic: &Traffic) -> usize {
    traffic.hits(MARKER.as_bytes())
}

/// Connections from meshed pods of node a to meshed pods of node b, and back.
fn crossings(shop: &Shop) -> Vec<(&Pod, SocketAddr)> {
    vec![
        (&shop.client, (shop.far.v4, OPAQUE).into()),
        (&shop.client, (shop.far.v6, OPAQUE).into()),
        (&shop.client, (shop.far.v4.to_ipv6_mapped(), UNKNOWN).into()),
        (&shop.buyer, (shop.near.v4, OPAQUE).into()),
        (&shop.buyer, (shop.near.v6, UNKNOWN).into()),
    ]
}

/// The control: the same words, without a mesh.
fn without_mesh(shop: &Shop) -> Result<()> {
    for (pod, to) in crossings(shop) {
        let (traffic, outcome) = watched(shop, || pod.connect(&marked(to)))?;
        ensure!(outcome.received == MARKER, "{to}: {outcome:?}");
        ensure!(
            hits(&traffic) >= 2,
            "without a mesh the capture sees the words there and back: {}",
            hits(&traffic)
        );
    }
    Ok(())
}

/// All cross, and nothing can be read on the way.
fn all_cross_unseen(shop: &Shop, when: &str) -> Result<()> {
    for (pod, to) in crossings(shop) {
        let (traffic, outcome) = watched(shop, || answered(pod, &marked(to)))?;
        ensure!(outcome.received == MARKER, "{when}, {to}: {outcome:?}");
        ensure!(hits(&traffic) == 0, "{when}, {to}: the wire shows the words {} times", hits(&traffic));
        let own: IpAddr = if to.ip().to_canonical().is_ipv4() { pod.v4.into() } else { pod.v6.into() };
        let streams = traffic.between(own, to.ip().to_canonical());
        ensure!(!streams.is_empty(), "{when}, {to}: the capture saw no stream at all");
        for stream in streams.iter().filter(|stream| stream.missing == 0) {
            // Of a connection that was there before the capture the first bytes are missing, and of the rest each
            // record begins somewhere: only what began here is read as records.
            if stream.bytes.first() == Some(&22) {
                let records =
                    stream.records().with_context(|| format!("{when}: {} to {}", stream.from, stream.to))?;
                ensure!(records.application_data > 0, "{when}: {records:?}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn while_agents_start_one_after_the_other() -> Result<()> {
    let shop = Shop::closed("start")?;
    let [near, _near] = echoes(&shop.near)?;
    let _far = echoes(&shop.far)?;
    without_mesh(&shop)?;
    let unmeshed = near.stdout().lines().filter(|line| line.starts_with("from ")).count();

    // Node a's pods are captured, node b's are not yet. What leaves node a says nothing in the clear, and what comes
    // in the clear reaches nobody.
    let (traffic, ()) = watched(&shop, || shop.lab.start_agent(A))?;
    ensure!(hits(&traffic) == 0);
    let outgoing: Vec<_> = crossings(&shop).into_iter().filter(|(pod, _)| pod.node == A).collect();
    for (pod, to) in &outgoing {
        let (traffic, outcome) = watched(&shop, || pod.connect(&marked(*to)))?;
        ensure!(outcome.refused(), "{to}: the peer's agent is not there yet: {outcome:?}");
        ensure!(hits(&traffic) == 0, "{to}");
    }
    let outcome = shop.buyer.connect(&Attempt::new((shop.near.v4, OPAQUE), MARKER))?;
    ensure!(outcome.refused(), "from a pod that is not captured yet: {outcome:?}");
    let reached = near.stdout().lines().filter(|line| line.starts_with("from ")).count();
    ensure!(reached == unmeshed, "no application was reached by words in the clear: {}", near.stdout());

    // Node b's agent starts while node a's pods knock without pause.
    let (over, knocks, through) = (&AtomicBool::new(false), &AtomicU32::new(0), &AtomicU32::new(0));
    let (traffic, ()) = watched(&shop, || {
        std::thread::scope(|scope| {
            let knocking: Vec<_> = outgoing
                .iter()
                .map(|(pod, to)| {
                    scope.spawn(move || -> Result<()> {
                        while !over.load(Ordering::Relaxed) {
                            let outcome = pod.connect(&marked(*to))?;
                            knocks.fetch_add(1, Ordering::Relaxed);
                            // One that is under way when the far pod is captured may hear nothing more.
                            ensure!(outcome.received == MARKER || !outcome.answered(), "{to}: {outcome:?}");
                            through.fetch_add(u32::from(outcome.answered()), Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            let started = shop.lab.start_agent(B);
            let let_in = started.and_then(|()| {
                eventually("the knocking to be heard", PATIENCE, || Ok(through.load(Ordering::Relaxed) > 5))
            });
            over.store(true, Ordering::Relaxed);
            for thread in knocking {
                thread.join().map_err(|_| anyhow::anyhow!("a knocking thread failed"))??;
            }
            let_in
        })
    })?;
    ensure!(hits(&traffic) == 0, "{knocks:?} knocks, {} seen", hits(&traffic));
    all_cross_unseen(&shop, "with both agents")?;
    shop.shut()
}

/// Either agent dies in the middle of a transfer; what it carried is gone, and what is tried after that, too.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn while_agents_are_killed_and_started_again() -> Result<()> {
    let mut shop = Shop::closed("kill")?;
    let _servers = [echoes(&shop.near)?, echoes(&shop.far)?];
    without_mesh(&shop)?;
    // The control for the transfer: what is poured is seen without a mesh.
    let piece = Talk::poured(40_000..40_048);
    let pour = |shop: &Shop, bytes: u64| -> Result<(Talk, Talk)> {
        let mut server = shop.far.attend(&format!("[::]:{}", SPARE[0]))?;
        let mut client = shop.client.call(&Attempt::new((shop.far.v4, SPARE[0]), ""))?;
        server.accepted()?;
        client.tell(&format!("pour {bytes} 20000"))?;
        ensure!(server.ask("check 200000")? == "checked 200000");
        Ok((client, server))
    };
    let (traffic, ()) = watched(&shop, || pour(&shop, 200_000).map(drop))?;
    ensure!(traffic.hits(&piece) > 0, "without a mesh the capture sees what is poured");

    shop.lab.start_agents()?;
    all_cross_unseen(&shop, "at first")?;
    for node in [A, B] {
        let (traffic, ()) = watched(&shop, || {
            // Nobody reads on after the first part: the transfer is still under way when the agent dies.
            let (mut client, mut server) = pour(&shop, 512 << 20)?;
            shop.lab.agent(node)?.kill()?;
            let came = client.answer(PATIENCE * 3)?;
            ensure!(
                came.starts_with("poured") && !came.ends_with("TIMEOUT") && came.contains(" E"),
                "the sender's end: {came}"
            );
            let came = server.ask("finish")?;
            ensure!(!came.starts_with("end"), "what was cut off does not look whole: {came}");
            for (pod, to) in crossings(&shop) {
                let outcome = pod.connect(&marked(to))?;
                ensure!(outcome.refused(), "{node}'s agent is dead: {to}: {outcome:?}");
            }
            Ok(())
        })?;
        ensure!(hits(&traffic) == 0 && traffic.hits(&piece) == 0, "{node}'s agent was killed");
        ensure!(traffic.payload() > 200_000, "the transfer did cross this wire");
        let capture = shop.lab.capture(A)?;
        shop.start_again(node)?;
        let traffic = capture.stop()?;
        ensure!(hits(&traffic) == 0 && traffic.hits(&piece) == 0, "{node}'s agent was started again");
        all_cross_unseen(&shop, "started again")?;
    }
    shop.shut()
}

/// The authority's folder cannot be used any more, under agents at work.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn while_the_authority_is_away() -> Result<()> {
    let mut shop = Shop::closed("authority")?;
    let _servers = [echoes(&shop.near)?, echoes(&shop.far)?];
    without_mesh(&shop)?;
    shop.lab.start_agents()?;
    all_cross_unseen(&shop, "with an authority")?;

    let folder = shop.lab.directory().join("ca");
    let kept = shop.lab.directory().join("ca-kept");
    fs::rename(&folder, &kept)?;
    fs::write(&folder, "no folder")?;
    all_cross_unseen(&shop, "with certificates that were there")?;

    // An agent that starts without an authority has no certificate to show, and lets nothing pass.
    shop.lab.agent(A)?.kill()?;
    let (heddle, settings) = (shop.lab.heddle()?, shop.lab.settings().clone());
    fs::remove_file(&folder)?;
    fs::write(&folder, "no folder")?;
    let (traffic, ()) = watched(&shop, || {
        let agent = shop.lab.agent(A)?;
        // Whatever a lab's agent needs, its authority's folder included, is made at its launch: not where a file is.
        ensure!(
            agent.launch(&heddle, &settings).is_err() || agent.wait_until_ready().is_err(),
            "it must not start"
        );
        for (pod, to) in crossings(&shop) {
            let outcome = pod.connect(&marked(to))?;
            ensure!(outcome.refused(), "{to}: {outcome:?}");
        }
        Ok(())
    })?;
    ensure!(hits(&traffic) == 0);
    fs::remove_file(&folder)?;
    fs::rename(&kept, &folder)?;
    shop.start_again(A)?;
    all_cross_unseen(&shop, "with the authority back")?;
    shop.shut()
}
