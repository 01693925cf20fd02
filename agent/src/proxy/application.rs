//! The hop to the application inside the pod.

use std::{io, time::Duration};

use heddle_ebpf::codes::Reason;
use tokio::net::TcpStream;

use super::{
    environment::Flow,
    registry::{Membership, Told},
    sockets::{connected, reset_unless_released},
    worker::{Pod, Worker},
};

/// Connects to the application that the flow asks for, within the worker's bound.
///
/// # Errors
/// [`Reason::Unreachable`].
pub async fn connect(
    worker: &Worker,
    pod: &Pod,
    member: &Membership,
    flow: &Flow,
) -> Result<TcpStream, Reason> {
    let settings = &worker.settings;
    let port = flow.destination.port();
    if flow.destination.is_ipv4() && !pod.own_address_only(port) {
        match hop(worker, pod, member, flow, false, settings.loopback_patience).await {
            // Silence, not a refusal: an application that is bound to a device answers only there.
            Err(Told::TimedOut) => {}
            result => return arrived(result),
        }
    }
    let result = hop(worker, pod, member, flow, true, settings.connect_timeout).await;
    if flow.destination.is_ipv4() {
        // Where it fails the next connection begins with loopback again.
        pod.set_own_address_only(port, matches!(result, Ok(Ok(_))));
    }
    arrived(result)
}

async fn hop(
    worker: &Worker,
    pod: &Pod,
    member: &Membership,
    flow: &Flow,
    from_own_address: bool,
    patience: Duration,
) -> Result<io::Result<TcpStream>, Told> {
    member.set_deadline(Some(patience));
    let sockets = &worker.environment.sockets;
    let (destination, client) = (flow.destination, flow.client);
    let connecting = sockets.connect_application(pod.id, destination, client, from_own_address);
    let result = member.unless_told(connected(connecting)).await;
    member.set_deadline(None);
    result
}

fn arrived(result: Result<io::Result<TcpStream>, Told>) -> Result<TcpStream, Reason> {
    match result {
        Ok(Ok(stream)) => {
            reset_unless_released(&stream);
            Ok(stream)
        }
        Ok(Err(_)) | Err(_) => Err(Reason::Unreachable),
    }
}
