//! Connections to the authority: accepted within bounds, in TLS 1.3.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::{issuing::Issuing, limits::Bounds};
use crate::cli::{patience::Patient, placed::Placed, places::Places};

/// A connection whose handshake is done.
pub type Connection = Placed<Patient<TlsStream<TcpStream>>, Peer, IpAddr>;

/// Where requests come from: the same for all of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether the last token that was looked at on this connection was believed.
    pub proved: Arc<AtomicBool>,
    /// While it was not, one at a time is looked at.
    pub turn: Arc<Mutex<()>>,
}

impl Peer {
    /// Somebody unknown.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, proved: Arc::default(), turn: Arc::default() }
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
                        let peer = Peer::new(SocketAddr::new(address, peer.port()));
                        let stream = Patient::new(stream, Arc::clone(&peer.proved), bounds.silence);
                        // Gone: the authority ends.
                        let _ = ready.send(Ok(Placed::new(stream, peer, place))).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS with a client"),
                    Err(_) => tracing::debug!(%peer, "a client took too long for its handshake"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}
