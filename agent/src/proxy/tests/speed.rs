//! What a pair of relays costs, printed. Not a benchmark: a look, so that a change that halves it is seen.
//!
//! `cargo test --release -p heddle --lib proxy::tests::speed -- --ignored --nocapture --test-threads 1`

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::world::*;

const BLOCK: usize = 256 * 1024;

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; BLOCK];
    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    drop(stream.write_all(b"k"));
}

/// GB/s of one stream.
fn stream_rate(address: SocketAddr) -> f64 {
    let block = vec![7; BLOCK];
    let mut stream = client(address);
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(1500) {
        stream.write_all(&block).unwrap();
        sent += block.len();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    sent as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// GB/s of many streams that one thread writes to.
fn streams_rate(address: SocketAddr) -> f64 {
    const STREAMS: usize = 64;
    let block = vec![7; 64 * 1024];
    let mut streams: Vec<_> = (0..STREAMS).map(|_| client(address)).collect();
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(1500) {
        let written: usize = streams.iter_mut().filter_map(|stream| stream.write(&block).ok()).sum();
        if written == 0 {
            thread::sleep(Duration::from_micros(200));
        }
        sent += written;
    }
    for stream in &mut streams {
        stream.set_nonblocking(false).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in &mut streams {
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    sent as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// The median of a 64-byte question and answer, in microseconds.
fn latency(address: SocketAddr) -> f64 {
    let mut stream = client(address);
    stream.set_nodelay(true).unwrap();
    let mut times: Vec<_> = (0..3000)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(&[1; 64]).unwrap();
            stream.read_exact(&mut [0; 64]).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Connections a second from one thread: connect, a question, its answer, close.
fn connection_rate(address: SocketAddr) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_secs(1) {
        let mut stream = client(address);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn direct(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
#[ignore = "a look at the speed; run it in release"]
fn relays_against_direct() {
    let world = World::new();
    for _ in 0..2 {
        world.serve(sink);
        let measure = |address| {
            let before = cpu();
            let rate = stream_rate(address);
            (rate, (cpu() - before) / (rate * 1.5))
        };
        let (straight, straight_cpu) = measure(direct(sink));
        let (through, through_cpu) = measure(world.outbound);
        world.plain(true);
        let (copied, copied_cpu) = measure(world.outbound);
        world.plain(false);
        println!(
            "one stream, GB/s: direct {straight:.2}, copying relays {copied:.2}, relays {through:.2} ({:.2} of direct)",
            through / straight
        );
        println!(
            "  CPU s a GB: direct {straight_cpu:.2}, copying relays {copied_cpu:.2}, relays {through_cpu:.2} (relays alone {:.2} of copying)",
            (through_cpu - straight_cpu) / (copied_cpu - straight_cpu)
        );
        let (a, b) = (streams_rate(direct(sink)), streams_rate(world.outbound));
        println!("many streams, GB/s: direct {a:.2}, relays {b:.2} ({:.2} of direct)", b / a);
        world.serve(echo);
        let straight = direct(echo);
        let (a, b) = (latency(straight), latency(world.outbound));
        println!("64 B round trip: direct {a:.0} us, relays {b:.0} us, ratio {:.2}", b / a);
        let (a, b) = (connection_rate(straight), connection_rate(world.outbound));
        println!("connections: direct {a:.0}/s, relays {b:.0}/s, ratio {:.2}", b / a);
    }
    println!("handshakes {:?}", world.state.handshakes());
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
#[ignore = "a look at memory; run it alone"]
fn an_idle_stream_in_memory() {
    const COUNT: usize = 2_000;
    let world = World::new();
    let held = std::sync::Mutex::new(Vec::new());
    // No thread for each: they say something once and are kept.
    world.serve(move |mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(b"y").unwrap();
        held.lock().unwrap().push(stream);
    });
    let open = || {
        let mut stream = client(world.outbound);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        stream
    };
    let warm: Vec<_> = (0..200).map(|_| open()).collect();
    thread::sleep(Duration::from_secs(1));
    let before = resident();
    let streams: Vec<_> = (0..COUNT).map(|_| open()).collect();
    thread::sleep(Duration::from_secs(2));
    let each = (resident() - before) / COUNT;
    println!("{each} bytes for a stream: both agents' sides together");
    // The allocator's rounding, tokio's registrations of four sockets and the test's own records are in it.
    assert!(each <= 16 * 1024, "{each}");
    drop((warm, streams));
}
