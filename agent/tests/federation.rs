//! Two trust domains, each with its own authority, believe each other by bundle: each other's workloads are let in where a
//! rule names them, by their own domain's anchors, for as long as the bundle is there.

#[allow(dead_code)]
mod common {
    pub mod shop;
}

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use common::shop::{A, B, Shop, UNKNOWN, answered, carries};
use serde_json::json;
use xtask::lab::{Lab, Pod, PodSpec, apps::Attempt, eventually};

const SOON: Duration = Duration::from_secs(30);
/// A port that `*` may use.
const WIDE: u16 = 7005;
/// A port that whoever shows an identity may use, by the default of its pod.
const BY_DEFAULT: u16 = 7006;
const WEST: &str = "west.example";
const EAST: &str = "east.example";

/// One trust domain: a node, its manifests, its authority and whom it federates with.
struct Domain {
    name: &'static str,
    node: &'static str,
    directory: PathBuf,
}

impl Domain {
    fn new(lab: &Lab, name: &'static str, node: &'static str) -> Result<Self> {
        let directory = lab.directory().join(name);
        for folder in ["manifests", "federation"] {
            let path = directory.join(folder);
            std::fs::create_dir_all(&path)?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        Ok(Self { name, node, directory })
    }

    /// Everything of the lab but the pods of the other domain's node, and those as workloads outside.
    fn know(&self, lab: &Lab, other: &Self) -> Result<()> {
        for entry in std::fs::read_dir(lab.manifests().directory())? {
            let entry = entry?;
            let text = std::fs::read_to_string(entry.path())?;
            if !text.contains(&format!("nodeName: {}\n", other.node)) {
                self.write(&entry.file_name().to_string_lossy(), &text)?;
            }
        }
        for pod in lab.pods().iter().filter(|pod| pod.node == other.node) {
            let yaml = format!(
                "apiVersion: workload.linkerd.io/v1beta1\nkind: ExternalWorkload\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec:\n  meshTLS: {{identity: \"{spiffe}\", serverName: {dns}}}\n  workloadIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]\n  \
                 ports: [{{port: {UNKNOWN}}}]\n",
                name = pod.name,
                spiffe = other.spiffe(&pod.account),
                dns = pod.identity().replace("cluster.local", other.name),
                v4 = pod.v4,
                v6 = pod.v6,
            );
            self.write(&format!("external-{}.yaml", pod.name), &yaml)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join("manifests").join(name);
        std::fs::write(&path, text)?;
        Ok(std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?)
    }

    fn start(&self, lab: &mut Lab) -> Result<()> {
        let heddle = lab.heddle()?;
        let mut settings = lab.settings().clone();
        settings
            .set("trustDomain", self.name)
            .set("manifests", json!(self.directory.join("manifests")))
            .set("federation", json!(self.directory.join("federation")))
            .set("ca", json!({"folder": self.directory.join("authority")}));
        lab.agent(self.node)?.start(&heddle, &settings)?;
        lab.start_agent(self.node)
    }

    fn spiffe(&self, account: &str) -> String {
        format!("spiffe://{}/ns/shop/sa/{account}", self.name)
    }

    /// The anchors of its authority, in PEM.
    fn anchors(&self, lab: &Lab) -> Result<String> {
        let told = lab.agent(self.node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
        let anchors = told["anchors"].as_array().context("no anchors")?;
        Ok(anchors.iter().filter_map(|anchor| anchor["pem"].as_str()).collect())
    }

    /// Puts another domain's bundle in place, whole.
    fn federate(&self, domain: &str, anchors: &str) -> Result<()> {
        let fresh = self.directory.join("fresh");
        std::fs::write(&fresh, anchors)?;
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(std::fs::rename(fresh, self.bundle(domain))?)
    }

    fn bundle(&self, domain: &str) -> PathBuf {
        self.directory.join("federation").join(format!("{domain}.pem"))
    }

    /// Waits until the agent tells that it believes the other domain by so many anchors.
    fn believes(&self, lab: &Lab, domain: &str, anchors: usize) -> Result<()> {
        eventually(&format!("{} to believe {domain} by {anchors} anchors", self.name), SOON, || {
            let told = lab.agent(self.node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
            Ok(told["federated"][domain].as_array().map_or(0, Vec::len) == anchors)
        })
    }
}

/// What the servers of a domain allow: on one port who is named, on another `*`.
fn rules(named: &str) -> String {
    let mut yaml = String::new();
    for (port, identities) in [(UNKNOWN, format!("\"{named}\"")), (WIDE, "\"*\"".to_owned())] {
        yaml += &format!(
            "---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: on-{port}, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{role: server}}}}, port: {port}, proxyProtocol: unknown}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {{name: on-{port}, namespace: shop}}
spec: {{identities: [{identities}]}}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: on-{port}, namespace: shop}}
spec:
  targetRef: {{group: policy.linkerd.io, kind: Server, name: on-{port}}}
  requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: on-{port}}}]
"
        );
    }
    yaml
}

fn refused(from: &Pod, to: SocketAddr) -> Result<()> {
    let outcome = from.connect(&Attempt::new(to, "let me in"))?;
    ensure!(!outcome.answered(), "{} reached {to}: {outcome:?}", from.name);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn two_trust_domains_believe_each_other_by_bundle_and_no_further() -> Result<()> {
    let mut lab = Lab::new("federation")?.node(A)?.node(B)?;
    lab.binary(env!("CARGO_BIN_EXE_heddle"));
    let pod = |name: &str, node: &str| PodSpec::new(name, node).namespace("shop").account(name).meshed();
    let client = lab.pod(&pod("client", A))?;
    let stranger = lab.pod(&pod("stranger", A))?;
    let by_default = ("config.linkerd.io/default-inbound-policy", "all-authenticated");
    let far = lab.pod(&pod("far", B).label("role", "server").annotation(by_default.0, by_default.1))?;
    // Of the other domain, under the name that the client has in its own.
    let namesake = lab.pod(&pod("namesake", B).account("client"))?;
    let (west, east) = (Domain::new(&lab, WEST, A)?, Domain::new(&lab, EAST, B)?);
    west.know(&lab, &east)?;
    east.know(&lab, &west)?;
    east.write("rules.yaml", &rules(&west.spiffe("client")))?;
    west.start(&mut lab)?;
    east.start(&mut lab)?;
    let _servers: Vec<_> = [UNKNOWN, WIDE, BY_DEFAULT]
        .iter()
        .map(|port| far.app(&["echo", &format!("[::]:{port}")]))
        .collect::<Result<_>>()?;
    let (of_west, of_east) = (west.anchors(&lab)?, east.anchors(&lab)?);
    let to = |port: u16| SocketAddr::from((far.v4, port));

    // Nobody believes anybody: refused on both sides. Within the domain all is as ever.
    refused(&client, to(UNKNOWN))?;
    answered(&namesake, &Attempt::new(to(WIDE), "of this domain"))?;
    // One side is not enough.
    west.federate(EAST, &of_east)?;
    west.believes(&lab, EAST, 1)?;
    refused(&client, to(UNKNOWN))?;
    east.federate(WEST, &of_west)?;
    east.believes(&lab, WEST, 1)?;

    // Who is named is let in, in both families; nobody else, and nobody by a rule that names no one.
    answered(&client, &Attempt::new(to(UNKNOWN), "named"))?;
    answered(&client, &Attempt::new((far.v6, UNKNOWN), "named"))?;
    refused(&stranger, to(UNKNOWN))?;
    for port in [WIDE, BY_DEFAULT] {
        refused(&client, to(port))?;
        answered(&namesake, &Attempt::new(to(port), "of this domain"))?;
    }
    // The same account of the other domain is somebody else.
    refused(&namesake, to(UNKNOWN))?;
    let mut foreign = Shop::line(&client, to(UNKNOWN))?;
    let mut own = Shop::line(&namesake, to(WIDE))?;

    // A bundle that is broken leaves the last in force, and is told.
    let stale = |lab: &Lab| lab.agent(B)?.metric("heddle_trust_bundle_stale", &[]);
    std::fs::write(east.bundle(WEST), "no certificate")?;
    eventually("the broken bundle to be told of", SOON, || Ok(stale(&lab)? > 0.0))?;
    carries(&mut foreign, "still")?;
    answered(&client, &Attempt::new(to(UNKNOWN), "still"))?;

    // Other anchors under its name: what rests on the old ones ends, and nobody is believed by them.
    let other = lab.directory().join("other");
    let heddle = lab.heddle()?.display().to_string();
    lab.router().check(&[heddle.as_str(), "ca", "init", "--directory", &other.display().to_string()])?;
    east.federate(WEST, &std::fs::read_to_string(other.join("ca.crt"))?)?;
    eventually("what rested on the old anchors to end", SOON, || {
        Ok(carries(&mut foreign, "no more").is_err())
    })?;
    ensure!(stale(&lab)? == 0.0, "and this bundle can be used");
    refused(&client, to(UNKNOWN))?;
    carries(&mut own, "as ever")?;
    // The right ones again; then none: the same.
    east.federate(WEST, &of_west)?;
    answered(&client, &Attempt::new(to(UNKNOWN), "again"))?;
    let mut foreign = Shop::line(&client, to(UNKNOWN))?;
    std::fs::remove_file(east.bundle(WEST))?;
    eventually("what rested on the bundle to end", SOON, || Ok(carries(&mut foreign, "no more").is_err()))?;
    east.believes(&lab, WEST, 0)?;
    refused(&client, to(UNKNOWN))?;
    carries(&mut own, "as ever")?;
    // The client's side ends it as well.
    east.federate(WEST, &of_west)?;
    answered(&client, &Attempt::new(to(UNKNOWN), "again"))?;
    let mut foreign = Shop::line(&client, to(UNKNOWN))?;
    std::fs::remove_file(west.bundle(EAST))?;
    eventually("the client's side to end it", SOON, || Ok(carries(&mut foreign, "no more").is_err()))?;
    refused(&client, to(UNKNOWN))?;
    let shown = lab.agent(B)?.heddle(&lab.heddle()?, &["identity", "list"])?;
    ensure!(shown.stdout.contains(&format!("federated {WEST}")), "{}", shown.stdout);
    lab.close()
}
