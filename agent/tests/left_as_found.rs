//! A machine is left as it was found: whatever an agent put into the kernel goes by `heddle release`, and whatever a lab
//! or a demo made goes with it, however they end.

#[path = "common/tables_shop.rs"]
mod shop;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::lab::{Traces, apps::Attempt, eventually, missing_tools};

use shop::Shop;

const SOON: Duration = Duration::from_secs(20);

/// Ids of the kernel's that are never used twice: programs, maps and links.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loaded {
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
    links: BTreeSet<u64>,
}

impl Loaded {
    /// Everything on the machine.
    fn now() -> Result<Self> {
        let ids = |kind: &str| -> Result<BTreeSet<u64>> {
            let output =
                Command::new("bpftool").args(["-j", kind, "show"]).output().context("cannot run bpftool")?;
            ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
            let listed: Value = serde_json::from_slice(&output.stdout)?;
            Ok(listed.as_array().into_iter().flatten().filter_map(|one| one["id"].as_u64()).collect())
        };
        Ok(Self { programs: ids("prog")?, maps: ids("map")?, links: ids("link")? })
    }

    /// What the agents of a shop hold open and what they pinned.
    fn of(shop: &Shop) -> Result<Self> {
        let mut found = Self::default();
        for node in shop.lab.nodes() {
            let pid = shop.lab.agent(&node.name)?.pid().context("the agent runs")?;
            for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
                let info = fs::read_to_string(entry.path()).unwrap_or_default();
                let number = |name: &str| -> Option<u64> {
                    info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
                };
                found.programs.extend(number("prog_id:"));
                found.maps.extend(number("map_id:"));
            }
            let pins = format!("/sys/fs/bpf/heddle/v{}/links", heddle_ebpf::SCHEMA);
            let shown = node.host().check(&["bpftool", "-j", "-f", "link", "show"])?;
            let shown: Value = serde_json::from_str(&shown)?;
            let pinned = |link: &&Value| {
                let at = link["pinned"].as_array().into_iter().flatten().filter_map(Value::as_str);
                at.into_iter().any(|path| path.starts_with(&pins))
            };
            let links = shown.as_array().into_iter().flatten().filter(pinned);
            found.links.extend(links.filter_map(|link| link["id"].as_u64()));
        }
        Ok(found)
    }

    fn still(&self, now: &Self) -> Self {
        let both = |one: &BTreeSet<u64>, other: &BTreeSet<u64>| one.intersection(other).copied().collect();
        Self {
            programs: both(&self.programs, &now.programs),
            maps: both(&self.maps, &now.maps),
            links: both(&self.links, &now.links),
        }
    }
}

/// Network namespaces of a shop, by inode.
fn namespaces(shop: &Shop) -> Result<BTreeSet<String>> {
    let places =
        shop.lab.pods().iter().map(|pod| pod.place()).chain(shop.lab.nodes().map(|node| node.host()));
    places
        .map(|place| {
            let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(place.netns())?);
            Ok(format!("net:[{inode}]"))
        })
        .collect()
}

/// What of the machine belongs to a lab, and what belongs to the machine and must not have changed. (Other labs may come
/// and go meanwhile.)
fn left(before: &Traces, id: &str, namespaces: &BTreeSet<String>) -> Result<Vec<String>> {
    let now = Traces::now()?;
    let mut left: Vec<String> = [&now.directories, &now.cgroups, &now.mounts, &now.links, &now.pins]
        .into_iter()
        .flatten()
        .filter(|name| name.contains(id))
        .cloned()
        .collect();
    left.extend(now.namespaces.intersection(namespaces).cloned());
    for (now, before) in
        [(&now.sysctls, &before.sysctls), (&now.pins, &before.pins), (&now.links, &before.links)]
    {
        left.extend(now.symmetric_difference(before).cloned());
    }
    Ok(left)
}

fn traffic(shop: &Shop) -> Result<bool> {
    let mut all = true;
    for to in [&shop.near, &shop.far] {
        all &= shop.client.connect(&Attempt::new((to.v4, 7000), "hello"))?.received == "hello";
    }
    Ok(all)
}

fn release(shop: &Shop) -> Result<()> {
    let heddle = shop.lab.heddle()?.display().to_string();
    for node in shop.lab.nodes() {
        let agent = shop.lab.agent(&node.name)?;
        let config = agent.config().display().to_string();
        let command = [heddle.as_str(), "release", "--config", &config];
        if agent.is_running() {
            let refused = node.host().run(&command)?;
            ensure!(!refused.succeeded(), "release goes behind a living agent's back: {}", refused.stdout);
            agent.kill()?;
        }
        let said = node.host().check(&command)?;
        ensure!(said.contains("removed /sys/fs/bpf/heddle"), "{said}");
        let again = node.host().check(&command)?;
        ensure!(again.contains("nothing of Heddle's"), "{again}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_full_life_and_a_release_leave_nothing_in_the_kernel() -> Result<()> {
    let before = Traces::now()?;
    let shop = Shop::open("life")?;
    let id = shop.lab.id().to_owned();
    let _servers = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    assert!(traffic(&shop)?);
    let mut ours = Loaded::of(&shop)?;
    shop.lab.agent("node-a")?.kill()?;
    shop.lab.start_agent("node-a")?;
    eventually("traffic after the restart", SOON, || traffic(&shop))?;
    let again = Loaded::of(&shop)?;
    ours.programs.extend(&again.programs);
    ours.maps.extend(&again.maps);
    ours.links.extend(&again.links);
    // Before Linux 6.6 the guard's programs are filters, without links.
    assert!(
        ours.programs.len() > 20 && ours.maps.len() > 70 && ours.links.len() > 8,
        "the control: {ours:?}"
    );
    assert!(
        !shop.plain.connect(&Attempt::new((shop.near.v4, 7000), "in"))?.answered(),
        "the control: it is guarded"
    );
    let interfaces = |node: &str| shop.lab.at(node)?.host().check(&["ip", "-o", "link", "show"]);
    let sysctls = |node: &str| {
        shop.lab
            .at(node)?
            .host()
            .shell("sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6)\\.(conf|neigh|ip)' | sort")
    };
    let settings = [sysctls("node-a")?, interfaces("node-a")?];

    release(&shop)?;
    eventually("programs, maps and links to go", SOON, || {
        Ok(ours.still(&Loaded::now()?) == Loaded::default())
    })
    .with_context(|| format!("{:?}", Loaded::now().map(|now| ours.still(&now))))?;
    assert_eq!(
        [sysctls("node-a")?, interfaces("node-a")?],
        settings,
        "interfaces and settings are the host's own"
    );
    // The pods go on as pods without a mesh.
    assert!(traffic(&shop)?);
    assert!(
        shop.plain.connect(&Attempt::new((shop.near.v4, 7000), "in"))?.answered(),
        "nothing guards it any more"
    );

    let namespaces = namespaces(&shop)?;
    assert!(!left(&before, &id, &namespaces)?.is_empty(), "the control: a lab that is there is seen");
    drop(_servers);
    shop.close()?;
    eventually("nothing to be left", SOON, || Ok(left(&before, &id, &namespaces)?.is_empty()))
        .with_context(|| format!("{:?}", left(&before, &id, &namespaces)))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_lab_whose_agents_were_killed_takes_everything_with_it() -> Result<()> {
    let before = Traces::now()?;
    let shop = Shop::open("killed")?;
    let (id, namespaces, ours) = (shop.lab.id().to_owned(), namespaces(&shop)?, Loaded::of(&shop)?);
    for node in ["node-a", "node-b"] {
        shop.lab.agent(node)?.kill()?;
    }
    assert!(!ours.still(&Loaded::now()?).links.is_empty(), "what a killed agent put in force stays in force");
    shop.close()?;
    eventually("nothing to be left", SOON, || {
        Ok(left(&before, &id, &namespaces)?.is_empty() && ours.still(&Loaded::now()?) == Loaded::default())
    })
    .with_context(|| format!("{:?}", left(&before, &id, &namespaces)))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_demo_that_is_interrupted_leaves_nothing() -> Result<()> {
    let missing = missing_tools(&["nginx", "curl", "socat", "ncat", "openssl"]);
    ensure!(missing.is_empty(), "the demo needs {missing:?}");
    let heddle = Path::new(env!("CARGO_BIN_EXE_heddle"));
    let xtask = match std::env::var_os("HEDDLE_XTASK") {
        Some(path) => path.into(),
        None => heddle.with_file_name("xtask"),
    };
    let before = Traces::now()?;
    let mut demo = Command::new(&xtask)
        .args(["demo", "--inner", "--heddle"])
        .arg(heddle)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", xtask.display()))?;
    let mut id = String::new();
    let mut said = BufReader::new(demo.stdout.take().context("no pipe")?).lines();
    for line in said.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("manifests in /run/heddle-lab/") {
            id = rest.split('/').next().unwrap_or_default().to_owned();
        }
        // The agents run and the first step is under way.
        if line.contains("two agents:") {
            break;
        }
    }
    assert!(!id.is_empty(), "the demo says where its manifests are");
    assert!(!left(&before, &id, &BTreeSet::new())?.is_empty(), "the control: the demo's lab is there");
    std::thread::sleep(Duration::from_secs(1));
    kill_process(Pid::from_raw(i32::try_from(demo.id())?).context("no such process")?, Signal::INT)?;
    let ended = demo.wait()?;
    // Nobody closed the pipe that it writes to: it ended by the signal, and without a word.
    drop(said);
    assert_eq!(ended.signal(), Some(Signal::INT.as_raw()), "{ended}");
    eventually(
        "nothing of the demo to be left",
        SOON,
        || Ok(left(&before, &id, &BTreeSet::new())?.is_empty()),
    )
    .with_context(|| format!("{:?}", left(&before, &id, &BTreeSet::new())))
}
