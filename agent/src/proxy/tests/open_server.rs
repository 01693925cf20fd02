//! A client's agent that misbehaves costs itself its connection, and nobody else anything.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use heddle_ebpf::codes::{Hook, Reason};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

use super::world::*;
use crate::proxy::{
    Settings,
    wire::{Connection, Open, Role, frame},
};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// An authenticated client whose frames the test writes itself.
fn agent(world: &World) -> (Tls, SocketAddr) {
    let own = world.state.issue(CLIENT);
    let config = client_config(world.state.authority.roots(), Some(own));
    let connection = ClientConnection::new(config, ServerName::try_from(SERVER).unwrap()).unwrap();
    let tls = StreamOwned::new(connection, world.connect_inbound());
    let local = tls.sock.local_addr().unwrap();
    (tls, local)
}

fn open(world: &World, client: SocketAddr, stream: u32) -> Vec<u8> {
    frame::open(stream, &Open { client, destination: world.inbound }).to_vec()
}

fn frame_of(tls: &mut Tls) -> Option<Vec<u8>> {
    let mut header = [0; 8];
    tls.read_exact(&mut header).ok()?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
    tls.read_exact(&mut payload).ok()?;
    Some([&header[..], &payload].concat())
}

#[test]
fn violations_cost_only_their_connection() {
    let world = World::new();
    world.serve_echo();
    let mut bystander = world.connect();
    let (_, local) = agent(&world);
    let second_byte = |mut frame: Vec<u8>| {
        frame[1] = 1;
        frame
    };
    let open = |stream| open(&world, local, stream);
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a cut frame", open(1)[..20].to_vec()),
        ("a flag", second_byte(open(1))),
        ("a stream out of turn", open(2)),
        ("DATA before OPEN", [&frame::data(1, 1)[..], b"x"].concat()),
        ("ACCEPTED from a client", frame::accepted(1).to_vec()),
        ("REFUSED from a client", frame::refused(1, 20).to_vec()),
        ("empty DATA", [open(1), frame::data(1, 0).to_vec()].concat()),
        ("OPEN twice", [open(1), open(2)].concat()),
        (
            "DATA after END",
            [open(1), frame::end(1).to_vec(), frame::data(1, 1).to_vec(), b"x".to_vec()].concat(),
        ),
    ];
    for (what, bytes) in &bad {
        let before = world.state.refusals(Hook::Inbound).len();
        let (mut tls, _) = agent(&world);
        tls.write_all(bytes).unwrap();
        while frame_of(&mut tls).is_some() {}
        if !what.starts_with("empty") && !what.contains("twice") && !what.contains("after") {
            world.eventually(what, |state| state.refusals(Hook::Inbound).len() > before);
            assert_eq!(world.state.refusals(Hook::Inbound).last(), Some(&Reason::BadPeer), "{what}");
        }
        // Everybody else goes on.
        bystander.write_all(b"x").unwrap();
        bystander.read_exact(&mut [0; 1]).unwrap();
    }
    // The control: the same bytes in order are a stream.
    let (mut tls, local) = agent(&world);
    let mut record = super::open_server::open(&world, local, 1);
    record.extend_from_slice(&frame::data(1, 2));
    record.extend_from_slice(b"hi");
    tls.write_all(&record).unwrap();
    assert_eq!(frame_of(&mut tls).unwrap(), frame::accepted(1));
    assert_eq!(frame_of(&mut tls).unwrap()[8..], *b"hi");
}

/// Records without content take as much to open as short ones, and rustls refuses a run of them.
#[test]
fn endless_empty_records_end_their_connection() {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    use rustls::ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let send = |count: usize| {
        let world = World::new();
        world.serve_echo();
        let (mut tls, local) = agent(&world);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        let StreamOwned { conn, mut sock } = tls;
        // rustls writes none: they are sealed by hand.
        let (first, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
        let (algorithm, key, iv) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => panic!("a suite that is not TLS 1.3's"),
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
        let seal = |sequence: u64, content: &[u8]| {
            // RFC 8446, sections 5.2 and 5.3: the content's type stands behind it.
            let mut bytes = [content, &[0x17]].concat();
            let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
            nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
            let length = (bytes.len() + 16) as u16;
            let header = [0x17, 3, 3, (length >> 8) as u8, length as u8];
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_append_tag(nonce, Aad::from(header), &mut bytes).unwrap();
            [&header[..], &bytes].concat()
        };
        let mut sequence = first;
        for _ in 0..count {
            drop(sock.write_all(&seal(sequence, &[])));
            sequence += 1;
        }
        drop(sock.write_all(&seal(sequence, &open(&world, local, 1))));
        // ACCEPTED, an alert, or a reset.
        drop(sock.read(&mut [0; 64]));
        let entries = world.state.entries();
        entries.iter().any(|entry| matches!(entry, Entry::Opened(flow) if flow.hook == Hook::Inbound))
    };
    assert!(send(10), "the control");
    assert!(!send(100));
}

/// The longest record that rustls takes is longer than TLS allows; most of one has come when buffers become scarce.
#[test]
fn a_record_that_is_too_long_ends_its_connection_in_good_order() {
    let world = World::with(Settings { pod_buffers: 4, ..patient() });
    world.serve(|mut stream| while stream.write_all(&[0; 64 * 1024]).is_ok() {});
    let (mut tls, _) = agent(&world);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    let length = 18_000_u16;
    let mut record = vec![0x17, 3, 3, (length >> 8) as u8, length as u8];
    record.resize(5 + usize::from(length), 0);
    let (first, last) = record.split_at(17_905);
    tls.sock.write_all(first).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    // These hold what they do not read.
    let held: Vec<_> = (0..6).map(|_| world.connect()).collect();
    std::thread::sleep(Duration::from_millis(500));
    tls.sock.write_all(last).unwrap();
    let mut alert = Vec::new();
    drop(tls.sock.read_to_end(&mut alert));
    assert_eq!(alert.first(), Some(&0x17), "it is told why: {alert:?}");
    drop(held);
}

#[test]
fn an_agent_speaks_only_for_its_own_address() {
    let world = World::new();
    world.serve_echo();
    let elsewhere: SocketAddr = "127.0.0.2:4000".parse().unwrap();
    for (client, destination) in [(Some(elsewhere), None), (None, Some(elsewhere))] {
        let (mut tls, local) = agent(&world);
        let lie = Open { client: client.unwrap_or(local), destination: destination.unwrap_or(world.inbound) };
        let before = world.state.refusals(Hook::Inbound).len();
        tls.write_all(&frame::open(1, &lie)).unwrap();
        assert_eq!(frame_of(&mut tls), None);
        world.eventually("a refusal", |state| state.refusals(Hook::Inbound).len() > before);
        assert_eq!(world.state.refusals(Hook::Inbound).last(), Some(&Reason::BadPeer));
    }
    // Another port of the same address is what an application's connection has.
    let (mut tls, local) = agent(&world);
    let honest = Open { client: SocketAddr::new(local.ip(), 4000), destination: world.inbound };
    tls.write_all(&frame::open(1, &honest)).unwrap();
    assert_eq!(frame_of(&mut tls).unwrap(), frame::accepted(1));
}

/// Streams follow each other on one connection whichever way they end, and each is judged.
#[test]
fn every_open_is_judged() {
    let world = World::new();
    world.serve_echo();
    let (mut tls, local) = agent(&world);
    let mut wire = Connection::new(Role::Client);
    let address = Open { client: local, destination: world.inbound };
    for round in 0..6 {
        let allowed = round % 2 == 0;
        world.state.allow(if allowed { &[Some(CLIENT)] } else { &[None] });
        let mut record = wire.open(&address).unwrap().to_vec();
        record.extend_from_slice(&wire.data(2).unwrap());
        record.extend_from_slice(b"hi");
        tls.write_all(&record).unwrap();
        let answer = frame_of(&mut tls).unwrap();
        wire.receive(&answer, 0).unwrap();
        if allowed {
            assert_eq!(answer[0], 5);
            let echo = frame_of(&mut tls).unwrap();
            assert_eq!(&echo[8..], b"hi");
            wire.receive(&echo, 0).unwrap();
            if round == 2 {
                // Given up: the server answers with its own RESET.
                tls.write_all(&wire.reset(0).unwrap()).unwrap();
                let reset = frame_of(&mut tls).unwrap();
                assert_eq!(reset[0], 4);
                wire.receive(&reset, 0).unwrap();
            } else {
                tls.write_all(&wire.end().unwrap()).unwrap();
                let end = frame_of(&mut tls).unwrap();
                assert_eq!(end[0], 3);
                wire.receive(&end, 0).unwrap();
            }
        } else {
            assert_eq!((answer[0], answer[11]), (6, Reason::Unauthorized as u8));
            tls.write_all(&wire.reset(0).unwrap()).unwrap();
        }
        assert!(wire.is_idle());
    }
    assert_eq!(world.state.handshakes().1, 1);
}

/// A stream of two bytes and its ends.
fn carried(world: &World, tls: &mut Tls, local: SocketAddr, stream: u32) {
    let mut record = open(world, local, stream);
    record.extend_from_slice(&frame::data(stream, 2));
    record.extend_from_slice(b"hi");
    record.extend_from_slice(&frame::end(stream));
    tls.write_all(&record).unwrap();
    assert_eq!(frame_of(tls).unwrap(), frame::accepted(stream));
    assert_eq!(frame_of(tls).unwrap()[8..], *b"hi");
    assert_eq!(frame_of(tls).unwrap(), frame::end(stream));
}

/// After a renewal the server asks for the end of the connection, serves what crosses that, and nothing after it.
#[test]
fn a_connection_with_the_old_certificate_is_retired() {
    let world = World::new();
    world.serve_echo();
    let (mut tls, local) = agent(&world);
    carried(&world, &mut tls, local, 1);
    world.state.renew(SERVER);
    assert_eq!(frame_of(&mut tls).unwrap(), frame::retire(1));
    carried(&world, &mut tls, local, 2);
    let before = world.state.refusals(Hook::Inbound).len();
    tls.write_all(&open(&world, local, 3)).unwrap();
    assert_eq!(frame_of(&mut tls), None);
    world.eventually("a refusal", |state| state.refusals(Hook::Inbound).len() > before);
    assert_eq!(world.state.refusals(Hook::Inbound).last(), Some(&Reason::BadPeer));
}

/// A client whose certificate has expired keeps what it carries, and begins nothing.
#[test]
fn an_expired_certificate_opens_no_stream() {
    let world = World::new();
    world.serve_echo();
    let (mut tls, local) = agent(&world);
    carried(&world, &mut tls, local, 1);
    let mut under_way = agent(&world);
    under_way.0.write_all(&open(&world, under_way.1, 1)).unwrap();
    assert_eq!(frame_of(&mut under_way.0).unwrap(), frame::accepted(1));
    world.state.expired.store(true, std::sync::atomic::Ordering::SeqCst);
    tls.write_all(&open(&world, local, 2)).unwrap();
    assert_eq!(frame_of(&mut tls).unwrap(), frame::retire(1));
    assert_eq!(frame_of(&mut tls).unwrap(), frame::refused(2, Reason::Revoked as u32));
    under_way.0.write_all(&[&frame::data(1, 2)[..], b"hi"].concat()).unwrap();
    assert_eq!(frame_of(&mut under_way.0).unwrap()[8..], *b"hi");
}

/// A client that never answers a refusal is dropped after the bound; so is one that goes on sending for ever.
#[test]
fn a_refusal_that_is_not_heard_ends_the_connection() {
    let world = World::with(quick());
    world.serve_echo();
    world.state.allow(&[]);
    let (mut tls, local) = agent(&world);
    tls.write_all(&open(&world, local, 1)).unwrap();
    assert_eq!(frame_of(&mut tls).unwrap()[0], 6);
    let start = std::time::Instant::now();
    assert_eq!(frame_of(&mut tls), None);
    assert!(start.elapsed() < Duration::from_secs(4));

    let (mut tls, local) = agent(&world);
    tls.write_all(&open(&world, local, 1)).unwrap();
    let mut data = frame::data(1, frame::MAX_PAYLOAD as u16).to_vec();
    data.resize(frame::RECORD, 0);
    let mut sent = 0;
    while tls.write_all(&data).is_ok() {
        sent += data.len();
        assert!(sent < 64 << 20);
    }
}

/// Alerts and close_notify in any state end the connection and nothing else.
#[test]
fn alerts_end_the_connection() {
    let world = World::new();
    world.serve_echo();
    // Between streams.
    let (mut tls, _) = agent(&world);
    tls.conn.complete_io(&mut tls.sock).unwrap();
    tls.conn.send_close_notify();
    tls.conn.complete_io(&mut tls.sock).unwrap();
    assert_eq!(frame_of(&mut tls), None);
    // Within one: the application must not take it for an end.
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    world.serve(move |mut stream| {
        let mut all = Vec::new();
        let result = stream.read_to_end(&mut all).map_err(|error| error.kind());
        tell.lock().unwrap().send(result).unwrap();
    });
    for clean in [true, false] {
        let (mut tls, local) = agent(&world);
        tls.write_all(&open(&world, local, 1)).unwrap();
        assert_eq!(frame_of(&mut tls).unwrap()[0], 5);
        if clean {
            tls.conn.send_close_notify();
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        drop(tls);
        let result = told.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(result, Err(std::io::ErrorKind::ConnectionReset));
    }
    // Plain-text alerts before any handshake, without end.
    let mut stream = world.connect_inbound();
    let alerts = [0x15, 3, 3, 0, 2, 1, 0].repeat(10_000);
    let _ = stream.write_all(&alerts);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    world.serve_echo();
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    drop(Arc::clone(&world.state));
}
