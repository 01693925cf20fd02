//! d. A rule changes under a live connection.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        rules::{self, CLIENT_IDENTITY, CLIENTS},
        scene::{Line, NODE_A, Scene, quote},
        steps::wire::WithoutMesh,
    },
    lab::apps::Attempt,
};

/// What the promise allows.
const BOUND: Duration = Duration::from_secs(1);

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    let far = (scene.echo.v4, 7000).into();
    let near = (scene.near.v4, 7000).into();
    step.does(format!("ncat in shop/client to {far} on node-b (through both agents) and to {near} on node-a (direct), kept open"));
    let mut lines = [
        ("across", Line::open(scene.client.place(), far)?),
        ("same_node", Line::open(scene.client.place(), near)?),
    ];
    step.does(format!(
        "{CLIENTS} edited: MeshTLSAuthentication shop/clients no longer names {CLIENT_IDENTITY}"
    ));
    scene.forget_events();
    let edited = Instant::now();
    scene.lab.manifests().edit(
        CLIENTS,
        CLIENT_IDENTITY,
        "nobody.shop.serviceaccount.identity.linkerd.cluster.local",
    )?;
    for (name, line) in &mut lines {
        let ended =
            line.ended_within(crate::lab::stretched(Duration::from_secs(5)).saturating_sub(edited.elapsed()));
        let took = edited.elapsed();
        let came = if ended {
            format!("ended {:.0} ms after the edit: {}", took.as_secs_f64() * 1e3, line.last_words())
        } else {
            "still open after 5 s".into()
        };
        step.check(
            &format!("the live connection ({name}) is ended within a second"),
            ended && took <= crate::lab::stretched(BOUND),
            came,
        );
        step.fact(&format!("{name}_ended_milliseconds"), json!(ended.then_some(took.as_secs_f64() * 1e3)));
    }
    step.why(quote(NODE_A, scene.told(NODE_A, &["revoked"]).as_ref()));
    for (name, to) in [("across", far), ("same_node", near)] {
        let outcome = scene.client.connect(&Attempt::new(to, "again"))?;
        step.check(&format!("a new one ({name}) is refused"), outcome.refused(), outcome.summary());
        step.fact(&format!("{name}_new_errno"), json!(outcome.error));
    }
    step.does(format!("{CLIENTS} put back"));
    let edited = Instant::now();
    scene.lab.apply(CLIENTS, &rules::clients())?;
    for (name, to) in [("across", far), ("same_node", near)] {
        let mut outcome = scene.client.connect(&Attempt::new(to, "again"))?;
        while outcome.received != "again" && edited.elapsed() < crate::lab::stretched(Duration::from_secs(5))
        {
            outcome = scene.client.connect(&Attempt::new(to, "again"))?;
        }
        let took = edited.elapsed();
        let came = format!("{}, {:.0} ms after the edit", outcome.summary(), took.as_secs_f64() * 1e3);
        step.check(
            &format!("it is allowed again ({name}) within a second"),
            outcome.received == "again" && took <= crate::lab::stretched(BOUND),
            came,
        );
        step.fact(&format!("{name}_allowed_milliseconds"), json!(took.as_secs_f64() * 1e3));
    }
    Ok(())
}
