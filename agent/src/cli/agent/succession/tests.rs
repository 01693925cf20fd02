use super::{
    super::tests::{Bench, BenchNode},
    line::Line,
    *,
};
use crate::{
    cli::door::{RunDirectory, RunDirectoryError, SUCCESSION, caller::Own},
    cluster::snapshot::Publisher,
};
use heddle_ebpf::SCHEMA;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// An agent on a bench, that offers to be succeeded.
struct Offered {
    _dir: tempfile::TempDir,
    run: PathBuf,
    bench: Arc<Bench>,
    predecessor: Arc<Predecessor<BenchNode>>,
    offering: JoinHandle<()>,
}

fn offered() -> Offered {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let directory = Arc::new(RunDirectory::take(&run).unwrap());
    let listener = UnixListener::from_std(directory.listen(SUCCESSION).unwrap()).unwrap();
    let bench = Bench::new();
    let publisher = Arc::new(Mutex::new(Publisher::new(Arc::clone(&bench) as _, 100)));
    let node = Arc::new(BenchNode(Arc::clone(&bench)));
    let predecessor = Predecessor::new(node, publisher, directory, "a".into(), Duration::from_secs(1));
    let offering = tokio::spawn(Arc::clone(&predecessor).offer(listener, Own::read().unwrap()));
    Offered { _dir: dir, run, bench, predecessor, offering }
}

fn hello(schema: u32, node: &str) -> Asked {
    Asked::Hello { protocol: PROTOCOL, schema, node: node.into(), version: "0".into() }
}

impl Offered {
    async fn call(&self) -> Line {
        Line::new(UnixStream::connect(self.run.join(SUCCESSION)).await.unwrap())
    }

    /// Says hello until it is heard: the one before may not have been seen to be gone.
    async fn answer(&self, hello: &Asked) -> (Line, Answered) {
        loop {
            let mut line = self.call().await;
            // It may refuse without having heard.
            drop(line.say(hello).await);
            match line.hear().await.unwrap() {
                Answered::Refused { error, .. } if error.contains("another successor") => {
                    tokio::time::sleep(LOOK).await;
                }
                answer => return (line, answer),
            }
        }
    }

    async fn agreed(&self) -> Line {
        let (line, answer) = self.answer(&hello(SCHEMA, "a")).await;
        assert!(matches!(answer, Answered::Agreed { .. }), "{answer:?}");
        line
    }

    async fn is(&self, phase: Phase) {
        let mut phases = self.predecessor.phase();
        let reached = phases.wait_for(|now| *now == phase);
        tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap().unwrap();
    }

    fn writes(&self) -> bool {
        self.bench.writes.load(Ordering::SeqCst)
    }

    /// The lock, if its agent let go of it.
    fn lock(&self) -> Result<RunDirectory, RunDirectoryError> {
        RunDirectory::take(&self.run)
    }
}

#[tokio::test]
async fn whoever_does_not_fit_is_told_why_and_the_agent_goes_on() {
    let offered = offered();
    for (asked, said) in [
        (hello(SCHEMA + 1, "a"), "kernel maps of version"),
        (hello(SCHEMA, "b"), "is node a's, the new one b's"),
        (
            Asked::Hello { protocol: PROTOCOL + 1, schema: SCHEMA, node: "a".into(), version: "0".into() },
            "protocol",
        ),
        (Asked::Switch, "says who it is first"),
    ] {
        let (mut line, answer) = offered.answer(&asked).await;
        let Answered::Refused { error, remedy } = answer else { panic!("{answer:?}") };
        assert!(error.contains(said) && !remedy.is_empty(), "{error}: {remedy}");
        assert!(line.hear::<Answered>().await.is_err(), "it hangs up");
    }
    // What is no message, and what never ends.
    for text in ["no message\n".to_owned(), "x".repeat(5000)] {
        let stream = UnixStream::connect(offered.run.join(SUCCESSION)).await.unwrap();
        // It may hang up before it has heard all.
        drop(tokio::io::AsyncWriteExt::write_all(&mut { stream }, text.as_bytes()).await);
    }
    let mut first = offered.agreed().await;
    let mut second = offered.call().await;
    let answer: Answered = second.hear().await.unwrap();
    assert!(
        matches!(&answer, Answered::Refused { error, .. } if error.contains("another successor")),
        "{answer:?}"
    );
    first.say(&Asked::Taken).await.unwrap();
    assert!(first.hear::<Answered>().await.is_err(), "out of turn");
    assert!(offered.writes() && matches!(offered.lock(), Err(RunDirectoryError::Held { .. })));
}

#[tokio::test]
async fn one_that_dies_leaves_the_agent_as_it_was() {
    let offered = offered();
    drop(offered.agreed().await);
    let mut line = offered.agreed().await;
    line.say(&Asked::Switch).await.unwrap();
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Fenced);
    assert!(!offered.writes(), "one of the two writes");
    drop(offered.lock().unwrap());
    drop(line);
    offered.is(Phase::Serving).await;
    assert!(offered.writes() && matches!(offered.lock(), Err(RunDirectoryError::Held { .. })));

    // One that has the lock when the successor dies, whoever it is, is the node's agent.
    let mut line = offered.agreed().await;
    line.say(&Asked::Switch).await.unwrap();
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Fenced);
    let third = offered.lock().unwrap();
    drop(line);
    offered.is(Phase::Succeeded).await;
    assert!(!offered.writes());
    drop(third);
}

#[tokio::test]
async fn an_agent_that_may_still_write_keeps_the_lock() {
    let offered = offered();
    offered.bench.unstoppable.store(true, Ordering::SeqCst);
    let mut line = offered.agreed().await;
    line.say(&Asked::Switch).await.unwrap();
    assert!(line.hear::<Answered>().await.is_err(), "nobody is told that the node is free");
    offered.is(Phase::Serving).await;
    assert!(offered.writes() && matches!(offered.lock(), Err(RunDirectoryError::Held { .. })));
    // Whatever it was has passed: the next one takes over.
    offered.bench.unstoppable.store(false, Ordering::SeqCst);
    let mut line = offered.agreed().await;
    line.say(&Asked::Switch).await.unwrap();
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Fenced);
    drop(offered.lock().unwrap());
}

#[tokio::test]
async fn one_that_has_taken_over_is_the_nodes_agent() {
    let offered = offered();
    let mut line = offered.agreed().await;
    line.say(&Asked::Switch).await.unwrap();
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Fenced);
    let lock = offered.lock().unwrap();
    line.say(&Asked::Taken).await.unwrap();
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Draining);
    assert_eq!(line.hear::<Answered>().await.unwrap(), Answered::Settled);
    offered.offering.await.unwrap();
    assert!(!offered.bench.writes.load(Ordering::SeqCst));
    assert_eq!(*offered.predecessor.phase().borrow(), Phase::Succeeded);
    drop(lock);
}
