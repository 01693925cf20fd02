//! Bytes from a hostile peer, in every state: an error or an event, never a panic, never a range outside the record.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../agent/src/proxy/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use wire::{Connection, Event, Open, Role};

fuzz_target!(|input: &[u8]| {
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
});
