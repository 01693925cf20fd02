//! Live `direct` connections after a change of policy: those that are no longer allowed are ended at both ends.

use std::{collections::BTreeMap, net::SocketAddr};

use aya::maps::{HashMap, MapData};
use heddle_ebpf::{
    codes::Outcome,
    flows::{DirectFlow, Tuple, maps},
    judge::{LIVE, Question},
};

use super::{error::CaptureError, kernel::Kernel, pod::CapturedPod, sock_diag, walk::Walk};

/// One end of a `direct` connection that was ended, because the tables in force do not allow it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedFlow {
    /// The cookie of the pod's network namespace.
    pub pod: u64,
    /// Whether the pod is the server's.
    pub server_side: bool,
    /// The client's address.
    pub client: SocketAddr,
    /// The server's address.
    pub server: SocketAddr,
    /// The generation that does not allow it.
    pub generation: u64,
    /// The rule of that generation which decided, or the Server or default policy for want of one.
    pub rule: u32,
}

/// Every live `direct` connection.
pub(super) struct DirectFlows {
    flows: HashMap<MapData, Tuple, DirectFlow>,
    walk: Walk<Tuple, DirectFlow>,
}

impl DirectFlows {
    pub(super) fn open(kernel: &Kernel) -> Result<Self, CaptureError> {
        let pins = &kernel.pins;
        let walk = pins.walk(maps::DIRECT_FLOWS, "reading live connections")?;
        Ok(Self { flows: pins.hash(maps::DIRECT_FLOWS)?, walk })
    }

    /// Whether a connection is one.
    pub(super) fn has(&self, tuple: &Tuple) -> bool {
        self.flows.get(tuple, 0).is_ok()
    }

    /// Ends each that the tables in force no longer allow, at both ends where both are captured pods' of this node;
    /// returns those ends.
    pub(super) fn end_revoked(
        &mut self,
        kernel: &Kernel,
        pods: &BTreeMap<u64, CapturedPod>,
    ) -> Result<Vec<EndedFlow>, CaptureError> {
        let mut revoked = Vec::new();
        for (tuple, flow) in self.walk.rows()? {
            let Some(owner) = pods.get(&flow.netns) else {
                // The pod is gone, and its sockets with it.
                let _ = self.flows.remove(&tuple);
                continue;
            };
            let question = Question {
                source: tuple.source,
                destination: tuple.destination,
                direction: LIVE,
                port: u32::from(tuple.destination_port),
                protocol: 6,
                random: 0,
            };
            let answer = kernel.judge(&question)?;
            if answer.outcome == Outcome::Direct as u32 {
                continue;
            }
            let (client, server) = ends(&tuple);
            let other = pods.values().find(|pod| pod.addresses.contains(&server.ip()));
            // The reset that ends one end may reach the other before its turn comes: it was ended all the same. A flow
            // of which no end was left had come to its own end.
            let mut ended = end(owner, (client, server));
            if let Some(other) = other {
                ended |= end(other, (server, client));
            }
            if !ended {
                continue;
            }
            let (generation, rule) = (answer.generation, answer.rule);
            let both = [(Some(owner), false), (other, true)];
            revoked.extend(both.into_iter().filter_map(|(pod, server_side)| {
                let pod = pod?.namespace.cookie();
                Some(EndedFlow { pod, server_side, client, server, generation, rule })
            }));
        }
        Ok(revoked)
    }
}

fn ends(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    let Tuple { source, destination, source_port, destination_port } = *tuple;
    (SocketAddr::new(source.to_ip(), source_port), SocketAddr::new(destination.to_ip(), destination_port))
}

fn end(pod: &CapturedPod, (local, remote): (SocketAddr, SocketAddr)) -> bool {
    match sock_diag::destroy(&pod.namespace, local, remote) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => {
            tracing::warn!(pod = %pod.name(), %local, %remote, %error, "cannot end a connection that is no longer allowed; the guard drops it");
            false
        }
    }
}
