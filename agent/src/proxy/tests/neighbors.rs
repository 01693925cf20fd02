//! What one pod does to its neighbors on a node.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::world::*;

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
            stream.read_exact(&mut mark).unwrap();
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
        let before = (count(0), count(1));
        wait(1, 68 << 20);
        let after = (count(0), count(1));
        done.store(true, Ordering::SeqCst);
        many.join().unwrap();
        one.join().unwrap();
        let ratio = (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
        println!("plain {plain}: the greedy pod carried {ratio:.1} times what its neighbor did");
        assert!(ratio < MANY as f64 / 8.0, "{ratio}");
    }
}
