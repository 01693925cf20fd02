//! A peer that misbehaves costs itself its connection, in bounded time and memory: never the agent, never a
//! neighbor, and never does it fall into a weaker class of policy.

mod common {
    pub mod crowd;
    pub mod nodes;
    pub mod peers;
    pub mod policy_yaml;
    pub mod told;
}

use std::{
    io::Write,
    net::{IpAddr, Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use common::{
    crowd,
    nodes::{lab, office, shop},
    peers::{Got, Manner, ask, certificate, dial, names, to_the_end},
    policy_yaml::{Clients, server},
    told::{SOON, field, told},
};
use heddle_ebpf::codes::Reason;
use xtask::lab::{
    Lab, Pod, Running,
    apps::{self, Attempt},
    eventually,
};

const MARKER: &[u8] = b"heddle-marker-91d2";
/// An agent gives a handshake ten seconds; a slow machine may add its own.
const BOUND: Duration = Duration::from_secs(45);

struct Scene {
    lab: Lab,
    /// Lets the identity of `client` in on 7000, and besides it `outside` on 8080.
    api: Pod,
    /// At a meshed address of a node without an agent: it may send whatever it likes.
    rogue: Pod,
    echoes: Vec<Running>,
}

fn scene(name: &str) -> Result<Scene> {
    let mut lab = lab(name)?;
    let api = lab.pod(&shop("api", "node-a"))?;
    let rogue = lab.pod(&shop("rogue", "node-b"))?;
    let [client, _] = names("client");
    let office = office();
    let office = office.each_ref().map(String::as_str);
    let identities = Clients::Identities(&[&client]);
    let rules = server("api", 7000, "opaque", &[identities])
        + &server("api", 8080, "unknown", &[identities, Clients::Networks(&office)])
        + &server("api", 8081, "opaque", &[Clients::Networks(&office)]);
    lab.apply("rules.yaml", &rules)?;
    let echoes = vec![api.app(&["echo", "[::]:7000"])?, api.app(&["echo", "[::]:8080"])?];
    lab.start_agent("node-a")?;
    Ok(Scene { lab, api, rogue, echoes })
}

impl Scene {
    fn places(&self) -> [(&'static str, &xtask::lab::Place, u16); 2] {
        // From a meshed address; and from one where plain bytes are let in, to a port that looks at them first.
        [("rogue", self.rogue.place(), 7000), ("outside", self.lab.outside(), 8080)]
    }

    /// The agent lives, and a peer that behaves is served.
    fn a_proper_peer_is_served(&self) -> Result<()> {
        for (who, place, port) in self.places() {
            for ip in [self.api.v4.into(), self.api.v6.into()] {
                let own = certificate(&self.lab, &names("client"), true)?;
                let sni = self.api.identity();
                let to = SocketAddr::new(ip, port);
                let got = place.enter(|| ask(to, Manner::proper(&sni, Some(own)), MARKER))?;
                ensure!(got == Got::Echo, "control: a proper peer, {who} to {to}: {got:?}");
            }
        }
        Ok(())
    }

    fn heard_of(&self, marker: &[u8]) -> bool {
        let marker = String::from_utf8_lossy(marker).into_owned();
        self.echoes.iter().any(|echo| echo.stdout().contains(&marker))
    }

    fn accepted(&self) -> usize {
        self.echoes.iter().map(|echo| echo.stdout().matches("from ").count()).sum()
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn only_the_right_certificate_opens_a_stream() -> Result<()> {
    let scene = scene("peers-tls")?;
    scene.a_proper_peer_is_served()?;
    let accepted = scene.accepted();
    let own_name = scene.api.identity();
    let [other_name, _] = names("rogue");
    let of = |account: &str, by_ca: bool| certificate(&scene.lab, &names(account), by_ca).map(Some);
    let crossed = [names("client")[0].clone(), names("rogue")[1].clone()];
    let manners = || -> Result<Vec<(&str, Manner<'_>)>> {
        let proper = || -> Result<Manner<'_>> { Ok(Manner::proper(&own_name, of("client", true)?)) };
        let crossed = certificate(&scene.lab, &crossed, true)?;
        Ok(vec![
            ("no certificate", Manner::proper(&own_name, None)),
            ("a self-made certificate", Manner::proper(&own_name, of("client", false)?)),
            ("two identities in one certificate", Manner::proper(&own_name, Some(crossed))),
            ("TLS 1.2", Manner { version: &rustls::version::TLS12, ..proper()? }),
            ("another protocol in ALPN", Manner { alpn: b"h2", ..proper()? }),
        ])
    };
    let agent = scene.lab.agent("node-a")?;
    let events = agent.events()?;
    for (who, place, port) in scene.places() {
        let to = SocketAddr::new(scene.api.v4.into(), port);
        for (what, manner) in manners()? {
            events.drain();
            let got = place.enter(|| ask(to, manner, MARKER))?;
            ensure!(got == Got::Ended, "{what}, {who}: {got:?}");
            let event =
                events.next(SOON, |event| ["tls_failed", "no_identity"].contains(&field(event, "reason")));
            ensure!(event.is_some(), "{what}, {who}: nobody told");
        }
    }
    // The right authority, and an identity that no rule names.
    let to = SocketAddr::new(scene.api.v4.into(), 7000);
    let rogue = scene.rogue.place();
    let got = rogue.enter(|| ask(to, Manner::proper(&own_name, of("stranger", true)?), MARKER))?;
    ensure!(got == Got::Refused(Reason::Unauthorized as u32), "another identity: {got:?}");
    told(&events, "unauthorized")?;
    // Another pod's name, at a meshed address: this pod answers to its own alone.
    let to = SocketAddr::new(scene.api.v4.into(), 7000);
    let got =
        scene.rogue.place().enter(|| ask(to, Manner::proper(&other_name, of("client", true)?), MARKER))?;
    ensure!(got == Got::Ended, "another pod's name: {got:?}");
    ensure!(scene.accepted() == accepted, "the application was reached by one of them");
    scene.a_proper_peer_is_served()?;
    scene.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn garbage_slowness_and_size_end_their_own_connection_alone() -> Result<()> {
    let scene = scene("peers-bytes")?;
    scene.a_proper_peer_is_served()?;
    let plain = apps::connect(scene.lab.outside(), &Attempt::new((scene.api.v4, 8080), "by address"))?;
    ensure!(plain.received == "by address", "control: plain bytes are let in from outside: {plain:?}");
    let accepted = scene.accepted();
    let own = scene.api.identity();
    let hello = Manner::proper(&own, None).hello()?;
    ensure!(hello.len() > 1_000, "a post-quantum key share is in it");
    let half = hello[..hello.len() / 2].to_vec();
    // A handshake message that says it has 16 MiB, in full records.
    let mut huge = Vec::new();
    for index in 0..1_024 {
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.extend(if index == 0 { &[1, 0xff, 0xff, 0xff, 3, 3][..] } else { &[0; 6][..] });
        record.resize(5 + 0x4000, 0);
        huge.extend(record);
    }
    let garbage: Vec<u8> =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    let alert = [0x15, 3, 3, 0, 2, 2, 40];
    let close_notify = [0x15, 3, 3, 0, 2, 1, 0];
    let alerts: Vec<u8> = hello.iter().copied().chain(alert.repeat(500)).collect();
    let closes: Vec<u8> = hello.iter().copied().chain(close_notify.repeat(500)).collect();
    let many_records: Vec<u8> = hello.iter().copied().chain([0x14, 3, 3, 0, 1, 1].repeat(20_000)).collect();
    let cases: [(&str, &[u8], bool); 8] = [
        ("half a ClientHello, then an end", &half, true),
        ("half a ClientHello, then silence", &half, false),
        ("a huge ClientHello", &huge, false),
        ("alerts after the ClientHello", &alerts, false),
        ("close_notify after the ClientHello", &closes, true),
        ("no end of change_cipher_spec", &many_records, false),
        ("a whole ClientHello, then silence", &hello, false),
        ("a whole ClientHello, then an end", &hello, true),
    ];
    let agent = scene.lab.agent("node-a")?;
    let before = agent.resident_bytes()?;
    let send = |to: SocketAddr, bytes: &[u8], end: bool| -> Result<(Vec<u8>, Duration)> {
        let mut stream = dial(to)?;
        let began = Instant::now();
        // It may be ended before it has heard everything.
        drop(stream.write_all(bytes));
        if end {
            drop(stream.shutdown(Shutdown::Write));
        }
        let heard = to_the_end(&mut stream);
        Ok((heard, began.elapsed()))
    };
    for (who, place, port) in scene.places() {
        let to = SocketAddr::new(scene.api.v4.into(), port);
        std::thread::scope(|scope| -> Result<()> {
            let tries: Vec<_> = cases
                .iter()
                .map(|&(what, bytes, end)| (what, scope.spawn(move || place.enter(|| send(to, bytes, end)))))
                .collect();
            for (what, attempt) in tries {
                let (heard, took) = attempt.join().expect("no panic")?;
                ensure!(took < BOUND, "{what}, {who}: it took {took:?}");
                ensure!(
                    !heard.windows(64).any(|bytes| hello.windows(64).any(|own| own == bytes)),
                    "{what}, {who}: echoed"
                );
            }
            Ok(())
        })?;
    }
    // At a meshed address plain bytes are nobody's, however they come.
    let to = SocketAddr::new(scene.api.v4.into(), 7000);
    for (what, bytes) in
        [("garbage", &garbage[..]), ("a plain request", b"GET / HTTP/1.0\r\n\r\n"), ("nothing", b"")]
    {
        let (heard, took) = scene.rogue.place().enter(|| send(to, bytes, true))?;
        ensure!(took < BOUND && !heard.windows(8).any(|heard| heard == &garbage[..8]), "{what}: {took:?}");
    }
    // A byte a second is no way to stay.
    let began = Instant::now();
    scene.rogue.place().enter(|| {
        let mut stream = dial(to)?;
        for byte in &hello {
            if stream.write_all(&[*byte]).is_err() || began.elapsed() > BOUND {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    ensure!(began.elapsed() < BOUND, "a slow ClientHello: {:?}", began.elapsed());
    ensure!(scene.accepted() == accepted, "the application was reached: a weaker class of policy");
    ensure!(!scene.heard_of(MARKER));
    // A panic ends one connection only, but none should come of what a peer sends.
    ensure!(!agent.log().contains("panicked"), "{}", agent.log_tail(60));
    let grown = agent.resident_bytes()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "the agent has grown by {grown} bytes");
    scene.a_proper_peer_is_served()?;
    scene.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_end_in_any_state_of_a_handshake_or_stream_harms_nobody() -> Result<()> {
    let scene = scene("peers-ends")?;
    let own_name = scene.api.identity();
    let to = SocketAddr::new(scene.api.v4.into(), 7000);
    let own = certificate(&scene.lab, &names("client"), true)?;
    let agent = scene.lab.agent("node-a")?;
    let cpu = agent.cpu_time()?;
    for keep in 0..12 {
        let copy = (own.0.clone(), own.1.clone_key());
        scene.rogue.place().enter(|| {
            let mut tls = Manner::proper(&own_name, Some(copy)).tls()?;
            let mut stream = dial(to)?;
            // So many writes and reads, then the alert and the end, or the bare end.
            for step in 0..keep / 2 {
                if tls.wants_write() {
                    tls.write_tls(&mut stream)?;
                } else if tls.is_handshaking() {
                    tls.read_tls(&mut stream)?;
                    drop(tls.process_new_packets());
                } else {
                    tls.writer().write_all(&[step as u8; 100])?;
                    drop(tls.write_tls(&mut stream));
                }
            }
            if keep % 2 == 0 {
                tls.send_close_notify();
                drop(tls.write_tls(&mut stream));
            }
            drop(stream.shutdown(Shutdown::Write));
            to_the_end(&mut stream);
            Ok(())
        })?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let after = agent.cpu_time()?;
    std::thread::sleep(Duration::from_secs(2));
    let idle = agent.cpu_time()?.saturating_sub(after);
    ensure!(
        idle < Duration::from_secs(1),
        "it spins: {idle:?} of CPU in two idle seconds, {:?} before",
        after - cpu
    );
    scene.a_proper_peer_is_served()?;
    scene.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn idle_and_half_closed_connections_are_bounded_and_leave_the_neighbors_their_share() -> Result<()> {
    // HEDDLE_PEERS=100000 for the whole of it, which takes minutes.
    let many: usize = std::env::var("HEDDLE_PEERS").ok().map(|it| it.parse()).transpose()?.unwrap_or(20_000);
    let mut scene = scene("peers-flood")?;
    let neighbor = scene.lab.pod(&shop("neighbor", "node-a"))?;
    let [office, _] = office();
    scene
        .lab
        .apply("neighbor.yaml", &server("neighbor", 9000, "opaque", &[Clients::Networks(&[&office])]))?;
    let _stall = scene.api.app(&["stall", "[::]:8081"])?;
    let _sink = neighbor.app(&["sink", "[::]:9000"])?;
    scene.lab.start_agent("node-a")?;
    let to = SocketAddr::new(neighbor.v4.into(), 9000);
    let agent = scene.lab.agent("node-a")?;
    eventually("the neighbor to be reached", SOON, || {
        Ok(apps::flood(scene.lab.outside(), to, Duration::from_millis(100)).is_ok())
    })?;
    let rate = || -> Result<f64> {
        let flood = apps::flood(scene.lab.outside(), to, Duration::from_secs(1))?;
        Ok(flood.bytes as f64 / flood.seconds)
    };
    let before = rate()?;
    let memory = agent.resident_bytes()?;
    // A port that looks at the first bytes; and one whose application never reads and never ends.
    // Both families, as a client has only so many ports towards one address.
    let both: [IpAddr; 2] = [scene.api.v4.into(), scene.api.v6.into()];
    let targets = [8080, 8081].iter().flat_map(|port| both.map(|address| SocketAddr::new(address, *port)));
    let refused = || agent.metric("heddle_agent_decisions_total", &["reason=\"limit_reached\""]);
    let mut crowds = Vec::new();
    let mut held = 0;
    for target in targets {
        // A process may have only so many files.
        for _ in 0..2 {
            let (crowd, opened) = crowd::gather(scene.lab.outside(), target, many / 8)?;
            crowds.push(crowd);
            held += opened;
        }
    }
    ensure!(held > many / 2, "control: {held} of {many} connections is no flood");
    let mut during: f64 = 0.0;
    // Other work on the machine takes its share now and then.
    for _ in 0..8 {
        during = during.max(rate()?);
        if during > before * 0.9 {
            break;
        }
    }
    let grown = agent.resident_bytes()?.saturating_sub(memory);
    println!("{held} opened; {before:.0} B/s before, {during:.0} during; +{grown} bytes");
    ensure!(refused()? > 0.0, "no bound was reached by {held} connections");
    ensure!(grown < 256 << 20, "the agent has grown by {grown} bytes");
    ensure!(during > before * 0.5, "the neighbor's rate fell from {before:.0} to {during:.0} B/s");
    let near = apps::connect(
        scene.lab.outside(),
        &Attempt { half_close: true, enough: 8, ..Attempt::new(to, "new one") },
    )?;
    ensure!(near.received.len() == 8, "a new connection to the neighbor: {near:?}");
    drop(crowds);
    // Each worker forgets its own share of the flood: one that serves again says nothing of the others.
    eventually("the flood to be forgotten", BOUND, || {
        let plain = apps::connect(scene.lab.outside(), &Attempt::new((scene.api.v4, 8080), "after"))?;
        Ok(plain.received == "after" && scene.a_proper_peer_is_served().is_ok())
    })?;
    scene.lab.close()
}

/// An `accept()` that fails costs the connections of that moment, not the listener.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn without_file_descriptors_connections_fail_and_listeners_stay() -> Result<()> {
    let scene = scene("peers-files")?;
    scene.a_proper_peer_is_served()?;
    let agent = scene.lab.agent("node-a")?;
    let pid = agent.pid().context("the agent runs")?.to_string();
    let limit = |files: &str| {
        let set = format!("--nofile={files}");
        scene.lab.at("node-a")?.host().check(&["prlimit", "--pid", &pid, &set]).map(drop)
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let usual = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let usual = usual.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    let usual: Vec<&str> = usual.split_whitespace().skip(3).take(2).collect();
    limit(&format!("{}:{}", open + 4, usual[1]))?;
    let to = SocketAddr::new(scene.api.v4.into(), 8080);
    let (crowd, held) = crowd::gather(scene.lab.outside(), to, 200)?;
    // Connections that end give theirs back: now there is none at all.
    limit(&format!("3:{}", usual[1]))?;
    let failed = Attempt { milliseconds: 1_000, ..Attempt::new(to, "one more") };
    let outcome = apps::connect(scene.lab.outside(), &failed)?;
    ensure!(!outcome.answered(), "control: {held} connections left room for another: {outcome:?}");
    drop(crowd);
    limit(&usual.join(":"))?;
    eventually("every listener to serve again", BOUND, || Ok(scene.a_proper_peer_is_served().is_ok()))?;
    for _ in 0..20 {
        let outcome = apps::connect(scene.lab.outside(), &Attempt::new(to, "after"))?;
        ensure!(outcome.received == "after", "one of the workers does not accept any more: {outcome:?}");
    }
    ensure!(agent.is_running() && !agent.log().contains("panicked"), "{}", agent.log_tail(60));
    scene.lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn between_listening_and_having_a_certificate_connections_are_refused() -> Result<()> {
    let mut scene = scene("peers-early")?;
    scene.a_proper_peer_is_served()?;
    let own = certificate(&scene.lab, &names("client"), true)?;
    let sni = scene.api.identity();
    let to = SocketAddr::new(scene.api.v4.into(), 7000);
    let agent = scene.lab.agent("node-a")?;
    agent.terminate()?;
    let accepted = scene.accepted();
    // From its very start, which is raced: whoever comes is served rightly or not at all.
    let heddle = scene.lab.heddle()?;
    let settings = scene.lab.settings().clone();
    let agent = scene.lab.agent("node-a")?;
    agent.launch(&heddle, &settings)?;
    let mut refused = 0;
    eventually("the agent to serve", SOON, || {
        let strange = certificate(&scene.lab, &names("client"), false)?;
        let got = scene.rogue.place().enter(|| ask(to, Manner::proper(&sni, Some(strange)), MARKER))?;
        ensure!(got == Got::Ended, "a self-made certificate while the agent starts: {got:?}");
        let copy = (own.0.clone(), own.1.clone_key());
        let got = scene.rogue.place().enter(|| ask(to, Manner::proper(&sni, Some(copy)), MARKER))?;
        let bare = scene.rogue.place().enter(|| {
            let mut stream = dial(to)?;
            stream.write_all(MARKER)?;
            drop(stream.shutdown(Shutdown::Write));
            Ok(to_the_end(&mut stream))
        });
        let bare = bare.unwrap_or_default();
        ensure!(
            !bare.windows(MARKER.len()).any(|bytes| bytes == MARKER),
            "plain bytes while the agent starts"
        );
        refused += usize::from(got == Got::Ended);
        Ok(got == Got::Echo)
    })?;
    ensure!(refused > 0, "control: the race was seen from before its start");
    ensure!(
        scene.accepted() == accepted + 1,
        "the application was reached by none but the one that was served"
    );
    scene.lab.close()
}
