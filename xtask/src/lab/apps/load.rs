//! The load of the bench: what it does is counted where it is done.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Questions and answers of 64 B over one connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volley {
    /// How long half of them took at most, in microseconds.
    pub p50: f64,
    /// How long 99 % of them took at most, in microseconds.
    pub p99: f64,
    /// How many there were.
    pub count: u32,
}

/// One stream, or several together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Bytes that the receiver counted.
    pub bytes: u64,
    /// Seconds until the receiver had counted them.
    pub seconds: f64,
}

/// New connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Burst {
    /// Connections over which a byte went there and back.
    pub succeeded: u64,
    /// Those over which none did.
    pub failed: u64,
    /// Why the last of them failed.
    pub last_error: Option<String>,
    /// How long it went on.
    pub seconds: f64,
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    Ok(stream)
}

pub fn volley(address: SocketAddr, count: u32) -> Result<()> {
    let mut stream = connect(address)?;
    let (question, mut answer) = ([7u8; 64], [0u8; 64]);
    let mut times = Vec::with_capacity(count as usize);
    // The first tenth is not counted: caches, pools and congestion windows are cold.
    for round in 0..count + count / 10 {
        let began = Instant::now();
        stream.write_all(&question)?;
        stream.read_exact(&mut answer)?;
        ensure!(answer == question, "the answer is not the question");
        if round >= count / 10 {
            times.push(began.elapsed());
        }
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    print(&Volley { p50: at(0.5), p99: at(0.99), count })
}

pub fn flood(address: SocketAddr, time: Duration) -> Result<()> {
    let mut stream = connect(address)?;
    let block = vec![0x5au8; 256 * 1024];
    let (began, mut sent) = (Instant::now(), 0u64);
    while began.elapsed() < time {
        stream.write_all(&block)?;
        sent += block.len() as u64;
    }
    received(stream, sent, began)
}

/// As [`flood`], over so many streams from one thread: each has as much of its time as it takes bytes.
pub fn floods(address: SocketAddr, streams: usize, time: Duration) -> Result<()> {
    let mut streams = (0..streams)
        .map(|_| {
            let stream = connect(address)?;
            stream.set_nonblocking(true)?;
            Ok((stream, 0u64))
        })
        .collect::<Result<Vec<_>>>()?;
    let block = vec![0x5au8; 64 * 1024];
    let began = Instant::now();
    while began.elapsed() < time {
        let mut full = true;
        for (stream, sent) in &mut streams {
            match stream.write(&block) {
                Ok(count) => {
                    full = false;
                    *sent += count as u64;
                }
                Err(error) => ensure!(error.kind() == ErrorKind::WouldBlock, "a stream broke: {error}"),
            }
        }
        if full {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut bytes = 0;
    for (stream, sent) in streams {
        stream.set_nonblocking(false)?;
        bytes += counted(stream, sent)?;
    }
    print(&Flood { bytes, seconds: began.elapsed().as_secs_f64() })
}

/// Ends the stream, and tells how much the receiver has counted and since when.
fn received(stream: TcpStream, sent: u64, began: Instant) -> Result<()> {
    print(&Flood { bytes: counted(stream, sent)?, seconds: began.elapsed().as_secs_f64() })
}

fn counted(mut stream: TcpStream, sent: u64) -> Result<u64> {
    stream.shutdown(Shutdown::Write)?;
    let mut counted = [0u8; 8];
    stream.read_exact(&mut counted).context("the receiver did not say how much it got")?;
    let bytes = u64::from_be_bytes(counted);
    ensure!(bytes == sent, "{sent} bytes were sent and {bytes} received");
    Ok(bytes)
}

/// As [`flood`], no faster than `rate` bytes a second over the whole time: what was held up is made up for.
pub fn pace(address: SocketAddr, rate: f64, time: Duration) -> Result<()> {
    let mut stream = connect(address)?;
    let block = vec![0x5au8; 64 * 1024];
    let (began, mut sent) = (Instant::now(), 0u64);
    while began.elapsed() < time {
        if sent as f64 > began.elapsed().as_secs_f64() * rate {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        stream.write_all(&block)?;
        sent += block.len() as u64;
    }
    received(stream, sent, began)
}

pub fn burst(address: SocketAddr, threads: u32, time: Duration) -> Result<()> {
    let began = Instant::now();
    let mut total = Burst { succeeded: 0, failed: 0, last_error: None, seconds: 0.0 };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || connections(address, began, time))).collect();
        for worker in workers {
            // A thread that panicked counts nothing; the figures of the others stay true.
            let Ok((succeeded, failed, error)) = worker.join() else { continue };
            total.succeeded += succeeded;
            total.failed += failed;
            total.last_error = error.or(total.last_error.take());
        }
    });
    total.seconds = began.elapsed().as_secs_f64();
    ensure!(total.succeeded > 0, "not one connection succeeded: {}", total.last_error.unwrap_or_default());
    print(&total)
}

fn connections(address: SocketAddr, began: Instant, time: Duration) -> (u64, u64, Option<String>) {
    let (mut succeeded, mut failed, mut last) = (0, 0, None);
    // One in any case: on a machine that was busy meanwhile the time may be over before anything was tried.
    loop {
        match one_byte(address) {
            Ok(()) => succeeded += 1,
            Err(error) => {
                failed += 1;
                last = Some(format!("{error:#}"));
            }
        }
        if began.elapsed() >= time {
            return (succeeded, failed, last);
        }
    }
}

fn one_byte(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address)?;
    let mut answer = [0u8; 1];
    stream.write_all(b"?")?;
    stream.read_exact(&mut answer)?;
    // The server closes first.
    ensure!(stream.read(&mut answer)? == 0, "more than the answer came");
    Ok(())
}

pub fn hold(address: SocketAddr, count: usize) -> Result<()> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(address)?;
        let mut answer = [0u8; 1];
        stream.write_all(b"?")?;
        stream.read_exact(&mut answer)?;
        held.push(stream);
    }
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(held);
    Ok(())
}

/// Opens connection after connection from four threads and holds the last hundred of each that brought an answer, until
/// its input ends; then tells how many brought one and how many did not.
pub fn press(address: SocketAddr) -> Result<()> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    const HELD: usize = 100;
    let (ended, answered, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    println!("ready");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut held = std::collections::VecDeque::new();
                while !ended.load(Relaxed) {
                    match answered_once(address) {
                        Ok(stream) => {
                            answered.fetch_add(1, Relaxed);
                            held.push_back(stream);
                        }
                        // A moment, so that refusals do not take the machine for themselves.
                        Err(_) => {
                            refused.fetch_add(1, Relaxed);
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                    if held.len() > HELD {
                        held.pop_front();
                    }
                }
            });
        }
        let copied = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.store(true, Relaxed);
        copied
    })?;
    print(&Burst {
        succeeded: answered.load(Relaxed),
        failed: refused.load(Relaxed),
        last_error: None,
        seconds: 0.0,
    })
}

fn answered_once(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(address)?;
    let mut answer = [0u8; 1];
    stream.write_all(b"?")?;
    stream.read_exact(&mut answer)?;
    Ok(stream)
}

fn print(result: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
