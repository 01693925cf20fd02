//! Whoever may not pass does not, and it is said why. Each has its positive control beside it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use heddle_ebpf::codes::{Hook, Reason};
use rustls::pki_types::ServerName;

use super::{streams::hello, world::*};
use crate::proxy::environment::*;

/// Counts the connections that reach the application.
fn counted(world: &World) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    world.serve(move |mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    });
    count
}

#[test]
fn without_an_origin_or_a_way_nothing_is_carried() {
    let world = World::new();
    let reached = counted(&world);
    let origin = world.state.origin.lock().unwrap().take();
    assert_reset(&mut world.connect());
    world.wait_refusal(Hook::Outbound, Reason::NoOrigin);
    *world.state.origin.lock().unwrap() = origin;
    let upstream = world.state.upstream.lock().unwrap().clone();
    *world.state.upstream.lock().unwrap() = Err(Refusal::new(Reason::OutboundDenied));
    assert_reset(&mut world.connect());
    world.wait_refusal(Hook::Outbound, Reason::OutboundDenied);
    *world.state.class.lock().unwrap() = Err(Refusal::new(Reason::NoIdentity));
    assert_reset(&mut world.connect_inbound());
    world.wait_refusal(Hook::Inbound, Reason::NoIdentity);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    // The control.
    *world.state.upstream.lock().unwrap() = upstream;
    *world.state.class.lock().unwrap() = Ok(InboundClass::MeshTls);
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}

#[test]
fn an_unauthorized_identity_is_refused_and_the_rule_is_named() {
    let world = World::new();
    let reached = counted(&world);
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    world.state.allow(&[Some(OTHER)]);
    let mut stream = world.connect();
    assert_reset_by(&mut stream, b"x");
    world.eventually("the refusal names its rule", |state| {
        state.entries().iter().any(|entry| {
            matches!(entry, Entry::Refused(flow, refusal)
                if flow.hook == Hook::Inbound
                    && flow.peer == Some(PeerName::new(CLIENT))
                    && refusal.reason == Reason::Unauthorized
                    && &*refusal.rule == "AuthorizationPolicy shop/web")
        })
    });
    world.wait_refusal(Hook::Outbound, Reason::RefusedByPeer);
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    // The refusal left the connection between the agents whole: allowed again, no new handshake is made.
    world.state.allow(&[Some(CLIENT)]);
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    assert_eq!(world.state.handshakes(), (1, 1));
}

#[test]
fn a_server_of_another_identity_is_not_spoken_to() {
    let world = World::new();
    let reached = counted(&world);
    // It would answer to the name that is asked for, but its certificate bears another: here the resolver's name
    // and the certificate differ from what the client demands.
    *world.state.upstream.lock().unwrap() =
        Ok(Upstream { address: world.inbound, expected: Some(PeerName::new(OTHER)) });
    let mut stream = world.connect();
    assert_reset_by(&mut stream, b"secret");
    world.wait_refusal(Hook::Outbound, Reason::TlsFailed);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    *world.state.upstream.lock().unwrap() =
        Ok(Upstream { address: world.inbound, expected: Some(PeerName::new(SERVER)) });
    assert_eq!(world.ask(b"x").unwrap(), b"x");
}

/// A server that answers to any name with a certificate of the mesh's for another identity.
#[test]
fn a_server_that_lies_about_its_name_is_not_spoken_to() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    *world.state.upstream.lock().unwrap() =
        Ok(Upstream { address: listener.local_addr().unwrap(), expected: Some(PeerName::new(SERVER)) });
    let config = server_config(world.state.authority.roots(), SERVER, world.state.issue(OTHER));
    let liar = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(config).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        let mut bytes = Vec::new();
        let _ = tls.read_to_end(&mut bytes);
        bytes
    });
    let mut stream = world.connect();
    assert_reset_by(&mut stream, b"secret");
    world.wait_refusal(Hook::Outbound, Reason::WrongIdentity);
    assert!(liar.join().unwrap().is_empty());
}

/// Speaks TLS to pod B as a client of the caller's making; whether a stream could be used.
fn handshake(world: &World, config: Arc<rustls::ClientConfig>, name: &'static str) -> bool {
    let name = ServerName::try_from(name).unwrap();
    let connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, world.connect_inbound());
    let local = tls.sock.local_addr().unwrap();
    let mut wire = crate::proxy::wire::Connection::new(crate::proxy::wire::Role::Client);
    let open = crate::proxy::wire::Open { client: local, destination: world.inbound };
    let frame = wire.open(&open).unwrap();
    let mut answer = [0; 8];
    tls.write_all(&frame).is_ok() && tls.read_exact(&mut answer).is_ok() && answer[0] == 5
}

#[test]
fn clients_without_a_good_certificate_get_no_stream() {
    let world = World::new();
    let reached = counted(&world);
    let roots = world.state.authority.roots();
    let good = || client_config(Arc::clone(&roots), Some(world.state.issue(CLIENT)));
    assert!(handshake(&world, good(), SERVER), "the control");
    world.eventually("the control", |_| reached.load(Ordering::SeqCst) == 1);

    let none = client_config(Arc::clone(&roots), None);
    assert!(!handshake(&world, none, SERVER));
    let self_made = Authority::new().issue(CLIENT);
    assert!(!handshake(&world, client_config(Arc::clone(&roots), Some(self_made)), SERVER));
    // Of the mesh's authority, but bearing no identity that is known.
    let nameless = world.state.authority.issue("www.example.test");
    assert!(!handshake(&world, client_config(Arc::clone(&roots), Some(nameless)), SERVER));
    // Another pod's name.
    assert!(!handshake(&world, good(), OTHER));
    // No ALPN, and another's.
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let mut config = (*good()).clone();
        config.alpn_protocols = protocols;
        assert!(!handshake(&world, Arc::new(config), SERVER));
    }
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    assert!(world.state.refusals(Hook::Inbound).contains(&Reason::NoIdentity));
    assert!(handshake(&world, good(), SERVER), "the control, afterwards");
}

/// The connection ends within the bound, with a reset or an alert, and nothing of the application's.
fn ends(mut stream: TcpStream, within: Duration) -> Vec<u8> {
    let start = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(start.elapsed() < within, "{:?}", start.elapsed());
    answer
}

#[test]
fn what_is_no_client_hello_in_time_is_refused() {
    let world = World::with(quick());
    let reached = counted(&world);
    let hello = hello(SERVER);
    assert!(hello.len() > 1000, "a hello with X25519MLKEM768");
    for class in [InboundClass::MeshTls, InboundClass::Plain { server_first: false }] {
        *world.state.class.lock().unwrap() = Ok(class);
        let refusals = world.state.refusals(Hook::Inbound).len();

        // Half a ClientHello, then silence.
        let mut stream = world.connect_inbound();
        stream.write_all(&hello[..hello.len() / 2]).unwrap();
        ends(stream, Duration::from_secs(5));

        // One byte at a time: slow bytes do not extend the bound.
        let mut stream = world.connect_inbound();
        let start = Instant::now();
        for byte in &hello {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            assert!(start.elapsed() < Duration::from_secs(4));
        }

        // A ClientHello that claims 60 KiB, over several records.
        let mut stream = world.connect_inbound();
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.resize(5 + 0x4000, 0);
        record[5..9].copy_from_slice(&[1, 0, 0xf0, 0]);
        let _ = stream.write_all(&record).and_then(|()| stream.write_all(&record));
        ends(stream, Duration::from_secs(5));

        world.eventually("three refusals", |state| state.refusals(Hook::Inbound).len() == refusals + 3);
    }
    *world.state.class.lock().unwrap() = Ok(InboundClass::MeshTls);
    // Garbage, and silence, where a ClientHello is demanded.
    let mut stream = world.connect_inbound();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    ends(stream, Duration::from_secs(5));
    ends(world.connect_inbound(), Duration::from_secs(5));
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    // The control: the same ClientHello in small pieces but in time gets an answer, and a good client a stream.
    let mut stream = world.connect_inbound();
    for piece in hello.chunks(100) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[..2], [0x16, 3]);
    assert_eq!(world.ask(b"x").unwrap(), b"x");
}

#[test]
fn an_application_that_refuses_is_a_reset() {
    let world = World::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    *world.state.application.lock().unwrap() = free;
    let mut stream = world.connect();
    assert_reset_by(&mut stream, b"x");
    world.wait_refusal(Hook::Inbound, Reason::Unreachable);
    world.serve_echo();
    assert_eq!(world.ask(b"x").unwrap(), b"x");
    assert_eq!(world.state.handshakes(), (1, 1));
}

/// A live stream whose rule goes is ended at both applications, at once; one that is still allowed is not.
#[test]
fn narrowed_rules_end_live_streams() {
    for narrow_at_client in [false, true] {
        let world = World::new();
        world.serve_echo();
        let mut stream = world.connect();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        // A change that leaves it allowed.
        world.state.allow(&[Some(CLIENT), Some(OTHER)]);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();

        let start = Instant::now();
        if narrow_at_client {
            *world.state.outbound_revoked.lock().unwrap() = Some(Refusal::new(Reason::OutboundDenied));
            world.state.allow(&[Some(CLIENT)]);
        } else {
            world.state.allow(&[Some(OTHER)]);
        }
        assert_reset(&mut stream);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let (hook, reason) = if narrow_at_client {
            (Hook::Outbound, Reason::OutboundDenied)
        } else {
            (Hook::Inbound, Reason::Unauthorized)
        };
        world.eventually("it is told as terminated", |state| {
            state.entries().iter().any(|entry| {
                matches!(entry, Entry::Closed(flow, Ending::Terminated(refusal))
                    if flow.hook == hook && refusal.reason == reason)
            })
        });
    }
}

#[test]
fn narrowed_rules_end_plain_streams_too() {
    let world = World::new();
    world.serve_echo();
    *world.state.class.lock().unwrap() = Ok(InboundClass::Plain { server_first: true });
    world.state.allow(&[None]);
    let mut stream = world.connect_inbound();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    world.state.allow(&[Some(CLIENT)]);
    assert_reset(&mut stream);
}
