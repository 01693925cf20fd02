//! a and b: what the wire carries, and who is let in.

use super::scene::{MARKER, NODE_A, NODE_B, Scene};
use anyhow::Result;
use xtask::demo::report::Step;
use xtask::lab::{Capture, pcap::Traffic};

/// One request from a namespace's client to its server, and what was on the wire meanwhile.
pub fn request(scene: &Scene, namespace: &str) -> Result<(String, Traffic)> {
    let to = scene.address(namespace, "web")?;
    let capture = Capture::start(&scene.state.router, &format!("to-{NODE_A}"), &scene.state.folder)?;
    let output = scene.curl(namespace, "client", &format!("http://{to}:8080/?{MARKER}"))?;
    Ok((output.stdout + &output.stderr, capture.stop()?))
}

/// a. Ciphertext across nodes.
pub fn across(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("namespace plain, outside the mesh: curl in pod client on node-a to pod web on node-b, tcpdump between them");
    let (page, traffic) = request(scene, "plain")?;
    let hits = traffic.hits(MARKER.as_bytes());
    step.check(
        "without the mesh the marker is seen",
        page.contains(MARKER) && hits > 0,
        format!("{hits} times in {} packets", traffic.packets),
    );
    step.does("namespace shop, meshed: the same");
    let (page, traffic) = request(scene, "shop")?;
    step.check("the permitted request is answered", page.contains(MARKER), page.trim());
    let hits = traffic.hits(MARKER.as_bytes());
    step.check(
        "not one byte of the marker is on the wire",
        hits == 0,
        format!("{hits} times in {} packets", traffic.packets),
    );
    let (own, to) = (scene.address("shop", "client")?, scene.address("shop", "web")?);
    let streams = traffic.between(own, to);
    let records: Result<Vec<_>> = streams.iter().map(|stream| stream.records()).collect();
    let (held, came) = match records {
        Ok(records) => {
            let encrypted: usize = records.iter().map(|it| it.application_data).sum();
            let chosen = records.iter().any(|it| it.tls13);
            (
                encrypted > 0 && chosen,
                format!("{} streams, {encrypted} encrypted records, TLS 1.3 chosen: {chosen}", streams.len()),
            )
        }
        Err(error) => (false, format!("{error:#}")),
    };
    step.check("whatever the pods exchange is TLS 1.3", held, came);
    step.check(
        "the server sees its client's own address",
        page.contains(&format!("served {own} ")),
        page.trim(),
    );
    Ok(())
}

/// b. Everybody else is refused.
pub fn refusals(scene: &Scene, step: &mut Step) -> Result<()> {
    let web = scene.address("shop", "web")?;
    let service =
        scene.kubectl(&["get", "service", "-n", "shop", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    step.does("kubectl apply: web is ready only if the kubelet's probe of it passes, under deny");
    let ready = scene.kubectl(&[
        "get",
        "pod",
        "-n",
        "shop",
        "web",
        "-o",
        "jsonpath={.status.conditions[?(@.type=='Ready')].status}",
    ])?;
    step.check("the kubelet's probe passes", ready.trim() == "True", format!("Ready: {}", ready.trim()));
    for (what, url) in [
        ("by its address", format!("http://{web}:8080/")),
        ("by its Service", format!("http://{}/", service.trim())),
    ] {
        let allowed = scene.curl("shop", "client", &url)?;
        step.check(&format!("shop/client reaches web {what}"), allowed.succeeded(), allowed.last_line());
        let refused = scene.curl("bank", "stranger", &url)?;
        step.check(
            &format!("bank/stranger, of another identity, does not {what}"),
            !refused.succeeded(),
            refused.last_line(),
        );
        let refused = scene.curl("plain", "client", &url)?;
        step.check(
            &format!("plain/client, of none, does not {what}"),
            !refused.succeeded(),
            refused.last_line(),
        );
    }
    let host = scene.node(NODE_B)?.run(&[
        "curl",
        "-sS",
        "--max-time",
        "5",
        &format!("http://{web}:8080/healthz"),
    ])?;
    step.check(
        "a process of the node's own, on the probe's port and path, does not",
        !host.succeeded(),
        host.last_line(),
    );
    Ok(())
}
