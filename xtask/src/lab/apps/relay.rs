//! A relay that copies and does nothing else: what carrying costs before anything is sealed.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use anyhow::Result;

use super::serve::serve;

/// Bytes that are copied at once.
const BLOCK: usize = 64 * 1024;

/// Relays each connection at `address` to one of its own to `to`: a thread for each direction, which blocks.
pub fn run(address: SocketAddr, to: SocketAddr) -> Result<()> {
    serve(address, move |client| {
        let server = TcpStream::connect(to)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (answers, asker) = (server.try_clone()?, client.try_clone()?);
        thread::Builder::new().stack_size(64 * 1024).spawn(move || copy(answers, asker))?;
        copy(client, server)
    })
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block)? {
            0 => return to.shutdown(Shutdown::Write),
            read => to.write_all(block.get(..read).unwrap_or_default())?,
        }
    }
}
