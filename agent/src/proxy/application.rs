//! The hop to the application inside the pod.

use heddle_ebpf::codes::Reason;
use tokio::net::TcpStream;

use super::{
    environment::Flow,
    registry::Membership,
    sockets::connected,
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
    member.set_deadline(Some(worker.settings.connect_timeout));
    let sockets = &worker.environment.sockets;
    let connecting = connected(sockets.connect_application(pod.id, flow.destination, flow.client));
    let result = member.unless_told(connecting).await;
    member.set_deadline(None);
    match result {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) | Err(_) => Err(Reason::Unreachable),
    }
}
