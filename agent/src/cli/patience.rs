//! A connection that ends unless whoever is at its other end has proved itself in time: a place is not held by silence.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// A caller's stream, and the time that it has left.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    proved: Arc<AtomicBool>,
    /// None: it has been proved.
    left: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// With so much time until `proved` is set.
    pub(super) fn new(stream: S, proved: Arc<AtomicBool>, time: Duration) -> Self {
        Self { stream, proved, left: Some(Box::pin(tokio::time::sleep(time))) }
    }

    /// Whether it has had its time.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.proved.load(Ordering::Relaxed) {
            self.left = None;
        }
        self.left.as_mut().is_some_and(|left| left.as_mut().poll(cx).is_ready())
    }
}

fn over<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody was proved in time")))
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
