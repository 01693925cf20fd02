//! f. The pinned maps, as bpftool shows them.

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{NODE_A, Scene},
        steps::wire::WithoutMesh,
    },
    lab::apps::Attempt,
};

/// How many lines of a map are shown.
const LINES: usize = 14;

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    // The step may be the first that is shown: nothing was decided yet.
    let near = std::net::SocketAddr::from((scene.near.v4, 7000));
    step.does(format!("one connection of shop/client to shop/near, {near}"));
    let outcome = scene.client.connect(&Attempt::new(near, "warp"))?;
    step.check("it is allowed", outcome.received == "warp", outcome.summary());
    let host = scene.lab.at(NODE_A)?.host();
    let pins = host.check(&["find", "/sys/fs/bpf/heddle", "-type", "f"])?;
    let dump = |name: &str| -> Result<String> {
        let mut all = String::new();
        // A table of the policy has two sets, of which one is in force.
        for pin in pins.lines() {
            let own = pin.rsplit('/').next().unwrap_or_default();
            if own == name || own == format!("{name}_0") || own == format!("{name}_1") {
                all += &host.check(&["bpftool", "map", "dump", "pinned", pin])?;
            }
        }
        Ok(all)
    };
    let wanted = [
        ("identities", "whom the kernel knows", vec![scene.client.identity(), scene.stranger.identity()]),
        ("pods", "the pods of this node", vec![scene.client.full_name(), scene.near.full_name()]),
        ("rules", "the rules that decide", vec!["shop/near".to_owned(), "shop/near-for-clients".to_owned()]),
        ("counters", "the decisions that were made", vec!["reason".to_owned(), "count".to_owned()]),
    ];
    for (map, what, texts) in wanted {
        step.does(format!("bpftool map dump pinned /sys/fs/bpf/heddle/…/{map}: {what}"));
        let text = dump(map)?;
        let interesting: Vec<&str> = text.lines().skip_while(|line| !line.contains(&texts[0])).collect();
        let from = text.lines().count().saturating_sub(interesting.len()).saturating_sub(4);
        let shown: Vec<&str> = text.lines().skip(from).take(LINES).collect();
        step.shows(&shown.join("\n"));
        let missing: Vec<&String> = texts.iter().filter(|wanted| !text.contains(wanted.as_str())).collect();
        let came = format!("{} lines, missing {missing:?}", text.lines().count());
        step.check(&format!("{map} can be read by a person"), missing.is_empty(), came);
        step.fact(map, json!({ "lines": text.lines().count(), "found": texts, "missing": missing }));
    }
    Ok(())
}
