//! Messages between two agents: each a line of JSON.

use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Far more than any message.
const LONGEST: u64 = 4096;

/// A conversation.
pub(super) struct Line {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    begun: Vec<u8>,
}

impl Line {
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, begun: Vec::new() }
    }

    pub async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(message)?;
        text.push(b'\n');
        self.writer.write_all(&text).await
    }

    /// The next message. May be given up in between and asked again: what has arrived is kept.
    ///
    /// # Errors
    /// The other side is gone, or says what is no message.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let room = LONGEST - self.begun.len() as u64;
        (&mut self.reader).take(room).read_until(b'\n', &mut self.begun).await?;
        if self.begun.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&std::mem::take(&mut self.begun))?)
    }
}
