//! A wire between two nodes on which everything takes its time, so that what the two say crosses.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

/// What an end of the wire has to tell the other.
enum Said {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// A wire to somewhere.
pub struct SlowWire {
    /// Where to connect to.
    pub near: SocketAddr,
    /// How often something was sent from the near end until now, whether it has arrived or not.
    pub sent: Arc<AtomicUsize>,
}

/// A wire to `far` on which bytes, ends and resets each take `delay`.
pub fn slow_wire(far: SocketAddr, delay: Duration) -> SlowWire {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(far)) else { continue };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            carry(near.try_clone().unwrap(), far.try_clone().unwrap(), delay, Arc::clone(&count));
            carry(far, near, delay, Arc::default());
        }
    });
    SlowWire { near, sent }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration, sent: Arc<AtomicUsize>) {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        loop {
            let said = match from.read(&mut bytes) {
                Ok(0) => Said::End,
                Ok(count) => Said::Bytes(bytes[..count].to_vec()),
                Err(_) => Said::Reset,
            };
            sent.fetch_add(1, Ordering::SeqCst);
            let last = !matches!(said, Said::Bytes(_));
            if tell.send((Instant::now() + delay, said)).is_err() || last {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, said) in told {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            match said {
                Said::Bytes(bytes) if to.write_all(&bytes).is_ok() => {}
                Said::Bytes(_) => break,
                Said::End => drop(to.shutdown(Shutdown::Write)),
                Said::Reset => {
                    drop(SockRef::from(&to).set_linger(Some(Duration::ZERO)));
                    // Both directions hold the socket: the reset is told by whoever lets go last, and this wakes the other.
                    drop(to.shutdown(Shutdown::Read));
                }
            }
        }
    });
}
