//! An address is nobody's identity: a pod that took over another's address is neither reached as that other nor lets in
//! as it, however long the manifests lag; and what belonged to a pod that is gone goes with it.

#[path = "common/tables_shop.rs"]
mod shop;

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::lab::{
    Pod, PodSpec, Running,
    apps::{Attempt, Outcome},
    eventually,
    pcap::Traffic,
    stretched,
};

use shop::{Shop, meshed, server};

const SOON: Duration = Duration::from_secs(10);
const MARKER: &str = "what-only-the-old-pod-may-read";

/// Everybody of the shop may reach every server of it, the newcomers excepted.
fn open_to_the_old() -> String {
    "---\n{apiVersion: policy.linkerd.io/v1alpha1, kind: MeshTLSAuthentication, metadata: {name: clients, namespace: shop}, spec: \
     {identityRefs: [{kind: ServiceAccount, name: client}, {kind: ServiceAccount, name: near}, {kind: ServiceAccount, name: far}]}}\n"
        .to_owned()
}

/// While others may write to the folder, agents keep what they took from it last: the manifests lag.
fn freeze(shop: &Shop, frozen: bool) -> Result<()> {
    let mode = if frozen { 0o777 } else { 0o700 };
    std::fs::set_permissions(shop.lab.manifests().directory(), Permissions::from_mode(mode))?;
    for node in ["node-a", "node-b"] {
        eventually("the agents to see the folder's mode", SOON, || {
            let status = shop.lab.agent(node)?.status()?;
            let alarms =
                status.pointer("/manifests/alarms").and_then(Value::as_array).context("no alarms")?;
            Ok(alarms.is_empty() != frozen)
        })?;
    }
    Ok(())
}

fn attempt(from: &Pod, to: &Pod) -> Result<Outcome> {
    from.connect(&Attempt { milliseconds: 1500, ..Attempt::new((to.v4, 7000), MARKER) })
}

/// The application at the other end had the words and sent them back. (An agent's refusal may be a TLS alert.)
fn echoed(outcome: &Outcome) -> bool {
    outcome.received == MARKER
}

/// The old pod dies without a word, another with its address starts.
fn replace(shop: &mut Shop, old: &Pod, spec: PodSpec, servers: &mut Vec<Running>) -> Result<Pod> {
    shop.lab.remove_pod(old)?;
    let new = shop.lab.pod(&spec.addresses(old.v4, old.v6))?;
    *servers = vec![new.app(&["echo", "[::]:7000"])?];
    Ok(new)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn another_pod_at_a_known_address_is_refused_both_ways_until_the_manifests_catch_up() -> Result<()> {
    let mut shop = Shop::bare("reuse")?;
    shop.lab.apply("servers.yaml", &["near", "far", "client"].map(server).concat())?;
    shop.lab.apply("clients.yaml", &open_to_the_old())?;
    shop.start()?;
    let client = shop.client.clone();
    let _echo = client.app(&["echo", "[::]:7000"])?;
    for (mut now, account) in [(shop.near.clone(), "near"), (shop.far.clone(), "far")] {
        let node = now.node.clone();
        let mut servers = vec![now.app(&["echo", "[::]:7000"])?];
        for kind in ["plain", "meshed"] {
            if !now.meshed {
                // Back to a pod that the rules mean.
                now = replace(&mut shop, &now, meshed(account, &node), &mut servers)?;
                shop.lab.agent(&node)?.attach(&now)?;
            }
            let case = format!("a {kind} pod at {account}'s address on {node}");
            eventually(&format!("the old pod, before {case}"), SOON, || {
                Ok(echoed(&attempt(&client, &now)?) && echoed(&attempt(&now, &client)?))
            })?;

            freeze(&shop, true)?;
            let name = format!("new-{account}-{kind}");
            let spec = if kind == "meshed" {
                meshed(&name, &node)
            } else {
                PodSpec::new(&name, &node).namespace("shop")
            };
            now = replace(&mut shop, &now, spec, &mut servers)?;
            if kind == "meshed" {
                let asked = json!({ "namespace": now.namespace, "name": now.name, "netns": now.netns });
                let answer = shop.lab.agent(&node)?.request("POST", "/v1/pods", Some(&asked))?;
                assert_eq!(answer.status, 404, "{case}: nobody knows it yet: {}", answer.body);
            }
            let wire = shop.lab.capture_at(shop.lab.at(&node)?.host(), &now.host_interface)?;
            for _ in 0..3 {
                let there = attempt(&client, &now)?;
                assert!(!echoed(&there), "{case} is taken for the old one: {}", there.summary());
                let back = attempt(&now, &client)?;
                assert!(!echoed(&back), "{case} is let in as the old one: {}", back.summary());
            }
            assert_eq!(sent_to(&wire.stop()?, &now), 0, "{case} was sent what was meant for the old one");

            freeze(&shop, false)?;
            if kind == "meshed" {
                shop.lab.agent(&node)?.attach(&now)?;
                eventually(&format!("{case}, known now, to be refused by its own rules"), SOON, || {
                    Ok(attempt(&client, &now)?.refused())
                })?;
                shop.lab.apply("new.yaml", &shop::server(&name))?;
            }
            let wire = shop.lab.capture_at(shop.lab.at(&node)?.host(), &now.host_interface)?;
            eventually(&format!("{case} to be reached by its own rules"), SOON, || {
                Ok(echoed(&attempt(&client, &now)?))
            })?;
            let seen = sent_to(&wire.stop()?, &now);
            // In no mesh, or on the client's own node, the bytes may be read on the veth: so the look above was a look.
            assert_eq!(seen > 0, kind == "plain" || node == client.node, "{case}");
            let back = attempt(&now, &client)?;
            assert!(!echoed(&back), "{case}: no rule lets it in: {}", back.summary());
        }
    }
    shop.close()
}

/// In how many streams the marker was sent to a pod.
fn sent_to(traffic: &Traffic, pod: &Pod) -> usize {
    let marker = MARKER.as_bytes();
    let to_it = traffic.streams.iter().filter(|stream| stream.to.ip() == pod.v4 && stream.to.port() == 7000);
    to_it.filter(|stream| stream.bytes.windows(marker.len()).any(|window| window == marker)).count()
}

/// A line of words between two programs, which stays open.
fn line(from: &Pod, to: &Pod) -> Result<Running> {
    from.spawn(&["ncat", "--no-shutdown", &to.v4.to_string(), "7000"])
}

fn carries(line: &mut Running, word: &str) -> Result<()> {
    line.write(&format!("{word}\n"))?;
    line.wait_for(word, SOON)
}

/// The links and rows of the node's pods, and the agent's open files.
fn held(shop: &Shop) -> Result<(Vec<String>, Vec<u64>, usize)> {
    let host = shop.lab.at("node-a")?.host();
    let root = format!("/sys/fs/bpf/heddle/v{}", heddle_ebpf::SCHEMA);
    let pins = host.check(&["ls", &format!("{root}/links")])?;
    let rows = |map: &str| -> Result<u64> {
        let text = host.check(&["bpftool", "-j", "map", "dump", "pinned", &format!("{root}/maps/{map}")])?;
        Ok(serde_json::from_str::<Value>(&text)?.as_array().map_or(0, Vec::len) as u64)
    };
    let maps = ["pods", "pod_addresses", "veths", "listener_ports", "listening", "listening_socks"];
    let rows = maps.into_iter().map(rows).collect::<Result<_>>()?;
    let pid = shop.lab.agent("node-a")?.pid().context("the agent runs")?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((pins.lines().map(str::to_owned).collect(), rows, files))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_that_dies_without_a_word_leaves_nothing_and_disturbs_nobody() -> Result<()> {
    let mut shop = Shop::open("died")?;
    let _servers = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    let mut lines = [line(&shop.client, &shop.near)?, line(&shop.client, &shop.far)?];
    for line in &mut lines {
        carries(line, "before")?;
    }
    let (pins, rows, files) = held(&shop)?;
    let guest = shop.lab.pod(&meshed("guest", "node-a"))?;
    shop.lab.agent("node-a")?.attach(&guest)?;
    let mut servers = vec![guest.app(&["echo", "[::]:7000"])?];
    let with_guest = held(&shop)?;
    assert!(
        with_guest.0.len() > pins.len()
            && with_guest.1.iter().zip(&rows).all(|(with, without)| with > without)
    );
    assert!(with_guest.2 > files, "its listeners are open files of the agent's");

    shop.lab.remove_pod(&guest)?;
    servers.clear();
    eventually("everything of the dead pod to go", SOON, || {
        let now = held(&shop)?;
        Ok(now.0 == pins && now.1 == rows && now.2 <= files)
    })
    .with_context(|| format!("{:?} instead of {:?}", held(&shop), (&pins, &rows, files)))?;
    for line in &mut lines {
        carries(line, "neighbors go on")?;
    }

    // One that dies while the agent is away is no obstacle to the others' being taken over.
    let guest = shop.lab.pod(&meshed("late", "node-a"))?;
    shop.lab.agent("node-a")?.attach(&guest)?;
    shop.lab.agent("node-a")?.kill()?;
    shop.lab.remove_pod(&guest)?;
    carries(&mut lines[0], "direct flows go on")?;
    let (heddle, settings) = (shop.lab.heddle()?, shop.lab.settings().clone());
    shop.lab.agent("node-a")?.start(&heddle, &settings)?;
    let (now_pins, now_rows, _) = held(&shop)?;
    assert_eq!((now_pins, now_rows[..4].to_vec()), (pins, rows[..4].to_vec()));
    for to in [&shop.near, &shop.far] {
        let outcome = attempt(&shop.client, to)?;
        assert!(echoed(&outcome), "to {}: {}", to.name, outcome.summary());
    }
    // What went on without an agent is known to the next one, and ends when the rules no longer allow it.
    carries(&mut lines[0], "still there")?;
    shop.allow(false)?;
    assert!(lines[0].ended_within(SOON).is_some(), "a flow older than the agent outlives its rule");
    shop.close()
}

/// What `heddle status` warns of a pod.
fn warned_of(shop: &Shop, pod: &str) -> Result<bool> {
    let status = shop.lab.agent("node-a")?.status()?;
    let problems = status.pointer("/problems").and_then(Value::as_array).context("no problems")?;
    Ok(problems.iter().any(|problem| problem["resource"] == format!("Pod {pod}")))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_whose_namespace_has_lost_its_path_passes_nothing_and_goes_with_its_last_process() -> Result<()> {
    let mut shop = Shop::open("pathless")?;
    let _server = shop.plain.app(&["echo", "[::]:7000"])?;
    let plain = shop.plain.v4;
    let (pins, rows, _) = held(&shop)?;
    let guest = shop.lab.pod(&meshed("guest", "node-a"))?;
    shop.lab.agent("node-a")?.attach(&guest)?;
    // A process of the pod's that connects anew at each word.
    let connects = format!(
        "while read word; do if echo said | timeout 2 ncat {plain} 7000 | grep -q said; then echo $word passes; \
         else echo $word is refused; fi; done"
    );
    let mut process = guest.spawn(&["sh", "-c", &connects])?;
    let mut ask = |word: &str, outcome: &str| -> Result<()> {
        process.write(&format!("{word}\n"))?;
        process.wait_for(&format!("{word} {outcome}"), SOON).with_context(|| format!("{word}, to {plain}"))
    };
    // The control: whoever is in the mesh may go to a pod in none, and whoever is let out could.
    ask("captured", "passes")?;

    let netns = guest.place().netns().display().to_string();
    shop.lab.at("node-a")?.host().shell(&format!("umount {netns} && rm {netns}"))?;
    eventually("the agent to let go of it", SOON, || {
        let status = shop.lab.agent("node-a")?.status()?;
        let pods = status.pointer("/pods").and_then(Value::as_array).context("no pods")?;
        Ok(pods.iter().all(|pod| pod["name"] != "guest"))
    })?;
    for word in ["soon", "later", "still"] {
        ask(word, "is refused")?;
    }
    eventually("it to be told", stretched(Duration::from_secs(30)), || warned_of(&shop, "shop/guest"))?;
    ask("ever", "is refused")?;

    drop(process);
    eventually("everything of it to go with its last process", SOON, || {
        let now = held(&shop)?;
        Ok(now.0 == pins && now.1 == rows)
    })
    .with_context(|| format!("{:?} instead of {:?}", held(&shop), (&pins, &rows)))?;
    assert!(!warned_of(&shop, "shop/guest")?);
    Ok(())
}
