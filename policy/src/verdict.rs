//! The decision about a connection, over compiled tables: one source, two enforcers.
//!
//! The kernel programs call these functions over their maps, the agent over the same tables in memory, so that both
//! give the same outcome, the same reason and the same rule.

use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason, Verdict},
    policy::{
        ALLOW_DENIES, Allow, Backend, EGRESS_POLICY, EGRESS_SHIFT, NETWORK_ALLOW, NETWORK_BY_NAME,
        NETWORK_DENY, NETWORKS_CLUSTER, NETWORKS_PODS, Network, OUTBOUND_ALLOW, OUTBOUND_CLUSTER,
        PORT_L4_ONLY, PORT_MESH_CLIENTS, PORT_NEEDS_REQUEST, PortPolicy, SERVICE_DNS, SERVICE_MESHED,
        Service, Settings, WORKLOAD_ASKED_PLAIN, WORKLOAD_DNS, WORKLOAD_LOCAL, WORKLOAD_MESHED, Workload,
    },
};

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

/// One generation of compiled tables, wherever they are kept.
///
/// By reference: the kernel programs have 512 bytes of stack and read their maps in place.
pub trait Tables {
    /// What holds for the node; `None` refuses everything.
    fn settings(&self) -> Option<&Settings>;
    /// The pod at `address`.
    fn workload(&self, address: &Address) -> Option<&Workload>;
    /// A port of a pod's policy for a protocol; port 0 is every port without a row of its own.
    fn port(&self, policy: u32, port: u16, protocol: u8) -> Option<&PortPolicy>;
    /// Whether a class of clients is allowed.
    fn allow(&self, rules: u32, client: u32) -> Option<&Allow>;
    /// The longest prefix of `set` that holds `address`.
    fn network(&self, set: u32, address: &Address) -> Option<&Network>;
    /// The Service at an address and port; port 0 and protocol 0 ask whether the address is a Service's.
    fn service(&self, address: &Address, port: u16, protocol: u8) -> Option<&Service>;
    /// An endpoint of a Service.
    fn backend(&self, service: u32, index: u32) -> Option<&Backend>;
    /// The digest of the UID of the pod that is captured on this node at `address`.
    fn captured(&self, address: &Address) -> Option<u64>;
}

/// A connection that an application opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connect {
    /// The pod's own address of the destination's family.
    pub source: Address,
    /// The address asked for.
    pub destination: Address,
    /// The port asked for.
    pub port: u16,
    /// [`TCP`], [`UDP`], or that of an echo.
    pub protocol: u8,
    /// Chooses among a Service's endpoints.
    pub random: u32,
}

/// The verdict on a connection out of a pod, and where it leads if the kernel carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outbound {
    /// The verdict. `Proxy` keeps what was asked for as the destination: the agent chooses the endpoint.
    pub verdict: Verdict,
    /// For `Direct`: the endpoint, which is what was asked for unless that was a Service.
    pub destination: Address,
    /// For `Direct`: its port.
    pub port: u16,
}

/// Judges a connection that an application in a captured pod of this node opens.
#[inline(always)]
pub fn outbound<T: Tables>(tables: &T, connect: &Connect) -> Outbound {
    let asked = |verdict| Outbound { verdict, destination: connect.destination, port: connect.port };
    let destination = &connect.destination;
    if destination.is_loopback() || destination.is_unspecified() || *destination == connect.source {
        return asked(Verdict::direct(Reason::Loopback, 0));
    }
    let Some(settings) = tables.settings() else {
        return asked(Verdict::refuse(Reason::TablesClosed, 0));
    };
    if settings.open != 1 {
        return asked(Verdict::refuse(Reason::TablesClosed, 0));
    }
    if destination.is_multicast() || destination.is_link_local_v6() {
        // Neighbors on the link: nobody there is known by such an address.
        return asked(Verdict::refuse(Reason::Protocol, 0));
    }
    let Some(source) = local_pod(tables, &connect.source) else {
        return asked(Verdict::refuse(Reason::NotCaptured, 0));
    };
    // One call of `endpoint` for both ways: it is compiled into the kernel programs, whose stack is small.
    let (address, port) = match tables.service(destination, connect.port, connect.protocol) {
        Some(service) => {
            if service.flags & SERVICE_DNS != 0 && connect.protocol == UDP && connect.port == 53 {
                // Names are asked for before there is anybody to be authenticated to.
                let (way, rule) = egress(tables, source.flags >> EGRESS_SHIFT, destination, 53, UDP);
                if way == NETWORK_DENY {
                    return asked(Verdict::refuse(Reason::Denied, rule));
                }
                return asked(Verdict::direct(Reason::PlainCluster, 0));
            }
            if service.backends == 0 {
                return asked(Verdict::refuse(Reason::NoEndpoints, 0));
            }
            if connect.protocol == UDP && service.flags & SERVICE_MESHED != 0 {
                // Nobody turns a datagram to an endpoint here: which one it reaches would be found out too late.
                return asked(Verdict::refuse(Reason::PlainToMeshed, 0));
            }
            match tables.backend(service.service, connect.random % service.backends) {
                Some(backend) => (&backend.address, backend.port),
                None => return asked(Verdict::refuse(Reason::NoEndpoints, 0)),
            }
        }
        None => {
            if tables.service(destination, 0, 0).is_some() {
                return asked(Verdict::refuse(Reason::NoServicePort, 0));
            }
            (destination, connect.port)
        }
    };
    let verdict = endpoint(tables, settings, source, &connect.source, address, port, connect.protocol);
    // Looked up again, on the way of refusals alone: a word carried through the judgement would double what the
    // kernel's verifier goes through.
    if verdict.outcome == Outcome::Refuse
        && connect.protocol == TCP
        && let Some(service) = tables.service(destination, connect.port, TCP)
        && service.backends > 1
    {
        // Chance must not decide who is let in. The agent sees every endpoint, and refuses if none is allowed.
        return asked(Verdict::proxy(Reason::AnotherEndpoint, 0));
    }
    Outbound { verdict, destination: *address, port }
}

/// The captured, meshed pod of this node at `address`: the one that the tables mean, not another at its address.
#[inline(always)]
fn local_pod<'a, T: Tables>(tables: &'a T, address: &Address) -> Option<&'a Workload> {
    let workload = tables.workload(address)?;
    let both = WORKLOAD_MESHED | WORKLOAD_LOCAL;
    if workload.flags & both != both || tables.captured(address) != Some(workload.uid) {
        return None;
    }
    Some(workload)
}

#[inline(always)]
fn endpoint<T: Tables>(
    tables: &T,
    settings: &Settings,
    source: &Workload,
    source_address: &Address,
    destination: &Address,
    port: u16,
    protocol: u8,
) -> Verdict {
    if *destination == *source_address {
        return Verdict::direct(Reason::Loopback, 0);
    }
    let (way, rule) = egress(tables, source.flags >> EGRESS_SHIFT, destination, port, protocol);
    if way == NETWORK_DENY {
        return Verdict::refuse(Reason::Denied, rule);
    }
    let Some(workload) = tables.workload(destination) else {
        if in_networks(tables, NETWORKS_PODS, destination) {
            return Verdict::refuse(Reason::UnknownClusterAddress, 0);
        }
        if way == NETWORK_ALLOW {
            return Verdict::direct(Reason::PlainOutside, rule);
        }
        if way == NETWORK_BY_NAME {
            return Verdict::refuse(Reason::NeedsRequest, rule);
        }
        if settings.default_outbound == OUTBOUND_ALLOW {
            return Verdict::direct(Reason::PlainOutside, 0);
        }
        if settings.default_outbound == OUTBOUND_CLUSTER {
            if in_networks(tables, NETWORKS_CLUSTER, destination) {
                return Verdict::direct(Reason::PlainCluster, 0);
            }
            return Verdict::refuse(Reason::OutboundOutsideCluster, 0);
        }
        return Verdict::refuse(Reason::OutboundDenied, 0);
    };
    // One that is on its way into the mesh or out of it: captured on this node, it is in it.
    let asked_plain =
        workload.flags & WORKLOAD_ASKED_PLAIN != 0 && tables.captured(destination) != Some(workload.uid);
    if workload.flags & WORKLOAD_MESHED == 0 || asked_plain {
        if way == NETWORK_ALLOW {
            return Verdict::direct(Reason::PlainCluster, rule);
        }
        if way == NETWORK_BY_NAME {
            return Verdict::refuse(Reason::NeedsRequest, rule);
        }
        if settings.default_outbound == OUTBOUND_ALLOW || settings.default_outbound == OUTBOUND_CLUSTER {
            return Verdict::direct(Reason::PlainCluster, 0);
        }
        return Verdict::refuse(Reason::OutboundDenied, 0);
    }
    if asks_for_names(workload, port, protocol) {
        return question(tables, source_address, workload);
    }
    if protocol != TCP {
        // What would encrypt it between nodes is not there, and an address from another node proves nobody.
        if protocol != UDP || workload.flags & WORKLOAD_LOCAL == 0 || settings.same_node_encrypt != 0 {
            return Verdict::refuse(Reason::PlainToMeshed, 0);
        }
        if port == 0 {
            return Verdict::refuse(Reason::Fragment, 0);
        }
    }
    if workload.flags & WORKLOAD_LOCAL == 0 {
        return Verdict::proxy(Reason::Meshed, 0);
    }
    if tables.captured(destination) != Some(workload.uid) {
        return Verdict::refuse(Reason::NotCaptured, 0);
    }
    let Some(policy) = port_policy(tables, workload.policy, port, protocol) else {
        return Verdict::refuse(Reason::Unauthorized, 0);
    };
    if policy.flags & PORT_NEEDS_REQUEST != 0 {
        return Verdict::refuse(Reason::NeedsRequest, policy.governs);
    }
    match tables.allow(policy.rules, source.client) {
        None => Verdict::refuse(Reason::Unauthorized, policy.governs),
        Some(allow) if allow.rule & ALLOW_DENIES != 0 => {
            Verdict::refuse(Reason::Denied, allow.rule & !ALLOW_DENIES)
        }
        Some(allow) if policy.flags & PORT_L4_ONLY != 0 && settings.same_node_encrypt == 0 => {
            Verdict::direct(Reason::Authorized, allow.rule)
        }
        Some(allow) => Verdict::proxy(Reason::Meshed, allow.rule),
    }
}

/// Whether a datagram asks a pod behind the cluster's DNS Service for names.
#[inline(always)]
fn asks_for_names(server: &Workload, port: u16, protocol: u8) -> bool {
    protocol == UDP && port == 53 && server.flags & WORKLOAD_DNS != 0
}

/// Judges a question for names: it passes unless a rule of the pod's that is asked denies it. Whom no veth of this node
/// proves counts as a client without identity. Of another node's pod no rule is known here.
#[inline(always)]
fn question<T: Tables>(tables: &T, client: &Address, server: &Workload) -> Verdict {
    const PASSES: Verdict = Verdict::direct(Reason::PlainCluster, 0);
    let Some(policy) = port_policy(tables, server.policy, 53, UDP) else {
        return PASSES;
    };
    if let Some(workload) = local_pod(tables, client) {
        return match tables.allow(policy.rules, workload.client) {
            Some(allow) if allow.rule & ALLOW_DENIES != 0 => {
                Verdict::refuse(Reason::Denied, allow.rule & !ALLOW_DENIES)
            }
            _ => PASSES,
        };
    }
    match tables.network(policy.networks, client) {
        Some(network) if policy.networks != 0 && network.allow == NETWORK_DENY => {
            Verdict::refuse(Reason::Denied, network.rule)
        }
        _ => PASSES,
    }
}

/// What the rules about what leaves a pod say of a destination, and which rule.
#[inline(always)]
fn egress<T: Tables>(tables: &T, policy: u32, destination: &Address, port: u16, protocol: u8) -> (u32, u32) {
    if policy == 0 {
        return (0, 0);
    }
    let Some(row) = port_policy(tables, EGRESS_POLICY | policy, port, protocol) else {
        return (NETWORK_DENY, 0);
    };
    match tables.network(row.networks, destination) {
        Some(network) => (network.allow, network.rule),
        None => (0, 0),
    }
}

/// Judges a connection that reached a captured pod of this node and was not registered as `direct` by its client, or a
/// datagram that answers none of the pod's.
///
/// An address never yields an identity: a client at a meshed address is handed to the agent, which demands its
/// certificate; any other passes to the agent only where a rule is written in addresses. A datagram cannot be handed
/// over: it passes from a captured pod of this same node, whose veth proves it, where a rule names its identity.
#[inline(always)]
pub fn inbound<T: Tables>(
    tables: &T,
    client: &Address,
    server: &Address,
    port: u16,
    protocol: u8,
) -> Verdict {
    let Some(settings) = tables.settings() else {
        return Verdict::refuse(Reason::TablesClosed, 0);
    };
    if settings.open != 1 {
        return Verdict::refuse(Reason::TablesClosed, 0);
    }
    let Some(pod) = local_pod(tables, server) else {
        return Verdict::refuse(Reason::NotCaptured, 0);
    };
    if asks_for_names(pod, port, protocol) {
        return question(tables, client, pod);
    }
    let Some(policy) = port_policy(tables, pod.policy, port, protocol) else {
        return Verdict::refuse(Reason::Unauthorized, 0);
    };
    if policy.flags & PORT_NEEDS_REQUEST != 0 {
        return Verdict::refuse(Reason::NeedsRequest, policy.governs);
    }
    match tables.workload(client) {
        Some(workload) if workload.flags & WORKLOAD_MESHED != 0 => {
            if protocol == UDP {
                if workload.flags & WORKLOAD_LOCAL == 0 || settings.same_node_encrypt != 0 {
                    return Verdict::refuse(Reason::PlainToMeshed, 0);
                }
                if tables.captured(client) != Some(workload.uid) {
                    return Verdict::refuse(Reason::NotCaptured, 0);
                }
                return match tables.allow(policy.rules, workload.client) {
                    None => Verdict::refuse(Reason::Unauthorized, policy.governs),
                    Some(allow) if allow.rule & ALLOW_DENIES != 0 => {
                        Verdict::refuse(Reason::Denied, allow.rule & !ALLOW_DENIES)
                    }
                    Some(allow) => Verdict::direct(Reason::Authorized, allow.rule),
                };
            }
            if policy.flags & PORT_MESH_CLIENTS == 0 {
                return Verdict::refuse(Reason::Unauthorized, policy.governs);
            }
            return Verdict::proxy(Reason::Meshed, 0);
        }
        Some(_) => {}
        None if in_networks(tables, NETWORKS_PODS, client) => {
            return Verdict::refuse(Reason::UnknownClusterAddress, 0);
        }
        None => {}
    }
    if policy.networks == 0 {
        return Verdict::refuse(Reason::NoIdentity, policy.governs);
    }
    match tables.network(policy.networks, client) {
        Some(network) if network.allow == NETWORK_ALLOW && protocol == UDP => {
            Verdict::direct(Reason::Unauthenticated, network.rule)
        }
        Some(network) if network.allow == NETWORK_ALLOW => {
            Verdict::proxy(Reason::Unauthenticated, network.rule)
        }
        Some(network) if network.allow == NETWORK_DENY => Verdict::refuse(Reason::Denied, network.rule),
        _ => Verdict::refuse(Reason::NoIdentity, policy.governs),
    }
}

/// The policy of a pod's port: its own row, else the one for every other port. Echoes are judged as TCP is.
#[inline(always)]
pub fn port_policy<T: Tables>(tables: &T, policy: u32, port: u16, protocol: u8) -> Option<&PortPolicy> {
    if policy == 0 {
        return None;
    }
    let protocol = if protocol == UDP { UDP } else { TCP };
    match tables.port(policy, port, protocol) {
        Some(found) => Some(found),
        None => tables.port(policy, 0, protocol),
    }
}

#[inline(always)]
fn in_networks<T: Tables>(tables: &T, set: u32, address: &Address) -> bool {
    match tables.network(set, address) {
        Some(network) => network.allow == NETWORK_ALLOW,
        None => false,
    }
}
