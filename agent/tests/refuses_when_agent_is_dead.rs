//! Without its agent a node's pods keep what the kernel carries alone and lose the rest: refused at once, in both
//! directions, never carried and never left hanging.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use shop::{A, MARKER, OPAQUE, PATIENCE, SPARE, Shop, UNKNOWN, answered, carries, echoes};
use xtask::lab::{
    Place, Running,
    apps::{self, Attempt, Outcome, Talk},
    eventually,
};

/// Who asks whom on the node whose agent is gone.
struct Way<'a> {
    what: &'static str,
    from: &'a Place,
    to: SocketAddr,
}

/// What only node a's agent could carry.
fn carried(shop: &Shop) -> Vec<Way<'_>> {
    let way = |what, from, to| Way { what, from, to };
    let (client, buyer) = (shop.client.place(), shop.buyer.place());
    vec![
        way("out of the node", client, (shop.far.v4, OPAQUE).into()),
        way("out of the node over IPv6", client, (shop.far.v6, UNKNOWN).into()),
        way("out of the node, mapped", client, (shop.far.v4.to_ipv6_mapped(), OPAQUE).into()),
        way("into the node", buyer, (shop.near.v4, OPAQUE).into()),
        way("into the node over IPv6", buyer, (shop.near.v6, UNKNOWN).into()),
        way("into the node from outside the mesh", shop.lab.outside(), (shop.near.v4, OPAQUE).into()),
        way("within the node, through the agent", client, (shop.near.v4, UNKNOWN).into()),
    ]
}

/// What is never allowed, agent or not.
fn never(shop: &Shop) -> Vec<Way<'_>> {
    let way = |what, from, to| Way { what, from, to };
    vec![
        way("a stranger, direct", shop.stranger.place(), (shop.near.v4, OPAQUE).into()),
        way("a stranger out of the node", shop.stranger.place(), (shop.far.v4, OPAQUE).into()),
        way("an unmeshed pod of the node", shop.plain.place(), (shop.near.v4, OPAQUE).into()),
    ]
}

fn ask(way: &Way<'_>) -> Result<Outcome> {
    apps::connect(way.from, &Attempt::new(way.to, MARKER))
}

fn all_answered(shop: &Shop, when: &str) -> Result<()> {
    for way in carried(shop) {
        eventually(&format!("{}, {when}", way.what), PATIENCE, || Ok(ask(&way)?.received == MARKER))?;
    }
    for way in never(shop) {
        let outcome = ask(&way)?;
        ensure!(outcome.refused(), "{}, {when}: {outcome:?}", way.what);
    }
    Ok(())
}

/// Refused, and not by the client's patience: [`Outcome::refused`] takes no silence for an answer.
fn all_refused(shop: &Shop, when: &str) -> Result<()> {
    for way in carried(shop).into_iter().chain(never(shop)) {
        for _ in 0..5 {
            let outcome = ask(&way)?;
            ensure!(outcome.refused(), "{}, {when}: {outcome:?}", way.what);
        }
    }
    Ok(())
}

/// What the kernel carries alone goes on, live and new.
fn direct_goes_on(shop: &Shop, lines: &mut [Talk], when: &str) -> Result<()> {
    for line in lines {
        carries(line, "still").with_context(|| format!("a live direct connection, {when}"))?;
    }
    for to in [SocketAddr::from((shop.near.v4, OPAQUE)), (shop.near.v6, OPAQUE).into()] {
        let outcome = shop.client.connect(&Attempt::new(to, MARKER))?;
        ensure!(outcome.received == MARKER, "a new direct connection to {to}, {when}: {outcome:?}");
    }
    Ok(())
}

fn direct_lines(shop: &Shop) -> Result<Vec<Talk>> {
    Ok(vec![
        Shop::line(&shop.client, (shop.near.v4, OPAQUE).into())?,
        Shop::line(&shop.client, (shop.near.v6, OPAQUE).into())?,
    ])
}

fn servers(shop: &Shop) -> Result<[[Running; 2]; 2]> {
    Ok([echoes(&shop.near)?, echoes(&shop.far)?])
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn killed() -> Result<()> {
    let mut shop = Shop::open("killed")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let mut direct = direct_lines(&shop)?;
    let mut proxied = [
        Shop::line(&shop.client, (shop.far.v4, OPAQUE).into())?,
        Shop::line(&shop.buyer, (shop.near.v4, OPAQUE).into())?,
    ];
    shop.lab.agent(A)?.kill()?;
    all_refused(&shop, "killed")?;
    for line in &mut proxied {
        let came = line.ask("finish")?;
        assert!(!came.starts_with("TIMEOUT"), "a live connection that the agent carried ends, too: {came}");
    }
    direct_goes_on(&shop, &mut direct, "killed")?;

    // Attached, and not yet started: the pins hold for a pod's every application, those that start now included.
    let _late = shop.near.app(&["echo", &format!("[::]:{}", SPARE[0])])?;
    let late = Attempt::new((shop.near.v4, SPARE[0]), MARKER);
    assert!(shop.buyer.connect(&late)?.refused(), "a server that started meanwhile");
    assert_eq!(shop.client.connect(&late)?.received, MARKER, "which the kernel alone may carry");

    shop.start_again(A)?;
    all_answered(&shop, "started again")?;
    answered(&shop.buyer, &late)?;
    direct_goes_on(&shop, &mut direct, "started again")?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn ended_in_order() -> Result<()> {
    let mut shop = Shop::open("ended")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let mut direct = direct_lines(&shop)?;
    shop.lab.agent(A)?.terminate()?;
    all_refused(&shop, "ended")?;
    direct_goes_on(&shop, &mut direct, "ended")?;
    shop.start_again(A)?;
    all_answered(&shop, "started again")?;
    direct_goes_on(&shop, &mut direct, "started again")?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn stopped() -> Result<()> {
    let shop = Shop::open("stopped")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let mut direct = direct_lines(&shop)?;
    shop.lab.agent(A)?.pause()?;
    // The listeners of a stopped process go on accepting: what is refused is refused by the heartbeat's age.
    let ways = carried(&shop);
    let way = ways.first().context("a way through the agent")?;
    eventually("the heartbeat's bound to run out", PATIENCE, || Ok(ask(way)?.refused()))?;
    all_refused(&shop, "stopped")?;
    direct_goes_on(&shop, &mut direct, "stopped")?;
    shop.lab.agent(A)?.resume()?;
    all_answered(&shop, "going on")?;
    direct_goes_on(&shop, &mut direct, "going on")?;
    shop.shut()
}

/// A virtual machine stands still for a moment now and then, and its agent with it: who connects meanwhile waits.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn stopped_for_a_moment() -> Result<()> {
    let shop = Shop::open("moment")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let agent = shop.lab.agent(A)?;
    for way in carried(&shop) {
        agent.pause()?;
        std::thread::sleep(Duration::from_millis(600));
        let outcome = std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&way));
            std::thread::sleep(Duration::from_millis(200));
            agent.resume()?;
            asked.join().map_err(|_| anyhow::anyhow!("the question failed"))?
        })?;
        ensure!(outcome.received == MARKER, "{}: {outcome:?}", way.what);
    }
    shop.shut()
}

/// Whatever an agent was about when it was killed: one set of programs stands, and nothing passes by it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn killed_at_any_moment_of_its_start() -> Result<()> {
    const MOMENTS: u32 = 10;
    let mut shop = Shop::open("moments")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let mut direct = direct_lines(&shop)?;
    let pins = || shop.lab.at(A)?.host().shell("find /sys/fs/bpf/heddle -type f | sort");
    let before = pins()?;
    let (heddle, settings) = (shop.lab.heddle()?, shop.lab.settings().clone());
    let agent = shop.lab.agent(A)?;
    agent.kill()?;
    let began = std::time::Instant::now();
    agent.launch(&heddle, &settings)?;
    agent.wait_until_ready()?;
    let start = began.elapsed();
    agent.kill()?;
    let capture = shop.lab.capture(A)?;
    for moment in 0..MOMENTS {
        agent.launch(&heddle, &settings)?;
        std::thread::sleep(start * moment / MOMENTS);
        agent.kill()?;
        let when = format!("killed {:?} after it was started", start * moment / MOMENTS);
        for way in carried(&shop).into_iter().chain(never(&shop)) {
            let outcome = ask(&way)?;
            ensure!(outcome.refused(), "{}, {when}: {outcome:?}", way.what);
        }
        direct_goes_on(&shop, &mut direct, &when)?;
    }
    let traffic = capture.stop()?;
    ensure!(traffic.packets > 0 && traffic.hits(MARKER.as_bytes()) == 0, "in the clear between the nodes");
    shop.start_again(A)?;
    all_answered(&shop, "started again")?;
    direct_goes_on(&shop, &mut direct, "started again")?;
    let pins = || shop.lab.at(A)?.host().shell("find /sys/fs/bpf/heddle -type f | sort");
    assert_eq!(pins()?, before, "no pin more, and none less");
    shop.shut()
}

/// One worker alone makes no progress: the agent as a whole seems alive, and what that worker would carry hangs.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_worker_hangs() -> Result<()> {
    let shop = Shop::open("hung")?;
    let _servers = servers(&shop)?;
    all_answered(&shop, "before")?;
    let mut direct = direct_lines(&shop)?;
    let agent = shop.lab.agent(A)?;
    // A cgroup of threads below the agent's own, frozen: as a thread that the kernel does not let run.
    let frozen = agent.place().cgroup().path().join("frozen");
    fs::create_dir(&frozen)?;
    fs::write(frozen.join("cgroup.type"), "threaded")?;
    let mut worker = None;
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid().context("the agent runs")?))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.starts_with("heddle-proxy") {
            worker = Some(task.file_name().to_string_lossy().into_owned());
        }
    }
    fs::write(frozen.join("cgroup.threads"), worker.context("the agent has a worker")?)?;
    fs::write(frozen.join("cgroup.freeze"), "1")?;
    eventually("the agent to tell that a worker hangs", PATIENCE, || {
        Ok(agent.log().contains("worker of the data plane hangs"))
    })?;
    std::thread::sleep(Duration::from_millis(500));
    for way in carried(&shop) {
        for _ in 0..5 {
            let outcome = ask(&way)?;
            // The other node's agent has connections at hand that lead to workers who live; whatever the kernel would
            // have to hand over anew is refused.
            let at_hand = way.what.starts_with("into the node") && !way.what.ends_with("outside the mesh");
            ensure!(outcome.refused() || at_hand && outcome.received == MARKER, "{}: {outcome:?}", way.what);
        }
    }
    for way in never(&shop) {
        ensure!(ask(&way)?.refused(), "{}", way.what);
    }
    direct_goes_on(&shop, &mut direct, "with a worker that hangs")?;
    assert!(agent.status().is_ok(), "the rest of the agent lives");
    fs::write(frozen.join("cgroup.freeze"), "0")?;
    all_answered(&shop, "going on")?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_second_agent_refuses_to_start_while_the_first_lives() -> Result<()> {
    let mut shop = Shop::open("second")?;
    let _servers = servers(&shop)?;
    let mut line = Shop::line(&shop.client, (shop.far.v4, OPAQUE).into())?;
    let agent = shop.lab.agent(A)?;
    let second = [
        shop.lab.heddle()?.display().to_string(),
        "agent".into(),
        "--config".into(),
        agent.config().display().to_string(),
    ];
    let output = agent.place().run(&second)?;
    assert!(!output.succeeded() && output.code.is_some(), "{output:?}");
    let said = output.stdout + &output.stderr;
    assert!(said.contains("another agent") || said.contains("already"), "it says why: {said}");
    carries(&mut line, "undisturbed")?;
    all_answered(&shop, "after a second agent was started")?;
    assert!(agent.is_running() && agent.status().is_ok());
    // The control: the same command starts once the first is gone.
    agent.kill()?;
    shop.start_again(A)?;
    all_answered(&shop, "with the agent that came after")?;
    shop.shut()
}
