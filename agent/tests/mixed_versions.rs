//! This build beside an earlier one: a node each, and one after the other on the same node.
//!
//! On demand: `HEDDLE_EARLIER` names the earlier build's agent. A build of another commit, away from this tree's own:
//!
//! ```text
//! git worktree add target/earlier/tree COMMIT
//! (cd target/earlier/tree && CARGO_TARGET_DIR=$PWD/../target cargo xtask build)
//! HEDDLE_EARLIER=$PWD/target/earlier/target/debug/heddle cargo xtask test --filter earlier_build
//! ```

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shop::{A, B, MARKER, OPAQUE, Shop, UNKNOWN, answered, carries, echoes};
use xtask::lab::{Agent, Former, Pod, Settings, apps::Attempt, eventually, slowness};

/// How long an agent may take to be ready and take over: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// The agent of an earlier build, if one is named.
fn earlier() -> Option<PathBuf> {
    let named = std::env::var_os("HEDDLE_EARLIER").map(PathBuf::from);
    if named.is_none() {
        println!("not applicable: HEDDLE_EARLIER names no agent of an earlier build");
    }
    named
}

fn to(pod: &Pod, port: u16) -> SocketAddr {
    (pod.v4, port).into()
}

/// From node to node both ways: who is named is let in, over TLS alone, and who is not is refused.
fn judged_both_ways(shop: &Shop, when: &str) -> Result<()> {
    let capture = shop.lab.capture(A)?;
    for port in [OPAQUE, UNKNOWN] {
        for (from, to) in [(&shop.client, to(&shop.far, port)), (&shop.buyer, to(&shop.near, port))] {
            let outcome = answered(from, &Attempt::new(to, MARKER))?;
            ensure!(outcome.received == MARKER, "{} to {to}, {when}: {outcome:?}", from.name);
        }
        let outcome = shop.stranger.connect(&Attempt::new(to(&shop.far, port), MARKER))?;
        ensure!(outcome.refused(), "a stranger to port {port}, {when}: {outcome:?}");
    }
    let traffic = capture.stop()?;
    ensure!(traffic.hits(MARKER.as_bytes()) == 0, "{when}: in the clear");
    let streams = traffic.between(shop.client.v4.into(), shop.far.v4.into());
    let records: Vec<_> = streams.iter().map(|stream| stream.records()).collect::<Result<_, _>>()?;
    // No handshake where a connection came from the pool.
    ensure!(
        records.iter().any(|records| records.application_data > 0),
        "{when}: nothing encrypted went from node to node"
    );
    Ok(())
}

fn on_nodes(name: &str, first: &Path, second: &Path) -> Result<()> {
    let mut shop = Shop::closed(name)?;
    let settings = shop.lab.settings().clone();
    // The first one makes the authority that both use.
    shop.lab.agent(A)?.start(first, &settings)?;
    shop.lab.agent(B)?.start(second, &settings)?;
    shop.lab.start_agents()?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    judged_both_ways(&shop, &format!("{} and {}", first.display(), second.display()))?;
    // Whoever is in no mesh is refused by either.
    let outcome = shop.plain.connect(&Attempt::new(to(&shop.far, OPAQUE), MARKER))?;
    ensure!(outcome.refused(), "{outcome:?}");
    shop.shut()
}

#[test]
#[ignore = "needs root and an earlier build: HEDDLE_EARLIER"]
fn an_earlier_build_and_this_one_judge_each_other_s_pods() -> Result<()> {
    let Some(earlier) = earlier() else { return Ok(()) };
    let this = Path::new(env!("CARGO_BIN_EXE_heddle"));
    on_nodes("earlier-first", &earlier, this)?;
    on_nodes("earlier-second", this, &earlier)
}

fn handing_over() -> Settings {
    let mut settings = Settings::default();
    settings.set("handOver", json!({ "drainSeconds": 120 * u64::from(slowness()) }));
    settings
}

/// The one before, if the new one took over. If it was refused, it has ended and said so, and the one before goes on.
fn succeeds(agent: &Agent, new: &Path, shop: &Shop) -> Result<Option<Former>> {
    let before = agent.log().len();
    let former = agent.launch_successor(new, &handing_over())?;
    let since = || agent.log().get(before..).unwrap_or_default().to_owned();
    let mut took_over = false;
    eventually("a hand-over, or a refusal that is told", SOON, || {
        took_over = since().contains("another agent has taken over");
        Ok(took_over || !agent.is_running())
    })
    .with_context(since)?;
    if took_over {
        agent.wait_until_answering()?;
        return Ok(Some(former));
    }
    ensure!(since().contains("the agent that runs has kernel maps of version"), "not told: {}", since());
    ensure!(former.pid().is_some(), "the one before is gone, too");
    drop(agent.go_back_to(former));
    judged_both_ways(shop, "after a refused hand-over")?;
    Ok(None)
}

#[test]
#[ignore = "needs root and an earlier build: HEDDLE_EARLIER"]
fn an_earlier_build_hands_over_to_this_one_and_back_or_refuses_and_says_so() -> Result<()> {
    let Some(earlier) = earlier() else { return Ok(()) };
    let this = Path::new(env!("CARGO_BIN_EXE_heddle"));
    for (name, first, second) in [("roll-out", &*earlier, this), ("roll-back", this, &*earlier)] {
        let mut shop = Shop::closed(name)?;
        *shop.lab.settings() = handing_over();
        shop.lab.agent(A)?.start(first, &handing_over())?;
        shop.lab.start_agents()?;
        let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
        judged_both_ways(&shop, "before")?;
        let mut line = Shop::line(&shop.client, to(&shop.far, OPAQUE))?;
        // It keeps the line until that ends.
        let former = succeeds(shop.lab.agent(A)?, second, &shop)?;
        println!("{name}: {}", if former.is_some() { "handed over" } else { "refused, and told" });
        carries(&mut line, "still").context("a line from before")?;
        judged_both_ways(&shop, "after")?;
        shop.shut()?;
    }
    Ok(())
}
