//! The agent that is succeeded.

use super::{Answered, Asked, LOCK, LOOK, PROTOCOL, kill, line::Line};
use crate::{
    cli::{
        agent::Node,
        door::{RunDirectory, caller::Own},
    },
    cluster::manifests::SharedPublisher,
};
use heddle_ebpf::SCHEMA;
use rustix::fd::OwnedFd;
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(5);
/// How long a successor may take from the fence to its word that it has taken over: a hundred times what it needs.
const SWITCH: Duration = Duration::from_secs(60);
/// How often it is tried to take up the node again.
const RETRY: Duration = Duration::from_secs(1);

/// How far an agent's own time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is the node's agent.
    Serving,
    /// It writes nothing; another is about to take over.
    Fenced,
    /// Another is the node's agent.
    Succeeded,
}

/// The node's agent, for whoever is to succeed it.
pub struct Predecessor<N> {
    node: Arc<N>,
    publisher: SharedPublisher,
    directory: Arc<RunDirectory>,
    name: String,
    drain: Duration,
    phase: watch::Sender<Phase>,
}

impl<N: Node> Predecessor<N> {
    /// The agent of the node called `name`, which keeps its connections for `drain` at most.
    pub fn new(
        node: Arc<N>,
        publisher: SharedPublisher,
        directory: Arc<RunDirectory>,
        name: String,
        drain: Duration,
    ) -> Arc<Self> {
        let phase = watch::Sender::new(Phase::Serving);
        Arc::new(Self { node, publisher, directory, name, drain, phase })
    }

    /// How far it is, and will be.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Answers whoever would succeed it, one at a time; returns when one has and this one's listeners are closed.
    pub async fn offer(self: Arc<Self>, listener: UnixListener, own: Own) {
        let mut conversations = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => match own.admit_pinned(&stream) {
                        Ok((caller, _)) if !conversations.is_empty() => {
                            tracing::warn!(pid = caller.pid, "another successor asks while one is being made ready: refused");
                            refuse(stream, "another successor is being made ready", "wait until it has taken over, or stop it");
                        }
                        Ok((caller, process)) => {
                            tracing::info!(pid = caller.pid, "a successor is being made ready");
                            let own = Arc::clone(&self);
                            drop(conversations.spawn(async move { own.converse(stream, &process).await }));
                        }
                        Err(refusal) => {
                            tracing::warn!(reason = refusal.as_str(), %refusal, "whoever would succeed this agent was refused");
                            refuse(stream, &refusal.to_string(), "ask as root on the node itself, in the agent's own pid and user namespaces");
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "a successor could not be heard");
                        tokio::time::sleep(LOOK).await;
                    }
                },
                Some(ended) = conversations.join_next() => match ended {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => tracing::error!(%error, "talking with a successor failed within the agent"),
                },
            }
        }
    }

    /// Whether the caller has taken over.
    async fn converse(&self, stream: UnixStream, process: &OwnedFd) -> bool {
        let mut line = Line::new(stream);
        let hello = match tokio::time::timeout(GREETING, line.hear::<Asked>()).await {
            Ok(Ok(hello)) => hello,
            other => {
                tracing::warn!(?other, "whoever would succeed this agent does not say so");
                return false;
            }
        };
        let answer = self.agree(&hello);
        let agreed = matches!(answer, Answered::Agreed { .. });
        if !agreed {
            tracing::warn!(?answer, "whoever would succeed this agent cannot");
        }
        if line.say(&answer).await.is_err() || !agreed {
            return false;
        }
        // It takes the time that it needs: until then this agent serves.
        match line.hear::<Asked>().await {
            Ok(Asked::Switch) => {}
            other => {
                tracing::info!(?other, "the successor is gone before its time: this agent goes on");
                return false;
            }
        }
        tracing::info!("this agent steps back for a successor");
        self.phase.send_replace(Phase::Fenced);
        if let Err(error) = self.node.suspend().await {
            // The lock stays: two agents would write.
            tracing::error!(%error, "this agent cannot be sure that it writes nothing more: it goes on");
            return self.go_on().await;
        }
        if let Err(error) = self.directory.release() {
            tracing::error!(%error, "the lock cannot be let go of: this agent goes on");
            return self.go_on().await;
        }
        // Whoever hears nothing of it is gone, which is seen next.
        drop(line.say(&Answered::Fenced).await);
        match tokio::time::timeout(SWITCH, line.hear::<Asked>()).await {
            Ok(Ok(Asked::Taken)) => {
                self.succeeded(Some(line)).await;
                return true;
            }
            Ok(other) => tracing::warn!(?other, "the successor is gone while it was taking over"),
            Err(_) => {
                tracing::error!("the successor has not taken over within {SWITCH:?}: it is killed");
                kill(process);
            }
        }
        self.go_on().await
    }

    fn agree(&self, hello: &Asked) -> Answered {
        let refused = |error: String, remedy: &str| Answered::Refused { error, remedy: remedy.into() };
        let Asked::Hello { protocol, schema, node, .. } = hello else {
            return refused("a successor says who it is first".into(), "start `heddle agent`");
        };
        let drain = "take the pods off the node, stop this agent, `heddle release`, and start the new one";
        if (*protocol, *schema) != (PROTOCOL, SCHEMA) {
            let error = format!(
                "the agent that runs has kernel maps of version {SCHEMA} and hands over by protocol {PROTOCOL}, the new one {schema} and {protocol}"
            );
            return refused(error, drain);
        }
        if *node != self.name {
            let error = format!("the agent that runs is node {}'s, the new one {node}'s", self.name);
            return refused(
                error,
                "give the new one the same `node`, or another --run-directory, --bpffs and --cgroup",
            );
        }
        Answered::Agreed { version: env!("CARGO_PKG_VERSION").into() }
    }

    /// Another is the node's agent: what is left here is carried on.
    async fn succeeded(&self, line: Option<Line>) {
        self.phase.send_replace(Phase::Succeeded);
        tracing::info!(
            "another agent has taken over; what this one carries goes on for {:?} at most",
            self.drain
        );
        let mut settling = std::pin::pin!(self.node.settle(self.drain));
        let Some(mut line) = line else { return settling.await };
        let mut there = line.say(&Answered::Draining).await.is_ok();
        loop {
            tokio::select! {
                () = &mut settling => break,
                asked = line.hear::<Asked>(), if there => match asked {
                    Ok(Asked::Close(pod)) => {
                        self.node.close_listeners(pod).await;
                        there = line.say(&Answered::Closed(pod)).await.is_ok();
                    }
                    _ => there = false,
                },
            }
        }
        drop(line.say(&Answered::Settled).await);
    }

    /// Takes the node up again, unless yet another agent has it; whether one has.
    async fn go_on(&self) -> bool {
        let since = Instant::now();
        loop {
            match self.directory.retake() {
                Ok(true) => break,
                Ok(false) if since.elapsed() > LOCK => {
                    self.succeeded(None).await;
                    return true;
                }
                Ok(false) => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    tracing::error!(%error, "the lock cannot be taken again; trying on");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        let generation = loop {
            match self.node.resume().await {
                Ok(generation) => break generation,
                Err(error) => {
                    tracing::error!(%error, "this agent cannot take the node up again; trying on");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        // An error is in the publication and in the log already, and it is tried again.
        drop(self.publisher.lock().unwrap_or_else(PoisonError::into_inner).begin(generation));
        self.phase.send_replace(Phase::Serving);
        tracing::info!("this agent goes on");
        false
    }
}

/// Says no.
fn refuse(stream: UnixStream, error: &str, remedy: &str) {
    let answer = Answered::Refused { error: error.into(), remedy: remedy.into() };
    tokio::spawn(async move {
        // Whoever does not listen knows all the same.
        let said = async { Line::new(stream).say(&answer).await };
        drop(tokio::time::timeout(GREETING, said).await);
    });
}
