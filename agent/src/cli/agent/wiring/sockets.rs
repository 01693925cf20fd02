//! The data plane's sockets are capture's, but where the agent itself answers for a pod.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use heddle_policy::Compiled;

use super::{
    pods::{Entry, Pods},
    shares::Shares,
};
use crate::{
    capture::PodSockets,
    cluster::snapshot::SnapshotReader,
    proxy::environment::{PodId, Sockets},
};

pub(super) struct CapturedSockets {
    pub pods: Arc<Pods>,
    pub sockets: PodSockets,
    pub rules: SnapshotReader<Compiled>,
    pub shares: Shares,
}

impl CapturedSockets {
    fn pod(&self, pod: PodId) -> io::Result<Arc<Entry>> {
        self.pods
            .get(pod)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod is no longer captured"))
    }

    /// Whether a connection to the pod is for the agent, and no application's.
    fn agent_answers(&self, pod: &Entry, destination: SocketAddr) -> bool {
        let snapshot = self.rules.peek();
        let server = pod.address_like(destination.ip());
        snapshot.as_ref().is_some_and(|it| it.compiled.agent_answers(&server, destination.port()))
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
        if self.agent_answers(&pod, destination) {
            return self.shares.connect(&pod.name);
        }
        self.sockets.connect_application(&pod.captured.namespace, destination, client, from_own_address)
    }
}
