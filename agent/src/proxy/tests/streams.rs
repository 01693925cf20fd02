//! Bytes, ends and resets arrive as they were sent.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use heddle_ebpf::codes::Hook;
use socket2::SockRef;

use super::world::*;
use crate::proxy::{Settings, environment::*};

/// Bytes that cannot be mixed up, and are the same on both sides.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

#[test]
fn a_question_is_answered_and_recorded() {
    let world = World::new();
    world.serve_echo();
    let mut stream = world.connect();
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
    let client = stream.local_addr().unwrap();
    drop(stream);
    world.eventually("both ends close", |state| {
        state.entries().iter().filter(|entry| matches!(entry, Entry::Closed(_, Ending::Closed))).count() == 2
    });
    let inbound = world.state.entries().into_iter().find_map(|entry| match entry {
        Entry::Opened(flow) if flow.hook == Hook::Inbound => Some(flow),
        _ => None,
    });
    let expected = Flow {
        hook: Hook::Inbound,
        pod: POD_B,
        client,
        destination: world.inbound,
        peer: Some(PeerName::new(CLIENT)),
        rule: Arc::from("AuthorizationPolicy shop/web"),
    };
    assert_eq!(inbound, Some(expected));
    for side in [0, 1] {
        assert_eq!(world.state.sent[side].load(Ordering::SeqCst), 4);
        assert_eq!(world.state.received[side].load(Ordering::SeqCst), 4);
    }
}

#[test]
fn bulk_arrives_whole_in_both_directions_at_once() {
    const SIZE: usize = 64 * 1024 * 1024;
    let world = World::new();
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    world.serve(move |mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&pattern(2, SIZE)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        tell.lock().unwrap().send(got == pattern(1, SIZE)).unwrap();
    });
    let mut stream = world.connect();
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&pattern(1, SIZE)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == pattern(2, SIZE));
    assert!(told.recv_timeout(Duration::from_secs(10)).unwrap());
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let world = World::new();
    world.serve(|mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        drop(stream.read(&mut [0; 1]));
    });
    for _ in 0..2 {
        let start = Instant::now();
        let mut stream = world.connect();
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        assert!(start.elapsed() < patient().first_byte_timeout, "{:?}", start.elapsed());
    }
}

#[test]
fn half_closes_pass_from_either_side() {
    let world = World::new();
    // The client first: the server answers after it heard the end.
    world.serve(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    assert_eq!(world.ask(b"abc").unwrap(), b"cba");
    assert_eq!(world.ask(b"").unwrap(), b"");
    // The server first: the client goes on sending after it heard the end.
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    world.serve(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    let mut stream = world.connect();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"bye");
    stream.write_all(b"afterwards").unwrap();
    drop(stream);
    assert_eq!(told.recv_timeout(Duration::from_secs(5)).unwrap(), b"afterwards");
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_by_the_server_is_a_reset_for_the_client() {
    let world = World::new();
    world.serve(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        reset(stream);
    });
    for _ in 0..3 {
        let mut stream = world.connect();
        stream.write_all(b"x").unwrap();
        assert_reset(&mut stream);
    }
    // The connection between the agents outlived all three.
    assert_eq!(world.state.handshakes(), (1, 1));
    // The control: an orderly end is none.
    world.serve(|mut stream| stream.read_exact(&mut [0; 1]).unwrap());
    let mut stream = world.connect();
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_reset_by_the_client_is_a_reset_for_the_server() {
    let world = World::new();
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    world.serve(move |mut stream| {
        stream.write_all(b"y").unwrap();
        let result = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        tell.lock().unwrap().send(result).unwrap();
    });
    for (round, orderly) in [false, true, false].into_iter().enumerate() {
        let mut stream = world.connect();
        stream.read_exact(&mut [0; 1]).unwrap();
        if !orderly {
            reset(stream);
        } else {
            drop(stream);
        }
        let expected = if orderly { Ok(0) } else { Err(io::ErrorKind::ConnectionReset) };
        assert_eq!(told.recv_timeout(Duration::from_secs(5)).unwrap(), expected);
        // Until both sides have heard of the reset another stream would take another connection.
        world.wait_closed(round + 1);
    }
    assert_eq!(world.state.handshakes(), (1, 1));
}

#[test]
fn a_second_stream_makes_no_second_handshake() {
    let world = World::new();
    world.serve_echo();
    for round in 0..50u8 {
        assert_eq!(world.ask(&[round; 100]).unwrap(), [round; 100]);
    }
    assert_eq!(world.state.handshakes(), (1, 1));
    // Two at the same time need two connections, and no more.
    let (mut a, mut b) = (world.connect(), world.connect());
    for stream in [&mut a, &mut b] {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    assert_eq!(world.state.handshakes(), (2, 2));
    drop((a, b));
    // Another identity of the pod's never uses them.
    *world.state.client_identity.lock().unwrap() = OTHER;
    world.state.allow(&[Some(CLIENT), Some(OTHER)]);
    assert_eq!(world.ask(b"z").unwrap(), b"z");
    assert_eq!(world.state.handshakes(), (3, 3));
}

/// The application stops reading: the sender is stopped too, and the agents hold little.
#[test]
fn a_stalled_reader_stops_the_sender() {
    let world = World::new();
    let (go, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let both = Mutex::new((wait, tell));
    world.serve(move |mut stream| {
        let both = both.lock().unwrap();
        both.0.recv().unwrap();
        let mut total = 0u64;
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 {
                break;
            }
            total += count as u64;
        }
        both.1.send(total).unwrap();
    });
    let mut stream = world.connect();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let block = vec![7; 64 * 1024];
    let mut sent = 0u64;
    let stopped = loop {
        match stream.write(&block) {
            Ok(count) => sent += count as u64,
            Err(error) => break error.kind(),
        }
        assert!(sent < 256 << 20, "the sender was never stopped");
    };
    assert_eq!(stopped, io::ErrorKind::WouldBlock);
    // What the kernel's buffers of three connections may hold; the agents' own share is four buffers.
    assert!(sent < 64 << 20, "{sent} bytes are under way");
    go.send(()).unwrap();
    drop(stream);
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), sent);
}

/// A reset is heard even where nothing can be written any more: neither side waits for ever for the other.
#[test]
fn a_reset_passes_a_stalled_stream() {
    let cases = [
        (true, false, false),
        (false, false, false),
        (true, true, false),
        (false, true, false),
        (true, false, true),
        (true, true, true),
    ];
    for (by_client, plain, crowded) in cases {
        let world = World::with(Settings { pod_buffers: if crowded { 2 } else { 64 }, ..quick() });
        world.plain(plain);
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        world.serve(move |stream| {
            // Never reads.
            let _ = wait.lock().unwrap().recv();
            reset(stream);
        });
        let stalled = || {
            let mut stream = world.connect();
            stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            while stream.write(&[7; 65536]).is_ok() {}
            stream
        };
        // One that holds buffers, so that nothing is read for the other that cannot be written.
        let beside = crowded.then(stalled);
        let stream = stalled();
        if by_client {
            reset(stream);
        } else {
            go.send(()).unwrap();
            world.eventually("the client sees it", |_| {
                (&stream).write(&[7; 65536]).is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock)
            });
        }
        world.eventually("both nodes hear of it", |state| {
            let entries = state.entries();
            let ends = entries.iter().filter(|e| matches!(e, Entry::Closed(_, Ending::Reset | Ending::Lost)));
            ends.count() == 2
        });
        drop((go, beside));
    }
}

#[test]
fn a_plain_upstream_is_carried_too() {
    let world = World::new();
    world.serve_echo();
    let application = *world.state.application.lock().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address: application, expected: None });
    assert_eq!(world.ask(&pattern(5, 1 << 20)).unwrap(), pattern(5, 1 << 20));
    assert_eq!(world.state.handshakes(), (0, 0));
    world.serve(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        reset(stream);
    });
    let application = *world.state.application.lock().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address: application, expected: None });
    let mut stream = world.connect();
    stream.write_all(b"x").unwrap();
    assert_reset(&mut stream);
}

#[test]
fn plain_clients_are_carried_where_policy_allows_them() {
    let world = World::new();
    world.serve_echo();
    world.state.allow(&[None]);
    for server_first in [false, true] {
        *world.state.class.lock().unwrap() = Ok(InboundClass::Plain { server_first });
        // Text, something that begins like TLS and is none, and another name's ClientHello: the application's own.
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0, 4, 9, 0, 0, 0], &hello("elsewhere.test")]
        {
            let mut stream = world.connect_inbound();
            stream.write_all(bytes).unwrap();
            let mut echo = vec![0; bytes.len()];
            stream.read_exact(&mut echo).unwrap();
            assert_eq!(echo, bytes);
        }
    }
    // A server that speaks first is heard at once where the port is opaque, and after the bound elsewhere.
    world.serve(|mut stream| stream.write_all(b"hi").unwrap());
    let bound = patient().first_byte_timeout;
    for server_first in [true, false] {
        *world.state.class.lock().unwrap() = Ok(InboundClass::Plain { server_first });
        let start = Instant::now();
        let mut stream = world.connect_inbound();
        let read = stream.read_exact(&mut [0; 2]);
        assert!(read.is_ok(), "{read:?} {:#?}", world.state.entries().last());
        let took = start.elapsed();
        assert_eq!(took < bound, server_first, "{took:?}");
    }
    // The same client is refused where policy does not allow it.
    world.state.allow(&[Some(CLIENT)]);
    *world.state.class.lock().unwrap() = Ok(InboundClass::Plain { server_first: true });
    assert_reset(&mut world.connect_inbound());
}

/// A mesh client whose address the server's node takes for a plain one is still served by its certificate.
#[test]
fn the_mesh_is_recognized_by_its_name_among_plain_clients() {
    let world = World::new();
    world.serve_echo();
    *world.state.class.lock().unwrap() = Ok(InboundClass::Plain { server_first: false });
    assert_eq!(world.ask(b"by certificate").unwrap(), b"by certificate");
    assert_eq!(world.state.handshakes(), (1, 1));
}

/// A ClientHello that asks for `name`.
pub fn hello(name: &'static str) -> Vec<u8> {
    let authority = Authority::new();
    let config = client_config(authority.roots(), None);
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut out = Vec::new();
    connection.write_tls(&mut out).unwrap();
    out
}
