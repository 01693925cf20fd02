//! A caller's connection that has its place among the others, for tonic.

use std::{
    hash::Hash,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::places::Place;

/// A connection, who is at its other end, and its place, which is given back with it.
#[derive(Debug)]
pub struct Placed<S, C, K: Copy + Eq + Hash> {
    stream: S,
    caller: C,
    _place: Place<K>,
}

impl<S, C, K: Copy + Eq + Hash> Placed<S, C, K> {
    /// `caller` is what each request on it is told of where it came from.
    pub fn new(stream: S, caller: C, place: Place<K>) -> Self {
        Self { stream, caller, _place: place }
    }
}

impl<S, C: Clone + Send + Sync + 'static, K: Copy + Eq + Hash> Connected for Placed<S, C, K> {
    type ConnectInfo = C;
    fn connect_info(&self) -> C {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin, C: Unpin, K: Copy + Eq + Hash + Unpin> AsyncRead for Placed<S, C, K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, C: Unpin, K: Copy + Eq + Hash + Unpin> AsyncWrite for Placed<S, C, K> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
