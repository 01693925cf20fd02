//! Random clusters, written as YAML: few addresses, ports and names, so that rules meet, overlap and contradict.

use std::{fmt::Write as _, net::IpAddr};

use heddle_policy::{ClusterSettings, DefaultOutbound, SameNode, resources::DefaultPolicy};

/// Xorshift64*: the same seed gives the same cluster on every machine.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    pub fn one_of<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.roll(from.len() as u64) as usize]
    }
}

/// Ports that Servers, pods and questions share.
pub const PORTS: [u16; 8] = [53, 80, 443, 3306, 7000, 8080, 9090, 65535];
const NAMES: [&str; 3] = ["north", "south", "east"];

/// An address of a pod, of a Service, or one at the edge of some network.
pub fn address(dice: &mut Dice) -> IpAddr {
    let text = match dice.roll(12) {
        0..=5 => format!("10.0.{}.{}", dice.roll(2), 1 + dice.roll(12)),
        6 | 7 => format!("fd00::{:x}", 1 + dice.roll(12)),
        8 | 9 => format!("10.96.0.{}", 1 + dice.roll(5)),
        10 => dice.one_of(&["192.0.2.9", "10.200.0.1", "172.31.255.255", "2001:db8::5", "fd00:1::1"]).into(),
        _ => dice.one_of(&["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.5", "ff02::1", "fe80::7"]).into(),
    };
    text.parse().expect("an address")
}

/// A cluster's resources as a folder would hold them.
pub fn cluster(dice: &mut Dice) -> String {
    let mut yaml = String::new();
    let mut add = |text: String| yaml.push_str(&format!("---\n{text}"));
    for namespace in NAMES {
        let mesh = dice.one_of(&["enabled", "enabled", "disabled"]);
        let policy = dice.one_of(&DefaultPolicy::ALL.map(|policy| policy.as_str()));
        add(format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, annotations: {{heddle.io/mesh: {mesh}, \
             config.linkerd.io/default-inbound-policy: {policy}}}}}}}\n"
        ));
    }
    for number in 0..12 {
        let (namespace, account, app) = (dice.one_of(&NAMES), dice.one_of(&NAMES), dice.one_of(&NAMES));
        let node = dice.one_of(&["a", "a", "b"]);
        let opaque = PORTS[dice.roll(8) as usize];
        let mut ips = Vec::new();
        if dice.roll(8) > 0 {
            ips.push(format!("{{ip: 10.0.{}.{}}}", dice.roll(2), 1 + dice.roll(12)));
        }
        if dice.roll(2) > 0 {
            ips.push(format!("{{ip: \"fd00::{:x}\"}}", 1 + dice.roll(12)));
        }
        let named = PORTS[dice.roll(8) as usize];
        add(format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: {namespace}, uid: u{number}, labels: {{app: {app}}}, \
             annotations: {{config.linkerd.io/opaque-ports: \"{opaque}\"}}}}, spec: {{nodeName: {node}, serviceAccountName: {account}, \
             containers: [{{name: c, image: i, ports: [{{name: main, containerPort: {named}}}]}}]}}, status: {{phase: Running, \
             podIPs: [{}], conditions: [{{type: Ready, status: \"True\"}}]}}}}\n",
            ips.join(", ")
        ));
    }
    for number in 0..8 {
        let (namespace, app) = (dice.one_of(&NAMES), dice.one_of(&NAMES));
        let port = if dice.roll(4) == 0 { "main".into() } else { PORTS[dice.roll(8) as usize].to_string() };
        let protocol = dice.one_of(&["opaque", "opaque", "opaque", "TLS", "unknown", "HTTP/1", "gRPC"]);
        let access = dice.one_of(&["deny", "deny", "all-authenticated", "cluster-unauthenticated", "audit"]);
        add(format!(
            "{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: s{number}, namespace: {namespace}}}, \
             spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, port: {port}, proxyProtocol: {protocol}, accessPolicy: {access}}}}}\n"
        ));
        let target = match dice.roll(4) {
            0 => format!("{{kind: Namespace, name: {namespace}}}"),
            _ => format!("{{group: policy.linkerd.io, kind: Server, name: s{}}}", dice.roll(8)),
        };
        let mut wanted = Vec::new();
        if dice.roll(4) > 0 {
            wanted.push(format!(
                "{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m{}}}",
                dice.roll(3)
            ));
        }
        if dice.roll(3) == 0 {
            wanted.push(format!(
                "{{group: policy.linkerd.io, kind: NetworkAuthentication, name: n{}}}",
                dice.roll(3)
            ));
        }
        add(format!(
            "{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: a{number}, namespace: {namespace}}}, \
             spec: {{targetRef: {target}, requiredAuthenticationRefs: [{}]}}}}\n",
            wanted.join(", ")
        ));
    }
    for namespace in NAMES {
        for number in 0..3 {
            let who = match dice.roll(3) {
                0 => format!("identityRefs: [{{kind: Namespace, name: {}}}]", dice.one_of(&NAMES)),
                1 => format!("identityRefs: [{{kind: ServiceAccount, name: {}}}]", dice.one_of(&NAMES)),
                _ => "identities: [\"*\"]".into(),
            };
            add(format!(
                "{{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {{name: m{number}, \
                 namespace: {namespace}}}, spec: {{{who}}}}}\n"
            ));
            let network = dice.one_of(&[
                "{cidr: 10.0.0.0/8, except: [10.0.1.0/24]}",
                "{cidr: 0.0.0.0/0, except: [10.0.0.4/30, 10.0.0.1]}",
                "{cidr: 10.0.0.8/29}, {cidr: 192.0.2.9}",
                "{cidr: \"fd00::/64\", except: [\"fd00::4/126\"]}",
                "{cidr: \"::/0\"}",
            ]);
            add(format!(
                "{{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {{name: n{number}, \
                 namespace: {namespace}}}, spec: {{networks: [{network}]}}}}\n"
            ));
        }
    }
    for number in 0..dice.roll(8) {
        let (namespace, app) = (dice.one_of(&NAMES), dice.one_of(&NAMES));
        let action = dice.one_of(&["Allow", "Allow", "Deny"]);
        let protocol = dice.one_of(&["", "protocol: UDP, ", "protocol: UDP, ", "protocol: TCP, "]);
        let about = dice.one_of(&[
            "from: [{networks: [{cidr: 10.0.0.0/25}]}]",
            "from: [{namespaces: [north]}]",
            "from: [{identities: ['*']}]",
            "to: [{networks: [{cidr: 192.0.2.0/24}]}]",
            // No datagram says a host.
            if protocol.contains("UDP") {
                "to: [{networks: [{cidr: 10.0.1.0/26}]}]"
            } else {
                "to: [{hosts: [x.example], networks: [{cidr: 10.0.1.0/26}]}]"
            },
            "to: [{namespaces: [north]}]",
        ]);
        let ports = dice.one_of(&["", "ports: ['80-90', 6379], "]);
        add(format!(
            "{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: h{number}, namespace: {namespace}}}, \
             spec: {{action: {action}, podSelector: {{matchLabels: {{app: {app}}}}}, {protocol}{ports}{about}}}}}\n"
        ));
    }
    if dice.roll(4) == 0 {
        let (namespace, policy) = (dice.one_of(&NAMES), dice.one_of(&["Allow", "Deny"]));
        add(format!(
            "{{apiVersion: policy.linkerd.io/v1alpha1, kind: EgressNetwork, metadata: {{name: e, namespace: {namespace}}}, \
             spec: {{trafficPolicy: {policy}, networks: [{{cidr: 10.0.0.0/8, except: [10.0.0.0/28]}}, {{cidr: 192.0.2.0/24}}]}}}}\n"
        ));
    }
    for number in 1..5 {
        let (namespace, app) = (dice.one_of(&NAMES), dice.one_of(&NAMES));
        let mut ports = String::new();
        for index in 0..1 + dice.roll(3) {
            let (port, target) = (PORTS[index as usize], PORTS[dice.roll(8) as usize]);
            let protocol = dice.one_of(&["TCP", "TCP", "TCP", "UDP"]);
            write!(ports, "{{name: x{index}, port: {port}, targetPort: {target}, protocol: {protocol}}}, ")
                .expect("text");
        }
        add(format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: v{number}, namespace: {namespace}}}, spec: {{clusterIP: 10.96.0.{number}, \
             clusterIPs: [10.96.0.{number}], selector: {{app: {app}}}, ports: [{ports}]}}}}\n"
        ));
    }
    yaml
}

/// What the agent's configuration would say.
pub fn settings(dice: &mut Dice) -> ClusterSettings {
    let nets = |text: &str| text.split_whitespace().map(|net| net.parse().expect("a network")).collect();
    ClusterSettings {
        pod_networks: nets(dice.one_of(&["", "10.0.0.0/16 fd00::/64", "10.0.1.0/24"])),
        node_networks: nets(dice.one_of(&["", "10.0.1.0/29"])),
        service_networks: nets(dice.one_of(&["", "10.96.0.0/16"])),
        cluster_networks: nets(dice.one_of(&["10.0.0.0/8 fd00::/8", "", "192.0.2.0/24"])),
        default_inbound_policy: DefaultPolicy::ALL[dice.roll(DefaultPolicy::ALL.len() as u64) as usize],
        default_outbound: *[DefaultOutbound::Allow, DefaultOutbound::Cluster, DefaultOutbound::Deny]
            .get(dice.roll(3) as usize)
            .expect("one of three"),
        same_node: if dice.roll(4) == 0 { SameNode::Encrypt } else { SameNode::Direct },
        dns_service: heddle_policy::resources::ObjectName::new("north", "v1"),
        ..ClusterSettings::default()
    }
}
