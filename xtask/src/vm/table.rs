//! Which promise holds on which kernel.

use super::kernel::numbers;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What became of one test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It held, in so many seconds.
    Passed(u64),
    /// It did not.
    Failed(String),
    /// This kernel cannot show it.
    NotApplicable(String),
    /// The machine ended while it ran or before it was reached.
    Lost(String),
}

/// Kernels beside promises.
#[derive(Default, Serialize, Deserialize)]
pub struct Table {
    kernels: BTreeSet<String>,
    /// For each test what was seen of it, by kernel.
    rows: BTreeMap<String, BTreeMap<String, Outcome>>,
}

impl Table {
    /// One in which none of these tests has run.
    pub fn new(kernels: impl Iterator<Item = String>, tests: impl Iterator<Item = String>) -> Self {
        Self { kernels: kernels.collect(), rows: tests.map(|test| (test, BTreeMap::new())).collect() }
    }

    /// Puts what became of `test` on this kernel.
    pub fn put(&mut self, test: &str, kernel: &str, outcome: Outcome) {
        self.kernels.insert(kernel.to_owned());
        self.rows.entry(test.to_owned()).or_default().insert(kernel.to_owned(), outcome);
    }

    /// Takes in what another has seen, which is newer.
    pub fn merge(&mut self, newer: &Self) {
        self.kernels.extend(newer.kernels.iter().cloned());
        for (test, cells) in &newer.rows {
            self.rows.entry(test.clone()).or_default().extend(cells.clone());
        }
    }

    /// Forgets the tests that are not among these.
    pub fn retain(&mut self, tests: &BTreeSet<String>) {
        self.rows.retain(|test, _| tests.contains(test));
    }

    /// Whether the test has held on this kernel, or cannot be shown there.
    pub fn is_settled(&self, test: &str, kernel: &str) -> bool {
        let cell = self.rows.get(test).and_then(|cells| cells.get(kernel));
        matches!(cell, Some(Outcome::Passed(_) | Outcome::NotApplicable(_)))
    }

    /// In how many cells the promise held, and in how many the kernel cannot show it.
    pub fn counts(&self) -> [usize; 2] {
        let cells = || self.rows.values().flat_map(BTreeMap::values);
        let held = cells().filter(|cell| matches!(cell, Outcome::Passed(_))).count();
        let cannot = cells().filter(|cell| matches!(cell, Outcome::NotApplicable(_))).count();
        [held, cannot]
    }

    /// As Markdown, the reasons below.
    pub fn markdown(&self) -> String {
        let mut kernels: Vec<&String> = self.kernels.iter().collect();
        kernels.sort_by_key(|release| numbers(release));
        let names: Vec<&str> = kernels.iter().map(|release| release.as_str()).collect();
        let mut text =
            format!("| promise | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(kernels.len()));
        let mut notes: Vec<&str> = Vec::new();
        for (test, cells) in &self.rows {
            let shown: Vec<String> =
                kernels.iter().map(|kernel| shown(cells.get(*kernel), &mut notes)).collect();
            let _ = writeln!(text, "| {test} | {} |", shown.join(" | "));
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        for (number, note) in notes.iter().enumerate() {
            let _ = writeln!(text, "{}. {note}", number + 1);
        }
        text
    }
}

fn shown<'a>(cell: Option<&'a Outcome>, notes: &mut Vec<&'a str>) -> String {
    let mut note = |reason: &'a str| {
        let known = notes.iter().position(|known| *known == reason);
        known.unwrap_or_else(|| {
            notes.push(reason);
            notes.len() - 1
        }) + 1
    };
    match cell {
        Some(Outcome::Passed(seconds)) => format!("pass, {seconds} s"),
        Some(Outcome::NotApplicable(reason)) => format!("n/a ({})", note(reason)),
        Some(Outcome::Failed(reason)) => format!("**FAIL** ({})", note(reason)),
        Some(Outcome::Lost(reason)) => format!("**LOST** ({})", note(reason)),
        None => "not run".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "6.1.0-56-cloud-amd64";
    const NEW: &str = "6.12.117+deb12-cloud-amd64";

    fn empty(tests: &[&str]) -> Table {
        Table::new([OLD, NEW].map(str::to_owned).into_iter(), tests.iter().map(|&test| test.to_owned()))
    }

    #[test]
    fn a_promise_that_was_not_seen_is_not_counted_as_held() {
        let mut table = empty(&["a"]);
        assert_eq!(table.counts(), [0, 0], "before anything has run");
        table.put("a", OLD, Outcome::Passed(3));
        assert_eq!(table.counts(), [1, 0], "never run on the newer one");
        table.put("a", NEW, Outcome::Lost("the kernel gave up".into()));
        table.put("b", OLD, Outcome::NotApplicable("no io_uring".into()));
        table.put("b", NEW, Outcome::Failed("status 101".into()));
        assert_eq!(table.counts(), [1, 1]);
        assert!(table.is_settled("a", OLD) && table.is_settled("b", OLD));
        assert!(!table.is_settled("a", NEW) && !table.is_settled("b", NEW) && !table.is_settled("c", OLD));
    }

    #[test]
    fn what_was_seen_later_stands_beside_what_was_seen_before_and_replaces_it() {
        let mut kept = empty(&["a", "b", "gone"]);
        kept.put("a", OLD, Outcome::Failed("slow".into()));
        kept.put("b", NEW, Outcome::Passed(1));
        let mut run = Table::new([OLD.to_owned()].into_iter(), ["a".to_owned()].into_iter());
        kept.merge(&run);
        assert_eq!(kept.counts(), [1, 0], "a run that has not seen anything takes nothing away");
        run.put("a", OLD, Outcome::Passed(2));
        kept.merge(&run);
        kept.retain(&["a", "b"].map(str::to_owned).into());
        assert_eq!(kept.counts(), [2, 0]);
    }

    #[test]
    fn the_table_shows_each_reason_once_and_old_kernels_first() {
        let mut table = Table::default();
        for test in ["a", "b"] {
            table.put(test, OLD, Outcome::NotApplicable("no io_uring".into()));
        }
        table.put("c", OLD, Outcome::Passed(7));
        table.put("c", "10.1.1", Outcome::Passed(7));
        let shown = format!(
            "| promise | {OLD} | 10.1.1 |\n|---|---|---|\n| a | n/a (1) | not run |\n| b | n/a (1) | not run |\n\
            | c | pass, 7 s | pass, 7 s |\n\n1. no io_uring\n"
        );
        assert_eq!(table.markdown(), shown);
    }
}
