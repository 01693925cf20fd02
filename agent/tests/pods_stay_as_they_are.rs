//! Nothing of a pod is changed by the mesh: no rule of a firewall, no sysctl, no address or route, no queueing
//! discipline, no process. What can be seen of it in there is the agent's own sockets.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use anyhow::Result;
use shop::{A, MARKER, OPAQUE, Shop, answered, echoes};
use xtask::lab::{Pod, apps::Attempt};

/// What a pod's network namespace and its cgroup look like, in lines.
fn looks(pod: &Pod) -> Result<Vec<String>> {
    let seen = pod.place().shell(
        "nft list ruleset
        ip -o link; ip -o address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
        tc qdisc show; tc filter show dev eth0; tc filter show dev eth0 ingress 2>/dev/null || true
        sysctl -a 2>/dev/null | grep -E '^net[.](ipv4|ipv6|core)[.]' | sort",
    )?;
    let processes = std::fs::read_to_string(pod.place().cgroup().path().join("cgroup.procs"))?;
    let count = processes.lines().count();
    Ok(seen.lines().map(str::to_owned).chain([format!("{count} processes")]).collect())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_meshed_pod_looks_as_before() -> Result<()> {
    let mut shop = Shop::closed("as-it-was")?;
    let _servers = [echoes(&shop.near)?, echoes(&shop.far)?];
    // What a neighbor learns and what a route caches is there from the start.
    let targets = [(shop.near.v4, OPAQUE), (shop.far.v4, OPAQUE)];
    for to in targets {
        answered(&shop.client, &Attempt::new(to, MARKER))?;
    }
    let pods = |shop: &Shop| -> Result<Vec<Vec<String>>> {
        [&shop.client, &shop.near, &shop.far].into_iter().map(looks).collect()
    };
    let before = pods(&shop)?;
    assert!(before.iter().all(|lines| lines.len() > 100), "the control: there is something to see");
    let unchanged = |shop: &Shop, when: &str| -> Result<()> {
        for (before, now) in before.iter().zip(pods(shop)?) {
            let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
            let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
            assert!(new.is_empty() && gone.is_empty(), "{when}: new {new:#?}, gone {gone:#?}");
        }
        Ok(())
    };
    shop.lab.start_agents()?;
    for to in targets {
        answered(&shop.client, &Attempt::new(to, MARKER))?;
    }
    unchanged(&shop, "captured, under traffic")?;
    shop.lab.agent(A)?.kill()?;
    unchanged(&shop, "its agent killed")?;
    shop.start_again(A)?;
    shop.lab.agent(A)?.detach(&shop.client)?;
    unchanged(&shop, "let go")?;
    // The other control: a change would be seen.
    for change in
        ["sysctl -q -w net.ipv4.tcp_ecn=1", "nft add table inet seen", "ip route add 192.0.2.0/24 dev lo"]
    {
        let before = looks(&shop.near)?;
        shop.near.place().shell(change)?;
        assert_ne!(looks(&shop.near)?, before, "{change}");
    }
    shop.shut()
}
