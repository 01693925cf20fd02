//! What the fuzz targets `frames` and `streams` run, and the tests here for a moment: bytes from a hostile peer in every state, and two
//! honest sides under any schedule.

use std::collections::VecDeque;

use super::{Connection, Event, Open, Role};

/// Records from a hostile peer: an error or an event, never a panic, never a range outside the record.
pub fn frames(input: &[u8]) {
    let Some((&setting, bytes)) = input.split_first() else { return };
    let role = if setting & 1 == 0 { Role::Client } else { Role::Server };
    let mut connection = Connection::new(role);
    if role == Role::Client && setting & 2 != 0 {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80));
        connection.open(&Open { client: address, destination: address }).expect("a fresh client may open");
    }
    // Records are cut as the input says: two bytes of length, then the record.
    let mut rest = bytes;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (record, next) = tail.split_at(length);
        let mut at = 0;
        loop {
            match connection.receive(record, at) {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some((event, next))) => {
                    assert!(next > at && next <= record.len());
                    match event {
                        Event::Data(range) => assert!(!record[range].is_empty()),
                        Event::Opened(_) if setting & 4 != 0 => drop(connection.accept()),
                        Event::Opened(_) if setting & 8 != 0 => drop(connection.refuse(20)),
                        Event::Reset(_) | Event::Refused(_) => drop(connection.reset(0)),
                        _ => {}
                    }
                    at = next;
                }
            }
        }
        if setting & 16 != 0 {
            let _ = connection.end();
        }
        if setting & 32 != 0 {
            let _ = connection.retire();
        }
        rest = next;
    }
}

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
        while let Some((event, next)) = self.wire.receive(record, at).expect("an honest peer breaks no rule")
        {
            if let Event::Reset(_) | Event::Refused(_) = event {
                self.act(RESET);
            }
            at = next;
        }
    }
}

/// Two honest sides under a schedule: no rule is broken, and they can always be brought to rest.
pub fn streams(schedule: &[u8]) {
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
}
