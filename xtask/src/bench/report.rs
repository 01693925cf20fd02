//! The figures as ratios to a bare connection in the same round.

use serde::Serialize;

use super::{
    field::{Proof, Way},
    machine::Facts,
    rounds::{Loads, Memory, Round},
};

/// A figure over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub way: Way,
    pub what: &'static str,
    pub unit: &'static str,
    /// Medians over the rounds.
    pub nothing: f64,
    pub heddle: f64,
    /// Median of the rounds' own ratios, with the least and the greatest.
    pub ratio: f64,
    pub least: f64,
    pub greatest: f64,
    /// What the design allows: at least, or at most where less is better.
    pub budget: Option<&'static str>,
}

/// A figure of the loads, and its budgets across nodes and on one node.
struct Kind {
    what: &'static str,
    unit: &'static str,
    pick: fn(&Loads) -> f64,
    across: Option<&'static str>,
    same_node: Option<&'static str>,
}

const FIGURES: [Kind; 6] = [
    Kind {
        what: "64 B question and answer, p50",
        unit: "us",
        pick: |loads| loads.p50_microseconds,
        across: Some("<= 2.5"),
        same_node: Some("<= 1.02"),
    },
    Kind {
        what: "64 B question and answer, p99",
        unit: "us",
        pick: |loads| loads.p99_microseconds,
        across: None,
        same_node: None,
    },
    Kind {
        what: "one stream",
        unit: "Gbit/s",
        pick: |loads| loads.gigabits_per_second,
        across: Some(">= 0.45"),
        same_node: Some(">= 0.98"),
    },
    Kind {
        what: "new connections, 1 thread",
        unit: "/s",
        pick: |loads| loads.connections_per_second_1,
        across: Some(">= 0.33"),
        same_node: Some(">= 0.98"),
    },
    Kind {
        what: "new connections, 16 threads",
        unit: "/s",
        pick: |loads| loads.connections_per_second_16,
        across: Some(">= 0.60"),
        same_node: Some(">= 0.98"),
    },
    Kind {
        what: "CPU of both agents, one stream",
        unit: "s/GB",
        pick: |loads| loads.agents_cpu_per_gigabyte,
        across: None,
        same_node: None,
    },
];

pub fn figures(rounds: &[Round]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for way in [Way::Across, Way::SameNode] {
        let own: Vec<&Round> = rounds.iter().filter(|round| round.way == way).collect();
        for Kind { what, unit, pick, across, same_node } in FIGURES {
            let all =
                |of: fn(&Round) -> &Loads| own.iter().map(|round| pick(of(round))).collect::<Vec<f64>>();
            let (nothing, heddle) = (all(|round| &round.nothing), all(|round| &round.heddle));
            let ratios: Vec<f64> =
                nothing.iter().zip(&heddle).map(|(nothing, heddle)| heddle / nothing).collect();
            figures.push(Figure {
                way,
                what,
                unit,
                nothing: median(nothing),
                heddle: median(heddle),
                least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
                greatest: ratios.iter().copied().fold(0.0, f64::max),
                ratio: median(ratios),
                budget: if way == Way::Across { across } else { same_node },
            });
        }
    }
    figures
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) }
}

pub fn print(facts: &Facts, proof: &Proof, figures: &[Figure], memory: &Memory) {
    println!(
        "\n{} cores of {}, {} MiB, kernel {}, congestion control {}, load before {}, agent {}{}",
        facts.cores,
        facts.processor,
        facts.memory_megabytes,
        facts.kernel,
        facts.congestion_control,
        facts.load_before,
        facts.heddle,
        if facts.unoptimized_load { ", load generator unoptimized" } else { "" }
    );
    println!(
        "the ways: the questions stood {} times on the wire between bare pods, {} times between meshed ones (TLS 1.3 \
         to the last byte: {}); of {:.0} bytes the agent carried {:.0} across nodes and {:.0} on one node: {}",
        proof.bare_hits,
        proof.meshed_hits,
        proof.meshed_is_tls13,
        proof.asked_bytes,
        proof.agent_bytes_across,
        proof.agent_bytes_same_node,
        if proof.holds() {
            "as they should be"
        } else {
            "NOT AS CLAIMED, the figures below mean something else"
        }
    );
    for way in [Way::Across, Way::SameNode] {
        println!(
            "\n{:<34} {:>12} {:>12} {:>8}  {:>13}  budget",
            title(way),
            "direct",
            "heddle",
            "ratio",
            "least-most"
        );
        for figure in figures.iter().filter(|figure| figure.way == way) {
            let ratio = if figure.nothing == 0.0 {
                format!("{:>8}  {:>13}", "", "")
            } else {
                let range = format!("{:.2}-{:.2}", figure.least, figure.greatest);
                format!("{:>8.2}  {range:>13}", figure.ratio)
            };
            println!(
                "{:<34} {:>12} {:>12} {ratio}  {}",
                format!("{} ({})", figure.what, figure.unit),
                amount(figure.nothing),
                amount(figure.heddle),
                figure.budget.unwrap_or("")
            );
        }
    }
    let [a, b] = memory.per_connection_bytes;
    let mebibytes = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    println!(
        "\nmemory: agents {:.1} and {:.1} MiB; with {} idle connections {:.1} and {:.1} MiB: {a:.0} B and {b:.0} B each\n",
        mebibytes(memory.before_bytes[0]),
        mebibytes(memory.before_bytes[1]),
        memory.connections,
        mebibytes(memory.with_bytes[0]),
        mebibytes(memory.with_bytes[1]),
    );
}

const fn title(way: Way) -> &'static str {
    match way {
        Way::Across => "across nodes",
        Way::SameNode => "on one node",
    }
}

fn amount(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::{figures, median};
    use crate::bench::{
        field::Way,
        rounds::{Loads, Round},
    };

    fn loads(p50: f64) -> Loads {
        Loads {
            p50_microseconds: p50,
            p99_microseconds: 1.0,
            gigabits_per_second: 1.0,
            agents_cpu_per_gigabyte: 0.0,
            connections_per_second_1: 1.0,
            connections_per_second_16: 1.0,
            failed_connections: 0,
        }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_own() {
        let round =
            |nothing, heddle| Round { way: Way::Across, nothing: loads(nothing), heddle: loads(heddle) };
        let figures = figures(&[round(10.0, 20.0), round(100.0, 150.0), round(1.0, 9.0)]);
        let p50 = &figures[0];
        assert_eq!((p50.ratio, p50.least, p50.greatest), (2.0, 1.5, 9.0));
        assert_eq!((p50.nothing, p50.heddle), (10.0, 20.0));
    }

    #[test]
    fn medians_of_odd_even_and_none() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
