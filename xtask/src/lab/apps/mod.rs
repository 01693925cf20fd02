//! Applications that know nothing of the mesh: nginx, and small ones of the lab's own for what no ordinary program
//! reports (the errno of a connect, the first byte's time, who the peer is).
//!
//! The small ones are commands of the `xtask` program: `xtask app <name> …`. A pod's program must be a process of
//! its own, because a socket belongs to the cgroup of the process that made it.

mod connect;
mod load;
mod relay;
mod serve;
mod talk;
mod unusual;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    place::Place,
    program::{Output, Running, beside_this_program},
};

pub use connect::{Attempt, Outcome, errno_name};
pub use load::{Burst, Flood, Volley};
pub use talk::{Accepted, Talk};
pub use unusual::hand_over;

/// What a server prints once it listens.
const READY: &str = "ready\n";

/// Runs an application if the program was called as `xtask app …`; to be asked before arguments are parsed.
pub fn entry() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("app") {
        return None;
    }
    let arguments: Vec<String> = arguments.collect();
    Some(match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", address] => serve::echo(address.parse()?),
        ["greet", address, text] => serve::greet(address.parse()?, text),
        ["stall", address] => serve::stall(address.parse()?),
        ["accept", address] => serve::accept_and_close(address.parse()?),
        ["once", address] => serve::once(address.parse()?),
        ["relay", address, to] => relay::run(address.parse()?, to.parse()?),
        ["sink", address] => serve::sink(address.parse()?),
        ["udp-echo", address] => serve::udp_echo(address.parse()?),
        ["connect", attempt] => connect::run(&serde_json::from_str(attempt)?),
        ["call", attempt] => talk::call(&serde_json::from_str(attempt)?),
        ["attend", address, device] => talk::attend(address.parse()?, device),
        ["late", address, text] => unusual::late(address.parse()?, text),
        ["make", path, address] => unusual::make(Path::new(path), address.parse()?),
        ["take", path, address, text] => unusual::take(Path::new(path), address.parse()?, text),
        ["fast-open", address, text] => unusual::fast_open(address.parse()?, text),
        ["raw", packet] => connect::send_raw(packet),
        ["hold", address, count] => load::hold(address.parse()?, count.parse()?),
        ["press", address] => load::press(address.parse()?),
        ["volley", address, count] => load::volley(address.parse()?, count.parse()?),
        ["flood", address, milliseconds] => {
            load::flood(address.parse()?, Duration::from_millis(milliseconds.parse()?))
        }
        ["floods", address, streams, milliseconds] => {
            load::floods(address.parse()?, streams.parse()?, Duration::from_millis(milliseconds.parse()?))
        }
        ["pace", address, rate, milliseconds] => {
            load::pace(address.parse()?, rate.parse()?, Duration::from_millis(milliseconds.parse()?))
        }
        ["burst", address, threads, milliseconds] => {
            load::burst(address.parse()?, threads.parse()?, Duration::from_millis(milliseconds.parse()?))
        }
        _ => bail!("no application {words:?}"),
    }
}

fn program() -> Result<String> {
    let path = beside_this_program("xtask", "HEDDLE_XTASK", "cargo build -p xtask")?;
    Ok(path.to_string_lossy().into_owned())
}

fn command(arguments: &[&str]) -> Result<Vec<String>> {
    let mut command = vec![program()?, "app".to_owned()];
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Ok(command)
}

/// Starts a server or a holder in `place` and waits until it says that it is ready.
///
/// - `echo ADDRESS:PORT`: sends back what it is sent; prints `from PEER to LOCAL` for each connection
/// - `greet ADDRESS:PORT TEXT`: speaks first, then reads to the end
/// - `stall ADDRESS:PORT`: accepts and never reads
/// - `accept ADDRESS:PORT`: accepts and closes at once
/// - `once ADDRESS:PORT`: sends one byte back and closes
/// - `sink ADDRESS:PORT`: reads to the end, then answers with the number of bytes
/// - `relay ADDRESS:PORT ADDRESS:PORT`: copies each connection to the second address and back
/// - `udp-echo ADDRESS:PORT`
/// - `late ADDRESS:PORT TEXT`: makes its socket at once, connects it and sends TEXT when it is told to by a line of
///   input, and prints what came back
/// - `make PATH ADDRESS:PORT`: makes a socket, and gives it to whoever takes it at the unix socket PATH
/// - `hold ADDRESS:PORT COUNT`: opens COUNT connections, sends a byte on each and waits for one back, then holds them
///   until its input ends
/// - `press ADDRESS:PORT`: opens connection after connection and holds the last of them, until its input ends; prints
///   how many brought an answer as a [`Burst`]
///
/// # Errors
/// When it does not become ready.
pub fn start(place: &Place, arguments: &[&str]) -> Result<Running> {
    let running = place.spawn(&command(arguments)?)?;
    running.wait_for(READY, Duration::from_secs(30))?;
    Ok(running)
}

/// Runs a client to its end and reads the JSON that it prints.
fn ask<T: serde::de::DeserializeOwned>(place: &Place, arguments: &[&str], limit: Duration) -> Result<T> {
    let output = place.spawn(&command(arguments)?)?.finish(limit)?;
    serde_json::from_str(&output.stdout).with_context(|| {
        let Output { code, stdout, stderr, took } = &output;
        format!("{arguments:?} ended with {code:?} after {took:?} and printed {stdout:?}, {stderr:?}")
    })
}

/// Sends `text` to an echo server with its SYN (TCP Fast Open), and gives what came back.
///
/// # Errors
/// When it cannot be run; that nothing came back is an outcome.
pub fn fast_open(place: &Place, to: std::net::SocketAddr, text: &str) -> Result<super::Output> {
    place.run(&command(&["fast-open", &to.to_string(), text])?)
}

/// Takes the socket that somebody gives at `path`, connects it and sends `text` to an echo server; gives what came back.
///
/// # Errors
/// When it cannot be run; that nothing came back is an outcome.
pub fn take(place: &Place, path: &Path, to: std::net::SocketAddr, text: &str) -> Result<super::Output> {
    place.run(&command(&["take", &path.display().to_string(), &to.to_string(), text])?)
}

/// Connects from `place` and tells what came of it.
///
/// # Errors
/// When the application cannot be run; that the connection failed is an outcome.
pub fn connect(place: &Place, attempt: &Attempt) -> Result<Outcome> {
    let limit = Duration::from_millis(attempt.milliseconds * 3 + 2000);
    ask(place, &["connect", &serde_json::to_string(attempt)?], limit)
}

/// Sends one raw IPv4 or IPv6 packet from `place`: the whole of IPv4 (`IP_HDRINCL`), for IPv6 what follows the
/// header, as protocol `protocol`.
///
/// # Errors
/// When the kernel refuses.
pub fn send_raw(place: &Place, to: std::net::IpAddr, protocol: u8, packet: &[u8]) -> Result<()> {
    let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    place.check(&command(&["raw", &format!("{to} {protocol} {hex}")])?).map(drop)
}

/// 64 B question and answer, `count` times over one connection.
///
/// # Errors
/// When a connection fails.
pub fn volley(place: &Place, to: std::net::SocketAddr, count: u32) -> Result<Volley> {
    ask(place, &["volley", &to.to_string(), &count.to_string()], Duration::from_secs(60))
}

/// One stream to a `sink` for `time`.
///
/// # Errors
/// When the connection fails or bytes were lost.
pub fn flood(place: &Place, to: std::net::SocketAddr, time: Duration) -> Result<Flood> {
    let milliseconds = time.as_millis().to_string();
    ask(place, &["flood", &to.to_string(), &milliseconds], time + Duration::from_secs(60))
}

/// So many streams to a `sink` for `time`, and what they carried together.
///
/// # Errors
/// When a connection fails or bytes were lost.
pub fn floods(place: &Place, to: std::net::SocketAddr, streams: usize, time: Duration) -> Result<Flood> {
    let (streams, milliseconds) = (streams.to_string(), time.as_millis().to_string());
    ask(place, &["floods", &to.to_string(), &streams, &milliseconds], time + Duration::from_secs(60))
}

/// One stream to a `sink` for `time`, no faster than `rate` bytes a second.
///
/// # Errors
/// When the connection fails or bytes were lost.
pub fn pace(place: &Place, to: std::net::SocketAddr, rate: f64, time: Duration) -> Result<Flood> {
    let milliseconds = time.as_millis().to_string();
    ask(place, &["pace", &to.to_string(), &rate.to_string(), &milliseconds], time + Duration::from_secs(60))
}

/// New connections to a `once`, each with one byte there and back, from `threads` threads for `time`, and one of each at
/// least.
///
/// # Errors
/// When none succeeds.
pub fn burst(place: &Place, to: std::net::SocketAddr, threads: u32, time: Duration) -> Result<Burst> {
    let (threads, milliseconds) = (threads.to_string(), time.as_millis().to_string());
    ask(place, &["burst", &to.to_string(), &threads, &milliseconds], time + Duration::from_secs(60))
}

/// Starts nginx; it answers every path with `body`. It keeps its files in `directory`.
///
/// # Errors
/// When it does not start.
pub fn nginx(place: &Place, directory: &Path, port: u16, body: &str) -> Result<Running> {
    let root = directory.join(format!("nginx-{port}"));
    fs::create_dir_all(&root)?;
    fs::write(root.join("body"), body)?;
    let shown = root.display();
    fs::write(
        root.join("nginx.conf"),
        format!(
            "daemon off; master_process off; pid {shown}/pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log {shown}/access.log;\n  client_body_temp_path {shown}/t1; proxy_temp_path {shown}/t2;\n  \
             fastcgi_temp_path {shown}/t3; uwsgi_temp_path {shown}/t4; scgi_temp_path {shown}/t5;\n  default_type text/plain;\n  \
             server {{\n    listen 0.0.0.0:{port}; listen [::]:{port} ipv6only=on;\n    root {shown};\n    \
             location / {{ try_files /body =404; }}\n  }}\n}}\n"
        ),
    )?;
    // All its paths are its own: it may be unpacked somewhere and not installed.
    let config = root.join("nginx.conf").display().to_string();
    let mut running =
        place.spawn(&["nginx", "-p", &root.to_string_lossy(), "-e", "stderr", "-c", &config])?;
    // It does not say when it listens; its pid file is written after that.
    let until = Instant::now() + crate::lab::stretched(Duration::from_secs(10));
    while !root.join("pid").exists() {
        if !running.is_running() || Instant::now() > until {
            bail!("nginx did not start: {}", running.stderr());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(running)
}
