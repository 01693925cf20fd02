//! The rounds: in each, every load beside the mesh, through a pair of copying relays, and through the mesh, one after the
//! other.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    field::{ECHO, Field, ONCE, SINK, Through, Way},
    part::Part,
};
use crate::lab::apps;

/// How much is measured.
pub struct Plan {
    pub rounds: u32,
    pub parts: Vec<Part>,
    pub across_alone: bool,
    pub questions: u32,
    pub stream: Duration,
    pub connections: Duration,
}

/// One load's figures in one round; what was not measured is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Loads {
    pub p50_microseconds: Option<f64>,
    pub p99_microseconds: Option<f64>,
    pub gigabits_per_second: Option<f64>,
    /// CPU seconds of both relays or both agents for each gigabyte of the stream.
    pub carriers_cpu_per_gigabyte: Option<f64>,
    pub connections_per_second_1: Option<f64>,
    pub connections_per_second_16: Option<f64>,
    /// CPU microseconds of both agents for each connection of 16 threads.
    pub carriers_cpu_per_connection: Option<f64>,
    /// Connections of both bursts that failed.
    pub failed_connections: u64,
}

/// One way in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub way: Way,
    pub nothing: Loads,
    /// Only across nodes.
    pub relays: Loads,
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
    if plan.parts.is_empty() {
        return Ok(rounds);
    }
    for number in 0..plan.rounds {
        println!("round {} of {}", number + 1, plan.rounds);
        for way in [Way::Across, Way::SameNode] {
            if way == Way::SameNode && plan.across_alone {
                continue;
            }
            let mut turns = vec![Through::Nothing, Through::Heddle];
            if way == Way::Across {
                turns.insert(1, Through::Relays);
            }
            // Whoever goes later finds warmer caches: they take turns at that too.
            if number % 2 == 1 {
                turns.reverse();
            }
            let mut round =
                Round { way, nothing: Loads::default(), relays: Loads::default(), heddle: Loads::default() };
            for through in turns {
                let of_turn = match through {
                    Through::Nothing => &mut round.nothing,
                    Through::Relays => &mut round.relays,
                    Through::Heddle => &mut round.heddle,
                };
                *of_turn =
                    loads(field, plan, way, through).with_context(|| format!("{way:?}, {through:?}"))?;
            }
            rounds.push(round);
        }
    }
    Ok(rounds)
}

fn loads(field: &Field, plan: &Plan, way: Way, through: Through) -> Result<Loads> {
    let mut loads = Loads::default();
    for part in &plan.parts {
        match part {
            Part::Questions => {
                let (client, to) = field.ends(way, through, ECHO);
                let volley = apps::volley(client.place(), to, plan.questions)?;
                loads.p50_microseconds = Some(volley.p50);
                loads.p99_microseconds = Some(volley.p99);
            }
            Part::Stream => {
                let (client, to) = field.ends(way, through, SINK);
                let before = field.carriers_cpu(through)?;
                let flood = apps::flood(client.place(), to, plan.stream)?;
                let cpu = field.carriers_cpu(through)?.saturating_sub(before);
                let gigabytes = flood.bytes as f64 / 1e9;
                loads.gigabits_per_second = Some(gigabytes * 8.0 / flood.seconds);
                if through != Through::Nothing {
                    loads.carriers_cpu_per_gigabyte = Some(cpu.as_secs_f64() / gigabytes);
                }
            }
            // The relays make threads for each connection, which is nothing to be compared with.
            Part::Connections if through != Through::Relays => {
                connections(field, plan, way, through, &mut loads)?;
            }
            Part::Connections | Part::Memory | Part::Programs => {}
        }
    }
    Ok(loads)
}

fn connections(field: &Field, plan: &Plan, way: Way, through: Through, loads: &mut Loads) -> Result<()> {
    let (client, to) = field.ends(way, through, ONCE);
    let one = apps::burst(client.place(), to, 1, plan.connections)?;
    let before = field.carriers_cpu(through)?;
    let sixteen = apps::burst(client.place(), to, 16, plan.connections)?;
    let cpu = field.carriers_cpu(through)?.saturating_sub(before);
    for (burst, threads) in [(&one, 1), (&sixteen, 16)] {
        if let Some(error) = &burst.last_error {
            eprintln!(
                "{way:?}, {through:?}, {threads} threads: {} connections failed: {error}",
                burst.failed
            );
        }
    }
    loads.connections_per_second_1 = Some(one.succeeded as f64 / one.seconds);
    loads.connections_per_second_16 = Some(sixteen.succeeded as f64 / sixteen.seconds);
    if through == Through::Heddle && way == Way::Across {
        loads.carriers_cpu_per_connection = Some(cpu.as_secs_f64() * 1e6 / sixteen.succeeded as f64);
    }
    loads.failed_connections = one.failed + sixteen.failed;
    Ok(())
}

/// What idle connections across nodes take in both agents: from a twentieth of `count`, and one more, to all of them.
pub fn memory(field: &Field, count: usize) -> Result<Memory> {
    let resident = || -> Result<[u64; 2]> {
        Ok([field.lab.agent("node-a")?.resident_bytes()?, field.lab.agent("node-b")?.resident_bytes()?])
    };
    let (client, to) = field.ends(Way::Across, Through::Heddle, ECHO);
    let hold = |count: usize| -> Result<crate::lab::Running> {
        let mut held = client.app(&["hold", &to.to_string(), &count.to_string()])?;
        // What a connection took to be made is given back within some seconds, or kept and so counted.
        std::thread::sleep(Duration::from_secs(7));
        anyhow::ensure!(held.is_running(), "the idle connections did not last: {}", held.stderr());
        Ok(held)
    };
    std::thread::sleep(Duration::from_secs(6));
    let before_bytes = resident()?;
    // The program's own text that connections need is mapped again with the first of them.
    let few = count / 20 + 1;
    let first = hold(few)?;
    let first_bytes = resident()?;
    drop(first);
    let held = hold(count)?;
    let with_bytes = resident()?;
    drop(held);
    let each = |at: usize| {
        let of = |bytes: &[u64; 2]| bytes.get(at).copied().unwrap_or(0) as f64;
        (of(&with_bytes) - of(&first_bytes)) / (count - few) as f64
    };
    Ok(Memory { connections: count, before_bytes, with_bytes, per_connection_bytes: [each(0), each(1)] })
}
