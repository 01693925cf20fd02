//! a. What the wire between the nodes carries, with the mesh and without.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{MARKER, NODE_A, NODE_B, Page, Scene},
    },
    lab::pcap::Traffic,
};

/// What the same request showed before any agent ran.
pub struct WithoutMesh {
    hits: usize,
    packets: usize,
}

fn request(scene: &Scene, to: SocketAddr) -> Result<(Page, Traffic)> {
    let capture = scene.lab.capture(NODE_A)?;
    let page = scene.curl(scene.client.place(), to, &[])?;
    Ok((page, capture.stop()?))
}

/// The control: the same request while no agent runs.
pub fn without_mesh(scene: &Scene) -> Result<WithoutMesh> {
    let (page, traffic) = request(scene, (scene.web.v4, 8080).into())?;
    anyhow::ensure!(page.arrived(), "without a mesh the request must succeed, but: {}", page.summary());
    Ok(WithoutMesh { hits: traffic.hits(MARKER.as_bytes()), packets: traffic.packets })
}

pub fn show(scene: &mut Scene, control: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    if let Some(control) = control {
        step.does(format!(
            "the mesh still off: curl http://{}:8080/?{MARKER} in shop/client, tcpdump on the router's link to node-a",
            scene.web.v4
        ));
        let came = format!("{} times the marker in {} packets", control.hits, control.packets);
        step.check("without the mesh the capture sees the marker", control.hits > 0, came);
        step.fact("without_mesh", json!({ "marker_hits": control.hits, "packets": control.packets }));
    }
    let before = authorized(scene)?;
    let pairs: [(IpAddr, SocketAddr, &str); 2] = [
        (scene.client.v4.into(), (scene.web.v4, 8080).into(), "ipv4"),
        (scene.client.v6.into(), (scene.web.v6, 8080).into(), "ipv6"),
    ];
    for (own, to, family) in pairs {
        step.does(format!("the mesh on: curl http://{to}/?{MARKER} in shop/client, the same tcpdump"));
        let (page, traffic) = request(scene, to)?;
        step.check(
            "the permitted request is answered",
            page.arrived() && page.body.contains(MARKER),
            page.summary(),
        );
        let hits = traffic.hits(MARKER.as_bytes());
        let streams = traffic.between(own, to.ip());
        let mut told = Vec::new();
        let (mut all_tls, mut version, mut encrypted) = (!streams.is_empty(), false, 0);
        for stream in &streams {
            match stream.records() {
                Ok(records) => {
                    version |= records.tls13;
                    encrypted += records.application_data;
                }
                Err(error) => {
                    all_tls = false;
                    told.push(format!("{} -> {}: {error:#}", stream.from, stream.to));
                }
            }
        }
        let came = format!("{hits} times the marker in {} packets", traffic.packets);
        step.check("not one byte of the marker is on the wire", hits == 0, came);
        let came = match told.first() {
            Some(other) => other.clone(),
            None => format!(
                "{} bytes of payload in {} streams, {encrypted} encrypted records, TLS 1.3 chosen: {version}",
                streams.iter().map(|stream| stream.bytes.len()).sum::<usize>(),
                streams.len()
            ),
        };
        step.check(
            "whatever the pods exchange is TLS 1.3, to the last byte",
            all_tls && version && encrypted > 0,
            came,
        );
        step.fact(
            family,
            json!({ "status": page.status, "milliseconds": page.milliseconds, "marker_hits": hits,
                    "packets": traffic.packets, "payload_bytes": traffic.payload(), "all_tls_records": all_tls,
                    "tls13": version, "encrypted_records": encrypted }),
        );
    }
    let counted = authorized(scene)? - before;
    let came = format!(
        "{counted} connections by AuthorizationPolicy shop/web-for-clients, of {}",
        scene.client.identity()
    );
    step.check("the far agent counts them under the rule that allows them", counted >= 1.0, came);
    step.fact("authorized_by_rule", counted);
    Ok(())
}

/// How many connections the far agent has let in by the rule for the client's identity.
fn authorized(scene: &Scene) -> Result<f64> {
    scene
        .agent(NODE_B)?
        .metric("inbound_tcp_authz_allow_total", &["web-for-clients", &scene.client.identity()])
}
