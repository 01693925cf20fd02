//! A server's agent that the test plays itself: what the client's node does when it closes, lies or falls silent.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use heddle_ebpf::codes::{Hook, Reason};
use rustls::{ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

use super::world::*;
use crate::proxy::{Settings, environment::*, wire::frame};

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// Plays the far agent: each connection that is accepted goes to `play` with its number.
fn play(world: &World, play: impl Fn(usize, Tls) + Send + Sync + 'static) {
    accept(world, TcpListener::bind("127.0.0.1:0").unwrap(), play);
}

fn accept(world: &World, listener: TcpListener, play: impl Fn(usize, Tls) + Send + Sync + 'static) {
    *world.state.upstream.lock().unwrap() =
        Ok(Upstream { address: listener.local_addr().unwrap(), expected: Some(PeerName::new(SERVER)) });
    let config = server_config(world.state.authority.roots(), SERVER, world.state.issue(SERVER));
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            play(number, StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream));
        }
    });
}

fn read_frame(tls: &mut Tls) -> Option<Vec<u8>> {
    let mut header = [0; 8];
    tls.read_exact(&mut header).ok()?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
    tls.read_exact(&mut payload).ok()?;
    Some([&header[..], &payload].concat())
}

/// Serves one stream: a question, its echo, and the ends.
fn serve_one(tls: &mut Tls, stream: u32) -> Option<Vec<u8>> {
    let open = read_frame(tls)?;
    assert_eq!((open[0], open[7]), (1, stream as u8));
    let question = read_frame(tls)?;
    assert_eq!(question[0], 2);
    let end = read_frame(tls)?;
    assert_eq!(end[0], 3);
    tls.write_all(&frame::accepted(stream)).unwrap();
    tls.write_all(&question).unwrap();
    tls.write_all(&frame::end(stream)).unwrap();
    Some(question[8..].to_vec())
}

/// `close_notify` in answer to OPEN: the server was closing and has processed nothing. The question is put again on
/// a fresh connection, with every byte, once.
#[test]
fn a_stream_that_met_a_clean_close_is_opened_again() {
    met_a_clean_close(true);
    // The kernel resets a connection that is closed with bytes unread: the alert before it still counts.
    for _ in 0..20 {
        met_a_clean_close(false);
    }
}

fn met_a_clean_close(politely: bool) {
    let world = World::new();
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    play(&world, move |number, mut tls| {
        let tell = tell.lock().unwrap();
        tell.send((number, serve_one(&mut tls, 1))).unwrap();
        if number == 0 {
            // The second OPEN has come: its bytes are in the kernel's buffer, and not read.
            let mut byte = [0; 1];
            tls.sock.peek(&mut byte).unwrap();
            thread::sleep(Duration::from_millis(20));
            tls.conn.send_close_notify();
            tls.conn.write_tls(&mut tls.sock).unwrap();
            if politely {
                tls.sock.shutdown(std::net::Shutdown::Write).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    assert_eq!(world.ask(b"first").unwrap(), b"first");
    assert_eq!(world.ask(b"second").unwrap(), b"second");
    assert_eq!(told.recv().unwrap(), (0, Some(b"first".to_vec())));
    assert_eq!(told.recv().unwrap(), (1, Some(b"second".to_vec())));
    assert_eq!(world.state.handshakes().0, 2);
}

/// A RESET of the stream before may cross OPEN, and is no word of the new stream: what is closed cleanly then is repeated,
/// and silence is not waited for without end.
#[test]
fn a_late_reset_is_not_the_first_word_of_the_next_stream() {
    for silent in [false, true] {
        let world = World::with(Settings { accept_timeout: Duration::from_secs(1), ..quick() });
        play(&world, move |number, mut tls| {
            serve_one(&mut tls, 1);
            if number == 0 {
                read_frame(&mut tls).unwrap();
                tls.write_all(&frame::reset(1, 0)).unwrap();
                if silent {
                    thread::sleep(Duration::from_secs(15));
                }
                thread::sleep(Duration::from_millis(50));
                tls.conn.send_close_notify();
                tls.conn.write_tls(&mut tls.sock).unwrap();
                tls.sock.shutdown(std::net::Shutdown::Write).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
        });
        assert_eq!(world.ask(b"first").unwrap(), b"first");
        if silent {
            assert_reset_by(&mut world.connect(), b"second");
        } else {
            assert_eq!(world.ask(b"second").unwrap(), b"second");
        }
    }
}

/// A stream that its application gave up is over when the peer has had its time to answer, whatever it says of what came
/// before.
#[test]
fn acceptance_of_what_was_given_up_extends_nothing() {
    let world = World::with(Settings { settle_timeout: Duration::from_millis(500), ..patient() });
    play(&world, |_, mut tls| {
        while read_frame(&mut tls).unwrap()[0] != frame::reset(1, 0)[0] {}
        tls.write_all(&frame::accepted(1)).unwrap();
        thread::sleep(Duration::from_secs(30));
    });
    let mut stream = world.connect();
    stream.write_all(b"question").unwrap();
    thread::sleep(Duration::from_millis(200));
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    world.wait_closed(1);
}

/// The connection that showed that a slow server is there is kept for the next stream.
#[test]
fn a_connection_that_was_made_to_see_is_kept() {
    let world = World::with(Settings { accept_patience: Duration::from_millis(200), ..patient() });
    let (tell, told) = mpsc::channel();
    play(&world, move |number, mut tls| {
        let tell = tell.clone();
        thread::spawn(move || {
            if number > 0 {
                // Whether a stream comes, or an end.
                return tell.send(read_frame(&mut tls).is_some()).unwrap();
            }
            serve_one(&mut tls, 1);
            let question = [read_frame(&mut tls), read_frame(&mut tls), read_frame(&mut tls)];
            thread::sleep(Duration::from_millis(700));
            tls.write_all(&frame::accepted(2)).unwrap();
            tls.write_all(question[1].as_ref().unwrap()).unwrap();
            tls.write_all(&frame::end(2)).unwrap();
            while read_frame(&mut tls).is_some() {}
        });
    });
    assert_eq!(world.ask(b"first").unwrap(), b"first");
    assert_eq!(world.ask(b"second").unwrap(), b"second");
    assert_eq!(world.state.handshakes().0, 2, "the control: another was made");
    assert!(told.recv_timeout(Duration::from_millis(500)).is_err(), "it was closed");
}

/// A stream that the rules ended is told of as that, though the far agent says nothing to it.
#[test]
fn a_stream_that_was_ended_is_told_as_such_whatever_the_peer_says() {
    let world = World::with(Settings { settle_timeout: Duration::from_millis(300), ..patient() });
    play(&world, |_, mut tls| {
        read_frame(&mut tls).unwrap();
        tls.write_all(&frame::accepted(1)).unwrap();
        tls.write_all(&[&frame::data(1, 1)[..], b"x"].concat()).unwrap();
        thread::sleep(Duration::from_secs(30));
    });
    let mut stream = world.connect();
    stream.read_exact(&mut [0; 1]).unwrap();
    *world.state.outbound_revoked.lock().unwrap() = Some(Refusal::new(Reason::OutboundDenied));
    world.state.allow(&[]);
    assert_reset(&mut stream);
    world.eventually("it is told as terminated", |state| {
        state.entries().iter().any(|entry| matches!(entry, Entry::Closed(_, Ending::Terminated(_))))
    });
}

/// A connection that breaks without a word after data was sent on it: nobody knows what the application got, so
/// that nothing is sent again.
#[test]
fn a_stream_that_may_have_arrived_is_not_opened_again() {
    let world = World::new();
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    play(&world, move |number, mut tls| {
        let tell = tell.lock().unwrap();
        tell.send((number, serve_one(&mut tls, 1))).unwrap();
        if number == 0 {
            // OPEN and the question are read, and then the connection breaks.
            drop(read_frame(&mut tls));
            drop(read_frame(&mut tls));
        }
    });
    assert_eq!(world.ask(b"first").unwrap(), b"first");
    let mut stream = world.connect();
    stream.write_all(b"second").unwrap();
    assert_reset(&mut stream);
    assert_eq!(told.recv().unwrap().0, 0);
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "no second connection was made");
    // The control: the next question is answered, on a connection of its own.
    assert_eq!(world.ask(b"third").unwrap(), b"third");
}

/// Frames that a server may not send end the connection, and the application sees a reset.
#[test]
fn a_server_that_breaks_the_framing_is_cut_off() {
    let bad: [(&str, Vec<u8>); 5] = [
        ("END before ACCEPTED", frame::end(1).to_vec()),
        ("OPEN", vec![1, 0, 0, 40, 0, 0, 0, 2]),
        ("another stream", frame::accepted(2).to_vec()),
        ("garbage", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        ("ACCEPTED twice", [frame::accepted(1), frame::accepted(1)].concat()),
    ];
    for (what, bytes) in bad {
        let world = World::new();
        play(&world, move |_, mut tls| {
            read_frame(&mut tls).unwrap();
            tls.write_all(&bytes).unwrap();
            // It is the client's node that closes.
            while read_frame(&mut tls).is_some() {}
        });
        assert_reset(&mut world.connect());
        world.eventually(what, |state| {
            state.entries().iter().any(|entry| matches!(entry, Entry::Closed(_, Ending::Lost)))
        });
    }
}

/// A far agent that takes the connection and says nothing: bounded, and the application is reset.
#[test]
fn a_server_that_never_shakes_hands_is_given_up() {
    let world = World::with(quick());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    *world.state.upstream.lock().unwrap() =
        Ok(Upstream { address: listener.local_addr().unwrap(), expected: Some(PeerName::new(SERVER)) });
    let start = std::time::Instant::now();
    let mut stream = world.connect();
    assert_reset(&mut stream);
    assert!(start.elapsed() < Duration::from_secs(8));
    world.wait_refusal(Hook::Outbound, Reason::TimedOut);
    // Nobody there at all.
    drop(listener);
    assert_reset(&mut world.connect());
    world.wait_refusal(Hook::Outbound, Reason::Unreachable);
}

/// Another node refuses a pod whose address it does not know yet. A pod that has just started is worth another try; for
/// any other the refusal holds.
#[test]
fn a_pod_that_has_just_started_asks_again_where_it_is_refused() {
    let world = World::with(patient());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    // Bound and not listened on: refused, and nobody else's.
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address, expected: Some(PeerName::new(SERVER)) });
    assert_reset(&mut world.connect());
    world.wait_refusal(Hook::Outbound, Reason::Unreachable);

    world.state.new.store(true, Ordering::SeqCst);
    let refusals = || world.state.refusals(Hook::Outbound).len();
    let before = refusals();
    let mut waiting = world.connect();
    waiting.write_all(b"first").unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(refusals(), before, "it is not refused as long as it is new");
    socket.listen(8).unwrap();
    accept(&world, socket.into(), |_, mut tls| drop(serve_one(&mut tls, 1)));
    waiting.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    waiting.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"first");
    assert_eq!(refusals(), before);
}

/// What is refused still when the pod is no longer new is refused.
#[test]
fn a_pod_asks_again_no_longer_than_it_is_new() {
    let world = World::with(patient());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    *world.state.upstream.lock().unwrap() = Ok(Upstream { address, expected: Some(PeerName::new(SERVER)) });
    world.state.new.store(true, Ordering::SeqCst);
    let mut waiting = world.connect();
    thread::sleep(Duration::from_millis(300));
    assert!(world.state.refusals(Hook::Outbound).is_empty());
    world.state.new.store(false, Ordering::SeqCst);
    assert_reset(&mut waiting);
    world.wait_refusal(Hook::Outbound, Reason::Unreachable);
}
