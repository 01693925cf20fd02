//! A pod's share of the agent's metrics is read at the pod's own port `linkerd-admin`, by whom a Server there lets in.

mod common {
    pub mod nodes;
    pub mod policy_yaml;
    pub mod told;
}

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use common::{
    nodes::{lab, of_pod, office, shop},
    policy_yaml::{Clients, server},
    told::{SOON, reasons, told},
};
use serde_json::json;
use xtask::lab::{Place, Pod, PodSpec, apps::Attempt, eventually};

const PORT: u16 = 4191;

/// Servers about the port by its name, as Linkerd's users have them, and one client who may come.
fn admin(app: &str, protocol: &str, reader: &str, networks: &[String; 2]) -> String {
    let [v4, v6] = networks;
    format!(
        "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: {app}-admin, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, port: linkerd-admin, proxyProtocol: {protocol}}}\n\
         ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {{name: {app}-reader, namespace: shop}}\n\
         spec: {{identities: ['{reader}']}}\n\
         ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {app}-reader, namespace: shop}}\n\
         spec:\n  targetRef: {{group: policy.linkerd.io, kind: Server, name: {app}-admin}}\n\
         \x20 requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: {app}-reader}}]\n\
         ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {{name: {app}-office, namespace: shop}}\n\
         spec: {{networks: [{{cidr: '{v4}'}}, {{cidr: '{v6}'}}]}}\n\
         ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {app}-office, namespace: shop}}\n\
         spec:\n  targetRef: {{group: policy.linkerd.io, kind: Server, name: {app}-admin}}\n\
         \x20 requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: NetworkAuthentication, name: {app}-office}}]\n"
    )
}

/// What is read there: status and text; `None`: no connection.
fn read(from: &Place, to: SocketAddr, path: &str) -> Result<Option<(String, String)>> {
    let url = format!("http://{to}{path}");
    let asked =
        ["curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}", &url];
    let output = from.run(&asked)?;
    if output.code != Some(0) {
        return Ok(None);
    }
    let (text, status) = output.stdout.rsplit_once('\n').context("curl wrote no status")?;
    Ok(Some((status.to_owned(), text.to_owned())))
}

fn metrics(from: &Place, to: SocketAddr) -> Result<String> {
    let (status, text) = read(from, to, "/metrics")?.with_context(|| format!("{to} is not reached"))?;
    ensure!(status == "200", "{to}: {status} {text}");
    Ok(text)
}

/// The lines that are about a pod.
fn about<'a>(text: &'a str, pod: &Pod) -> Vec<&'a str> {
    let (namespace, name) = (format!("namespace=\"{}\"", pod.namespace), format!(",pod=\"{}\"", pod.name));
    text.lines().filter(|line| line.contains(&namespace) && line.contains(&name)).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_server_at_the_admin_port_says_who_reads_a_pods_share() -> Result<()> {
    let mut lab = lab("shares")?;
    let reader = lab.pod(&shop("reader", "node-a"))?;
    let near = lab.pod(&shop("near", "node-a").annotation("config.linkerd.io/opaque-ports", "1-65535"))?;
    let far = lab.pod(&shop("far", "node-b"))?;
    let own = lab.pod(&shop("own", "node-b").port("metrics", PORT))?;
    let tenant = lab.pod(&PodSpec::new("tenant", "node-a").namespace("bank").account("tenant").meshed())?;
    // Another namespace's pod on the same node, whose traffic must not be told to who reads far's.
    let other = PodSpec::new("other", "node-b").namespace("bank").account("other").meshed();
    let other = lab.pod(
        &other
            .annotation("config.linkerd.io/default-inbound-policy", "all-authenticated")
            .annotation("config.linkerd.io/opaque-ports", "7000"),
    )?;
    for (app, protocol) in [("near", "opaque"), ("far", "HTTP/1")] {
        lab.apply(&format!("{app}.yaml"), &admin(app, protocol, &reader.identity(), &office()))?;
    }
    let echo = server("far", 7000, "opaque", &[Clients::Identities(&[&reader.identity()])]);
    let of_own = server("own", PORT, "opaque", &[Clients::Identities(&[&reader.identity()])]);
    lab.apply("others.yaml", &format!("{echo}---\n{of_own}"))?;
    lab.start_agents()?;
    let events = [lab.agent("node-a")?.events()?, lab.agent("node-b")?.events()?];
    let _echo = far.app(&["echo", "[::]:7000"])?;
    let _other = other.app(&["echo", "[::]:7000"])?;
    let _own = own.nginx(PORT, "the application's own")?;

    for to in of_pod(&far, 7000).into_iter().chain(of_pod(&other, 7000)) {
        let outcome = reader.connect(&Attempt::new(to, "marker"))?;
        ensure!(outcome.answered(), "{to}: {outcome:?}");
    }

    let place = |pod: &Pod| pod.place().clone();
    for to in of_pod(&far, PORT) {
        let text = metrics(&place(&reader), to).with_context(|| format!("{:?}", reasons(&events)))?;
        let of_far = about(&text, &far);
        ensure!(
            of_far
                .iter()
                .any(|line| line.starts_with("tcp_open_total{") && line.contains(&reader.identity())),
            "{text}"
        );
        ensure!(of_far.iter().any(|line| line.starts_with("heddle_kernel_decisions_total{")), "{text}");
        // Nothing of anybody else, but for what far itself spoke with.
        let rest = text.lines().filter(|line| !line.starts_with('#') && !of_far.contains(line)).count();
        ensure!(rest == 0 && text.ends_with("# EOF\n"), "{text}");
    }
    // On one node as well, where all else of the pod's is left to the kernel.
    for to in of_pod(&near, PORT) {
        ensure!(!about(&metrics(&place(&reader), to)?, &near).is_empty(), "{to}");
    }
    // Whoever is let in by an address, in plain text.
    for pod in [&near, &far] {
        for to in [SocketAddr::from((pod.v4, PORT)), SocketAddr::from((pod.v6, PORT))] {
            metrics(lab.outside(), to)?;
        }
    }
    // Nobody else.
    for from in [&tenant, &other] {
        for to in of_pod(&far, PORT).into_iter().chain(of_pod(&near, PORT)) {
            ensure!(read(&place(from), to, "/metrics")?.is_none(), "{} reads {to}", from.full_name());
        }
    }
    told(&events[0], "unauthorized")?;

    // Where the pod declares the port, it is the application's.
    for to in of_pod(&own, PORT) {
        let (status, text) = read(&place(&reader), to, "/")?.context("the application is not reached")?;
        ensure!(status == "200" && text.contains("the application's own"), "{status} {text}");
    }

    // Another path, another method, and what is no HTTP.
    let to = SocketAddr::from((far.v4, PORT));
    ensure!(read(&place(&reader), to, "/shutdown")?.is_some_and(|(status, _)| status == "404"));
    let post = format!("http://{to}/metrics");
    let posted =
        reader.run(&["curl", "--silent", "--request", "POST", "--write-out", "%{http_code}", &post])?;
    ensure!(posted.stdout.ends_with("405"), "{}", posted.stdout);
    let outcome = reader.connect(&Attempt::new(to, "no HTTP at all\r\n\r\n"))?;
    ensure!(!outcome.received.contains("tcp_open"), "{outcome:?}");

    // Rules that change hold at once.
    lab.apply("far.yaml", &admin("far", "HTTP/1", &tenant.identity(), &office()))?;
    eventually("the reader to be shut out", SOON, || {
        Ok(read(&place(&reader), to, "/metrics")?.is_none()
            && read(&place(&tenant), to, "/metrics")?.is_some())
    })?;
    // A Server whose requests would have to be read lets nobody in.
    lab.apply("far.yaml", &admin("far", "gRPC", &tenant.identity(), &office()))?;
    eventually("the port to be closed", SOON, || Ok(read(&place(&tenant), to, "/metrics")?.is_none()))?;
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn all_of_a_nodes_are_at_an_address_where_the_node_is_told_so_alone() -> Result<()> {
    const OF_NODE: u16 = 9991;
    let mut lab = lab("scraped")?;
    lab.settings().set("handOver", json!({ "drainSeconds": 60 }));
    let one = lab.pod(&shop("one", "node-a"))?;
    let other = lab.pod(&PodSpec::new("other", "node-a").namespace("bank").account("other").meshed())?;
    lab.start_agents()?;
    let to = SocketAddr::from((lab.at("node-a")?.v4, OF_NODE));
    ensure!(read(lab.outside(), to, "/metrics")?.is_none(), "nobody asked for it");

    lab.agent("node-a")?.terminate()?;
    lab.settings().set("metricsAddress", format!("0.0.0.0:{OF_NODE}"));
    let (heddle, settings) = (lab.heddle()?, lab.settings().clone());
    let agent = lab.agent("node-a")?;
    agent.start(&heddle, &settings)?;
    let told = |what: &str| -> Result<()> {
        eventually(what, SOON, || Ok(read(lab.outside(), to, "/metrics")?.is_some()))?;
        // Both pods speak, so that there is something about each.
        for pod in [&one, &other] {
            let away = SocketAddr::from((Ipv4Addr::new(10, 77, 2, 250), 1));
            let outcome = pod.connect(&Attempt::new(away, ""))?;
            ensure!(outcome.refused(), "{outcome:?}");
        }
        let text = metrics(lab.outside(), to)?;
        for pod in [&one, &other] {
            ensure!(!about(&text, pod).is_empty(), "{what}: nothing about {}: {text}", pod.full_name());
        }
        ensure!(text.contains("heddle_tables_generation") && text.ends_with("# EOF\n"), "{text}");
        ensure!(read(lab.outside(), to, "/v1/status")?.is_some_and(|(status, _)| status == "404"));
        Ok(())
    };
    told("with one agent")?;
    // The next agent has it as soon as the one before has left it.
    let former = agent.succeed(&heddle, &settings)?;
    told("with the next one")?;
    former.ends_within(SOON)?;
    told("with the next one alone")?;
    lab.close()
}
