//! Services lead where their EndpointSlices say, and each endpoint is judged as what it is: a meshed pod by its own
//! rules, whatever else as `defaultOutbound` says of its address.

mod common {
    pub mod nodes;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use common::{
    nodes::{every, lab, shop},
    policy_yaml::{Clients, server},
    told::{SOON, field, told},
};
use xtask::lab::{
    OUTSIDE, Pod, PodSpec,
    apps::{self, Attempt},
    eventually,
};

const MARKER: &str = "heddle-marker-51ce";

/// A Service without a selector, at addresses that the lab gives nobody.
fn service(namespace: &str, name: &str, number: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIPs: [10.78.200.{number}, 'fd78::c8:{number:x}'], ports: [{{name: echo, port: 443, targetPort: 1}}]}}\n"
    )
}

fn at(number: u8) -> [SocketAddr; 3] {
    every([10, 78, 200, number].into(), Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0xc8, number.into()), 443)
}

/// A slice of each family.
fn slices(namespace: &str, service: &str, endpoints: [&str; 2]) -> String {
    let mut text = String::new();
    for (family, endpoint) in ["IPv4", "IPv6"].iter().zip(endpoints) {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {service}-{}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: {family}\nendpoints: [{{addresses: ['{endpoint}']}}]\nports: [{{name: echo, port: 7000}}]\n",
            family.to_lowercase()
        );
    }
    text
}

fn of_pod(pod: &Pod) -> [String; 2] {
    [pod.v4.to_string(), pod.v6.to_string()]
}

fn of(endpoints: &[String; 2]) -> [&str; 2] {
    [&endpoints[0], &endpoints[1]]
}

fn echoed(from: &Pod, to: SocketAddr) -> Result<bool> {
    let outcome = from.connect(&Attempt { milliseconds: 10_000, ..Attempt::new(to, MARKER) })?;
    ensure!(
        outcome.received == MARKER || outcome.refused(),
        "{to}: neither carried nor refused: {outcome:?}"
    );
    Ok(outcome.answered())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn endpoints_are_judged_as_what_they_are() -> Result<()> {
    let mut lab = lab("slices")?;
    let client = lab.pod(&shop("client", "node-a"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let tenant = lab.pod(&PodSpec::new("tenant", "node-a").namespace("bank").account("tenant").meshed())?;
    lab.apply("far.yaml", &server("far", 7000, "opaque", &[Clients::Identities(&[&client.identity()])]))?;
    let outside = OUTSIDE.map(|ip| ip.to_string());
    let of_far = of_pod(&far);
    lab.apply("outside.yaml", &(service("shop", "outside", 1) + &slices("shop", "outside", of(&outside))))?;
    // A tenant's own Service, which leads to another's pod, and a slice for another's Service.
    let stolen = service("bank", "stolen", 2) + &slices("bank", "stolen", of(&of_far));
    let foreign = slices("bank", "outside", of(&of_pod(&tenant)));
    lab.apply("tenant.yaml", &(stolen + &foreign))?;
    lab.apply("empty.yaml", &service("shop", "empty", 3))?;
    let echo = far.app(&["echo", "[::]:7000"])?;
    let office = apps::start(lab.outside(), &["echo", "[::]:7000"])?;
    // What the two print is read as it comes: what they must have seen in all is waited for.
    let saw = |far: usize, outside: usize| {
        let clients = |printed: String| printed.lines().filter(|line| line.starts_with("from ")).count();
        let carried = || (clients(echo.stdout()), clients(office.stdout()));
        eventually("what far and outside saw", SOON, || Ok(carried() == (far, outside)))
            .with_context(|| format!("{:?}, not {:?}", carried(), (far, outside)))
    };
    let (mut far_saw, mut outside_saw) = (0, 0);
    for (default, passes, reason) in [
        ("allow", true, ""),
        ("cluster", false, "outbound_outside_cluster"),
        ("deny", false, "outbound_denied"),
    ] {
        for node in ["node-a", "node-b"] {
            if lab.agent(node)?.is_running() {
                lab.agent(node)?.terminate()?;
            }
        }
        lab.settings().set("defaultOutbound", default);
        lab.start_agents()?;
        let events = lab.agent("node-a")?.events()?;
        for to in at(1) {
            events.drain();
            ensure!(echoed(&client, to)? == passes, "{to} under {default}");
            outside_saw += usize::from(passes);
            if !passes {
                told(&events, reason)?;
            }
        }
        for to in at(2) {
            ensure!(echoed(&client, to)?, "control: the way to {to} is there for whom far's rules let in");
            far_saw += 1;
            ensure!(!echoed(&tenant, to)?, "{to} under {default}: a slice lets its tenant in");
        }
        saw(far_saw, outside_saw)?;
        for to in at(3) {
            events.drain();
            ensure!(!echoed(&client, to)?, "{to}: nobody says where it leads");
            let event = told(&events, "no_endpoints")?;
            ensure!(field(&event, "pod") == "shop/client", "{event}");
        }
    }
    // Nobody outside is reached under `deny`; a slice that changes leads into the mesh within a moment.
    lab.apply("outside.yaml", &(service("shop", "outside", 1) + &slices("shop", "outside", of(&of_far))))?;
    eventually("the changed slice", SOON, || echoed(&client, at(1)[0]))?;
    far_saw += 1;
    for to in at(1) {
        ensure!(echoed(&client, to)?, "{to} by its new slices");
        far_saw += 1;
        ensure!(!echoed(&tenant, to)?, "{to}: far's rules judge by this way too");
    }
    saw(far_saw, outside_saw)?;
    lab.close()
}
