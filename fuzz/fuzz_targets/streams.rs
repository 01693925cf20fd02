//! Two honest sides under a schedule of the fuzzer's: no rule is broken, and they can always be brought to rest.
#![no_main]

use std::collections::VecDeque;

#[allow(dead_code, unused_imports)]
#[path = "../../agent/src/proxy/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use wire::{Connection, Event, Open, Role};

/// The act that gives the stream up.
const RESET: u8 = 6;

struct Side {
    wire: Connection,
    outbox: VecDeque<Vec<u8>>,
}

impl Side {
    fn act(&mut self, act: u8) {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80));
        let frame = match act % 7 {
            0 => self.wire.open(&Open { client: address, destination: address }).map(|f| f.to_vec()).ok(),
            1 => self.wire.accept().map(|f| f.to_vec()).ok(),
            2 => self.wire.refuse(20).map(|f| f.to_vec()).ok(),
            3 => self.wire.data(3).map(|f| [&f[..], b"abc"].concat()).ok(),
            4 => self.wire.end().map(|f| f.to_vec()).ok(),
            5 => self.wire.retire().map(|f| f.to_vec()).ok(),
            _ => self.wire.reset(34).map(|f| f.to_vec()),
        };
        self.outbox.extend(frame);
    }

    fn take(&mut self, record: &[u8]) {
        let mut at = 0;
        while let Some((event, next)) = self.wire.receive(record, at).expect("an honest peer breaks no rule") {
            if let Event::Reset(_) | Event::Refused(_) = event {
                self.act(RESET);
            }
            at = next;
        }
    }
}

fuzz_target!(|schedule: &[u8]| {
    let side = |role| Side { wire: Connection::new(role), outbox: VecDeque::new() };
    let mut sides = [side(Role::Client), side(Role::Server)];
    for &step in schedule {
        let me = usize::from(step & 1);
        if step & 2 == 0 {
            sides[me].act(step >> 2);
        } else if let Some(record) = sides[me].outbox.pop_front() {
            sides[1 - me].take(&record);
        }
    }
    for _ in 0..4 {
        for me in [0, 1] {
            while let Some(record) = sides[me].outbox.pop_front() {
                sides[1 - me].take(&record);
            }
            sides[me].act(RESET);
        }
    }
    assert!(sides.iter().all(|side| side.wire.is_idle() && side.outbox.is_empty()));
    assert_eq!(sides[0].wire.stream(), sides[1].wire.stream());
});
