//! A node's agent is replaced while everybody speaks: no connection fails that was begun, those that live go on with the
//! agent that has them, and rules hold for all. Whoever dies on the way leaves the other, or what refuses.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, ErrorKind, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use heddle_ebpf::SCHEMA;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use shop::{A, B, CLIENTS, MARKER, OPAQUE, PATIENCE, SPARE, Shop, carries, clients, echoes};
use xtask::lab::{
    Agent, Former, Pod, PodSpec, Settings,
    apps::{self, Attempt, Talk},
    eventually, slowness, stretched,
};

/// How long an agent may take to be ready and take over: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// Agents that hand over and keep what they have for `drain` seconds.
fn handing_over(drain: u64) -> Settings {
    let mut settings = Settings::default();
    settings.set("handOver", json!({ "drainSeconds": drain }));
    settings
}

fn open(name: &str, drain: u64) -> Result<Shop> {
    let mut shop = Shop::closed(name)?;
    *shop.lab.settings() = handing_over(drain);
    shop.lab.start_agents()?;
    Ok(shop)
}

/// Another process becomes the agent of node a.
fn succeed(shop: &Shop, drain: u64) -> Result<Former> {
    shop.lab.agent(A)?.succeed(&shop.lab.heddle()?, &handing_over(drain))
}

fn to(pod: &Pod, port: u16) -> SocketAddr {
    (pod.v4, port).into()
}

/// What only the agents can carry: out of node a and into it.
fn ways(shop: &Shop) -> [(&Pod, SocketAddr); 2] {
    [(&shop.client, to(&shop.far, OPAQUE)), (&shop.buyer, to(&shop.near, OPAQUE))]
}

/// A line over each of them.
fn lines(shop: &Shop) -> Result<Vec<Talk>> {
    ways(shop).into_iter().map(|(from, to)| Shop::line(from, to)).collect()
}

fn all_carried(shop: &Shop, when: &str) -> Result<()> {
    for (from, to) in ways(shop) {
        let outcome = from.connect(&Attempt::new(to, MARKER))?;
        ensure!(outcome.received == MARKER, "{} to {to}, {when}: {outcome:?}", from.name);
    }
    let outcome = shop.stranger.connect(&Attempt::new(to(&shop.far, OPAQUE), MARKER))?;
    ensure!(outcome.refused(), "a stranger, {when}: {outcome:?}");
    Ok(())
}

fn counts(agent: &Agent, labels: &[&str]) -> Result<f64> {
    agent.metric("heddle_kernel_decisions_total", labels)
}

/// Connections without a pause until `done`: how many, and what became of those that failed.
fn press(from: &Pod, to: SocketAddr, done: &AtomicBool) -> Result<(u64, Vec<String>)> {
    let (mut succeeded, mut failed) = (0, Vec::new());
    while !done.load(Ordering::Acquire) {
        match apps::burst(from.place(), to, 2, Duration::from_millis(500)) {
            Ok(burst) if burst.failed == 0 => succeeded += burst.succeeded,
            told => failed.push(format!("{} to {to}: {told:?}", from.name)),
        }
    }
    Ok((succeeded, failed))
}

/// Connections without a pause out of node a and into it while `work` is done: of each, how many, and what failed.
fn pressed(shop: &Shop, work: impl FnOnce() -> Result<()>) -> Result<Vec<(u64, Vec<String>)>> {
    let done = AtomicBool::new(false);
    let (far, near) = (to(&shop.far, SPARE[0]), to(&shop.near, SPARE[0]));
    std::thread::scope(|scope| {
        let pressing = [
            scope.spawn(|| press(&shop.client, far, &done)),
            scope.spawn(|| press(&shop.buyer, near, &done)),
        ];
        let worked = work();
        done.store(true, Ordering::Release);
        let told: Result<_> =
            pressing.into_iter().map(|it| it.join().unwrap_or_else(|_| bail!("it panicked"))).collect();
        worked.and(told)
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn replaced_three_times_under_load() -> Result<()> {
    let drain = 120 * u64::from(slowness());
    let shop = open("replaced", drain)?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    let once = |pod: &Pod| pod.app(&["once", &format!("[::]:{}", SPARE[0])]);
    let _once = (once(&shop.near)?, once(&shop.far)?);
    all_carried(&shop, "before")?;
    let mut lines = lines(&shop)?;
    let gone = counts(shop.lab.agent(A)?, &["reason=\"agent_gone\""])?;
    let mut formers = Vec::new();

    let told = pressed(&shop, || {
        (0..3).try_for_each(|round| {
            formers.push(succeed(&shop, drain)?);
            for line in &mut lines {
                carries(line, "still").with_context(|| format!("a line from before, round {round}"))?;
            }
            lines.extend(self::lines(&shop)?);
            Ok(())
        })
    })?;
    for (succeeded, failed) in &told {
        assert!(failed.is_empty(), "{failed:#?} (beside {succeeded} that succeeded)");
        assert!(*succeeded > 100, "hardly any load: {succeeded}");
    }
    assert!(formers.iter().all(|former| former.pid().is_some()), "each keeps the lines that it has");
    let now = counts(shop.lab.agent(A)?, &["reason=\"agent_gone\""])?;
    assert!((now - gone).abs() < f64::EPSILON, "the kernel missed the agent {} times", now - gone);
    all_carried(&shop, "after the third")?;

    // The lines ended, there is nothing left to wait for.
    for line in &mut lines {
        carries(line, "last").context("a line, at the end")?;
    }
    drop(lines);
    for former in &formers {
        former.ends_within(SOON)?;
    }
    all_carried(&shop, "with the formers gone")?;
    let agent = shop.lab.agent(A)?;
    let (status, pid) = (agent.status()?, agent.pid().context("the last runs")?);
    assert_eq!(status["pid"], pid, "nobody took the door away");
    assert!(status["pods"].as_array().is_some_and(|pods| pods.iter().all(|pod| pod["inForce"] == true)));

    // The control: an agent that ends before the next one starts is missed.
    let told = pressed(&shop, || {
        agent.terminate()?;
        agent.start(&shop.lab.heddle()?, &handing_over(drain)).map(drop)
    })?;
    assert!(told.iter().any(|(_, failed)| !failed.is_empty()), "nobody noticed");
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn rules_and_pods_change_while_two_agents_serve() -> Result<()> {
    let drain = 20 * u64::from(slowness());
    let mut shop = open("overlap", drain)?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    // From another node: here nobody but the agents of node a judges who may reach its pods.
    let guest = shop.lab.pod(&PodSpec::new("guest", B).namespace("shop").account("guest").meshed())?;
    shop.lab.agent(B)?.attach(&guest)?;
    let asked = Attempt::new(to(&shop.near, OPAQUE), MARKER);
    shop.lab.apply(CLIENTS, &clients(&[&shop.client.identity(), &guest.identity()]))?;
    eventually("the guest to be let in", PATIENCE, || Ok(guest.connect(&asked)?.received == MARKER))?;
    let mut kept = lines(&shop)?;
    let mut cut = Shop::line(&guest, to(&shop.near, OPAQUE))?;
    let former = succeed(&shop, drain)?;
    let since = std::time::Instant::now();

    // What was begun with the one before is judged by the rules of now.
    carries(&mut cut, "still")?;
    shop.lab.apply(CLIENTS, &clients(&[&shop.client.identity()]))?;
    cut.tell("finish")?;
    let came = cut.answer(PATIENCE)?;
    assert!(came.starts_with("ECONNRESET") || came.starts_with("ECONNABORTED"), "{came}");
    eventually("the rule to hold for new connections", PATIENCE, || Ok(guest.connect(&asked)?.refused()))?;
    for line in &mut kept {
        carries(line, "others").context("a line that the rule allows")?;
    }

    // A pod that starts now is the new one's, and one that goes is nobody's.
    let late = PodSpec::new("late", A).namespace("shop").account("client").meshed();
    let late = shop.lab.pod(&late)?;
    let agent = shop.lab.agent(A)?;
    agent.attach(&late)?;
    let attempt = Attempt::new(to(&shop.far, OPAQUE), MARKER);
    eventually("the late pod to be carried", PATIENCE, || Ok(late.connect(&attempt)?.received == MARKER))?;
    agent.detach(&late)?;
    let status = agent.status()?;
    ensure!(status["pods"].as_array().is_some_and(|pods| pods.len() == 3), "{status}");
    all_carried(&shop, "with two agents")?;

    // The time of the one before runs out: what it still has is reset, and nothing else.
    for line in &mut kept {
        line.tell("finish")?;
    }
    for line in &mut kept {
        let came = line.answer(Duration::from_secs(drain) + SOON)?;
        assert!(came.starts_with("ECONNRESET") || came.starts_with("ECONNABORTED"), "{came}");
    }
    let (took, a_moment) = (since.elapsed(), Duration::from_secs(3));
    assert!(took + a_moment > Duration::from_secs(drain), "they were cut short after {took:?}");
    former.ends_within(SOON)?;
    all_carried(&shop, "with the one before gone")?;
    shop.shut()
}

/// Speaks with the agent of node a as a successor would.
struct Pretender {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

fn in_run_folder(shop: &Shop, name: &str) -> Result<PathBuf> {
    Ok(shop.lab.agent(A)?.socket().with_file_name(name))
}

impl Pretender {
    fn new(shop: &Shop) -> Result<Self> {
        let stream = UnixStream::connect(in_run_folder(shop, "successor.sock")?)?;
        stream.set_read_timeout(Some(stretched(SOON)))?;
        let mut it = Self { answers: BufReader::new(stream.try_clone()?), stream };
        match it.say(&json!({ "hello": { "protocol": 1, "schema": SCHEMA, "node": A, "version": "0" } })) {
            // It may refuse without having heard: then it has hung up, and its answer is there.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(it),
        }
    }

    fn say(&mut self, message: &Value) -> io::Result<()> {
        writeln!(self.stream, "{message}")
    }

    fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// A second agent that is started and ends by itself: what it says.
fn another(shop: &Shop) -> Result<String> {
    let (agent, heddle) = (shop.lab.agent(A)?, shop.lab.heddle()?);
    let config = agent.config();
    let output =
        agent.place().run(&[&heddle.to_string_lossy(), "agent", "--config", &*config.to_string_lossy()])?;
    ensure!(!output.succeeded(), "a second agent ran: {output:?}");
    Ok(output.stdout + &output.stderr)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_successor_that_dies_leaves_the_one_before() -> Result<()> {
    let drain = 120 * u64::from(slowness());
    let shop = open("pretenders", drain)?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    all_carried(&shop, "before")?;
    let mut kept = lines(&shop)?;

    // One that is gone before it asked for anything; and while it waits, nobody else's turn comes.
    let turn = File::create(in_run_folder(&shop, "successor.lock")?)?;
    flock(&turn, FlockOperation::NonBlockingLockExclusive)?;
    let mut first = Pretender::new(&shop)?;
    assert!(first.hear()?.get("agreed").is_some());
    let mut second = Pretender::new(&shop)?;
    assert!(second.hear()?.to_string().contains("another successor"));
    let said = another(&shop)?;
    assert!(said.contains("is about to take this node over"), "{said}");
    drop((first, second, turn));
    all_carried(&shop, "the first gone")?;

    // One that dies when the one before has stepped back: that one takes the node up again.
    let mut third = eventually_agreed(&shop)?;
    third.say(&json!("switch"))?;
    assert_eq!(third.hear()?, json!("fenced"));
    let late = shop.lab.agent(A)?.attach(&shop.client);
    assert!(late.is_err(), "nobody may say that a pod is captured now: {late:?}");
    all_carried(&shop, "stepped back")?;
    drop(third);
    eventually("the agent to go on", PATIENCE, || Ok(shop.lab.agent(A)?.attach(&shop.client).is_ok()))?;
    all_carried(&shop, "going on")?;

    // Real ones, killed wherever they are. Where one had taken over, what it had is refused until the next.
    let mut formers = Vec::new();
    for round in 0..4 {
        let agent = shop.lab.agent(A)?;
        let said = |what: &str| agent.log().matches(what).count();
        let (asked, fenced) = ("a successor is being made ready", "this agent steps back for a successor");
        let (goes_on, over) = ("this agent goes on", "another agent has taken over");
        // One that is killed before it says who it is.
        let unsaid = "whoever would succeed this agent does not say so";
        let before = [asked, fenced, goes_on, over, unsaid].map(said);
        let former = agent.launch_successor(&shop.lab.heddle()?, &handing_over(drain))?;
        // The first is met before it is ready, the others while they take over.
        let met = usize::from(round > 0);
        eventually("it to come so far", SOON, || Ok(said([asked, fenced][met]) > before[met]))?;
        std::thread::sleep(Duration::from_millis(20) * round);
        agent.kill()?;
        drop(agent.go_back_to(former));
        eventually("the one before to see it", SOON, || {
            Ok(said(goes_on) > before[2] || said(over) > before[3] || said(unsaid) > before[4])
        })?;
        if said(over) > before[3] {
            // Past the switch it is as after the end of any agent: nothing opens, and the next one carries.
            ensure!(round > 0, "it was killed before it asked for the node");
            let refused = shop.client.connect(&Attempt::new(to(&shop.far, OPAQUE), MARKER))?;
            ensure!(refused.refused(), "round {round}: {refused:?}");
            formers.push(succeed(&shop, drain)?);
        }
        eventually("everything to be carried", PATIENCE, || Ok(all_carried(&shop, "again").is_ok()))?;
        for line in &mut kept {
            carries(line, "still").with_context(|| format!("a line of the first's, round {round}"))?;
        }
    }
    shop.shut()
}

fn eventually_agreed(shop: &Shop) -> Result<Pretender> {
    let mut found = None;
    eventually("the one before to be forgotten", PATIENCE, || {
        let mut it = Pretender::new(shop)?;
        let agreed = it.hear()?.get("agreed").is_some();
        found = agreed.then_some(it);
        Ok(agreed)
    })?;
    found.context("nobody agreed")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_that_hangs_is_not_waited_for_and_nobody_else_takes_the_node() -> Result<()> {
    let mut shop = Shop::closed("hangs")?;
    shop.lab.start_agents()?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    all_carried(&shop, "before")?;
    // Without being told to, no agent hands over and none asks.
    let said = another(&shop)?;
    assert!(said.contains("another agent") && said.contains("runs on this node"), "{said}");
    assert!(!in_run_folder(&shop, "successor.sock")?.exists());
    shop.lab.agent(A)?.terminate()?;
    *shop.lab.settings() = handing_over(60);
    shop.start_again(A)?;

    // Root in a pod that got hold of the socket, and anybody else.
    let socket = in_run_folder(&shop, "successor.sock")?;
    let hello = format!(
        "echo '{}' | timeout 5 ncat -U {}",
        json!({ "hello": { "protocol": 1, "schema": SCHEMA, "node": A, "version": "0" } }),
        socket.display()
    );
    for guise in
        [vec!["unshare", "--pid", "--fork", "--kill-child"], vec!["unshare", "--user", "--map-root-user"]]
    {
        let answer = shop.stranger.run(&[&guise[..], &["sh", "-c", &hello]].concat())?;
        assert!(
            answer.stdout.contains("refused") && answer.stdout.contains("namespace"),
            "{guise:?}: {answer:?}"
        );
    }
    let answer = shop.stranger.place().as_user(4321).run(&["sh", "-c", &hello])?;
    assert!(answer.stdout.is_empty(), "{answer:?}");
    // The control: root on the node is answered.
    let answer = shop.stranger.run(&["sh", "-c", &hello])?;
    assert!(answer.stdout.contains("agreed"), "{answer:?}");

    let agent = shop.lab.agent(A)?;
    agent.pause()?;
    let former = agent.launch_successor(&shop.lab.heddle()?, &handing_over(60))?;
    agent.wait_until_answering()?;
    former.ends_within(SOON)?;
    all_carried(&shop, "after one that hung")?;
    shop.shut()
}
