//! What the kernel spends in Heddle's programs under each load, by the kernel's own count.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use serde::Serialize;
use serde_json::Value;

use super::field::{ECHO, Field, ONCE, SINK, Through, Way};
use super::report::title;
use crate::lab::apps;

/// The identifiers of the programs that one agent attached, from its pinned links; below 6.6 the guard has none, and
/// its filters are looked for on the node's interfaces.
const ATTACHED: &str = "
for link in /sys/fs/bpf/heddle/v*/links/*; do
    bpftool link show pinned \"$link\" | sed -n 's/.* prog \\([0-9]*\\) .*/\\1/p'
done
for interface in /sys/class/net/*; do
    for side in ingress egress; do
        tc filter show dev \"${interface##*/}\" $side 2>/dev/null | sed -n 's/.*heddle_.* id \\([0-9]*\\) .*/\\1/p'
    done
done";

/// What one program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// How often it ran.
    pub runs: u64,
    /// For how long, in all.
    pub nanoseconds: u64,
}

type Programs = BTreeMap<String, Spent>;

/// What the programs of both nodes did under one load.
#[derive(Clone, Debug, Serialize)]
pub struct UnderLoad {
    pub way: Way,
    /// What was done `count` times.
    pub event: &'static str,
    pub count: u64,
    pub programs: Programs,
}

/// Counts while each load runs through the mesh. The kernel counts only as long as this goes on, for all programs of the
/// machine, and each run costs some 20 ns more for it.
///
/// # Errors
/// When the kernel does not count, or a load fails.
pub fn measure(field: &Field, questions: u32, time: Duration) -> Result<Vec<UnderLoad>> {
    let _counting = enable_stats(Stats::RunTime).context("the kernel does not count programs' run time")?;
    let mut seen = Vec::new();
    for way in [Way::SameNode, Way::Across] {
        let mut under =
            |event, port, load: &dyn Fn(&crate::lab::Pod, std::net::SocketAddr) -> Result<u64>| {
                let (client, to) = field.ends(way, Through::Heddle, port);
                let before = counted(field)?;
                let count = load(client, to)?;
                let programs = since(&before, &counted(field)?);
                ensure!(
                    count > 0 && !programs.is_empty(),
                    "{way:?}: no {event}, or none that the kernel counted"
                );
                seen.push(UnderLoad { way, event, count, programs });
                anyhow::Ok(())
            };
        under("connection of one byte", ONCE, &|client, to| {
            Ok(apps::burst(client.place(), to, 16, time)?.succeeded)
        })?;
        under("64 B question and answer", ECHO, &|client, to| {
            // A tenth more are asked than are timed.
            apps::volley(client.place(), to, questions).map(|_| u64::from(questions + questions / 10))
        })?;
        under("MB of one stream", SINK, &|client, to| {
            Ok(apps::flood(client.place(), to, time)?.bytes / 1_000_000)
        })?;
    }
    Ok(seen)
}

/// What the programs of both agents have done so far, by name.
fn counted(field: &Field) -> Result<Programs> {
    let mut programs = Programs::new();
    for node in ["node-a", "node-b"] {
        let place = field.lab.agent(node)?.place();
        let mut ids: Vec<u32> =
            place.shell(ATTACHED)?.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        // One program serves all pods of its node.
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let said = place.check(&["bpftool", "--json", "prog", "show", "id", &id.to_string()])?;
            let (name, spent) = read(&said).with_context(|| format!("program {id} of {node}: {said}"))?;
            let sum = programs.entry(name).or_default();
            sum.runs += spent.runs;
            sum.nanoseconds += spent.nanoseconds;
        }
    }
    Ok(programs)
}

/// A program's name and count, as bpftool tells them; one that never ran while it was counted has no count.
fn read(json: &str) -> Result<(String, Spent)> {
    let told: Value = serde_json::from_str(json)?;
    let name = told["name"].as_str().context("it has no name")?;
    let number = |field: &str| told[field].as_u64().unwrap_or(0);
    Ok((name.to_owned(), Spent { runs: number("run_cnt"), nanoseconds: number("run_time_ns") }))
}

/// What came between two looks; programs that did not run are left out.
fn since(before: &Programs, after: &Programs) -> Programs {
    let earlier = |name: &str| before.get(name).copied().unwrap_or_default();
    let between = |(name, now): (&String, &Spent)| {
        let runs = now.runs.saturating_sub(earlier(name).runs);
        let nanoseconds = now.nanoseconds.saturating_sub(earlier(name).nanoseconds);
        (runs > 0).then(|| (name.clone(), Spent { runs, nanoseconds }))
    };
    after.iter().filter_map(between).collect()
}

/// Prints a table for each load.
pub fn print(seen: &[UnderLoad]) {
    if seen.is_empty() {
        return;
    }
    println!(
        "\nThe kernel programs' run time, by the kernel's own count (both nodes; counting adds some 20 ns a run)"
    );
    for UnderLoad { way, event, count, programs } in seen {
        println!("\n  {}, a {event} ({count} of them)", title(*way));
        println!("  {:<18}{:>16}{:>12}{:>16}", "program", "runs for each", "ns a run", "ns for each");
        let count = *count as f64;
        let mut sum = Spent::default();
        for (name, Spent { runs, nanoseconds }) in programs {
            let (ran, spent) = (*runs as f64, *nanoseconds as f64);
            println!("  {name:<18}{:>16.2}{:>12.0}{:>16.0}", ran / count, spent / ran, spent / count);
            sum.runs += runs;
            sum.nanoseconds += nanoseconds;
        }
        println!(
            "  {:<18}{:>16.2}{:>12}{:>16.0}",
            "together",
            sum.runs as f64 / count,
            "",
            sum.nanoseconds as f64 / count
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bpftool_says_of_a_program_is_read() {
        let said = r#"{"id":7,"type":"sock_ops","name":"heddle_sockops","run_time_ns":900,"run_cnt":3}"#;
        assert_eq!(read(said).unwrap(), ("heddle_sockops".to_owned(), Spent { runs: 3, nanoseconds: 900 }));
        let never = r#"{"id":7,"type":"sock_ops","name":"heddle_sockops"}"#;
        assert_eq!(read(never).unwrap().1, Spent::default());
        assert!(read("{}").is_err(), "a program of ours has a name");
    }

    #[test]
    fn what_ran_before_the_load_is_not_the_load_s() {
        let of = |runs, nanoseconds| Spent { runs, nanoseconds };
        let before = Programs::from([("idle".to_owned(), of(5, 50)), ("busy".to_owned(), of(1, 10))]);
        let after = Programs::from([
            ("idle".to_owned(), of(5, 50)),
            ("busy".to_owned(), of(4, 100)),
            ("new".to_owned(), of(2, 7)),
        ]);
        let between = since(&before, &after);
        assert_eq!(between, Programs::from([("busy".to_owned(), of(3, 90)), ("new".to_owned(), of(2, 7))]));
    }
}
