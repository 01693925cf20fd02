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
    pub nothing: Option<f64>,
    pub relays: Option<f64>,
    pub heddle: f64,
    /// Median of the rounds' own ratios, with the least and the greatest; to the relays where the budget is one to them.
    pub ratio: Option<Ratio>,
    /// What the design allows: at least, or at most where less is better.
    pub budget: Option<&'static str>,
}

/// A ratio over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

/// A figure of the loads, and its budgets across nodes and on one node.
struct Kind {
    what: &'static str,
    unit: &'static str,
    pick: fn(&Loads) -> Option<f64>,
    across: Option<&'static str>,
    same_node: Option<&'static str>,
}

const FIGURES: [Kind; 7] = [
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
        what: "CPU of both, one stream",
        unit: "s/GB",
        pick: |loads| loads.carriers_cpu_per_gigabyte,
        across: Some("<= 1.5 of relays"),
        same_node: None,
    },
    Kind {
        what: "CPU of both, a connection",
        unit: "us",
        pick: |loads| loads.carriers_cpu_per_connection,
        across: None,
        same_node: None,
    },
];

pub fn figures(rounds: &[Round]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for way in [Way::Across, Way::SameNode] {
        for Kind { what, unit, pick, across, same_node } in FIGURES {
            // Nothing, relays, heddle of each round.
            let own: Vec<[Option<f64>; 3]> = rounds
                .iter()
                .filter(|round| round.way == way)
                .map(|round| [&round.nothing, &round.relays, &round.heddle].map(pick))
                .collect();
            let of = |at: usize| median(own.iter().filter_map(|round| *round.get(at)?).collect());
            let Some(heddle) = of(2) else { continue };
            // Nobody carries where nothing is in the way: then the relays are what is compared with.
            let ratios: Vec<f64> = own
                .iter()
                .filter_map(|[nothing, relays, heddle]| Some((*heddle)? / nothing.or(*relays)?))
                .collect();
            let ratio = median(ratios.clone()).map(|median| Ratio {
                median,
                least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
                greatest: ratios.iter().copied().fold(0.0, f64::max),
            });
            let budget = if way == Way::Across { across } else { same_node };
            figures.push(Figure { way, what, unit, nothing: of(0), relays: of(1), heddle, ratio, budget });
        }
    }
    figures
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(*values.get(middle - 1)?, upper) })
}

pub fn print(facts: &Facts, proof: &Proof, figures: &[Figure], memory: Option<&Memory>) {
    println!(
        "\n{} cores of {}, {} MiB, kernel {}, congestion control {}, load before {}, scheduled {}, agent {}{}",
        facts.cores,
        facts.processor,
        facts.memory_megabytes,
        facts.kernel,
        facts.congestion_control,
        facts.load_before,
        facts.scheduling,
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
        let mut own = figures.iter().filter(|figure| figure.way == way).peekable();
        if own.peek().is_none() {
            continue;
        }
        println!(
            "\n{:<34} {:>10} {:>10} {:>10} {:>8}  {:>13}  budget",
            title(way),
            "direct",
            "relays",
            "heddle",
            "ratio",
            "least-most"
        );
        for figure in own {
            let (ratio, range) = figure.ratio.map_or_else(Default::default, |ratio| {
                (format!("{:.2}", ratio.median), format!("{:.2}-{:.2}", ratio.least, ratio.greatest))
            });
            println!(
                "{:<34} {:>10} {:>10} {:>10} {ratio:>8}  {range:>13}  {}",
                format!("{} ({})", figure.what, figure.unit),
                figure.nothing.map(amount).unwrap_or_default(),
                figure.relays.map(amount).unwrap_or_default(),
                amount(figure.heddle),
                figure.budget.unwrap_or_default()
            );
        }
    }
    if let Some(memory) = memory {
        let [a, b] = memory.per_connection_bytes;
        let mebibytes = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        println!(
            "\nmemory: idle agents {:.1} and {:.1} MiB (budget 16); with {} idle connections {:.1} and {:.1} MiB: {a:.0} \
             and {b:.0} B each (budget 4096)",
            mebibytes(memory.before_bytes[0]),
            mebibytes(memory.before_bytes[1]),
            memory.connections,
            mebibytes(memory.with_bytes[0]),
            mebibytes(memory.with_bytes[1]),
        );
    }
    println!();
}

pub const fn title(way: Way) -> &'static str {
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
    use super::{Ratio, figures, median};
    use crate::bench::{
        field::Way,
        rounds::{Loads, Round},
    };

    fn loads(p50: f64, cpu: Option<f64>) -> Loads {
        Loads { p50_microseconds: Some(p50), carriers_cpu_per_gigabyte: cpu, ..Loads::default() }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_own() {
        let round = |nothing, heddle| Round {
            way: Way::Across,
            nothing: loads(nothing, None),
            relays: Loads::default(),
            heddle: loads(heddle, None),
        };
        let figures = figures(&[round(10.0, 20.0), round(100.0, 150.0), round(1.0, 9.0)]);
        let [p50] = &figures[..] else { panic!("what was not measured is no figure") };
        assert_eq!(p50.ratio, Some(Ratio { median: 2.0, least: 1.5, greatest: 9.0 }));
        assert_eq!((p50.nothing, p50.relays, p50.heddle), (Some(10.0), None, 20.0));
    }

    #[test]
    fn what_carrying_costs_is_compared_with_the_relays() {
        let round = Round {
            way: Way::Across,
            nothing: loads(1.0, None),
            relays: loads(2.0, Some(1.0)),
            heddle: loads(3.0, Some(1.5)),
        };
        let figures = figures(&[round]);
        let ratios: Vec<_> = figures.iter().map(|figure| figure.ratio.map(|ratio| ratio.median)).collect();
        assert_eq!(ratios, [Some(3.0), Some(1.5)]);
    }

    #[test]
    fn medians_of_odd_even_and_none() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
