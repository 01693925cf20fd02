//! `--supervise`: a process that does nothing but start the agent anew, at once, when a signal has killed it.
//!
//! Until an agent that was killed is back, whatever it carries is refused. The kubelet starts it a second later at best, and
//! after pauses that get ever longer; this does so within milliseconds, a few times. An agent that ends by itself is not
//! started: with its exit code this ends too. Where another agent has the node by then, the one that is started waits until it
//! has it no more: whoever was succeeded, or was killed because it hung, does not take the node back.

use std::{
    collections::VecDeque,
    os::unix::process::ExitStatusExt as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use miette::miette;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use super::{Failure, signals::Signals};
use crate::cli::{config::Log, logging};

/// So many deaths within [`WINDOW`] are answered by another start. With one more, whoever started this is to know.
const DEATHS: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// The flag by which an agent knows who supervises it.
const BY: &str = "--supervised-by";
/// The flag by which it knows that the one before was killed.
const RESTARTED: &str = "--restarted";
/// The flag that is left out of the agent's own.
const SUPERVISE: &str = "--supervise";

/// Runs this very program as the agent, with the same arguments, until it ends by itself or is told to.
///
/// # Errors
/// If it cannot be started.
pub(super) fn run(log: &Log) -> Result<ExitCode, Failure> {
    let _logging = logging::start(log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(supervise())
}

/// Ends with `supervisor`, whatever ends that one.
///
/// # Errors
/// If it has ended already.
pub(super) fn end_with(supervisor: u32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| miette!("the supervisor's end would not be seen: {error}"))?;
    let parent = getppid().map(|pid| pid.as_raw_pid());
    if parent.is_none_or(|parent| u32::try_from(parent) != Ok(supervisor)) {
        return Err(miette!("the supervisor has ended"));
    }
    Ok(())
}

async fn supervise() -> Result<ExitCode, Failure> {
    let mut signals = Signals::new().map_err(|error| miette!("cannot wait for signals: {error}"))?;
    let (mut deaths, mut told) = (VecDeque::new(), false);
    loop {
        let mut agent = start(!deaths.is_empty())?;
        let ended = loop {
            tokio::select! {
                ended = agent.wait() => break ended.map_err(|error| miette!("the agent cannot be waited for: {error}"))?,
                signal = signals.next() => {
                    told = true;
                    pass_on(&agent, signal);
                }
            }
        };
        let Some(signal) = ended.signal() else {
            let code = ended.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        };
        let now = Instant::now();
        deaths.push_back(now);
        deaths.retain(|death| now.duration_since(*death) < WINDOW);
        if told || deaths.len() > DEATHS {
            tracing::error!(
                signal,
                deaths = deaths.len(),
                "the agent was killed; it is not started again from here"
            );
            // As a shell tells of a process that a signal has ended.
            return Ok(u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        tracing::error!(signal, deaths = deaths.len(), "the agent was killed: it is started anew");
    }
}

fn start(restarted: bool) -> Result<Child, Failure> {
    let failed = |error| miette!("the agent cannot be started: {error}");
    let own = std::env::current_exe().map_err(failed)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| own.clone().into_os_string());
    Command::new(&own)
        .arg0(name)
        .args(arguments.filter(|argument| argument != SUPERVISE))
        .args([BY, &std::process::id().to_string()])
        .args(restarted.then_some(RESTARTED))
        // Ctrl-C reaches it once, by way of this process: twice would be told again, and not wait for connections.
        .process_group(0)
        .spawn()
        .map_err(failed)
}

fn pass_on(agent: &Child, signal: &'static str) {
    let signal = if signal == "SIGINT" { Signal::INT } else { Signal::TERM };
    let pid = agent.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    // None: it has just ended.
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
        tracing::warn!(%error, "the agent cannot be told to end");
    }
}
