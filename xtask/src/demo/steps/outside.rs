//! g. A destination that is in no mesh and in no cluster.

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{NODE_A, Scene, quote},
        steps::wire::WithoutMesh,
    },
    lab::{OUTSIDE, apps::Attempt},
};

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    for address in OUTSIDE {
        step.does(format!("curl http://{address}/ in shop/client, under defaultOutbound: allow"));
        let page = scene.curl(scene.client.place(), (address, 80).into(), &[])?;
        step.check("outside is reached under allow", page.arrived(), page.summary());
    }
    step.does("node-a's agent started again with defaultOutbound: cluster");
    scene.lab.settings().set("defaultOutbound", "cluster");
    scene.agent(NODE_A)?.terminate()?;
    scene.start_again(NODE_A)?;
    let mut refused = Vec::new();
    for address in OUTSIDE {
        scene.forget_events();
        let outcome = scene.client.connect(&Attempt::new((address, 80), "GET / HTTP/1.0\r\n\r\n"))?;
        step.check(
            "outside is refused under cluster",
            outcome.refused(),
            format!("{address}: {}", outcome.summary()),
        );
        let event = scene.told(NODE_A, &["outbound_outside_cluster"]);
        step.why(quote(NODE_A, event.as_ref()));
        step.check(
            "the agent says that it is for being outside",
            event.is_some(),
            "outbound_outside_cluster",
        );
        refused.push(json!({ "address": address, "errno": outcome.error, "event": event }));
    }
    let inside = scene.client.connect(&Attempt::new((scene.web.v4, 8080), "GET / HTTP/1.0\r\n\r\n"))?;
    step.check("the mesh itself is still reached", inside.answered(), inside.summary());
    let plain = scene.plain.connect(&Attempt::new((OUTSIDE[0], 80), "GET / HTTP/1.0\r\n\r\n"))?;
    step.check("a pod in no mesh is left alone", plain.answered(), plain.summary());
    step.fact("refused_under_cluster", refused);
    step.does("and back to allow");
    scene.lab.settings().unset("defaultOutbound");
    scene.agent(NODE_A)?.terminate()?;
    scene.start_again(NODE_A)?;
    let page = scene.curl(scene.client.place(), (OUTSIDE[0], 80).into(), &[])?;
    step.check("reached again", page.arrived(), page.summary());
    Ok(())
}
