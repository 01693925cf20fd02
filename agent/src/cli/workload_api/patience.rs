//! A connection that ends unless a call on it has been attested in time: a place is not held by silence.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::attest::Caller;

/// A caller's stream, and the time that it has left.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    caller: Arc<Caller>,
    /// None: it has been attested.
    left: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// With so much time until a call of the caller's is attested.
    pub(super) fn new(stream: S, caller: Arc<Caller>, time: Duration) -> Self {
        Self { stream, caller, left: Some(Box::pin(tokio::time::sleep(time))) }
    }

    /// Whether it has had its time.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.caller.is_kept() {
            self.left = None;
        }
        self.left.as_mut().is_some_and(|left| left.as_mut().poll(cx).is_ready())
    }
}

fn over<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no call was attested in time")))
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return over();
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Whoever does not read what it is sent holds its place by that, too.
        if self.is_over(cx) {
            return over();
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
