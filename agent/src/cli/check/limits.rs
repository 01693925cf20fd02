//! What cannot be held, in the words of the design.

/// Said on every host.
pub(super) const NOT_HELD: [&str; 10] = [
    "Pods that are privileged, share the host's pid or ipc namespace, have CAP_SYS_ADMIN, CAP_BPF, CAP_SYS_PTRACE or \
     CAP_SYS_MODULE, or mount /, /sys/fs/bpf, the agent's run folder, /proc or the runtime's socket own the node, and \
     with it the mesh on it.",
    "Pods with CAP_NET_ADMIN or CAP_NET_RAW can show themselves bytes that were not judged (TPROXY, packet sockets); \
     they gain no identity and send nothing past the guard.",
    "Segments without payload from sockets that nobody marked pass (the kernel's own look alike), limited in rate but for \
     resets: a covert channel for CAP_NET_RAW.",
    "Pods on the host's network have no identity and are judged by the node's address.",
    "Kata and gVisor pods' sockets are invisible to the node's kernel: nothing is captured there.",
    "TLS proves the pod that was reached, not the name that was asked for: a forged DNS answer can lead a client to any \
     pod that it may speak to.",
    "SNI shows identities on the wire.",
    "connect() succeeds before the far side is known, so that a refusal there is a reset and not ECONNREFUSED; \
     /proc/net/tcp shows the agent's own hops.",
    "AF_VSOCK is seen by no network hook.",
    "HTTP is not read yet: the header l5d-client-id is neither set nor removed, so an application must not trust it; \
     ports whose rules need a request to be seen are refused (needs_request).",
];
