//! Two nodes and the shop that runs on them: who its pods are, and the rules that stand between them.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::lab::{
    Lab, OUTSIDE, Pod, PodSpec, Running,
    apps::{Attempt, Outcome, Talk},
};

/// What no capture of the mesh's wire may show.
pub const MARKER: &str = "THE-SHUTTLE-CROSSES-41c07be2";
pub const A: &str = "node-a";
pub const B: &str = "node-b";

/// An opaque port: between pods of one node the kernel carries it.
pub const OPAQUE: u16 = 7000;
/// A port of unknown protocol: the agents carry it, on one node too.
pub const UNKNOWN: u16 = 7003;
/// More opaque ports, for servers of their own.
pub const SPARE: [u16; 2] = [7001, 7002];

/// The file of rules that says who the clients are.
pub const CLIENTS: &str = "clients.yaml";
/// The file of the Servers and what lets the clients reach them.
pub const RULES: &str = "rules.yaml";

/// Generous: a slow emulated machine meets it too.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Shop {
    pub lab: Lab,
    /// On node a: the rules let it reach every server.
    pub client: Pod,
    /// On node a: meshed, and no rule names it.
    pub stranger: Pod,
    /// On node a: in no mesh.
    pub plain: Pod,
    /// On node a: a server.
    pub near: Pod,
    /// On node b: a server.
    pub far: Pod,
    /// On node b: the client's identity.
    pub buyer: Pod,
}

impl Shop {
    /// Nodes, pods and rules; no agent runs yet.
    pub fn closed(name: &str) -> Result<Self> {
        Self::built(name, true)
    }

    /// The same, and every pod outside the mesh.
    pub fn outside(name: &str) -> Result<Self> {
        Self::built(name, false)
    }

    fn built(name: &str, inside: bool) -> Result<Self> {
        let mut lab = Lab::new(name)?.node(A)?.node(B)?;
        lab.binary(env!("CARGO_BIN_EXE_heddle"));
        let meshed = |name: &str, node: &str, account: &str| {
            let spec = PodSpec::new(name, node).namespace("shop").account(account);
            if inside { spec.meshed() } else { spec }
        };
        let client = lab.pod(&meshed("client", A, "client"))?;
        let stranger = lab.pod(&meshed("stranger", A, "stranger"))?;
        let plain = lab.pod(&PodSpec::new("plain", A))?;
        let near = lab.pod(&meshed("near", A, "server").label("role", "server").port("echo", OPAQUE))?;
        let far = lab.pod(&meshed("far", B, "server").label("role", "server").port("echo", OPAQUE))?;
        let buyer = lab.pod(&meshed("buyer", B, "client"))?;
        lab.apply(RULES, &rules()?)?;
        lab.apply(CLIENTS, &clients(&[&client.identity()]))?;
        Ok(Self { lab, client, stranger, plain, near, far, buyer })
    }

    /// With its agents at work.
    pub fn open(name: &str) -> Result<Self> {
        let shop = Self::closed(name)?;
        shop.lab.start_agents()?;
        Ok(shop)
    }

    /// Starts an agent again that was killed or ended; none of its pods is attached anew.
    pub fn start_again(&mut self, node: &str) -> Result<()> {
        let (heddle, settings) = (self.lab.heddle()?, self.lab.settings().clone());
        self.lab.agent(node)?.start(&heddle, &settings).map(drop)
    }

    /// Ends the lab; on the way there an error has the agents' logs.
    pub fn shut(self) -> Result<()> {
        self.lab.close()
    }

    /// A connection that is held open from `from` to an echo server, and has carried a word.
    pub fn line(from: &Pod, to: SocketAddr) -> Result<Talk> {
        let mut talk = from.call(&Attempt::new(to, ""))?;
        carries(&mut talk, "hello").with_context(|| format!("{} to {to}: {:?}", from.name, talk.outcome))?;
        Ok(talk)
    }
}

/// Echo servers on the opaque and the unknown port of a pod.
pub fn echoes(pod: &Pod) -> Result<[Running; 2]> {
    Ok([pod.app(&["echo", &format!("[::]:{OPAQUE}")])?, pod.app(&["echo", &format!("[::]:{UNKNOWN}")])?])
}

/// A word goes to an echo server and back.
pub fn carries(talk: &mut Talk, word: &str) -> Result<()> {
    talk.ask(&format!("send {word}"))?;
    let back = talk.ask(&format!("read {}", word.len()))?;
    anyhow::ensure!(back == word, "{word:?} came back as {back:?}");
    Ok(())
}

/// Tries until the attempt is answered: what is allowed just now may take a moment to be in force.
pub fn answered(pod: &Pod, attempt: &Attempt) -> Result<Outcome> {
    let until = Instant::now() + PATIENCE;
    loop {
        let outcome = pod.connect(attempt)?;
        if outcome.answered() {
            return Ok(outcome);
        }
        anyhow::ensure!(Instant::now() < until, "{} to {}: {outcome:?}", pod.name, attempt.to);
    }
}

/// The text of an event's field.
pub fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event.pointer(field).and_then(Value::as_str).unwrap_or_default()
}

/// Names these identities as the clients.
pub fn clients(identities: &[&str]) -> String {
    let mut yaml =
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata:\n  name: clients\n  \
                    namespace: shop\nspec:\n  identities:\n"
            .to_owned();
    for identity in identities {
        yaml.push_str("    - ");
        yaml.push_str(identity);
        yaml.push('\n');
    }
    yaml
}

/// A Server on a port of every pod with the label `role: server`, which `clients` may reach, and so may whoever is
/// outside the cluster's networks.
fn rules() -> Result<String> {
    let [v4, v6] = OUTSIDE;
    let mut yaml = format!(
        "apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: {{name: office, namespace: shop}}
spec:
  networks: [{{cidr: {v4}/32}}, {{cidr: \"{v6}/128\"}}]
"
    );
    for (port, protocol) in
        [(OPAQUE, "opaque"), (UNKNOWN, "unknown"), (SPARE[0], "opaque"), (SPARE[1], "opaque")]
    {
        write!(
            yaml,
            "---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: on-{port}, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  port: {port}
  proxyProtocol: {protocol}
"
        )?;
        for (kind, name) in [("MeshTLSAuthentication", "clients"), ("NetworkAuthentication", "office")] {
            write!(
                yaml,
                "---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}-on-{port}, namespace: shop}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: on-{port}}}
  requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: {kind}, name: {name}}}]
"
            )?;
        }
    }
    Ok(yaml)
}
