//! What one pod does to its neighbors on a node.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use heddle_ebpf::codes::{Hook, Reason};
use socket2::{Domain, Socket, Type};

use super::world::*;
use crate::proxy::Settings;

/// Streams of the greedy pod.
const MANY: usize = 64;

/// Writes to `count` streams as much as they take, each beginning with `mark`, until `done`.
fn flood(to: SocketAddr, count: usize, mark: u8, done: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut streams: Vec<_> = (0..count).map(|_| client(to)).collect();
        for stream in &mut streams {
            stream.write_all(&[mark]).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        let block = vec![0; 64 * 1024];
        while !done.load(Ordering::SeqCst) {
            let mut full = true;
            for stream in &mut streams {
                match stream.write(&block) {
                    Ok(written) => full &= written == 0,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
            }
            if full {
                thread::sleep(Duration::from_micros(200));
            }
        }
    })
}

/// Clients that ask for much and read none of it hold what was read for them, and never all that their pod has.
#[test]
fn clients_that_do_not_read_leave_buffers_to_others() {
    for plain in [false, true] {
        let world = World::with(Settings { pod_buffers: 8, ..patient() });
        world.plain(plain);
        world.serve(|mut stream| {
            let mut question = [0];
            stream.read_exact(&mut question).unwrap();
            let endless = question == *b"e";
            while stream.write_all(&[0; 64 * 1024]).is_ok() && endless {}
        });
        let ask = |question: &[u8]| {
            let mut stream = world.connect();
            stream.write_all(question).unwrap();
            stream
        };
        let silent: Vec<_> = (0..40).map(|_| ask(b"e")).collect();
        // Until nothing more moves.
        let mut seen = None;
        while seen.replace(world.state.received[0].load(Ordering::SeqCst))
            != Some(world.state.received[0].load(Ordering::SeqCst))
        {
            thread::sleep(Duration::from_millis(500));
        }
        let mut answer = Vec::new();
        ask(b"x").read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 64 * 1024, "plain {plain}");
        drop(silent);
    }
}

/// A client at another address than the nodes', whose connection begins with `bytes`.
fn stranger(world: &World, bytes: &[u8]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.2:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&world.inbound.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    // It may be refused already.
    drop(stream.write_all(bytes));
    stream
}

/// One client's connections, and the handshakes that it does not go on with, leave room for other clients of the pod.
#[test]
fn one_client_leaves_room_for_others() {
    let cases = [
        (&[0x16][..], Settings { pod_handshakes: 8, ..patient() }),
        (&[], Settings { pod_connections: 8, ..patient() }),
    ];
    for (bytes, settings) in cases {
        let world = World::with(settings);
        world.serve_echo();
        let held: Vec<_> = (0..12).map(|_| stranger(&world, bytes)).collect();
        world.wait_refusal(Hook::Inbound, Reason::LimitReached);
        assert_eq!(world.ask(b"x").unwrap(), b"x");
        drop(held);
    }
}

/// Streams to an application that takes no connection hold what they began with, and leave the pod's buffers to others.
#[test]
fn streams_that_wait_for_an_application_leave_buffers_to_others() {
    let world = World::with(Settings { pod_buffers: 2, ..patient() });
    // Its queue is full: to connect to it takes for ever.
    let busy = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    busy.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    busy.listen(0).unwrap();
    let address = busy.local_addr().unwrap().as_socket().unwrap();
    let _queued = client(address);
    *world.state.application.lock().unwrap() = address;
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = world.connect();
            stream.write_all(b"what waits").unwrap();
            stream
        })
        .collect();
    world.eventually("four handshakes", |state| state.handshakes().1 == 4);
    thread::sleep(Duration::from_millis(500));
    world.serve_echo();
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    drop(waiting);
}

/// A pod that fills the pool with its own idle connections leaves room for its neighbor's.
#[test]
fn the_pool_has_room_for_every_pod() {
    let world = World::with(Settings { pooled: 4, ..patient() });
    let neighbor = world.neighbor();
    world.serve_echo();
    let ask = |to: SocketAddr| {
        let mut stream = client(to);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let many: Vec<_> = (0..6).map(|_| ask(world.outbound)).collect();
    drop(many);
    world.wait_closed(6);
    drop(ask(neighbor));
    world.wait_closed(7);
    assert_eq!(world.state.handshakes().0, 7);
    drop(ask(neighbor));
    assert_eq!(world.state.handshakes().0, 7, "the neighbor's connection was kept");
}

/// What pods with one stream and with many carry of a worker's time: as much, in plain text and in mesh TLS.
#[test]
fn a_pod_with_many_streams_leaves_its_neighbor_as_much() {
    for plain in [false, true] {
        let world = World::new();
        let neighbor = world.neighbor();
        world.plain(plain);
        let carried: Arc<[AtomicU64; 2]> = Arc::default();
        let counted = Arc::clone(&carried);
        world.serve(move |mut stream| {
            let mut mark = [0];
            if stream.read_exact(&mut mark).is_err() {
                return;
            }
            let mut sink = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut sink) {
                counted[usize::from(mark[0])].fetch_add(count as u64, Ordering::SeqCst);
            }
        });
        let done = Arc::<AtomicBool>::default();
        let many = flood(world.outbound, MANY, 0, Arc::clone(&done));
        let count = |pod: usize| carried[pod].load(Ordering::SeqCst);
        let wait = |pod: usize, bytes: u64| {
            while count(pod) < bytes {
                assert!(!many.is_finished());
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait(0, 64 << 20);
        let one = flood(neighbor, 1, 1, Arc::clone(&done));
        wait(1, 4 << 20);
        // Whatever else the machine does may keep the neighbor itself from its work now and then.
        let mut ratio = f64::INFINITY;
        for _ in 0..8 {
            let before = (count(0), count(1));
            wait(1, before.1 + (16 << 20));
            ratio = ratio.min((count(0) - before.0) as f64 / (count(1) - before.1) as f64);
            if ratio < MANY as f64 / 8.0 {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        many.join().unwrap();
        one.join().unwrap();
        println!("plain {plain}: the greedy pod carried {ratio:.1} times what its neighbor did");
        assert!(ratio < MANY as f64 / 8.0, "{ratio}");
    }
}
