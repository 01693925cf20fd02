//! The servers.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// Listens, and says so.
pub fn listen(address: SocketAddr, device: Option<&str>) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes())).with_context(|| format!("cannot bind to {device}"))?;
    }
    socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
    socket.listen(4096)?;
    println!("ready");
    Ok(socket.into())
}

/// Each connection on a thread of its own; the loop ends with the process.
pub fn serve(
    address: SocketAddr,
    handle: impl Fn(TcpStream) -> std::io::Result<()> + Copy + Send + 'static,
) -> Result<()> {
    for stream in listen(address, None)?.incoming() {
        match stream {
            Ok(stream) => {
                thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                    if let Err(error) = handle(stream) {
                        eprintln!("connection: {error}");
                    }
                })?;
            }
            // The client may have gone between its SYN and now: no reason to stop listening.
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

pub fn echo(address: SocketAddr) -> Result<()> {
    serve(address, |mut stream| {
        stream.set_nodelay(true)?;
        if let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) {
            println!("from {peer} to {local}");
        }
        let mut buffer = [0u8; 16 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return stream.shutdown(std::net::Shutdown::Write),
                read => stream.write_all(buffer.get(..read).unwrap_or_default())?,
            }
        }
    })
}

pub fn greet(address: SocketAddr, text: &str) -> Result<()> {
    for stream in listen(address, None)?.incoming() {
        let text = text.to_owned();
        let mut stream = stream?;
        thread::spawn(move || {
            if stream.write_all(text.as_bytes()).is_ok() {
                drop(std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
    }
    Ok(())
}

pub fn stall(address: SocketAddr) -> Result<()> {
    serve(address, |stream| {
        let _held = stream;
        thread::sleep(Duration::from_secs(3600));
        Ok(())
    })
}

pub fn accept_and_close(address: SocketAddr) -> Result<()> {
    serve(address, |stream| stream.shutdown(std::net::Shutdown::Both))
}

/// The server closes first: its client keeps no socket in TIME_WAIT, of which some ten thousand would slow down the
/// client's own `connect()` and not what is measured. For the same reason no thread is made for a connection.
pub fn once(address: SocketAddr) -> Result<()> {
    const ACCEPTING: usize = 32;
    let listener = listen(address, None)?;
    thread::scope(|scope| {
        for _ in 0..ACCEPTING {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    if let Err(error) = stream.and_then(answer_once) {
                        eprintln!("connection: {error}");
                    }
                }
            });
        }
    });
    Ok(())
}

fn answer_once(mut stream: TcpStream) -> std::io::Result<()> {
    // A client that says nothing holds one of the threads: not for ever.
    stream.set_read_timeout(Some(crate::lab::stretched(Duration::from_secs(10))))?;
    let mut byte = [0u8; 1];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    while stream.read(&mut byte)? > 0 {}
    Ok(())
}

pub fn sink(address: SocketAddr) -> Result<()> {
    serve(address, |mut stream| {
        let (mut buffer, mut total) = (vec![0u8; 256 * 1024], 0u64);
        loop {
            match stream.read(&mut buffer)? {
                0 => return stream.write_all(&total.to_be_bytes()),
                read => total += read as u64,
            }
        }
    })
}

pub fn udp_echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("ready");
    let mut buffer = [0u8; 64 * 1024];
    loop {
        let (read, from) = socket.recv_from(&mut buffer)?;
        println!("from {from}");
        socket.send_to(buffer.get(..read).unwrap_or_default(), from)?;
    }
}
