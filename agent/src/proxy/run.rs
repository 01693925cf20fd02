//! A worker at work: what it is told, its listeners, its clock.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_ebpf::codes::Hook;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_local},
};

use super::{
    environment::{Flow, PodId},
    inbound, outbound,
    registry::TICK,
    sockets::{abort, canonical},
    turns::Cost,
    worker::{Pod, Worker},
};

/// Ticks between two looks at what is idle.
const SWEEP: u64 = 20;
/// After an accept that failed (no descriptors left, no memory): the first and the longest pause.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What a worker is told to do.
pub enum Command {
    /// Listen for a pod.
    Attach {
        pod: PodId,
        outbound: Vec<std::net::TcpListener>,
        inbound: Vec<std::net::TcpListener>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Stop listening for it and end its connections.
    Detach { pod: PodId, done: oneshot::Sender<()> },
    /// Stop listening for it and let its connections go on.
    Close { pod: PodId, done: oneshot::Sender<()> },
    /// Stop listening after `listen`; end when the last stream does, or at the deadline.
    Drain { listen: Duration, deadline: Duration },
}

/// Until when it goes on that takes no pod any more.
struct Drain {
    listen: Instant,
    deadline: Instant,
}

/// Runs until it was told to drain and the last connection ended.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>, beats: Arc<AtomicU64>) {
    let awake = Rc::clone(&worker);
    let polling = spawn_local(async move { awake.polling.run().await });
    let rounds = Rc::clone(&worker.rounds);
    let rounds = spawn_local(async move { rounds.run().await });
    let clock = spawn_local(tick(Rc::clone(&worker), beats));
    let judge = spawn_local(judge(Rc::clone(&worker)));
    let mut listeners: HashMap<PodId, Vec<JoinHandle<()>>> = HashMap::new();
    let mut drain: Option<Drain> = None;
    loop {
        let command = match &drain {
            None => commands.recv().await,
            Some(drain) => {
                if drain.listen <= Instant::now() {
                    listeners.drain().flat_map(|(_, tasks)| tasks).for_each(|task| task.abort());
                }
                let carried = worker.registry.len() > 0 || !listeners.is_empty();
                if !carried || drain.deadline <= Instant::now() {
                    break;
                }
                match tokio::time::timeout(TICK, commands.recv()).await {
                    Ok(Some(command)) => Some(command),
                    Ok(None) => {
                        tokio::time::sleep(TICK).await;
                        continue;
                    }
                    Err(_) => continue,
                }
            }
        };
        // Whoever could tell more is gone: at once.
        let command = command.unwrap_or(Command::Drain { listen: Duration::ZERO, deadline: Duration::ZERO });
        match command {
            Command::Attach { done, .. } if drain.is_some() => {
                drop(done.send(Err(io::Error::other("the worker takes nothing more"))));
            }
            Command::Attach { pod, outbound, inbound, done } => {
                let result = match start(&worker, pod, outbound, inbound) {
                    Ok(new) => {
                        close(listeners.insert(pod, new)).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                drop(done.send(result));
            }
            Command::Detach { pod, done } => {
                close(listeners.remove(&pod)).await;
                worker.pool.forget(pod);
                worker.registry.end(Some(pod));
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            Command::Close { pod, done } => {
                close(listeners.remove(&pod)).await;
                let _ = done.send(());
            }
            Command::Drain { listen, deadline } => {
                let now = Instant::now();
                drain = Some(Drain { listen: now + listen, deadline: now + deadline });
                worker.pool.close();
                worker.registry.drain();
            }
        }
    }
    worker.registry.end(None);
    // They only have to notice.
    for _ in 0..20 {
        if worker.registry.len() == 0 {
            break;
        }
        tokio::time::sleep(TICK).await;
    }
    polling.abort();
    rounds.abort();
    clock.abort();
    judge.abort();
}

/// Closes listeners: their ports are free when it returns. To abort a task only asks it to end.
async fn close(listeners: Option<Vec<JoinHandle<()>>>) {
    let listeners = listeners.unwrap_or_default();
    listeners.iter().for_each(JoinHandle::abort);
    for listener in listeners {
        // It was cancelled: that is no news.
        drop(listener.await);
    }
}

/// The worker's clock, and its sign of life.
async fn tick(worker: Rc<Worker>, beats: Arc<AtomicU64>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let beat = beats.fetch_add(1, Ordering::Relaxed);
        worker.registry.tick(Instant::now());
        if beat.is_multiple_of(SWEEP) {
            worker.pool.sweep();
            worker.trim();
        }
    }
}

/// Has every connection judged again when the rules change.
async fn judge(worker: Rc<Worker>) {
    let mut changes = worker.environment.policy.changes();
    while changes.changed().await.is_ok() {
        worker.registry.judge_again();
    }
}

fn start(
    worker: &Rc<Worker>,
    pod: PodId,
    outbound: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let with = |hook| move |listener| (hook, listener);
    let all =
        outbound.into_iter().map(with(Hook::Outbound)).chain(inbound.into_iter().map(with(Hook::Inbound)));
    let mut ready = Vec::new();
    for (hook, listener) in all {
        listener.set_nonblocking(true)?;
        inherited(&listener, hook)?;
        ready.push((hook, TcpListener::from_std(listener)?));
    }
    let pod = worker.pod(pod);
    let listen = |(hook, listener)| spawn_local(listen(Rc::clone(worker), Rc::clone(&pod), hook, listener));
    Ok(ready.into_iter().map(listen).collect())
}

/// What accepted sockets take over from their listener, so that it need not be set on each.
fn inherited(listener: &std::net::TcpListener, hook: Hook) -> io::Result<()> {
    let listener = SockRef::from(listener);
    // A relay writes what it has: waiting for more would only delay it.
    listener.set_tcp_nodelay(true)?;
    if hook == Hook::Outbound {
        // As `reset_unless_released`, for what is accepted.
        listener.set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Accepts for ever: whatever fails is waited out.
async fn listen(worker: Rc<Worker>, pod: Rc<Pod>, hook: Hook, listener: TcpListener) {
    let mut pause = BACK_OFF.0;
    let told = RefCell::new(Instant::now().checked_sub(BACK_OFF.1));
    loop {
        pod.share.turn(Cost::Connection).await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = BACK_OFF.0;
                carry(&worker, &pod, hook, stream, peer);
            }
            Err(error) => {
                let last = told.replace(Some(Instant::now()));
                if last.is_none_or(|last| last.elapsed() >= BACK_OFF.1) {
                    tracing::warn!(pod = pod.id.0, hook = hook.as_str(), %error, "accept failed; trying again");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}

fn carry(worker: &Rc<Worker>, pod: &Rc<Pod>, hook: Hook, stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return abort(stream) };
    let (peer, local) = (canonical(peer), canonical(local));
    let flow = Flow { hook, pod: pod.id, client: peer, destination: local, peer: None, rule: Arc::from("") };
    let client = (hook == Hook::Inbound).then(|| peer.ip());
    let held = match worker.connection(pod, client) {
        Ok(held) => held,
        Err(refusal) => return worker.refuse(&flow, &refusal, stream),
    };
    let (worker, pod) = (Rc::clone(worker), Rc::clone(pod));
    match hook {
        Hook::Outbound => drop(spawn_local(async move {
            let _held = held;
            outbound::serve(&worker, &pod, stream, flow).await;
        })),
        _ => drop(spawn_local(async move {
            let _held = held;
            inbound::serve(&worker, &pod, stream, flow).await;
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::{Hook, inherited};
    use socket2::SockRef;
    use std::{
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    #[test]
    fn accepted_sockets_are_as_their_listener() {
        for (hook, linger) in [(Hook::Outbound, Some(Duration::ZERO)), (Hook::Inbound, None)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            inherited(&listener, hook).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(accepted.nodelay().unwrap());
            assert_eq!(SockRef::from(&accepted).linger().unwrap(), linger);
        }
    }
}
