//! Links, addresses and routes between the lab's namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::place::Place;

/// Settings of a new namespace. It inherits some of the host's, so each that matters is set.
pub fn prepare(place: &Place, forwarding: bool) -> Result<()> {
    let forwarding = u8::from(forwarding);
    place.shell(&format!(
        "cd /proc/sys/net
        echo {forwarding} >ipv4/ip_forward
        for who in all default; do
            echo 0 >ipv4/conf/$who/rp_filter
            echo {forwarding} >ipv6/conf/$who/forwarding
            echo 0 >ipv6/conf/$who/disable_ipv6
            echo 0 >ipv6/conf/$who/accept_dad
            echo 0 >ipv6/conf/$who/accept_ra
        done
        echo 0 65535 >ipv4/ping_group_range 2>/dev/null || true
        ip link set lo up"
    ))?;
    Ok(())
}

/// The veth between the router and `outside`.
pub fn connect_outside(router: &Place, outside: &Place) -> Result<()> {
    router.shell(&format!(
        "ip link add to-outside type veth peer name uplink netns {}
        ip -batch - <<END
        addr add 203.0.113.1/24 dev to-outside
        addr add 2001:db8:113::1/64 dev to-outside nodad
        link set to-outside up
END",
        outside.netns().display()
    ))?;
    outside.shell(
        "ip -batch - <<END
        addr add 203.0.113.2/24 dev uplink
        addr add 2001:db8:113::2/64 dev uplink nodad
        link set uplink up
        route add default via 203.0.113.1
        route add default via 2001:db8:113::1
END",
    )?;
    Ok(())
}

/// The veth between the router and a node.
pub fn connect_node(router: &Place, interface: &str, node: &Place, number: u8) -> Result<()> {
    router.shell(&format!(
        "ip link add {interface} type veth peer name uplink netns {}
        ip -batch - <<END
        addr add 10.79.{number}.1/24 dev {interface}
        addr add fd79:{number:x}::1/64 dev {interface} nodad
        link set {interface} up
END",
        node.netns().display()
    ))?;
    node.shell(&format!(
        "ip -batch - <<END
        addr add 10.79.{number}.2/24 dev uplink
        addr add fd79:{number:x}::2/64 dev uplink nodad
        link set uplink up
        route add default via 10.79.{number}.1
        route add default via fd79:{number:x}::1
END"
    ))?;
    router.shell(&format!(
        "ip -batch - <<END
        route add 10.77.{number}.0/24 via 10.79.{number}.2
        route add fd77:{number:x}::/64 via fd79:{number:x}::2
END"
    ))?;
    Ok(())
}

/// An interface of the machine's, on a link to other machines, becomes the router's.
pub fn join(router: &Place, interface: &str, machine: u8) -> Result<()> {
    let netns = router.netns().display().to_string();
    let output =
        std::process::Command::new("ip").args(["link", "set", interface, "netns", &netns]).output()?;
    anyhow::ensure!(
        output.status.success(),
        "cannot give {interface} to the router: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    router.shell(&format!(
        "ip -batch - <<END
        addr add 10.76.0.{machine}/24 dev {interface}
        addr add fd76::{machine:x}/64 dev {interface} nodad
        link set {interface} up
END"
    ))?;
    Ok(())
}

/// The router's way to a node behind another machine's router.
pub fn route_elsewhere(router: &Place, number: u8, machine: u8) -> Result<()> {
    router.shell(&format!(
        "ip -batch - <<END
        route add 10.77.{number}.0/24 via 10.76.0.{machine}
        route add 10.79.{number}.0/24 via 10.76.0.{machine}
        route add fd77:{number:x}::/64 via fd76::{machine:x}
        route add fd79:{number:x}::/64 via fd76::{machine:x}
END"
    ))?;
    Ok(())
}

/// The two ends of a pod's veth.
pub struct PodLink<'a> {
    /// In the node's namespace.
    pub host_interface: &'a str,
    /// In the pod's.
    pub interface: &'a str,
    /// The pod's address.
    pub v4: Ipv4Addr,
    /// The pod's address.
    pub v6: Ipv6Addr,
    /// The node's address on the link, as the CNI's `ptp` plugin gives it.
    pub gateway_v4: Ipv4Addr,
    /// The same.
    pub gateway_v6: Ipv6Addr,
    /// Whether the pod's default routes go by this link.
    pub default_route: bool,
}

/// A veth between a node and a pod, routed as the CNI's `ptp` plugin does it.
pub fn connect_pod(node: &Place, pod: &Place, link: &PodLink<'_>) -> Result<()> {
    let PodLink { host_interface, interface, v4, v6, gateway_v4, gateway_v6, default_route } = link;
    node.shell(&format!(
        "ip link add {host_interface} type veth peer name {interface} netns {}
        ip -batch - <<END
        addr add {gateway_v4}/32 dev {host_interface}
        addr add {gateway_v6}/128 dev {host_interface} nodad
        link set {host_interface} up
        route add {v4}/32 dev {host_interface}
        route add {v6}/128 dev {host_interface}
END",
        pod.netns().display()
    ))?;
    let defaults = if *default_route {
        format!("route add default via {gateway_v4} src {v4}\nroute add default via {gateway_v6} src {v6}")
    } else {
        String::new()
    };
    pod.shell(&format!(
        "ip -batch - <<END
        addr add {v4}/32 dev {interface}
        addr add {v6}/128 dev {interface} nodad
        link set {interface} up
        route add {gateway_v4}/32 dev {interface} scope link src {v4}
        route add {gateway_v6}/128 dev {interface}
        {defaults}
END"
    ))?;
    Ok(())
}
