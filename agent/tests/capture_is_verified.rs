//! What is in force is proven by looking at the kernel, not remembered: capture that somebody takes away is told of,
//! nothing passes meanwhile, and the agent puts it back.

#[path = "common/tables_shop.rs"]
mod shop;

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use xtask::lab::{Pod, apps::Attempt, eventually};

use shop::{Shop, reason_of};

/// What is promised, and a machine ten times slower.
const TOLD: Duration = Duration::from_secs(10);

/// A command of bpftool's on the node of the agents, whose answer is JSON.
fn bpftool(shop: &Shop, arguments: &[&str]) -> Result<Value> {
    let text = shop.lab.at("node-a")?.host().check(&[&["bpftool", "-j"], arguments].concat())?;
    if text.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
}

fn pin(name: &str) -> String {
    format!("/sys/fs/bpf/heddle/v{}/{name}", heddle_ebpf::SCHEMA)
}

/// The cookie of a pod's network namespace, by its row in `pods`, with the index of its veth.
fn row_of(shop: &Shop, pod: &Pod) -> Result<(u64, u64)> {
    let rows = bpftool(shop, &["map", "dump", "pinned", &pin("maps/pods")])?;
    let row = rows.as_array().context("no rows")?.iter().find_map(|row| {
        let row = row.get("formatted").unwrap_or(row);
        let value = row.get("value")?;
        let name = value.get("name")?.to_string();
        name.contains(&pod.full_name())
            .then(|| Some((row.get("key")?.as_u64()?, value.get("ifindex")?.as_u64()?)))?
    });
    row.with_context(|| format!("no row for {} in {rows}", pod.full_name()))
}

/// The first of a pod's places in `listeners`.
fn first_slot(shop: &Shop, pod: &Pod) -> Result<u32> {
    let rows = bpftool(shop, &["map", "dump", "pinned", &pin("maps/pods")])?;
    let rows = rows.as_array().context("no rows")?.iter().map(|row| row.get("formatted").unwrap_or(row));
    let own = rows.filter(|row| row["value"]["name"].to_string().contains(&pod.full_name()));
    let slot = own.filter_map(|row| row["value"]["first_slot"].as_u64()).next().context("no slot")?;
    Ok(u32::try_from(slot)?)
}

/// The bytes of a key as bpftool wants them.
fn hex(bytes: &[u8]) -> Vec<String> {
    std::iter::once("hex".to_owned()).chain(bytes.iter().map(|byte| format!("{byte:02x}"))).collect()
}

/// What is said of a pod's capture in the status: problems now, and repairs.
fn said(shop: &Shop, pod: &Pod) -> Result<String> {
    let status = shop.lab.agent("node-a")?.status()?;
    let pods = status.get("pods").and_then(Value::as_array).context("no pods")?;
    let found = pods.iter().find(|one| one.get("name").and_then(Value::as_str) == Some(&pod.name));
    let found = found.with_context(|| format!("{} is not in {status}", pod.full_name()))?;
    Ok(format!("{} {}", found["problems"], found["repairs"]))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn capture_that_is_taken_away_is_told_of_and_put_back() -> Result<()> {
    let shop = Shop::open("taken")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent = shop.lab.agent("node-a")?;
    let (cookie, ifindex) = row_of(&shop, &shop.near)?;
    // Of the pod's first worker, for connections out of it over IPv4.
    let slot = first_slot(&shop, &shop.near)?;
    let lookup = pin(&format!("links/lookup-{cookie}"));
    let [from, to] = ["from_pod", "to_pod"].map(|name| pin(&format!("links/{name}-{ifindex}")));
    let address = heddle_ebpf::Address::from(shop.near.v4);
    let delete = |map: &str, key: &[u8]| -> Vec<String> {
        let start =
            ["bpftool", "map", "delete", "pinned", &pin(&format!("maps/{map}")), "key"].map(str::to_owned);
        start.into_iter().chain(hex(key)).collect()
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let index = u32::try_from(ifindex)?.to_ne_bytes();
    // Below 6.6 the guard is a filter on the veth, which no pin holds.
    let pinned = shop.lab.at("node-a")?.host().run(&["test", "-e", &from])?.succeeded();
    let guard = |theft: &[&str], side: &str| -> Vec<String> {
        let name = format!("ip -o link show | sed -n 's/^{ifindex}: \\([^@:]*\\).*/\\1/p'");
        let filter = format!("tc filter del dev \"$({name})\" {side}");
        if pinned { words(theft) } else { words(&["sh", "-c", &filter]) }
    };
    let thefts = [
        ("no look-up", words(&["bpftool", "link", "detach", "pinned", &lookup])),
        ("no look-up", words(&["rm", &lookup])),
        ("no guard", guard(&["bpftool", "link", "detach", "pinned", &from], "ingress")),
        ("no guard", guard(&["rm", &to], "egress")),
        ("`pods`", delete("pods", &cookie.to_ne_bytes())),
        ("pod_addresses", delete("pod_addresses", &address.bytes)),
        ("`veths`", delete("veths", &index)),
        ("`listeners`", delete("listeners", &slot.to_ne_bytes())),
        ("map direct_flows is not pinned", words(&["rm", &pin("maps/direct_flows")])),
        ("heddle_connect4", words(&["bpftool", "link", "detach", "pinned", &pin("links/connect4")])),
        ("heddle_sockops", words(&["rm", &pin("links/sockops")])),
    ];
    let carried = || -> Result<bool> {
        Ok(shop
            .client
            .connect(&Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), "carried") })?
            .answered())
    };
    for (number, (missing, theft)) in thefts.iter().enumerate() {
        eventually("the pod to be reached before", TOLD, carried)?;
        assert!(
            agent.status()?["pods"]
                .as_array()
                .is_some_and(|pods| pods.iter().all(|pod| pod["inForce"] == true))
        );
        let events = agent.events()?;
        shop.lab.at("node-a")?.host().check(theft)?;
        let told = events.next(TOLD, |event| {
            reason_of(event) == "capture_taken_away" && event["pod"] == shop.near.full_name()
        });
        let told = told.with_context(|| format!("{theft:?}: no event within {TOLD:?}"))?;
        assert!(
            told["sentence"].as_str().is_some_and(|sentence| sentence.contains(missing)),
            "{theft:?}: {told}"
        );
        eventually(&format!("{theft:?} to be put back"), TOLD, || {
            let status = agent.status()?;
            Ok(status["pods"].as_array().is_some_and(|pods| pods.iter().all(|pod| pod["inForce"] == true)))
        })?;
        assert!(
            said(&shop, &shop.near)?.contains(missing),
            "{theft:?}: the status does not tell: {}",
            said(&shop, &shop.near)?
        );
        assert!(agent.log().contains("taken away behind the agent's back"), "the log tells");
        eventually(&format!("the pod to be reached after {theft:?} {number}"), TOLD, carried)?;
    }
    // Who was robbed is protected again, not only reached.
    let stranger = shop.stranger.connect(&Attempt::new((shop.near.v4, 7000), "strange"))?;
    assert!(stranger.refused(), "{}", stranger.summary());
    shop.close()
}

/// The agent is stopped, so that nothing is put back: what the thief left open is shut by what is left.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn nothing_passes_while_capture_is_away() -> Result<()> {
    let shop = Shop::open("away")?;
    let echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent = shop.lab.agent("node-a")?;
    let (cookie, _) = row_of(&shop, &shop.near)?;
    let lookup = pin(&format!("links/lookup-{cookie}"));
    let attempt = |from: &Pod| {
        from.connect(&Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), "let me in") })
    };
    assert!(attempt(&shop.client)?.answered(), "the control: there is a way in for whom the rules allow");
    for thief in ["bpftool link detach pinned", "bpftool map delete pinned"] {
        agent.pause()?;
        let theft = if thief.contains("link") {
            format!("{thief} {lookup}")
        } else {
            let key = hex(&heddle_ebpf::Address::from(shop.near.v4).bytes).join(" ");
            format!("{thief} {} key {key}", pin("maps/pod_addresses"))
        };
        shop.lab.at("node-a")?.host().shell(&theft)?;
        let before = echo.stdout().lines().count();
        for from in [&shop.plain, &shop.far, &shop.stranger] {
            let outcome = attempt(from)?;
            assert!(!outcome.answered(), "{theft}: {} got in: {}", from.name, outcome.summary());
        }
        let after = echo.stdout();
        assert_eq!(after.lines().count(), before, "{theft}: the application accepted somebody: {after}");
        agent.resume()?;
        eventually("the agent to put it back", TOLD, || Ok(attempt(&shop.client)?.answered()))?;
    }
    shop.close()
}

/// A pod whose capture cannot be put back is cut off as long as that lasts, and its neighbors are not.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_that_cannot_be_repaired_is_cut_off() -> Result<()> {
    let shop = Shop::open("cut-off")?;
    let _echo = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    let agent = shop.lab.agent("node-a")?;
    let (cookie, _) = row_of(&shop, &shop.near)?;
    let attempt = |from: &Pod, to: &Pod| {
        from.connect(&Attempt { milliseconds: 1000, ..Attempt::new((to.v4, 7000), "through") })
    };
    assert!(attempt(&shop.client, &shop.near)?.answered());
    // A way out that no veth is: nothing could guard it.
    let host = shop.lab.at("node-a")?.host();
    host.check(&["ip", "link", "add", "link", "uplink", "name", "another", "type", "macvlan"])?;
    host.check(&["ip", "link", "set", "another", "netns", &shop.near.place().netns().display().to_string()])?;
    shop.lab.at("node-a")?.host().check(&["rm", &pin(&format!("links/lookup-{cookie}"))])?;
    eventually("the status to say that it cannot be put back", TOLD, || {
        let said = said(&shop, &shop.near)?;
        Ok(said.contains("no look-up") && said.contains("failed") && said.contains("another"))
    })?;
    for from in [&shop.client, &shop.plain, &shop.far] {
        assert!(!attempt(from, &shop.near)?.answered(), "{} reaches a pod that is cut off", from.name);
    }
    assert!(!shop.near.pings(shop.plain.v4.into())?, "nothing leaves it either");
    assert!(attempt(&shop.client, &shop.far)?.answered(), "its neighbors are not disturbed");
    assert!(agent.log().contains("the pod is cut off"));
    shop.near.place().check(&["ip", "link", "del", "another"])?;
    eventually("the pod to be reached again", TOLD, || Ok(attempt(&shop.client, &shop.near)?.answered()))?;
    shop.close()
}

/// What a pod builds inside itself leaves by its own veth: it is no reason to cut it off.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn interfaces_of_a_pods_own_making_do_not_cut_it_off() -> Result<()> {
    let shop = Shop::open("own-links")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent = shop.lab.agent("node-a")?;
    let (cookie, _) = row_of(&shop, &shop.near)?;
    let place = shop.near.place();
    let nested = place.nested("behind")?;
    let behind = nested.netns().display().to_string();
    place.check(&["ip", "link", "add", "down", "type", "veth", "peer", "name", "up", "netns", &behind])?;
    place.check(&["ip", "link", "add", "link", "eth0", "name", "another", "type", "macvlan"])?;
    let answered = || {
        let attempt = Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), "through") };
        Ok(shop.client.connect(&attempt)?.answered())
    };
    // Whatever is taken away now is put back as before, and an agent that starts anew takes the pod over.
    shop.lab.at("node-a")?.host().check(&["rm", &pin(&format!("links/lookup-{cookie}"))])?;
    eventually("the repair to be told", TOLD, || Ok(said(&shop, &shop.near)?.contains("no look-up")))?;
    assert!(!said(&shop, &shop.near)?.contains("failed"), "{}", said(&shop, &shop.near)?);
    let in_force = || -> Result<bool> {
        let status = agent.status()?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        Ok(pods.iter().any(|pod| pod["name"] == shop.near.name && pod["inForce"] == true))
    };
    eventually("everything to be in force", TOLD, in_force)?;
    eventually("the pod to be reached", TOLD, answered)?;
    agent.kill()?;
    shop.lab.start_agent("node-a")?;
    eventually("everything to be in force after the restart", TOLD, in_force)?;
    eventually("the pod to be reached after the restart", TOLD, answered)?;
    shop.close()
}

/// The programs count listeners down to zero and leave the row: a pod that listens on port after port fills no map.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn ports_on_which_nobody_listens_any_more_are_forgotten() -> Result<()> {
    let shop = Shop::open("ports")?;
    let echo = shop.near.app(&["echo", "[::]:7000"])?;
    let (cookie, _) = row_of(&shop, &shop.near)?;
    let listed = || -> Result<Vec<u64>> {
        let rows = bpftool(&shop, &["map", "dump", "pinned", &pin("maps/listening")])?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let rows = rows.iter().map(|row| row.get("formatted").unwrap_or(row));
        let own = rows.filter(|row| row["key"]["netns"].as_u64() == Some(cookie));
        Ok(own.filter_map(|row| row["key"]["port"].as_u64()).collect())
    };
    assert_eq!(listed()?, [7000]);
    let mut servers = Vec::new();
    for port in 9000..9020 {
        servers.push(shop.near.app(&["echo", &format!("[::]:{port}")])?);
    }
    assert_eq!(listed()?.len(), 21, "the control: listeners are counted");
    for server in &servers {
        server.signal(Signal::KILL)?;
    }
    drop(servers);
    eventually("the rows of closed ports to go", TOLD, || Ok(listed()? == [7000]))?;
    // Neither the one that goes on nor one that comes again is lost.
    let again = shop.near.app(&["echo", "[::]:9003"])?;
    assert_eq!(listed()?.len(), 2);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(listed()?.len(), 2, "a row with a listener stays");
    }
    drop(again);
    let outcome = shop.client.connect(&Attempt::new((shop.near.v4, 7000), "still there"))?;
    assert!(outcome.answered(), "{}", outcome.summary());
    drop(echo);
    shop.close()
}
