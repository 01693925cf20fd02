//! What it holds, and what happens when it is full.

use std::{
    cell::{Cell, RefCell},
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    rc::Rc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use heddle_ebpf::codes::{Hook, Reason};

use super::world::*;
use crate::proxy::{
    PodListeners, Settings, WorkerListeners, Workers,
    buffers::{Buffers, Quota},
    environment::*,
    inbound, outbound,
    secure::Secure,
    workers::AttachError,
};

/// There may be a hundred thousand of them: a connection's own future, and what rustls holds when nothing moves.
#[test]
fn a_connection_is_small() {
    let state = World::new();
    let environment = Environment {
        sockets: state.state.clone(),
        policy: state.state.clone(),
        credentials: state.state.clone(),
        recorder: state.state.clone(),
    };
    let worker = crate::proxy::worker::Worker::new(
        environment,
        Settings::default(),
        crate::proxy::polling::Seats::of(1),
    );
    let pod = worker.pod(POD_A);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let stream = || {
        let stream = client(address);
        stream.set_nonblocking(true).unwrap();
        tokio::net::TcpStream::from_std(stream).unwrap()
    };
    let flow = || Flow {
        hook: Hook::Inbound,
        pod: POD_A,
        client: address,
        destination: address,
        peer: None,
        rule: "".into(),
    };
    let outbound = size_of_val(&outbound::serve(&worker, &pod, stream(), flow()));
    let inbound = size_of_val(&inbound::serve(&worker, &pod, stream(), flow()));
    println!("outbound {outbound}, inbound {inbound}, idle {}", size_of::<Secure>());
    assert!(outbound <= 2_048, "{outbound}");
    assert!(inbound <= 2_048, "{inbound}");
    assert!(size_of::<Secure>() <= 384, "{}", size_of::<Secure>());
    // On the heap besides: rustls' state, 0.5 KiB of keys and 0.4 KiB of a certificate chain in it; measured in
    // `speed.rs`.
    let client = size_of::<rustls::client::UnbufferedClientConnection>();
    let server = size_of::<rustls::server::UnbufferedServerConnection>();
    println!("rustls: client {client}, server {server}");
    assert!(outbound + client <= 3_584 && inbound + server <= 3_584, "{client} {server}");
}

#[test]
fn buffers_are_lent_within_the_bounds() {
    let buffers = Buffers::new(3);
    let (greedy, modest) = (Quota::new(2, 0), Quota::new(2, 0));
    let mut cx = Context::from_waker(Waker::noop());
    let mut lend = |quota: &Rc<Quota>| match buffers.poll_lend(quota, &mut None, &mut cx) {
        Poll::Ready(buffer) => Some(buffer),
        Poll::Pending => None,
    };
    let held = RefCell::new(vec![lend(&greedy).unwrap(), lend(&greedy).unwrap()]);
    assert!(lend(&greedy).is_none(), "a pod's share is bounded");
    let other = lend(&modest);
    assert!(other.is_some(), "another pod has its own");
    assert!(lend(&modest).is_none(), "all together are bounded");
    drop(other);
    assert!(lend(&modest).is_some());
    held.borrow_mut().pop();
    assert!(lend(&greedy).is_some());
    assert_eq!(buffers.most_lent(), 3);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Who waits for its own pod's share is woken by that pod's buffers, and who waits for any by any.
#[test]
fn a_buffer_that_comes_back_wakes_those_alone_who_could_have_it() {
    let buffers = Buffers::new(3);
    let (greedy, modest) = (Quota::new(2, 0), Quota::new(2, 0));
    let mut waiters = [const { None }; 12];
    let mut waiters = waiters.iter_mut();
    let mut lend = |quota: &Rc<Quota>, woken: &std::sync::Arc<Woken>| {
        let waiter = waiters.next().unwrap();
        let waker = Waker::from(std::sync::Arc::clone(woken));
        match buffers.poll_lend(quota, waiter, &mut Context::from_waker(&waker)) {
            Poll::Ready(buffer) => Some(buffer),
            Poll::Pending => None,
        }
    };
    let count = |woken: &std::sync::Arc<Woken>| woken.0.load(std::sync::atomic::Ordering::SeqCst);
    let (over, beside) = (std::sync::Arc::<Woken>::default(), std::sync::Arc::<Woken>::default());
    let mut own = vec![lend(&greedy, &over).unwrap(), lend(&greedy, &over).unwrap()];
    assert!(lend(&greedy, &over).is_none());
    for _ in 0..3 {
        drop(lend(&modest, &beside).unwrap());
    }
    assert_eq!(count(&over), 0, "a neighbor's buffers are nothing to it");
    let last = lend(&modest, &beside).unwrap();
    assert!(lend(&modest, &beside).is_none(), "all are lent");
    own.pop();
    assert_eq!((count(&over), count(&beside)), (1, 1), "its own pod's, and any");
    assert!(lend(&greedy, &over).is_some());
    drop(last);
}

/// A direction waits once, however often it is looked at, and not at all when it is gone.
#[test]
fn a_direction_waits_for_one_buffer_once() {
    let buffers = Buffers::new(1);
    let quota = Quota::new(1, 0);
    let woken = std::sync::Arc::<Woken>::default();
    let waker = Waker::from(std::sync::Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let Poll::Ready(held) = buffers.poll_lend(&quota, &mut None, &mut cx) else { panic!("there is one") };
    let (mut stays, mut leaves) = (None, None);
    for _ in 0..1_000 {
        assert!(buffers.poll_lend(&quota, &mut stays, &mut cx).is_pending());
        assert!(buffers.poll_lend(&quota, &mut leaves, &mut cx).is_pending());
    }
    drop(leaves);
    drop(held);
    assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(buffers.poll_lend(&quota, &mut stays, &mut cx).is_ready());
}

/// What is set aside has a bound of its own and is given back.
#[test]
fn what_is_set_aside_is_bounded() {
    let quota = Quota::new(2, 0);
    let first = quota.set_aside(&[7; 20_000]).unwrap();
    assert_eq!(*first, [7; 20_000]);
    assert!(quota.set_aside(&[7; 20_000]).is_none());
    drop(first);
    assert!(quota.set_aside(&[7; 20_000]).is_some());
}

/// More streams than buffers: they take turns, nothing is lost and nothing hangs; idle ones hold none.
#[test]
fn few_buffers_serve_many_streams() {
    let world = World::with(Settings { buffers: 3, pod_buffers: 2, ..patient() });
    world.serve_echo();
    let mut idle: Vec<_> = (0..20).map(|_| world.connect()).collect();
    let streams: Vec<_> = (0..16u8)
        .map(|index| {
            let outbound = world.outbound;
            thread::spawn(move || {
                let mut stream = client(outbound);
                let block = vec![index; 300_000];
                for _ in 0..3 {
                    let mut writer = stream.try_clone().unwrap();
                    let sent = block.clone();
                    let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
                    let mut got = vec![0; block.len()];
                    stream.read_exact(&mut got).unwrap();
                    writing.join().unwrap();
                    assert_eq!(got, block);
                }
            })
        })
        .collect();
    for stream in streams {
        stream.join().unwrap();
    }
    for stream in &mut idle {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
}

#[test]
fn connections_and_handshakes_are_bounded() {
    let world = World::with(Settings { pod_connections: 4, ..patient() });
    world.serve_echo();
    // Straight to the application: of its clients' connections the server's node would take half from one address.
    let application = *world.state.application.lock().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address: application, expected: None });
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = world.connect();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        held.push(stream);
    }
    assert_reset(&mut world.connect());
    world.wait_refusal(Hook::Outbound, Reason::LimitReached);
    drop(held);
    world.eventually("room again", |_| world.ask(b"x").is_ok_and(|answer| answer == b"x"));

    // Silent clients take nobody's place.
    let world = World::with(Settings { pod_handshakes: 2, ..patient() });
    world.serve_echo();
    let silent: Vec<_> = (0..20).map(|_| world.connect_inbound()).collect();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    drop(silent);
    // Those that begin a handshake do, and only for as long as it may take.
    let world = World::with(Settings { pod_handshakes: 8, ..quick() });
    world.serve_echo();
    let begin = || {
        let mut stream = world.connect_inbound();
        stream.write_all(&[0x16]).unwrap();
        stream
    };
    let slow: Vec<_> = (0..2).map(|_| begin()).collect();
    thread::sleep(Duration::from_millis(100));
    assert_reset(&mut begin());
    world.wait_refusal(Hook::Inbound, Reason::LimitReached);
    world.eventually("room again", |_| world.ask(b"x").is_ok_and(|answer| answer == b"x"));
    drop(slow);
}

/// A pod whose listeners are made anew, as they are when its application wants their port, has the same bounds.
#[test]
fn bounds_outlive_a_pods_listeners() {
    let world = World::with(Settings { pod_connections: 1, ..patient() });
    world.serve_echo();
    let application = *world.state.application.lock().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address: application, expected: None });
    let mut held = world.connect();
    held.write_all(b"x").unwrap();
    held.read_exact(&mut [0; 1]).unwrap();
    let outbound = attach(world.client_node.as_ref().unwrap(), POD_A, Hook::Outbound);
    assert_reset(&mut client(outbound));
    world.wait_refusal(Hook::Outbound, Reason::LimitReached);
    // The control: there is one place.
    drop(held);
    world.wait_closed(1);
    let mut stream = client(outbound);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
}

/// At most so many idle connections are kept for a destination.
#[test]
fn the_pool_is_bounded_and_forgets() {
    let world = World::with(Settings {
        pooled_per_destination: 2,
        client_idle_timeout: Duration::from_secs(2),
        ..patient()
    });
    world.serve_echo();
    let closed = Cell::new(0);
    let at_once = |count: usize| {
        let mut streams: Vec<_> = (0..count).map(|_| world.connect()).collect();
        for stream in &mut streams {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        }
        drop(streams);
        closed.set(closed.get() + count);
        world.wait_closed(closed.get());
        world.state.handshakes().0
    };
    assert_eq!(at_once(5), 5);
    assert_eq!(at_once(5), 8, "two of the five were kept");
    thread::sleep(Duration::from_millis(4500));
    assert_eq!(at_once(1), 9, "and none for longer than the bound");
}

/// The server's node closes an idle connection: the next stream makes a new one and nothing is lost.
#[test]
fn a_connection_that_the_server_closed_is_not_used() {
    let world = World::with(Settings { server_idle_timeout: Duration::from_millis(150), ..patient() });
    world.serve_echo();
    for round in 1..6 {
        assert_eq!(world.ask(b"x").unwrap(), b"x");
        assert_eq!(world.state.handshakes(), (round, round));
        thread::sleep(Duration::from_millis(350));
    }
}

/// The two meet: the server closes at the moment at which the client opens a stream. Nothing is lost or doubled.
#[test]
fn a_close_that_crosses_an_open_loses_nothing() {
    let world = World::with(Settings { server_idle_timeout: Duration::from_millis(50), ..patient() });
    world.serve_echo();
    let end = Instant::now() + Duration::from_secs(4);
    let mut asked = 0;
    while Instant::now() < end {
        for wait in 95..106 {
            let question = format!("question {asked}");
            assert_eq!(world.ask(question.as_bytes()).unwrap(), question.as_bytes());
            asked += 1;
            thread::sleep(Duration::from_millis(wait));
        }
    }
    let opened = |hook| {
        let entries = world.state.entries();
        entries.iter().filter(|e| matches!(e, Entry::Opened(flow) if flow.hook == hook)).count()
    };
    assert_eq!(opened(Hook::Inbound), asked, "each question was put to the application once");
}

#[test]
fn a_detached_pod_is_left_alone() {
    let world = World::new();
    world.serve_echo();
    let mut stream = world.connect();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    block_on(world.client_node.as_ref().unwrap().detach(POD_A));
    assert_reset(&mut stream);
    assert!(std::net::TcpStream::connect(world.outbound).is_err(), "nobody listens");
    world.eventually("it is told as detached", |state| {
        state.entries().iter().any(|entry| matches!(entry, Entry::Closed(_, Ending::Detached)))
    });
}

#[test]
fn a_drain_lets_streams_end_until_its_deadline() {
    let mut world = World::new();
    world.serve_echo();
    let mut stream = world.connect();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    let outbound = world.outbound;
    let node = world.client_node.take().unwrap();
    let draining = thread::spawn(move || {
        let start = Instant::now();
        block_on(node.drain(Duration::from_secs(20)));
        start.elapsed()
    });
    thread::sleep(Duration::from_millis(200));
    assert!(std::net::TcpStream::connect(outbound).is_err(), "no new ones");
    stream.write_all(b"still").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"still");
    drop(stream);
    let took = draining.join().unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The server's node has only an idle connection left: it ends at once.
    let start = Instant::now();
    block_on(world.server_node.take().unwrap().drain(Duration::from_secs(20)));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn workers_beat_and_take_only_their_own_listeners() {
    let world = World::new();
    let node = world.client_node.as_ref().unwrap();
    let before = node.beats();
    thread::sleep(Duration::from_millis(300));
    assert!(node.beats()[0] > before[0]);
    let result = block_on(node.attach(PodListeners { pod: POD_B, workers: Vec::new() }));
    assert!(matches!(result, Err(AttachError::Count { given: 0, workers: 1 })));
}

/// Each worker accepts for itself.
#[test]
fn several_workers_serve_one_pod() {
    let world = World::new();
    world.serve_echo();
    let environment = Environment {
        sockets: world.state.clone(),
        policy: world.state.clone(),
        credentials: world.state.clone(),
        recorder: world.state.clone(),
    };
    let workers = Workers::start(3, &environment, &patient()).unwrap();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let sets = (0..3).map(|index| {
        let address = if index == 2 { "[::1]:0" } else { "127.0.0.1:0" };
        let listener = TcpListener::bind(address).unwrap();
        addresses.push(listener.local_addr().unwrap());
        WorkerListeners { outbound: vec![listener], inbound: Vec::new() }
    });
    let sets: Vec<_> = sets.collect();
    block_on(workers.attach(PodListeners { pod: POD_A, workers: sets })).unwrap();
    // The transport between the nodes is IPv4, so that only IPv4 clients pass the server's comparison of addresses.
    for address in &addresses[..2] {
        let mut stream = client(*address);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    let mut stream = client(addresses[2]);
    let _ = stream.write_all(b"x");
    assert!(stream.read_exact(&mut [0; 1]).is_err());
    world.wait_refusal(Hook::Inbound, Reason::BadPeer);
    block_on(workers.drain(Duration::ZERO));
}

#[test]
fn a_cut_handshake_message_is_noticed() {
    use crate::proxy::tls::unfinished;
    let record = [0x17, 3, 3, 0, 2, 9, 9];
    assert!(unfinished(&record));
    assert!(unfinished(&[&record[..], &[0x17]].concat()));
    for length in 0..record.len() {
        assert!(!unfinished(&record[..length]), "{length}");
    }
}
