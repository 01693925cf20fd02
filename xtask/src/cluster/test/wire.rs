//! a and b: what the wire carries, and who is let in.

use super::scene::{MARKER, NODE_A, NODE_B, Scene, url};
use anyhow::{Result, ensure};
use std::net::IpAddr;
use xtask::demo::report::Step;
use xtask::lab::{Capture, pcap::Traffic};

/// One request from a namespace's client to its server, and what was on the wire meanwhile.
pub fn request(scene: &Scene, namespace: &str) -> Result<(String, Traffic)> {
    request_to(scene, namespace, scene.address(namespace, "web")?)
}

/// The same to one of the server's addresses.
fn request_to(scene: &Scene, namespace: &str, to: IpAddr) -> Result<(String, Traffic)> {
    let capture = Capture::start(&scene.state.router, &format!("to-{NODE_A}"), &scene.state.folder)?;
    let output = scene.curl(namespace, "client", &url(to, 8080, &format!("/?{MARKER}")))?;
    Ok((output.stdout + &output.stderr, capture.stop()?))
}

/// a. Ciphertext across nodes.
pub fn across(scene: &Scene, step: &mut Step) -> Result<()> {
    let (own, to) = (scene.addresses("shop", "client")?, scene.addresses("shop", "web")?);
    let outside = scene.addresses("plain", "web")?;
    for (outside, (own, to)) in outside.into_iter().zip(own.into_iter().zip(to)) {
        step.does(format!(
            "namespace plain, outside the mesh: curl in pod client on node-a to pod web on node-b, at {outside}, tcpdump between them"
        ));
        let (page, traffic) = request_to(scene, "plain", outside)?;
        let hits = traffic.hits(MARKER.as_bytes());
        step.check(
            "without the mesh the marker is seen",
            page.contains(MARKER) && hits > 0,
            format!("{hits} times in {} packets", traffic.packets),
        );
        encrypted(scene, step, own, to)?;
    }
    Ok(())
}

fn encrypted(scene: &Scene, step: &mut Step, own: IpAddr, to: IpAddr) -> Result<()> {
    step.does(format!("namespace shop, meshed: the same at {to}"));
    let (page, traffic) = request_to(scene, "shop", to)?;
    step.check("the permitted request is answered", page.contains(MARKER), page.trim());
    let hits = traffic.hits(MARKER.as_bytes());
    step.check(
        "not one byte of the marker is on the wire",
        hits == 0,
        format!("{hits} times in {} packets", traffic.packets),
    );
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
    let (web, service) = (scene.addresses("shop", "web")?, scene.service("shop", "web")?);
    ensure!(web.len() == service.len(), "pod web has {web:?}, its Service {service:?}");
    let by_address = web.iter().map(|ip| (format!("by its address {ip}"), url(*ip, 8080, "/")));
    let by_service = service.iter().map(|ip| (format!("by its Service's {ip}"), url(*ip, 80, "/")));
    for (what, url) in by_address.chain(by_service) {
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
    for web in web {
        let url = url(web, 8080, "/healthz");
        let host = scene.node(NODE_B)?.run(&["curl", "-sS", "--max-time", "5", &url])?;
        step.check(
            &format!("a process of the node's own, on the probe's port and path at {web}, does not"),
            !host.succeeded(),
            host.last_line(),
        );
    }
    Ok(())
}
