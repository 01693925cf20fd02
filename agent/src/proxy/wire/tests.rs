use std::collections::VecDeque;

use proptest::prelude::*;

use super::{frame::*, *};

fn sample_open() -> Open {
    Open { client: "10.1.0.4:40312".parse().unwrap(), destination: "[fd00::7]:8080".parse().unwrap() }
}

/// Every frame of a record, or the first error.
fn read_all(connection: &mut Connection, record: &[u8]) -> Result<Vec<Event>, Violation> {
    let mut at = 0;
    let mut events = Vec::new();
    while let Some((event, next)) = connection.receive(record, at)? {
        events.push(event);
        at = next;
    }
    Ok(events)
}

/// A client and a server with a stream that was accepted.
fn opened() -> (Connection, Connection) {
    let (mut client, mut server) = (Connection::new(Role::Client), Connection::new(Role::Server));
    let open = client.open(&sample_open()).unwrap();
    assert_eq!(read_all(&mut server, &open).unwrap(), [Event::Opened(sample_open())]);
    let accepted = server.accept().unwrap();
    assert_eq!(read_all(&mut client, &accepted).unwrap(), [Event::Accepted]);
    (client, server)
}

fn data_frame(connection: &mut Connection, bytes: &[u8]) -> Vec<u8> {
    let mut out = connection.data(bytes.len()).unwrap().to_vec();
    out.extend_from_slice(bytes);
    out
}

#[test]
fn bytes_are_as_documented() {
    let open =
        Open { client: "10.1.0.4:258".parse().unwrap(), destination: "[fd00::7]:8080".parse().unwrap() };
    let mut expected = vec![1, 0, 0, 40, 0, 0, 0, 9];
    expected.extend([1, 0, 0, 0, 1, 2, 0x1f, 0x90]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 4]);
    expected.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(frame::open(9, &open).as_slice(), expected);
    assert_eq!(frame::data(1, 0x3ff8), [2, 0, 0x3f, 0xf8, 0, 0, 0, 1]);
    assert_eq!(frame::end(2), [3, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(frame::reset(3, 34), [4, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 34]);
    assert_eq!(frame::accepted(4), [5, 0, 0, 0, 0, 0, 0, 4]);
    assert_eq!(frame::refused(0x0102_0304, 20), [6, 0, 0, 4, 1, 2, 3, 4, 0, 0, 0, 20]);
    assert_eq!(frame::retire(5), [7, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(MAX_PAYLOAD, 0x3ff8);
}

#[test]
fn open_travels_with_the_first_data() {
    let (mut client, mut server) = (Connection::new(Role::Client), Connection::new(Role::Server));
    let mut record = client.open(&sample_open()).unwrap().to_vec();
    record.extend(data_frame(&mut client, b"hello"));
    let events = read_all(&mut server, &record).unwrap();
    let [Event::Opened(open), Event::Data(range)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((*open, &record[range.clone()]), (sample_open(), &b"hello"[..]));
}

#[test]
fn half_closes_end_the_stream_and_the_next_one_follows() {
    let (mut client, mut server) = opened();
    let end = client.end().unwrap();
    assert_eq!(read_all(&mut server, &end).unwrap(), [Event::Ended]);
    assert!(!server.is_idle() && !client.is_idle());
    assert_eq!(client.data(1), Err(Misuse::State("DATA")));
    let answer = data_frame(&mut server, b"x");
    assert!(matches!(read_all(&mut client, &answer).unwrap()[..], [Event::Data(_)]));
    let end = server.end().unwrap();
    assert!(server.is_idle());
    assert_eq!(read_all(&mut client, &end).unwrap(), [Event::Ended]);
    assert!(client.is_reusable());
    let open = client.open(&sample_open()).unwrap();
    assert_eq!(read_all(&mut server, &open).unwrap(), [Event::Opened(sample_open())]);
    assert_eq!((client.stream(), server.stream()), (2, 2));
}

#[test]
fn a_refusal_leaves_the_connection_reusable() {
    let (mut client, mut server) = (Connection::new(Role::Client), Connection::new(Role::Server));
    let mut record = client.open(&sample_open()).unwrap().to_vec();
    record.extend(data_frame(&mut client, b"unheard"));
    let mut at = 0;
    let (_, next) = server.receive(&record, at).unwrap().unwrap();
    let refused = server.refuse(20).unwrap();
    at = next;
    assert_eq!(server.receive(&record, at).unwrap().unwrap().0, Event::Ignored);
    assert_eq!(read_all(&mut client, &refused).unwrap(), [Event::Refused(20)]);
    assert!(!client.is_idle() && !client.may_send_data());
    let reset = client.reset(0).unwrap();
    assert!(client.is_reusable());
    assert_eq!(read_all(&mut server, &reset).unwrap(), [Event::Ignored]);
    assert!(server.is_reusable());
}

#[test]
fn resets_that_cross_bring_both_sides_back_in_step() {
    let (mut client, mut server) = opened();
    let (a, b) = (client.reset(0).unwrap(), server.reset(34).unwrap());
    assert_eq!(client.reset(0), None);
    assert_eq!(read_all(&mut client, &b).unwrap(), [Event::Ignored]);
    assert_eq!(read_all(&mut server, &a).unwrap(), [Event::Ignored]);
    assert!(client.is_reusable() && server.is_reusable());
}

/// The client half-closes and then resets while the server's END is under way: for the server the stream is over.
#[test]
fn a_reset_that_crosses_the_end_is_ignored_once() {
    let (mut client, mut server) = opened();
    let client_end = client.end().unwrap();
    let client_reset = client.reset(0).unwrap();
    read_all(&mut server, &client_end).unwrap();
    let server_end = server.end().unwrap();
    assert!(server.is_idle());
    assert_eq!(read_all(&mut server, &client_reset).unwrap(), [Event::Ignored]);
    assert_eq!(read_all(&mut client, &server_end).unwrap(), [Event::Ignored]);
    assert!(client.is_idle());
    assert_eq!(read_all(&mut server, &client_reset), Err(Violation::State("RESET")));
}

/// The server does so while the client goes on to its next stream.
#[test]
fn a_late_reset_does_not_touch_the_next_stream() {
    let (mut client, mut server) = opened();
    let server_end = server.end().unwrap();
    let server_reset = server.reset(0).unwrap();
    let client_end = client.end().unwrap();
    assert_eq!(read_all(&mut client, &server_end).unwrap(), [Event::Ended]);
    let open = client.open(&sample_open()).unwrap();
    assert_eq!(read_all(&mut client, &server_reset).unwrap(), [Event::Ignored]);
    assert!(!client.is_idle());
    assert_eq!(read_all(&mut server, &client_end).unwrap(), [Event::Ignored]);
    assert!(server.is_idle());
    assert_eq!(read_all(&mut server, &open).unwrap(), [Event::Opened(sample_open())]);
}

#[test]
fn a_client_that_gives_up_before_the_answer_is_answered() {
    let (mut client, mut server) = (Connection::new(Role::Client), Connection::new(Role::Server));
    let open = client.open(&sample_open()).unwrap();
    let reset = client.reset(0).unwrap();
    read_all(&mut server, &open).unwrap();
    assert_eq!(read_all(&mut server, &reset).unwrap(), [Event::Reset(0)]);
    assert_eq!(server.accept(), Err(Misuse::State("ACCEPTED")));
    let refused = server.reset(0).unwrap();
    assert_eq!(refused[0], 6);
    assert_eq!(read_all(&mut client, &refused).unwrap(), [Event::Ignored]);
    assert!(client.is_idle() && server.is_idle());
}

#[test]
fn violations_are_told_apart() {
    let open = |stream| frame::open(stream, &sample_open()).to_vec();
    let with = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let fresh = |record: &[u8]| read_all(&mut Connection::new(Role::Server), record).unwrap_err();
    assert_eq!(fresh(&open(1)[..47]), FrameError::Cut.into());
    assert_eq!(fresh(&[1, 0, 0]), FrameError::Cut.into());
    assert_eq!(fresh(&with(open(1), 0, 8)), FrameError::Kind(8).into());
    assert_eq!(fresh(&with(open(1), 0, 0)), FrameError::Kind(0).into());
    assert_eq!(fresh(&with(open(1), 1, 1)), FrameError::Flags(1).into());
    assert_eq!(fresh(&with(open(1), 3, 39)), FrameError::Length { kind: 1, length: 39 }.into());
    assert_eq!(fresh(&with(open(1), 8, 2)), FrameError::Version(2).into());
    assert_eq!(fresh(&with(open(1), 10, 1)), FrameError::Reserved.into());
    assert_eq!(fresh(&with(with(open(1), 12, 0), 13, 0)), FrameError::Address.into());
    assert_eq!(fresh(&open(2)), Violation::Stream { found: 2, expected: 1 });
    assert_eq!(fresh(&frame::data(1, 0)), FrameError::Length { kind: 2, length: 0 }.into());
    assert_eq!(fresh(&frame::data(1, 0x3ff9)), FrameError::Length { kind: 2, length: 0x3ff9 }.into());
    assert_eq!(fresh(&frame::end(0)), Violation::State("END"));

    let refuses = |role: Role, record: &[u8]| {
        let (client, server) = opened();
        let mut connection = if role == Role::Client { client } else { server };
        read_all(&mut connection, record).unwrap_err()
    };
    assert_eq!(refuses(Role::Server, &open(2)), Violation::State("OPEN"));
    assert_eq!(refuses(Role::Client, &open(2)), Violation::State("OPEN"));
    assert_eq!(refuses(Role::Server, &frame::accepted(1)), Violation::State("ACCEPTED"));
    assert_eq!(refuses(Role::Client, &frame::accepted(1)), Violation::State("ACCEPTED"));
    assert_eq!(refuses(Role::Client, &frame::refused(1, 20)), Violation::State("REFUSED"));
    assert_eq!(refuses(Role::Server, &frame::end(2)), Violation::Stream { found: 2, expected: 1 });
    let twice = [frame::end(1), frame::end(1)].concat();
    assert_eq!(refuses(Role::Server, &twice), Violation::State("END"));
    let after = [&frame::end(1)[..], &frame::data(1, 1), b"x"].concat();
    assert_eq!(refuses(Role::Client, &after), Violation::State("DATA"));

    let mut early = Connection::new(Role::Client);
    early.open(&sample_open()).unwrap();
    assert_eq!(read_all(&mut early, &frame::end(1)), Err(Violation::State("END")));

    // A stream that is over and the next OPEN in one record.
    let (mut client, mut server) = opened();
    let server_end = server.end().unwrap();
    let mut record = client.end().unwrap().to_vec();
    read_all(&mut client, &server_end).unwrap();
    record.extend(client.open(&sample_open()).unwrap());
    assert_eq!(read_all(&mut server, &record), Err(Violation::OpenInsideRecord));
}

/// The server asks for the connection's end while the client opens a stream: it is served, and is the last.
#[test]
fn an_open_that_crosses_retire_is_served() {
    for streams_before in [0, 1] {
        let (mut client, mut server) = (Connection::new(Role::Client), Connection::new(Role::Server));
        if streams_before == 1 {
            (client, server) = opened();
            let (there, back) = (client.end().unwrap(), server.end().unwrap());
            read_all(&mut server, &there).unwrap();
            read_all(&mut client, &back).unwrap();
        }
        let (open, retire) = (client.open(&sample_open()).unwrap(), server.retire().unwrap());
        assert_eq!(server.retire(), Err(Misuse::State("RETIRE")));
        assert_eq!(read_all(&mut server, &open).unwrap(), [Event::Opened(sample_open())]);
        assert_eq!(read_all(&mut client, &retire).unwrap(), [Event::Retired]);
        let accepted = server.accept().unwrap();
        assert_eq!(read_all(&mut client, &accepted).unwrap(), [Event::Accepted]);
        let (there, back) = (client.end().unwrap(), server.end().unwrap());
        read_all(&mut server, &there).unwrap();
        read_all(&mut client, &back).unwrap();
        assert!(client.is_idle() && server.is_idle() && !client.is_reusable());
        assert_eq!(client.open(&sample_open()), Err(Misuse::State("OPEN")));
        // One that opens another all the same is cut off.
        let another = frame::open(streams_before + 2, &sample_open());
        assert_eq!(read_all(&mut server, &another), Err(Violation::State("OPEN")));
    }
}

#[test]
fn retire_comes_from_a_server_between_streams_and_once() {
    let (mut client, mut server) = opened();
    assert_eq!(server.retire(), Err(Misuse::State("RETIRE")));
    assert_eq!(client.retire(), Err(Misuse::State("RETIRE")));
    assert_eq!(read_all(&mut client, &frame::retire(0)), Err(Violation::State("RETIRE")));
    assert_eq!(read_all(&mut server, &frame::retire(0)), Err(Violation::State("RETIRE")));
    let fresh = || Connection::new(Role::Client);
    assert_eq!(read_all(&mut fresh(), &frame::retire(0)).unwrap(), [Event::Retired]);
    let another = Violation::Stream { found: 1, expected: 0 };
    assert_eq!(read_all(&mut fresh(), &frame::retire(1)), Err(another));
    let mut twice = frame::retire(0).to_vec();
    twice.extend(frame::retire(0));
    assert_eq!(read_all(&mut fresh(), &twice), Err(Violation::State("RETIRE")));
}

#[test]
fn a_flood_after_a_reset_is_bounded() {
    let (mut client, mut server) = opened();
    server.reset(34).unwrap();
    let record = data_frame(&mut client, &vec![7; MAX_PAYLOAD]);
    let mut taken = 0u64;
    let violation = loop {
        match read_all(&mut server, &record) {
            Ok(events) => assert_eq!(events, [Event::Ignored]),
            Err(violation) => break violation,
        }
        taken += MAX_PAYLOAD as u64;
        assert!(taken <= DISCARD_LIMIT);
    };
    assert_eq!(violation, Violation::Flood);
}

#[test]
fn numbers_do_not_wrap() {
    let mut client = Connection::after(Role::Client, u32::MAX - 1);
    assert!(client.is_reusable());
    client.open(&sample_open()).unwrap();
    read_all(&mut client, &frame::refused(u32::MAX, 20)).unwrap();
    client.reset(0).unwrap();
    assert!(client.is_idle() && !client.is_reusable());
    assert_eq!(client.open(&sample_open()), Err(Misuse::State("OPEN")));
    let mut server = Connection::after(Role::Server, u32::MAX);
    for stream in [0, 1, u32::MAX] {
        assert!(read_all(&mut server, &frame::open(stream, &sample_open())).is_err());
    }
}

/// Something that a side may try; what is not allowed in its state is not sent.
#[derive(Clone, Copy, Debug)]
enum Act {
    Open,
    Accept,
    Refuse,
    Data(u16),
    End,
    Reset,
    Retire,
    /// The other side reads this many of the records that are under way to it.
    Deliver(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Open),
        3 => Just(Act::Accept),
        1 => Just(Act::Refuse),
        4 => (1u16..=MAX_PAYLOAD as u16).prop_map(Act::Data),
        3 => Just(Act::End),
        1 => Just(Act::Reset),
        1 => Just(Act::Retire),
        6 => (1u8..4).prop_map(Act::Deliver),
    ]
}

/// One side with what it sent and took, stream by stream.
struct Side {
    wire: Connection,
    outbox: VecDeque<Vec<u8>>,
    sent: Vec<(u32, u64, bool)>,
    taken: Vec<(u32, u64, bool)>,
    /// How many streams it has opened, or seen opened.
    opens: u32,
}

impl Side {
    fn new(role: Role) -> Self {
        Self {
            wire: Connection::new(role),
            outbox: VecDeque::new(),
            sent: Vec::new(),
            taken: Vec::new(),
            opens: 0,
        }
    }

    fn act(&mut self, act: Act) {
        let frame = match act {
            Act::Open => self.wire.open(&sample_open()).map(|f| f.to_vec()).ok(),
            Act::Accept => self.wire.accept().map(|f| f.to_vec()).ok(),
            Act::Refuse => self.wire.refuse(20).map(|f| f.to_vec()).ok(),
            Act::Data(length) => self.wire.data(length.into()).ok().map(|header| {
                let mut frame = header.to_vec();
                frame.resize(HEADER + usize::from(length), 0);
                frame
            }),
            Act::End => self.wire.end().map(|f| f.to_vec()).ok(),
            Act::Reset => self.wire.reset(34).map(|f| f.to_vec()),
            Act::Retire => self.wire.retire().map(|f| f.to_vec()).ok(),
            Act::Deliver(_) => None,
        };
        let Some(frame) = frame else { return };
        match act {
            Act::Data(length) => book(&mut self.sent, self.wire.stream(), u64::from(length), false),
            Act::End => book(&mut self.sent, self.wire.stream(), 0, true),
            Act::Open => self.opens += 1,
            _ => {}
        }
        self.outbox.push_back(frame);
    }

    /// Takes a record from the other side; answers what has to be answered.
    fn take(&mut self, record: &[u8]) {
        for event in read_all(&mut self.wire, record).expect("an honest peer breaks no rule") {
            match event {
                Event::Data(range) => book(&mut self.taken, self.wire.stream(), range.len() as u64, false),
                Event::Ended => book(&mut self.taken, self.wire.stream(), 0, true),
                Event::Refused(_) | Event::Reset(_) => self.act(Act::Reset),
                Event::Opened(_) => self.opens += 1,
                Event::Accepted | Event::Retired | Event::Ignored => {}
            }
        }
    }
}

fn book(list: &mut Vec<(u32, u64, bool)>, stream: u32, bytes: u64, ended: bool) {
    match list.last_mut() {
        Some(last) if last.0 == stream => {
            last.1 += bytes;
            last.2 |= ended;
        }
        _ => list.push((stream, bytes, ended)),
    }
}

/// Whatever a side took of a stream, the other had sent; whoever heard END heard all of it.
fn agrees(sent: &[(u32, u64, bool)], taken: &[(u32, u64, bool)]) {
    for (stream, bytes, ended) in taken {
        let (_, sent_bytes, sent_end) = sent.iter().find(|entry| entry.0 == *stream).expect("it was sent");
        assert!(bytes <= sent_bytes);
        if *ended {
            assert!(*sent_end);
            assert_eq!(bytes, sent_bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Two honest sides under any schedule never break a rule, never disagree on what was said, and can always be
    /// brought to rest: both idle, on the same stream.
    #[test]
    fn honest_sides_stay_in_step(acts in prop::collection::vec((any::<bool>(), act()), 1..200)) {
        let mut sides = [Side::new(Role::Client), Side::new(Role::Server)];
        for (second, act) in acts {
            let (me, other) = (usize::from(second), usize::from(!second));
            if let Act::Deliver(count) = act {
                for _ in 0..count {
                    let Some(record) = sides[me].outbox.pop_front() else { break };
                    sides[other].take(&record);
                }
            } else {
                sides[me].act(act);
            }
        }
        // Both give up what is left, and everything under way arrives.
        for _ in 0..4 {
            for me in [0, 1] {
                while let Some(record) = sides[me].outbox.pop_front() {
                    sides[1 - me].take(&record);
                }
                sides[me].act(Act::Reset);
            }
        }
        for side in &sides {
            prop_assert!(side.outbox.is_empty());
            prop_assert!(side.wire.is_idle());
        }
        prop_assert_eq!(sides[0].wire.stream(), sides[1].wire.stream());
        // Whatever crossed, no OPEN was lost, and both know of a RETIRE, after which nothing begins.
        prop_assert_eq!(sides[0].opens, sides[1].opens);
        prop_assert_eq!(sides[0].wire.is_retired(), sides[1].wire.is_retired());
        prop_assert!(!sides[0].wire.is_retired() || sides[0].wire.clone().open(&sample_open()).is_err());
        agrees(&sides[0].sent, &sides[1].taken);
        agrees(&sides[1].sent, &sides[0].taken);
    }

    /// Frames mean the same however they are put together into records; a record cut within a frame is an error.
    #[test]
    fn records_hold_whole_frames(lengths in prop::collection::vec(1usize..300, 1..20), split in any::<u64>(), cut in any::<prop::sample::Index>()) {
        let (mut client, server) = opened();
        let mut frames: Vec<Vec<u8>> = lengths.iter().map(|length| data_frame(&mut client, &vec![9; *length])).collect();
        frames.push(client.end().unwrap().to_vec());
        let whole = frames.concat();

        let mut together = server.clone();
        let expected: Vec<usize> = read_all(&mut together, &whole).unwrap().iter().map(size).collect();
        let mut apart = server.clone();
        let mut found = Vec::new();
        let mut record = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            record.extend_from_slice(frame);
            if split >> (index % 64) & 1 == 1 || index + 1 == frames.len() {
                found.extend(read_all(&mut apart, &record).unwrap().iter().map(size));
                record.clear();
            }
        }
        prop_assert_eq!(expected, found);

        let at = cut.index(whole.len());
        let mut boundary = 0;
        let is_boundary = at == 0 || frames.iter().any(|frame| { boundary += frame.len(); boundary == at });
        prop_assert_eq!(read_all(&mut server.clone(), &whole[..at]).is_ok(), is_boundary);
    }

    /// What was written is read back.
    #[test]
    fn frames_round_trip(stream in any::<u32>(), code in any::<u32>(), v4 in any::<bool>(), address in any::<u128>(), port in 1u16..) {
        let ip = if v4 {
            std::net::IpAddr::from((address as u32 & 0x7fff_ffff | 1).to_be_bytes())
        } else {
            std::net::IpAddr::from((address >> 1 | 1).to_be_bytes())
        };
        let open = Open { client: (ip, port).into(), destination: "127.0.0.1:1".parse().unwrap() };
        let read = |bytes: &[u8]| parse(bytes, 0).unwrap().unwrap();
        prop_assert_eq!(read(&frame::open(stream, &open)), Parsed { frame: Frame::Open(open), stream, next: OPEN_FRAME });
        prop_assert_eq!(read(&frame::reset(stream, code)).frame, Frame::Reset(code));
        prop_assert_eq!(read(&frame::refused(stream, code)).frame, Frame::Refused(code));
        prop_assert_eq!(read(&frame::accepted(stream)).frame, Frame::Accepted);
        prop_assert_eq!(read(&frame::end(stream)).frame, Frame::End);
    }

    /// What the fuzz targets run.
    #[test]
    fn the_fuzz_targets_hold(input in prop::collection::vec(any::<u8>(), 0..300)) {
        super::hostile::frames(&input);
        super::hostile::streams(&input);
    }

    /// Garbage is an error or a sequence of frames, in every state, and never a panic.
    #[test]
    fn garbage_never_panics(role in any::<bool>(), record in prop::collection::vec(any::<u8>(), 0..400), kind in 0u8..8, active in any::<bool>()) {
        let (client, server) = opened();
        let role = if role { Role::Client } else { Role::Server };
        let mut connection = match (active, role) {
            (true, Role::Client) => client,
            (true, Role::Server) => server,
            (false, role) => Connection::new(role),
        };
        let mut likely = vec![kind, 0, 0, record.len().min(255) as u8, 0, 0, 0, 1];
        likely.extend_from_slice(&record);
        let _ = read_all(&mut connection.clone(), &likely);
        let _ = read_all(&mut connection, &record);
        let _ = connection.reset(0);
    }
}

fn size(event: &Event) -> usize {
    if let Event::Data(range) = event { range.len() } else { 0 }
}
