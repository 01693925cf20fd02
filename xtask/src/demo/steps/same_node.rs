//! c. A flow that never leaves the node.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{NODE_A, Scene, field, quote},
        steps::wire::WithoutMesh,
    },
    lab::apps::Attempt,
};

/// What the agent of node a has carried by itself, in both directions.
fn carried(scene: &Scene) -> Result<f64> {
    let agent = scene.agent(NODE_A)?;
    Ok(agent.metric("tcp_read_bytes_total", &[])? + agent.metric("tcp_write_bytes_total", &[])?)
}

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    let words = "warp and weft ".repeat(4000);
    let targets: [(SocketAddr, &str); 3] = [
        ((scene.near.v4, 7000).into(), "pod"),
        ((scene.near_service.v4, 7).into(), "service"),
        ((scene.near_service.v6, 7).into(), "service_ipv6"),
    ];
    for (to, what) in targets {
        step.does(format!(
            "{} bytes from shop/client to {to} ({what}) and back; both pods are on node-a",
            words.len()
        ));
        let before = carried(scene)?;
        let capture = scene.lab.capture(NODE_A)?;
        let outcome = scene.client.connect(&Attempt::new(to, &words))?;
        let on_wire = capture.stop()?.hits(b"warp and weft");
        let through_agent = carried(scene)? - before;
        step.check("it is allowed and every byte arrives", outcome.received == words, outcome.summary());
        step.check(
            "the agent carried none of it",
            through_agent == 0.0,
            format!("the agent's byte counters rose by {through_agent}; {on_wire} times on the wire between the nodes"),
        );
        step.check(
            "the application sees the peer that it asked for",
            outcome.peer == Some(to),
            format!("{:?}", outcome.peer),
        );
        step.fact(
            what,
            json!({ "bytes": outcome.received.len(), "through_agent": through_agent, "wire_hits": on_wire,
                    "microseconds": outcome.microseconds, "errno": outcome.error }),
        );
    }
    for (to, what) in targets {
        step.does(format!("the same from shop/stranger, on the same node, to {to} ({what})"));
        scene.forget_events();
        let outcome = scene.stranger.connect(&Attempt::new(to, "let me in"))?;
        step.check("its twin of another identity is refused", outcome.refused(), outcome.summary());
        let event = scene.told(NODE_A, &["unauthorized"]);
        step.why(quote(NODE_A, event.as_ref()));
        step.check(
            "the agent names the Server that nothing opens",
            field(event.as_ref(), "rule").contains("shop/near"),
            field(event.as_ref(), "rule"),
        );
        step.fact(
            &format!("refused_{what}"),
            json!({ "errno": outcome.error, "step": outcome.step, "event": event }),
        );
    }
    Ok(())
}
