//! x: every node is switched off and on again at once.

use super::reboot::{answered_in_ciphertext, of_pods, power_off, power_on, served};
use super::scene::{Inside, MARKER, NODE_A, NODE_B, Scene};
use super::wire::request;
use anyhow::{Context, Result};
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

/// One that may and one that may not; both ask from their first moment on.
fn eager(namespace: &str, account: &str, service: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: eager, namespace: {namespace}}}\n\
         spec:\n  nodeName: {NODE_A}\n  serviceAccountName: {account}\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n    - {{name: shell, image: \"heddle.local/apps:1\", command: [sh, -c, \
         \"while :; do curl -s --max-time 2 'http://{service}/?{MARKER}'; sleep 0.1; done\"]}}\n---\n"
    )
}

fn mesh(scene: &Scene, word: &str) -> Result<()> {
    let annotation = format!("heddle.io/mesh={word}");
    scene.kubectl(&["annotate", "namespace", "shop", "bank", &annotation, "--overwrite"]).map(drop)
}

/// Whether all of a namespace's Deployments and DaemonSets are as they are to be.
fn rolled_out(scene: &Scene, namespace: &str) -> Result<bool> {
    let path = "jsonpath={range .items[*]}{.status.readyReplicas}{.status.numberReady}/{.spec.replicas}{.status.desiredNumberScheduled} {end}";
    let words = ["get", "deployments,daemonsets", "-n", namespace, "-o", path];
    let told = scene.kubectl(&words)?;
    let full =
        |it: &str| it.split_once('/').is_some_and(|(ready, wanted)| ready == wanted && !ready.is_empty());
    Ok(!told.trim().is_empty() && told.split_whitespace().all(full))
}

/// x. Power off, power on, and nobody does anything.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    // The pods' addresses are others afterwards, the Service's is not.
    let service = *scene.service("shop", "web")?.first().context("Service shop/web has no address")?;
    let service = service.to_string();
    mesh(scene, "required")?;
    scene.apply("eager.yaml", &(eager("shop", "client", &service) + &eager("bank", "stranger", &service)))?;
    eventually("shop/eager to be answered", Duration::from_secs(60), || served(scene, "shop"))?;
    step.does("the mesh required in shop and bank; both nodes switched off at once, Heddle's authority and CoreDNS with them, and on again");
    let capture = of_pods(scene)?;
    for node in [NODE_A, NODE_B] {
        power_off(scene, step, node)?;
    }
    for node in [NODE_A, NODE_B] {
        power_on(scene, node)?;
    }
    let wanted = [
        (NODE_A, &["shop/eager", "shop/client", "bank/stranger", "bank/eager"][..]),
        (NODE_B, &["shop/web"]),
    ];
    let captured = eventually("the pods to be captured", Duration::from_secs(300), || {
        Ok(wanted.iter().all(|(node, names)| {
            let captured = scene.captured(node).unwrap_or_default();
            names.iter().all(|name| captured.contains_key(*name))
        }))
    });
    step.check(
        "all pods of the mesh are captured",
        captured.is_ok(),
        "on both nodes, and nobody did anything",
    );
    let ready = eventually("all to be ready", Duration::from_secs(120), || {
        Ok(rolled_out(scene, "kube-system")?
            && rolled_out(scene, "heddle-system")?
            && scene.all_ready(&["bank", "plain"])?)
    });
    step.check(
        "what is exempt by its namespace started, and all of it is ready",
        ready.is_ok(),
        "kube-system, heddle-system",
    );
    answered_in_ciphertext(scene, step, capture)?;
    let said = scene.kubectl(&["logs", "-n", "bank", "eager"])?;
    step.check(
        "bank/eager was answered at no time",
        !said.contains("served"),
        format!("{} bytes said", said.len()),
    );
    let netns = scene.captured(NODE_A)?.remove("bank/stranger").context("bank/stranger is not captured")?;
    let stranger = Inside { place: scene.node(NODE_A)?, netns };
    step.check("bank/stranger is refused", !stranger.reaches(&format!("http://{service}/"))?, "refused");
    let (_, traffic) = request(scene, "plain")?;
    let hits = traffic.hits(MARKER.as_bytes());
    step.check("the control: outside the mesh the marker is seen", hits > 0, format!("{hits} times"));
    for namespace in ["shop", "bank"] {
        scene.kubectl(&["delete", "pod", "-n", namespace, "eager", "--timeout=90s"])?;
    }
    mesh(scene, "enabled")
}
