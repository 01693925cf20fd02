//! Live `direct` connections after a change of policy: those that are no longer allowed are ended at both ends.

use std::net::SocketAddr;

use aya::maps::{HashMap, MapData};
use heddle_ebpf::{
    codes::Outcome,
    flows::{DirectFlow, ROLE_SERVER, Tuple, maps},
    judge::{OUTBOUND, Question},
};

use super::{error::CaptureError, kernel::Kernel, pod::CapturedPod, sock_diag};

/// The ends of every live `direct` connection.
pub(super) struct DirectFlows {
    flows: HashMap<MapData, u64, DirectFlow>,
}

impl DirectFlows {
    pub(super) fn open(kernel: &Kernel) -> Result<Self, CaptureError> {
        Ok(Self { flows: kernel.pins.hash(maps::DIRECT_FLOWS)? })
    }

    /// Ends each that the tables in force no longer allow; returns how many ends were closed.
    pub(super) fn end_revoked<'a>(
        &mut self,
        kernel: &Kernel,
        pod: impl Fn(u64) -> Option<&'a CapturedPod>,
    ) -> Result<usize, CaptureError> {
        let flows: Vec<_> = self.flows.iter().flatten().collect();
        let mut ended = 0;
        for (cookie, flow) in flows {
            let Some(owner) = pod(flow.netns) else {
                // The pod is gone, and its sockets with it.
                let _ = self.flows.remove(&cookie);
                continue;
            };
            let question = Question {
                source: flow.tuple.source,
                destination: flow.tuple.destination,
                direction: OUTBOUND,
                port: u32::from(flow.tuple.destination_port),
                protocol: 6,
                random: 0,
            };
            if kernel.judge(&question)?.outcome == Outcome::Direct as u32 {
                continue;
            }
            ended += usize::from(end(owner, &flow));
        }
        Ok(ended)
    }
}

fn end(pod: &CapturedPod, flow: &DirectFlow) -> bool {
    let Tuple { source, destination, source_port, destination_port } = flow.tuple;
    let client = SocketAddr::new(source.to_ip(), source_port);
    let server = SocketAddr::new(destination.to_ip(), destination_port);
    let (local, remote) = if flow.role == ROLE_SERVER { (server, client) } else { (client, server) };
    match sock_diag::destroy(&pod.namespace, local, remote) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => {
            tracing::warn!(pod = %pod.name(), %local, %remote, %error, "cannot end a connection that is no longer allowed; the guard drops it");
            false
        }
    }
}
