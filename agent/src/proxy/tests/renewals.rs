//! Certificates are renewed under load, on both sides, again and again: no stream is lost, and none is carried twice.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use heddle_ebpf::codes::Hook;

use super::{slow_wire::slow_wire, world::*};
use crate::proxy::{Settings, environment::Ending};

/// How long everything is under way between the nodes.
const WIRE: Duration = Duration::from_millis(2);

/// Streams one after the other from several threads while `disturb` does its worst, for four seconds or, on a machine that
/// is busy with something else, until there were enough; how many there were.
fn asked_while(world: &World, disturb: impl Fn(usize)) -> usize {
    let (asked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for asker in 0..4 {
            let (asked, over) = (&asked, &over);
            scope.spawn(move || {
                let mut round = 0;
                while !over.load(Ordering::Relaxed) {
                    let question = format!("question {round} of {asker}");
                    round += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                    match world.ask(question.as_bytes()) {
                        Ok(answer) => assert_eq!(answer, question.as_bytes()),
                        Err(error) => panic!("{question}: {error}; told: {:#?}", troubles(world)),
                    }
                }
            });
        }
        let (begun, mut round) = (Instant::now(), 0);
        let enough = || asked.load(Ordering::Relaxed) > 200 && world.state.handshakes().0 > 20;
        while begun.elapsed() < Duration::from_secs(4) || !enough() {
            if begun.elapsed() > Duration::from_secs(60) {
                break;
            }
            disturb(round);
            round += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    asked.into_inner()
}

fn troubles(world: &World) -> Vec<Entry> {
    let mut entries = world.state.entries();
    entries.retain(|entry| !matches!(entry, Entry::Opened(_) | Entry::Closed(_, Ending::Closed)));
    entries
}

fn opened(world: &World, hook: Hook) -> usize {
    let entries = world.state.entries();
    entries.iter().filter(|entry| matches!(entry, Entry::Opened(flow) if flow.hook == hook)).count()
}

#[test]
fn renewals_of_either_side_lose_no_stream() {
    let world = World::with(patient());
    world.serve_echo();
    *world.state.by_way_of.lock().unwrap() = Some(slow_wire(world.inbound, WIRE).near);
    let asked = asked_while(&world, |round| {
        world.state.renew(if round % 3 == 0 { CLIENT } else { SERVER });
        thread::sleep(Duration::from_millis(15));
    });
    assert_eq!(opened(&world, Hook::Inbound), asked, "each question was put to the application once");
    let handshakes = world.state.handshakes().0;
    assert!(asked > 200 && handshakes > 20, "control: {asked} streams, {handshakes} handshakes");
}

/// The server's node stops while streams begin on connections that it has: each is carried.
#[test]
fn a_drain_loses_no_stream_that_was_begun() {
    for _ in 0..5 {
        let mut world = World::with(patient());
        world.serve_echo();
        let wire = slow_wire(world.inbound, WIRE);
        *world.state.by_way_of.lock().unwrap() = Some(wire.near);
        assert_eq!(world.ask(b"warm").unwrap(), b"warm");
        world.wait_closed(1);
        let node = world.server_node.take().unwrap();
        thread::scope(|scope| {
            let before = wire.sent.load(Ordering::SeqCst);
            let begun = scope.spawn(|| world.ask(b"begun"));
            // Until its OPEN is under way.
            world.eventually("an OPEN", |_| wire.sent.load(Ordering::SeqCst) > before);
            let drained = scope.spawn(move || block_on(node.drain(Duration::from_secs(60))));
            assert_eq!(begun.join().unwrap().unwrap(), b"begun", "{:#?}", troubles(&world));
            drained.join().unwrap();
        });
        // The control: a node that is gone serves nobody.
        assert!(world.ask(b"late").is_err());
    }
}

/// The server's node closes what was idle for long, at the moment at which the next stream comes.
#[test]
fn idle_connections_that_are_retired_lose_no_stream() {
    let world = World::with(Settings { server_idle_timeout: Duration::from_millis(1), ..patient() });
    world.serve_echo();
    *world.state.by_way_of.lock().unwrap() = Some(slow_wire(world.inbound, WIRE).near);
    let asked = asked_while(&world, |_| thread::sleep(Duration::from_millis(20)));
    assert_eq!(opened(&world, Hook::Inbound), asked, "each question was put to the application once");
}
