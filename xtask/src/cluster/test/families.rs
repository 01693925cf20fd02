//! w: each of a pod's addresses is captured and guarded, and its neighbors on the node do not speak for it.

use super::scene::{NODE_B, Scene, url};
use super::verbs::attached;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

/// On the server's own node: one that may ask it, and one that is outside the mesh.
const NEIGHBORS: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec:
  nodeName: node-b
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  containers: [{name: shell, image: "heddle.local/apps:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: neighbor, namespace: plain, labels: {app: neighbor}}
spec:
  nodeName: node-b
  terminationGracePeriodSeconds: 1
  containers: [{name: nginx, image: "heddle.local/apps:1", command: [nginx, -c, /etc/nginx.conf]}]
---
apiVersion: v1
kind: Service
metadata: {name: neighbor, namespace: plain}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: neighbor}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// w. Addresses and neighbors.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does(format!(
        "pods are connected by {}; kubectl apply a client and a pod outside the mesh on the server's own node",
        scene.state.network
    ));
    scene.apply("neighbors.yaml", NEIGHBORS)?;
    eventually("both to be ready", Duration::from_secs(60), || scene.all_ready(&["shop", "plain"]))?;
    let (near, web) = (scene.addresses("shop", "near")?, scene.addresses("shop", "web")?);
    for (name, known) in [("near", &near), ("web", &web)] {
        let captured = guarded(scene, name)?;
        let told: BTreeSet<IpAddr> = known.iter().copied().collect();
        step.check(
            &format!("every address of shop/{name} is captured"),
            captured == told,
            format!("{captured:?}"),
        );
    }
    let netns =
        attached(scene, NODE_B)?.remove("plain/neighbor").context("plain/neighbor is not attached")?;
    let netns = format!("--net={}", netns.netns);
    for (near, web) in near.into_iter().zip(web) {
        let asked = scene.curl("shop", "near", &url(web, 8080, "/"))?;
        step.check(
            &format!("shop/near, on the same node, reaches {web}"),
            asked.succeeded(),
            asked.last_line(),
        );
        speaks_for(scene, step, &netns, near, web)?;
    }
    for (namespace, pod) in [("plain", "neighbor"), ("shop", "web")] {
        for address in scene.service(namespace, pod)? {
            let mut last = String::new();
            // Of a Service that was just made kube-proxy hears a moment later.
            let reached = eventually("the Service to lead back", Duration::from_secs(20), || {
                let asked = scene.curl(namespace, pod, &url(address, 80, "/"))?;
                last = asked.last_line().to_owned();
                Ok(asked.succeeded())
            });
            step.check(
                &format!("{namespace}/{pod} reaches itself by its Service's {address}"),
                reached.is_ok(),
                last,
            );
        }
    }
    for what in ["pod/neighbor", "service/neighbor"] {
        scene.kubectl(&["delete", "-n", "plain", what, "--wait=false"])?;
    }
    scene.kubectl(&["delete", "pod", "-n", "shop", "near", "--wait=false"]).map(drop)
}

/// The addresses with which a pod on node-b is captured.
fn guarded(scene: &Scene, name: &str) -> Result<BTreeSet<IpAddr>> {
    let status = scene.status(NODE_B)?;
    let pods = status["pods"].as_array().into_iter().flatten();
    let mut own = pods.filter(|pod| pod["namespace"] == "shop" && pod["name"] == name);
    let own = own.next().with_context(|| format!("shop/{name} is not captured"))?;
    let addresses = own["addresses"].as_array().into_iter().flatten();
    Ok(addresses.filter_map(|it| it.as_str()?.parse().ok()).collect())
}

/// A neighbor outside the mesh asks the server, with its own address and then with that of one who may.
fn speaks_for(scene: &Scene, step: &mut Step, netns: &str, near: IpAddr, web: IpAddr) -> Result<()> {
    let node = scene.node(NODE_B)?;
    let server = url(web, 8080, "/");
    let ask = |more: &[&str]| {
        let words = ["nsenter", netns, "curl", "-sS", "--max-time", "2"];
        node.run(&[&words[..], more, &[&server]].concat())
    };
    let before = spoofed(scene)?;
    let own = ask(&[])?;
    let after_own = spoofed(scene)?;
    step.check(
        "plain/neighbor is refused, and its own address is its own",
        !own.succeeded() && after_own == before,
        format!("{}; {} packets of a false sender", own.last_line(), after_own - before),
    );
    step.does(format!("plain/neighbor takes {near}, which is shop/near's, for its own and asks again"));
    let address = format!("{near}/{}", if near.is_ipv4() { 32 } else { 128 });
    let change = |verb: &str| {
        let mut words = vec!["nsenter", netns, "ip", "address", verb, &address, "dev", "eth0"];
        words.extend((verb == "add" && near.is_ipv6()).then_some("nodad"));
        node.check(&words)
    };
    change("add")?;
    let asked = ask(&["--interface", &near.to_string()]);
    change("del")?;
    let asked = asked?;
    let counted = spoofed(scene)? - after_own;
    step.check(
        "the guard of shop/web drops what it says, and counts it",
        !asked.succeeded() && counted > 0,
        format!("{}; {counted} packets", asked.last_line()),
    );
    Ok(())
}

/// How many packets to node-b's pods were dropped for their false sender.
fn spoofed(scene: &Scene) -> Result<u64> {
    let told = scene.door(NODE_B, "/v1/metrics")?;
    let counts = told.lines().filter(|line| {
        line.starts_with("heddle_kernel_decisions_total{")
            && ["hook=\"guard_to_pod\"", "reason=\"spoofed\""].iter().all(|label| line.contains(label))
    });
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}
