//! The agent that is to be the node's next.

use super::{Answered, Asked, LOCK, LOOK, PROTOCOL, kill, line::Line};
use crate::{
    capture::heartbeat_age,
    cli::{
        Failure,
        agent::Node,
        config::Config,
        door::{
            Approach, Candidate, RunDirectory, RunDirectoryError, SUCCESSION,
            caller::{Own, Refusal},
        },
    },
};
use heddle_ebpf::SCHEMA;
use miette::miette;
use rustix::fd::OwnedFd;
use std::{
    io::ErrorKind,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};

/// How long an agent that holds the lock and does not listen may take to do so, or to end.
const APPROACH: Duration = Duration::from_secs(30);
/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an agent may give no sign of life before it is taken for one that hangs.
const HANGS: Duration = Duration::from_secs(5);
/// How long one may take in any case.
const ANSWER: Duration = Duration::from_secs(60);
/// How long between two looks whether another agent still has the node.
const RETURN: Duration = Duration::from_secs(2);

/// By what right an agent is the node's.
pub enum Claim {
    /// There is no other.
    Alone(RunDirectory),
    /// The one that runs hands the node over.
    Successor(Box<Successor>),
}

/// The node's next agent.
pub struct Successor {
    candidate: Candidate,
    before: Met,
    watch: Watch,
}

/// The node's agent as it meets its successor.
struct Met {
    line: Line,
    process: OwnedFd,
}

/// Whether the agent before shows signs of life.
struct Watch {
    bpffs: PathBuf,
    bound: Duration,
}

/// What comes of waiting for an answer.
enum Came {
    Said(Answered),
    /// It is dead, or talks nonsense.
    Gone,
    Hangs,
}

fn told(error: &RunDirectoryError) -> Failure {
    miette!(help = error.remedy(), "{error}")
}

/// Takes the node where no other agent runs; asks the one that runs to hand it over if the configuration says so. One that is
/// `restarted`, after the one before was killed, asks nobody: it waits until the node is free.
///
/// # Errors
/// If another agent keeps the node.
pub async fn claim(config: &Config, restarted: bool) -> Result<Claim, Failure> {
    let mut waiting = false;
    let candidate = loop {
        match RunDirectory::approach(&config.run_directory) {
            Ok(Approach::Alone(directory)) => return Ok(Claim::Alone(directory)),
            Ok(Approach::Next(_)) | Err(RunDirectoryError::Turn { .. }) if restarted => {}
            Ok(Approach::Next(candidate)) => break candidate,
            Err(error) => return Err(told(&error)),
        }
        if !std::mem::replace(&mut waiting, true) {
            tracing::warn!(
                "another agent has taken the node since this one was killed: waiting until it is free"
            );
        }
        tokio::time::sleep(RETURN).await;
    };
    let bound = Duration::from_millis(config.heartbeat_milliseconds);
    let watch = Watch { bpffs: config.bpffs.clone(), bound };
    meet(candidate, config, watch).await
}

async fn meet(mut candidate: Candidate, config: &Config, watch: Watch) -> Result<Claim, Failure> {
    if config.hand_over.is_none() {
        return Err(told(&candidate.held()));
    }
    let own = Own::read().map_err(|error| {
        miette!(help = "mount /proc", "the agent's own namespaces cannot be read: {error}")
    })?;
    let socket = candidate.path().join(SUCCESSION);
    let mut since = Instant::now();
    while since.elapsed() < APPROACH {
        if let Some(directory) = candidate.try_take().map_err(|error| told(&error))? {
            return Ok(Claim::Alone(directory));
        }
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            // It has just started, or is ending.
            Err(error) if is_of_one_that_comes_or_goes(error.kind()) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => {
                return Err(miette!("cannot reach the agent that runs at {}: {error}", socket.display()));
            }
        };
        // The folder is this user's alone; all the same nobody is killed who might not be an agent.
        let process = match own.admit_pinned(&stream) {
            Ok((_, process)) => process,
            Err(Refusal::Gone) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(refusal) => {
                return Err(miette!(
                    help = "start agents of one node in the same pid and user namespaces",
                    "whoever listens at {} is no agent of this node's: {refusal}",
                    socket.display()
                ));
            }
        };
        let mut before = Met { line: Line::new(stream), process };
        let (node, version) = (config.node.clone(), env!("CARGO_PKG_VERSION").to_owned());
        let hello = Asked::Hello { protocol: PROTOCOL, schema: SCHEMA, node, version };
        match watch.ask(&mut before, &hello).await {
            Came::Said(Answered::Agreed { version }) => {
                tracing::info!(version, "the agent that runs will hand the node over");
                return Ok(Claim::Successor(Box::new(Successor { candidate, before, watch })));
            }
            Came::Said(Answered::Refused { error, remedy }) => {
                return Err(miette!(help = remedy, "the agent that runs keeps the node: {error}"));
            }
            Came::Said(_) | Came::Gone => tokio::time::sleep(PAUSE).await,
            Came::Hangs => {
                kill(&before.process);
                // To find that it hangs may have taken all the time that there was.
                since = Instant::now();
            }
        }
    }
    Err(told(&candidate.held()))
}

/// Whether a connect that fails so was to an agent that does not listen yet, or not any more: one that ends resets those
/// that wait to be accepted.
const fn is_of_one_that_comes_or_goes(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

impl Watch {
    /// Says something and waits for the answer, for as long as the other lives and shows it.
    async fn ask(&self, before: &mut Met, asked: &Asked) -> Came {
        // Whoever refuses before it has heard anything has hung up, and what it said is there to be heard.
        drop(before.line.say(asked).await);
        let (since, mut alive) = (Instant::now(), Instant::now());
        loop {
            match tokio::time::timeout(PAUSE, before.line.hear::<Answered>()).await {
                Ok(Ok(answered)) => return Came::Said(answered),
                Ok(Err(_)) => return Came::Gone,
                Err(_) => {}
            }
            if heartbeat_age(&self.bpffs).is_some_and(|age| age <= self.bound) {
                alive = Instant::now();
            }
            if alive.elapsed() > HANGS.max(self.bound * 3) || since.elapsed() > ANSWER {
                tracing::warn!(
                    "the agent that runs hangs: it is killed, and the node taken over as after its end"
                );
                return Came::Hangs;
            }
        }
    }
}

impl Successor {
    /// Has the agent before step back and takes the lock. From here on this one writes.
    ///
    /// # Errors
    /// If the lock is not free.
    pub async fn switch(self) -> Result<Taking, Failure> {
        let Self { mut candidate, mut before, watch } = self;
        let line = match watch.ask(&mut before, &Asked::Switch).await {
            Came::Said(Answered::Fenced) => Some(before),
            Came::Said(Answered::Refused { error, remedy }) => {
                return Err(miette!(help = remedy, "the agent that runs keeps the node: {error}"));
            }
            Came::Said(_) | Came::Gone => None,
            Came::Hangs => {
                kill(&before.process);
                None
            }
        };
        // One that was told to stop meanwhile has hung up, and keeps the lock until it has drained.
        let patience = if line.is_some() { LOCK } else { APPROACH };
        let since = Instant::now();
        let directory = loop {
            match candidate.try_take().map_err(|error| told(&error))? {
                Some(directory) => break directory,
                None if since.elapsed() > patience => return Err(told(&candidate.held())),
                None => tokio::time::sleep(LOOK).await,
            }
        };
        Ok(Taking { directory: Arc::new(directory), before: line, watch, _turn: candidate })
    }
}

/// An agent that has the lock and puts itself in force.
pub struct Taking {
    pub directory: Arc<RunDirectory>,
    before: Option<Met>,
    watch: Watch,
    _turn: Candidate,
}

impl Taking {
    /// Tells the agent before that this one is the node's now, and goes on asking it to close listeners that are in an
    /// application's way, until all are closed.
    pub async fn taken<N: Node>(self, node: Arc<N>) {
        let Some(mut before) = self.before else { return node.succeeds(None) };
        match self.watch.ask(&mut before, &Asked::Taken).await {
            Came::Said(Answered::Draining) => {}
            Came::Hangs => {
                kill(&before.process);
                return node.succeeds(None);
            }
            Came::Said(_) | Came::Gone => return node.succeeds(None),
        }
        let (asking, asked) = mpsc::unbounded_channel();
        node.succeeds(Some(asking));
        tokio::spawn(async move {
            pass_on(before.line, asked).await;
            node.succeeds(None);
        });
    }
}

async fn pass_on(mut line: Line, mut asked: mpsc::UnboundedReceiver<(u64, oneshot::Sender<()>)>) {
    let mut waiting: Vec<(u64, oneshot::Sender<()>)> = Vec::new();
    loop {
        tokio::select! {
            Some((pod, done)) = asked.recv() => {
                waiting.push((pod, done));
                if line.say(&Asked::Close(pod)).await.is_err() {
                    return;
                }
            }
            answered = line.hear::<Answered>() => match answered {
                Ok(Answered::Closed(pod)) => {
                    for (_, done) in waiting.extract_if(.., |(waits, _)| *waits == pod) {
                        // Whoever asked may have given up.
                        let _ = done.send(());
                    }
                }
                _ => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_refuses_unheard_and_hangs_up_is_heard() {
        let (near, far) = UnixStream::pair().unwrap();
        let refused = Answered::Refused { error: "busy".into(), remedy: "wait".into() };
        Line::new(far).say(&refused).await.unwrap();
        let process = std::fs::File::open("/dev/null").unwrap().into();
        let mut before = Met { line: Line::new(near), process };
        let watch = Watch { bpffs: "/nonexistent".into(), bound: Duration::from_millis(100) };
        let Came::Said(Answered::Refused { error, .. }) = watch.ask(&mut before, &Asked::Switch).await else {
            panic!("not heard");
        };
        assert_eq!(error, "busy");
        assert!(matches!(watch.ask(&mut before, &Asked::Switch).await, Came::Gone), "then it is gone");
    }
}
