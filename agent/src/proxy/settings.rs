//! Bounds of the data plane.

use std::time::Duration;

/// Bounds. All counts are a worker's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// To the end of the TLS handshake from accept, and from its first byte where plain clients come, too; bytes that
    /// arrive slowly do not extend it.
    pub handshake_timeout: Duration,
    /// How long a plain client on a port that is not opaque may stay silent before it is taken for one that waits
    /// for the server.
    pub first_byte_timeout: Duration,
    /// How long a connect may take, to a far agent or to the application.
    pub connect_timeout: Duration,
    /// How long the far agent may leave a stream unanswered on a connection that was used before; then a fresh
    /// connection shows whether it is still there.
    pub accept_patience: Duration,
    /// How long it may in any case: longer than it takes itself to give up an application.
    pub accept_timeout: Duration,
    /// How long an application may leave a hop from a loopback address unanswered before the pod's own address is
    /// tried: one that is bound to a device sends its answer out of that device.
    pub loopback_patience: Duration,
    /// How long the application may take to answer a health probe.
    pub probe_timeout: Duration,
    /// How long a client keeps an idle connection to another agent.
    pub client_idle_timeout: Duration,
    /// How long a server does: longer, so that the client closes first and the TIME_WAIT is its own.
    pub server_idle_timeout: Duration,
    /// How long a server waits for the client to close a connection after it was asked to.
    pub retire_timeout: Duration,
    /// How old a connection between agents may be and still carry a new stream.
    pub connection_age: Duration,
    /// How long the peer may take to answer a RESET or REFUSED before the connection is closed instead of reused.
    pub settle_timeout: Duration,
    /// How long a worker goes on asking for the next message of a conversation before it sleeps; zero: not at all.
    pub poll: Duration,
    /// Connections of applications, and idle ones from other agents, in all.
    pub connections: usize,
    /// The same for one pod; half of them for one client's address.
    pub pod_connections: usize,
    /// Handshakes that have begun: a client that is silent takes the place of none.
    pub handshakes: usize,
    /// The same for one pod; a quarter of them for one client's address.
    pub pod_handshakes: usize,
    /// Buffers lent at the same time, each of two areas of 68 KiB: one for each direction that has bytes under way.
    pub buffers: usize,
    /// The same for one pod.
    pub pod_buffers: usize,
    /// A pod's own beyond [`Self::buffers`]: what others hold takes them from nobody.
    pub reserved_buffers: usize,
    /// Idle connections to other agents.
    pub pooled: usize,
    /// The same for one destination and pair of identities.
    pub pooled_per_destination: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            accept_patience: Duration::from_millis(500),
            accept_timeout: Duration::from_secs(15),
            // A thousand times what a connect inside one machine takes.
            loopback_patience: Duration::from_millis(250),
            probe_timeout: Duration::from_secs(60),
            client_idle_timeout: Duration::from_secs(60),
            server_idle_timeout: Duration::from_secs(90),
            // A client looks at its idle connections each second.
            retire_timeout: Duration::from_secs(15),
            connection_age: Duration::from_secs(3600),
            settle_timeout: Duration::from_secs(5),
            poll: Duration::from_micros(200),
            connections: 65_536,
            pod_connections: 16_384,
            handshakes: 1_024,
            pod_handshakes: 256,
            buffers: 1_024,
            pod_buffers: 64,
            reserved_buffers: 4,
            pooled: 4_096,
            pooled_per_destination: 64,
        }
    }
}

impl Settings {
    /// Lowers the bounds so that `workers` of them never need more than `descriptors` in all: a process without a
    /// free descriptor accepts for nobody. An eighth is left for listeners, kernel maps and the door; one pod has at
    /// most two thirds of the rest.
    #[must_use]
    pub fn within(self, descriptors: u64, workers: usize) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let of_worker = (descriptors - descriptors / 8) / workers.max(1);
        let pooled = self.pooled.min(of_worker / 8);
        // A connection is two sockets: the application's and the hop's.
        let connections = self.connections.min((of_worker - pooled) / 2);
        let pod_connections = self.pod_connections.min(connections / 3 * 2);
        Self { connections, pod_connections, pooled, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn a_process_keeps_descriptors_for_itself_and_one_pod_leaves_some_to_others() {
        for descriptors in [64, 1_024, 20_000, 1 << 20] {
            for workers in [1, 4] {
                let settings = Settings::default().within(descriptors, workers);
                let used = workers * (2 * settings.connections + settings.pooled);
                assert!(used as u64 <= descriptors - descriptors / 8, "{descriptors}, {workers}: {used}");
                assert!(settings.pod_connections > 0 && settings.pod_connections < settings.connections);
            }
        }
        let plenty = Settings::default().within(u64::MAX, 4);
        assert_eq!((plenty.connections, plenty.pod_connections, plenty.pooled), (65_536, 16_384, 4_096));
    }
}
