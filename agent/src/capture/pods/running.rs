//! Pods that were captured while they ran: what their sockets had open before.
//!
//! No program judged those connections. For as long as the pod settles the guard lets them go on, and whoever knows the
//! rules looks at each and has those ended that may not. When the pod has settled the rest are ended too.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use heddle_ebpf::{
    attach::{Veth, maps},
    flows::Tuple,
};

use super::super::error::CaptureError;
use super::super::flows::EndedFlow;
use super::super::namespace::Namespace;
use super::super::pod::CapturedPod;
use super::super::rows::interfaces_of;
use super::super::sock_diag;
use super::{Capture, Inner};

/// A connection that a pod had open when it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EarlyConnection {
    /// The kernel's number for the socket.
    pub socket: u64,
    /// The pod's end.
    pub local: SocketAddr,
    /// The other.
    pub remote: SocketAddr,
    /// Whether the pod serves it: it listened on the port.
    pub serves: bool,
    /// Whether a process has it.
    pub owned: bool,
}

impl EarlyConnection {
    fn tuple(&self) -> Tuple {
        let (client, server) = self.ends();
        Tuple {
            source: client.ip().into(),
            destination: server.ip().into(),
            source_port: client.port(),
            destination_port: server.port(),
        }
    }

    /// The client's end and the server's.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        if self.serves { (self.remote, self.local) } else { (self.local, self.remote) }
    }
}

/// What is open in a pod's namespace and leads out of it, but for the agent's own.
pub(super) fn open(
    namespace: &Namespace,
    addresses: &[IpAddr],
) -> Result<Vec<EarlyConnection>, CaptureError> {
    let failed = CaptureError::system("listing the pod's connections");
    let listening: HashSet<u16> =
        sock_diag::listening(namespace).map_err(failed)?.into_iter().map(|it| it.port).collect();
    let open =
        sock_diag::connections(namespace).map_err(CaptureError::system("listing the pod's connections"))?;
    // Nothing within the pod crosses its veth.
    let leads_out = |ip: IpAddr| {
        let ip = ip.to_canonical();
        !ip.is_loopback() && !addresses.contains(&ip)
    };
    let early = open.into_iter().filter(|it| leads_out(it.remote.ip())).map(|it| EarlyConnection {
        socket: it.cookie,
        local: canonical(it.local),
        remote: canonical(it.remote),
        serves: listening.contains(&it.local.port()),
        owned: it.inode != 0,
    });
    Ok(early.collect())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A pod that was captured while it ran and has not settled.
#[derive(Default)]
pub(super) struct Settling {
    /// Whether everything that it opens now is judged.
    pub captured: bool,
    /// The sockets that were open before that.
    pub sockets: HashSet<u64>,
}

impl Inner {
    /// What a pod's row in `veths` says of it.
    pub(super) fn settles(&self, cookie: u64) -> u8 {
        match self.settling.get(&cookie) {
            None => 0,
            Some(settling) if settling.captured => 1,
            Some(_) => 2,
        }
    }

    /// A pod's row in `veths`.
    pub(super) fn veth(&self, cookie: u64, pod: &heddle_ebpf::attach::Pod, mac: [u8; 6]) -> Veth {
        Veth { netns: cookie, v4: pod.v4, v6: pod.v6, mac, settling: self.settles(cookie), pad: 0 }
    }

    /// Tells the guard of a pod how it settles.
    pub(super) fn tell_guard(&mut self, cookie: u64) -> Result<(), CaptureError> {
        let settling = self.settles(cookie);
        for index in interfaces_of(&self.maps, cookie)? {
            let row = self.maps.veths.get(&index, 0).map_err(CaptureError::map(maps::VETHS))?;
            let told = self.maps.veths.insert(index, Veth { settling, ..row }, 0);
            told.map_err(CaptureError::map(maps::VETHS))?;
        }
        Ok(())
    }
}

impl Capture {
    /// The pods that were captured while they ran and have not settled.
    pub fn settling(&self) -> Vec<CapturedPod> {
        let inner = self.lock();
        inner.settling.keys().filter_map(|cookie| inner.pods.get(cookie)).cloned().collect()
    }

    /// What a pod that settles still has open from before.
    ///
    /// # Errors
    /// When the kernel does not list it.
    pub fn early(&self, pod: &CapturedPod) -> Result<Vec<EarlyConnection>, CaptureError> {
        let inner = self.lock();
        let Some(before) = inner.settling.get(&pod.namespace.cookie()) else { return Ok(Vec::new()) };
        let now = open(&pod.namespace, &pod.addresses)?;
        // What a program registered since bears the tables' permission.
        let kept =
            now.into_iter().filter(|it| before.sockets.contains(&it.socket) && !inner.flows.has(&it.tuple()));
        Ok(kept.collect())
    }

    /// Has a pod that leaves the mesh opened to and open by itself from now on; what is carried goes on. Or, `false`, has it
    /// in the mesh again: then it settles, as one does that was captured while it ran.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing has changed, but what the guard lets pass.
    pub fn let_out(&self, pod: &CapturedPod, out: bool) -> Result<(), CaptureError> {
        let inner = &mut *self.lock();
        let cookie = pod.namespace.cookie();
        let Some(mut row) = inner.pods.get(&cookie).map(|pod| pod.row) else { return Ok(()) };
        if row.left == u32::from(out) || !self.writes() {
            return Ok(());
        }
        row.left = out.into();
        if out {
            // Before anybody opens anything that it would not let pass.
            inner.settling.insert(cookie, Settling::default());
            inner.tell_guard(cookie)?;
        }
        inner.maps.pods.insert(cookie, row, 0).map_err(CaptureError::map(maps::PODS))?;
        if let Some(pod) = inner.pods.get_mut(&cookie) {
            pod.row = row;
        }
        if !out {
            let open = open(&pod.namespace, &pod.addresses)?;
            let sockets = open.into_iter().filter(|it| it.owned).map(|it| it.socket).collect();
            inner.settling.insert(cookie, Settling { captured: true, sockets });
            inner.tell_guard(cookie)?;
        }
        Ok(())
    }

    /// Ends some of them; returns those that were.
    pub fn end_early(&self, pod: &CapturedPod, connections: &[EarlyConnection]) -> Vec<EndedFlow> {
        let generation = self.generation().unwrap_or_default();
        let mut ended = Vec::new();
        for connection in connections {
            match sock_diag::destroy(&pod.namespace, connection.local, connection.remote) {
                Ok(()) => {
                    let (client, server) = connection.ends();
                    ended.push(EndedFlow {
                        pod: pod.namespace.cookie(),
                        server_side: connection.serves,
                        client,
                        server,
                        generation,
                        rule: 0,
                    });
                }
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    let (local, remote) = (connection.local, connection.remote);
                    tracing::warn!(pod = %pod.name(), %local, %remote, %error, "cannot end a connection from before the capture");
                }
            }
        }
        ended
    }

    /// A pod has settled: from here on the guard lets nothing out that was not judged. What is left from before is ended.
    ///
    /// # Errors
    /// When the kernel refuses; the pod settles on then.
    pub fn settled(&self, pod: &CapturedPod) -> Result<Vec<EndedFlow>, CaptureError> {
        let left = self.early(pod)?;
        {
            let inner = &mut *self.lock();
            if !self.writes() {
                return Ok(Vec::new());
            }
            let cookie = pod.namespace.cookie();
            let Some(before) = inner.settling.remove(&cookie) else { return Ok(Vec::new()) };
            if let Err(error) = inner.tell_guard(cookie) {
                inner.settling.insert(cookie, before);
                return Err(error);
            }
        }
        Ok(self.end_early(pod, &left))
    }
}
