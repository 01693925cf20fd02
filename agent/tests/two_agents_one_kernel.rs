//! Two nodes' agents on one kernel: the same numbers mean different things to each, and what befalls one is no concern
//! of the other's.

#[path = "common/tables_shop.rs"]
mod shop;

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::lab::{Pod, Running, apps::Attempt, eventually};

use shop::{Shop, meshed, server};

const SOON: Duration = Duration::from_secs(10);

fn carried(from: &Pod, to: &Pod) -> Result<bool> {
    let attempt = Attempt { milliseconds: 1500, ..Attempt::new((to.v4, 7000), "carried") };
    Ok(from.connect(&attempt)?.received == "carried")
}

/// The generation in force in a node's kernel tables.
fn state(shop: &Shop, node: &str) -> Result<String> {
    let map = format!("/sys/fs/bpf/heddle/v{}/maps/state", heddle_ebpf::SCHEMA);
    shop.lab.at(node)?.host().check(&["bpftool", "-j", "map", "dump", "pinned", &map])
}

fn line(from: &Pod, to: &Pod) -> Result<Running> {
    from.spawn(&["ncat", "--no-shutdown", &to.v4.to_string(), "7000"])
}

fn carries(line: &mut Running, word: &str) -> Result<()> {
    line.write(&format!("{word}\n"))?;
    line.wait_for(word, SOON)
}

/// A folder of node-b's own, with what the shop's folder holds.
fn own_folder(shop: &Shop) -> Result<PathBuf> {
    let folder = shop.lab.directory().join("manifests-of-b");
    std::fs::create_dir(&folder)?;
    std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(shop.lab.manifests().directory())? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(folder)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_befalls_one_agent_leaves_the_other_alone() -> Result<()> {
    let mut shop = Shop::bare("two")?;
    let buyer = shop.lab.pod(&meshed("buyer", "node-b"))?;
    let clients = shop.lab.manifests().read("clients.yaml")?;
    let both = clients.replace("name: client}", "name: client}, {kind: ServiceAccount, name: buyer}");
    shop.lab.apply("clients.yaml", &both)?;
    shop.lab.apply("more.yaml", &["client", "buyer"].map(server).concat())?;
    let folder = own_folder(&shop)?;
    shop.lab.start_agent("node-a")?;
    shop.lab.settings().set("manifests", folder.display().to_string());
    shop.lab.start_agent("node-b")?;
    let _servers = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];

    // The same addresses and ports at the same time, on loopback in a pod of each node, and out of each to the other's.
    let mut greeters = Vec::new();
    for (pod, name) in [(&shop.client, "client"), (&buyer, "buyer")] {
        greeters.push(pod.app(&["greet", "127.0.0.1:7001", name])?);
    }
    for round in 0..20u16 {
        for (pod, name) in [(&shop.client, "client"), (&buyer, "buyer")] {
            let from = Some(([127, 0, 0, 1], 41_000 + round).into());
            let attempt = Attempt { from, enough: name.len(), ..Attempt::new(([127, 0, 0, 1], 7001), "") };
            assert_eq!(pod.connect(&attempt)?.received, name, "a tuple of one pod's was taken for another's");
        }
        for (pod, to) in [(&shop.client, &shop.far), (&buyer, &shop.near)] {
            let from = Some((pod.v4, 42_000 + round).into());
            let outcome = pod.connect(&Attempt { from, ..Attempt::new((to.v4, 7000), "across") })?;
            assert_eq!(outcome.received, "across", "{}: {}", pod.name, outcome.summary());
        }
    }

    // Rules that change on one node change there.
    let mut kept = line(&buyer, &shop.far)?;
    let mut cut = line(&shop.client, &shop.near)?;
    carries(&mut kept, "before")?;
    carries(&mut cut, "before")?;
    let before = [state(&shop, "node-a")?, state(&shop, "node-b")?];
    for round in 0..20 {
        shop.allow(round % 2 == 1)?;
        eventually("the rules of node-a to change", SOON, || {
            Ok(carried(&shop.client, &shop.near)? == (round % 2 == 1))
        })?;
        assert!(carried(&buyer, &shop.far)?, "round {round}");
    }
    assert_ne!(state(&shop, "node-a")?, before[0], "the control: node-a has another generation in force");
    assert_eq!(state(&shop, "node-b")?, before[1], "node-b has the one that it had");
    assert!(cut.ended_within(SOON).is_some());
    carries(&mut kept, "after the changes")?;

    // One that dies takes nobody with it.
    shop.lab.agent("node-a")?.kill()?;
    eventually("node-a to refuse what needs its agent", SOON, || Ok(!carried(&shop.client, &shop.far)?))?;
    assert!(carried(&shop.client, &shop.near)?, "direct flows stay under the last rules");
    carries(&mut kept, "alone")?;
    for _ in 0..5 {
        assert!(carried(&buyer, &shop.far)?, "on the other node everything goes on");
    }
    let status = shop.lab.agent("node-b")?.status()?;
    let pods = status.get("pods").and_then(Value::as_array).context("no pods")?;
    assert!(pods.len() == 2 && pods.iter().all(|pod| pod["inForce"] == true), "{status}");
    assert_eq!(
        status["pods"]
            .as_array()
            .map(|pods| pods.iter().filter(|pod| pod["repairs"] != serde_json::json!([])).count()),
        Some(0)
    );
    shop.lab.settings().unset("manifests");
    shop.lab.start_agent("node-a")?;
    eventually("both nodes to speak again", SOON, || {
        Ok(carried(&shop.client, &shop.far)? && carried(&buyer, &shop.far)?)
    })?;
    shop.close()
}
