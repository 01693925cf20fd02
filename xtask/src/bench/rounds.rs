//! The rounds: in each, every load beside the mesh and through it, one after the other.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::field::{ECHO, Field, ONCE, SINK, Through, Way};
use crate::lab::apps;

/// How much is measured.
pub struct Plan {
    pub rounds: u32,
    pub questions: u32,
    pub stream: Duration,
    pub connections: Duration,
}

/// One load's figures in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Loads {
    pub p50_microseconds: f64,
    pub p99_microseconds: f64,
    pub gigabits_per_second: f64,
    /// CPU seconds of both agents for each gigabyte of the stream.
    pub agents_cpu_per_gigabyte: f64,
    pub connections_per_second_1: f64,
    pub connections_per_second_16: f64,
    /// Connections of both bursts that failed.
    pub failed_connections: u64,
}

/// One way in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub way: Way,
    pub nothing: Loads,
    pub heddle: Loads,
}

/// Agents' memory.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub connections: usize,
    /// Of the agents of node a and node b.
    pub before_bytes: [u64; 2],
    pub with_bytes: [u64; 2],
    pub per_connection_bytes: [f64; 2],
}

pub fn run(field: &Field, plan: &Plan) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        println!("round {} of {}", number + 1, plan.rounds);
        for way in [Way::Across, Way::SameNode] {
            let load =
                |through| loads(field, plan, way, through).with_context(|| format!("{way:?}, {through:?}"));
            // Whoever goes second finds warmer caches: they take turns at that too.
            let (nothing, heddle) = if number % 2 == 0 {
                let nothing = load(Through::Nothing)?;
                (nothing, load(Through::Heddle)?)
            } else {
                let heddle = load(Through::Heddle)?;
                (load(Through::Nothing)?, heddle)
            };
            rounds.push(Round { way, nothing, heddle });
        }
    }
    Ok(rounds)
}

fn agents_cpu(field: &Field) -> Result<Duration> {
    Ok(field.lab.agent("node-a")?.cpu_time()? + field.lab.agent("node-b")?.cpu_time()?)
}

fn loads(field: &Field, plan: &Plan, way: Way, through: Through) -> Result<Loads> {
    let (client, to) = field.ends(way, through, ECHO);
    let volley = apps::volley(client.place(), to, plan.questions)?;
    let (client, to) = field.ends(way, through, SINK);
    let before = agents_cpu(field)?;
    let flood = apps::flood(client.place(), to, plan.stream)?;
    let cpu = agents_cpu(field)?.saturating_sub(before);
    let (client, to) = field.ends(way, through, ONCE);
    let one = apps::burst(client.place(), to, 1, plan.connections)?;
    let sixteen = apps::burst(client.place(), to, 16, plan.connections)?;
    for (burst, threads) in [(&one, 1), (&sixteen, 16)] {
        if let Some(error) = &burst.last_error {
            eprintln!(
                "{way:?}, {through:?}, {threads} threads: {} connections failed: {error}",
                burst.failed
            );
        }
    }
    let gigabytes = flood.bytes as f64 / 1e9;
    Ok(Loads {
        p50_microseconds: volley.p50,
        p99_microseconds: volley.p99,
        gigabits_per_second: gigabytes * 8.0 / flood.seconds,
        agents_cpu_per_gigabyte: cpu.as_secs_f64() / gigabytes,
        connections_per_second_1: one.succeeded as f64 / one.seconds,
        connections_per_second_16: sixteen.succeeded as f64 / sixteen.seconds,
        failed_connections: one.failed + sixteen.failed,
    })
}

/// What `count` idle connections across nodes take in both agents.
pub fn memory(field: &Field, count: usize) -> Result<Memory> {
    let resident = || -> Result<[u64; 2]> {
        Ok([field.lab.agent("node-a")?.resident_bytes()?, field.lab.agent("node-b")?.resident_bytes()?])
    };
    // Buffers of the loads before are given back, or kept and so counted beforehand.
    std::thread::sleep(Duration::from_secs(2));
    let before_bytes = resident()?;
    let (client, to) = field.ends(Way::Across, Through::Heddle, ECHO);
    let mut held = client.app(&["hold", &to.to_string(), &count.to_string()])?;
    std::thread::sleep(Duration::from_secs(2));
    anyhow::ensure!(held.is_running(), "the idle connections did not last: {}", held.stderr());
    let with_bytes = resident()?;
    let each = |at: usize| {
        let of = |bytes: &[u64; 2]| bytes.get(at).copied().unwrap_or(0) as f64;
        (of(&with_bytes) - of(&before_bytes)) / count as f64
    };
    Ok(Memory { connections: count, before_bytes, with_bytes, per_connection_bytes: [each(0), each(1)] })
}
