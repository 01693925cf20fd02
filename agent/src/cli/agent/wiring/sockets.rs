//! The data plane's sockets are capture's.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use super::pods::{Entry, Pods};
use crate::{
    capture::PodSockets,
    proxy::environment::{PodId, Sockets},
};

pub(super) struct CapturedSockets {
    pub pods: Arc<Pods>,
    pub sockets: PodSockets,
}

impl CapturedSockets {
    fn pod(&self, pod: PodId) -> io::Result<Arc<Entry>> {
        self.pods
            .get(pod)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod is no longer captured"))
    }
}

impl Sockets for CapturedSockets {
    fn take_origin(&self, pod: PodId, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
        let pod = self.pods.get(pod)?;
        self.sockets.take_origin(&pod.captured.namespace, peer, local).map(|origin| origin.address)
    }

    fn take_probe(&self, pod: PodId, local: SocketAddr, peer: SocketAddr) -> bool {
        self.pods.get(pod).is_some() && self.sockets.take_probe(peer, local)
    }

    fn connect_upstream(&self, pod: PodId, destination: SocketAddr) -> io::Result<TcpStream> {
        self.sockets.connect_upstream(&self.pod(pod)?.captured.namespace, destination)
    }

    fn connect_application(
        &self,
        pod: PodId,
        destination: SocketAddr,
        client: SocketAddr,
        from_own_address: bool,
    ) -> io::Result<TcpStream> {
        let pod = self.pod(pod)?;
        self.sockets.connect_application(&pod.captured.namespace, destination, client, from_own_address)
    }
}
