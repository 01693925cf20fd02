//! Connections to the authority: accepted within bounds, in TLS 1.3.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected as TonicConnected;

use super::{issuing::Issuing, limits::Bounds};
use crate::cli::places::{Place, Places};

/// A connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    _place: Place<IpAddr>,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl TonicConnected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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

/// Accepts for ever; connections come out when their handshake is done.
pub fn connections(
    listener: TcpListener,
    issuing: Arc<ArcSwap<Issuing>>,
    bounds: Bounds,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let places = Places::new(bounds.connections, bounds.connections_per_address);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    // Out of descriptors or memory: it passes, and the listener stays.
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = ready.closed() => return,
            };
            let address: IpAddr = peer.ip().to_canonical();
            // Closing at once is the answer: there is nobody yet to whom more could be said.
            let Some(place) = places.enter(address) else {
                tracing::debug!(%peer, "too many connections");
                continue;
            };
            let (ready, server) = (ready.clone(), Arc::clone(&issuing.load().server.config));
            tokio::spawn(async move {
                let handshake = TlsAcceptor::from(server).accept(stream);
                match tokio::time::timeout(bounds.handshake, handshake).await {
                    Ok(Ok(stream)) => {
                        let peer = SocketAddr::new(address, peer.port());
                        // Gone: the authority ends.
                        let _ = ready.send(Ok(Connection { stream, peer, _place: place })).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS with a client"),
                    Err(_) => tracing::debug!(%peer, "a client took too long for its handshake"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}
