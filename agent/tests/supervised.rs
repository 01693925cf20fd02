//! An agent that a signal kills is started anew at once by the process that supervises it; that one ends when the agent does
//! otherwise, and leaves none behind.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shop::{A, MARKER, OPAQUE, Shop, echoes};
use xtask::lab::{apps::Attempt, eventually};

/// How long an agent may take to be ready: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);
/// By then a supervisor has seen too many deaths.
const MANY: usize = 100;

/// The supervisor, and what it and the agents write.
struct Supervised {
    process: Child,
    log: std::path::PathBuf,
}

impl Supervised {
    /// An agent and its supervisor, by the configuration that node a's agent had last.
    fn start(shop: &Shop) -> Result<Self> {
        let agent = shop.lab.agent(A)?;
        let (heddle, config) = (shop.lab.heddle()?, agent.config());
        let log = agent.config().with_file_name("supervised.log");
        let to = File::options().create(true).append(true).open(&log)?;
        let words =
            [&*heddle.to_string_lossy(), "agent", "--supervise", "--config", &*config.to_string_lossy()];
        let mut command = agent.place().command(&words);
        command.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to);
        Ok(Self { process: command.spawn()?, log })
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// The agent that answers, which is not `before`.
    fn agent(&self, shop: &Shop, before: u32) -> Result<u32> {
        let mut pid = 0;
        eventually("the agent to be ready", SOON, || {
            let status = shop.lab.agent(A)?.status().unwrap_or_default();
            pid = status
                .get("pid")
                .and_then(Value::as_u64)
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or(0);
            Ok(pid != 0 && pid != before)
        })
        .with_context(|| self.log().unwrap_or_default())?;
        ensure!(pid != self.process.id(), "the supervisor itself answers");
        Ok(pid)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.process.id(), signal)
    }

    /// Its exit code.
    fn end(&mut self) -> Result<Option<i32>> {
        let mut code = None;
        eventually("the supervisor to end", SOON, || {
            code = self.process.try_wait()?;
            Ok(code.is_some())
        })?;
        Ok(code.and_then(|code| code.code()))
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn kill(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(i32::try_from(pid)?).context("no process")?, signal)?)
}

fn gone(pid: u32) -> bool {
    // Of a process that has ended and was not waited for there are no files.
    std::fs::read_dir(format!("/proc/{pid}/fd")).is_err()
}

fn carried(shop: &Shop) -> Result<bool> {
    let to = SocketAddr::from((shop.far.v4, OPAQUE));
    Ok(shop.client.connect(&Attempt::new(to, MARKER))?.received == MARKER)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_agent_that_is_killed_is_started_anew_until_it_is_killed_too_often() -> Result<()> {
    let mut shop = Shop::open("supervised")?;
    let _echoes = echoes(&shop.far)?;
    ensure!(carried(&shop)?, "the control");
    shop.lab.agent(A)?.terminate()?;
    ensure!(!carried(&shop)?, "nobody is there to carry");

    let mut supervised = Supervised::start(&shop)?;
    let mut agent = supervised.agent(&shop, 0)?;
    eventually("connections to be carried", SOON, || carried(&shop))?;
    for _ in 0..3 {
        kill(agent, Signal::KILL)?;
        agent = supervised.agent(&shop, agent)?;
        eventually("connections to be carried again", SOON, || carried(&shop))?;
    }
    // The ports of the one that is dead are nobody's: who takes them is no application that an agent must give way to.
    let log = supervised.log()?;
    ensure!(!log.contains("gave way to an application"), "{log}");
    ensure!(log.matches("it is started anew").count() == 3, "{log}");

    let mut starts = 3;
    while supervised.process.try_wait()?.is_none() && starts < MANY {
        kill(agent, Signal::KILL)?;
        starts += 1;
        let before = agent;
        eventually("another agent, or the supervisor's end", SOON, || {
            let status = shop.lab.agent(A)?.status().unwrap_or_default();
            agent = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(before);
            Ok(agent != before || supervised.process.try_wait()?.is_some())
        })?;
    }
    ensure!(supervised.end()? == Some(128 + 9), "as it died");
    ensure!(starts > 5, "after {starts} deaths");
    ensure!(!carried(&shop)?, "nobody starts it any more");
    drop(supervised);
    shop.start_again(A)?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_supervisor_ends_with_its_agent_and_its_agent_with_it() -> Result<()> {
    let mut shop = Shop::open("supervisor")?;
    let _echoes = echoes(&shop.far)?;
    shop.lab.agent(A)?.terminate()?;

    let mut supervised = Supervised::start(&shop)?;
    let agent = supervised.agent(&shop, 0)?;
    supervised.signal(Signal::TERM)?;
    ensure!(supervised.end()? == Some(0) && gone(agent), "told to end");
    let log = supervised.log()?;
    ensure!(log.contains("the agent ends; what is in force stays in force"), "{log}");

    let mut supervised = Supervised::start(&shop)?;
    let agent = supervised.agent(&shop, 0)?;
    supervised.signal(Signal::KILL)?;
    ensure!(supervised.end()?.is_none(), "killed");
    eventually("its agent to end, too", SOON, || Ok(gone(agent)))?;
    ensure!(!carried(&shop)?);

    // One that cannot run is not tried again and again.
    let config = shop.lab.agent(A)?.config();
    let sound = std::fs::read_to_string(&config)?;
    let elsewhere =
        |line: &str| if line.starts_with("manifests:") { "manifests: /nowhere\n" } else { line }.to_owned();
    std::fs::write(&config, sound.split_inclusive('\n').map(elsewhere).collect::<String>())?;
    let mut supervised = Supervised::start(&shop)?;
    ensure!(supervised.end()? == Some(2), "{}", supervised.log()?);
    ensure!(supervised.log()?.matches("/nowhere is not taken").count() == 1, "{}", supervised.log()?);
    std::fs::write(&config, sound)?;
    shop.start_again(A)?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_agent_that_was_succeeded_stays_until_it_is_told_and_does_not_take_the_node_back() -> Result<()> {
    let mut shop = Shop::closed("relieved")?;
    shop.lab.settings().set("handOver", json!({ "drainSeconds": 60 }));
    shop.lab.start_agents()?;
    let _echoes = echoes(&shop.far)?;
    shop.lab.agent(A)?.terminate()?;

    let mut first = Supervised::start(&shop)?;
    let before = first.agent(&shop, 0)?;
    let second = Supervised::start(&shop)?;
    let after = second.agent(&shop, before)?;
    // Nothing is carried: it has nothing to do from the end of its listeners on.
    eventually("the first to be idle", SOON, || Ok(first.log()?.contains("waits until it is told to end")))?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(first.process.try_wait()?.is_none() && !gone(before), "{}", first.log()?);
    ensure!(second.agent(&shop, 0)? == after, "the node was taken back");
    ensure!(carried(&shop)?, "by the second");

    first.signal(Signal::TERM)?;
    ensure!(first.end()? == Some(0) && gone(before), "told to end");
    ensure!(second.agent(&shop, 0)? == after && carried(&shop)?, "without the first");
    drop((first, second));
    eventually("the second's agent to end", SOON, || Ok(gone(after)))?;
    shop.start_again(A)?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_that_was_succeeded_and_is_killed_waits_until_the_node_is_free() -> Result<()> {
    let mut shop = Shop::closed("waiting")?;
    shop.lab.settings().set("handOver", json!({ "drainSeconds": 60 }));
    shop.lab.start_agents()?;
    let _echoes = echoes(&shop.far)?;
    shop.lab.agent(A)?.terminate()?;

    let mut first = Supervised::start(&shop)?;
    let before = first.agent(&shop, 0)?;
    let mut second = Supervised::start(&shop)?;
    let after = second.agent(&shop, before)?;
    kill(before, Signal::KILL)?;
    let waits = "another agent has taken the node since this one was killed";
    eventually("the first's new agent to wait", SOON, || Ok(first.log()?.contains(waits)))?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(second.agent(&shop, 0)? == after, "the node was taken back");
    ensure!(carried(&shop)?, "by the second");

    second.signal(Signal::TERM)?;
    ensure!(second.end()? == Some(0) && gone(after), "told to end");
    first.agent(&shop, after)?;
    eventually("the first's to carry", SOON, || carried(&shop))?;
    first.signal(Signal::TERM)?;
    ensure!(first.end()? == Some(0), "{}", first.log()?);
    shop.start_again(A)?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_that_was_succeeded_ends_where_its_successor_is_gone_so_that_it_is_started_again() -> Result<()> {
    let mut shop = Shop::closed("forsaken")?;
    shop.lab.settings().set("handOver", json!({ "drainSeconds": 60 }));
    shop.lab.start_agents()?;
    shop.lab.agent(A)?.terminate()?;

    let mut first = Supervised::start(&shop)?;
    let before = first.agent(&shop, 0)?;
    let mut second = Supervised::start(&shop)?;
    let after = second.agent(&shop, before)?;
    eventually("the first to be idle", SOON, || Ok(first.log()?.contains("waits until it is told to end")))?;
    second.signal(Signal::KILL)?;
    ensure!(second.end()?.is_none(), "killed");
    eventually("its agent to end, too", SOON, || Ok(gone(after)))?;
    ensure!(first.end()?.is_some_and(|code| code != 0) && gone(before), "{}", first.log()?);
    ensure!(first.log()?.contains("no other has the node"), "{}", first.log()?);
    shop.start_again(A)?;
    shop.shut()
}
