//! Which promise holds on which kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What became of one test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub struct Table {
    kernels: Vec<String>,
    rows: BTreeMap<String, Vec<Option<Outcome>>>,
}

impl Table {
    /// One in which none of these tests has run.
    pub fn new(kernels: Vec<String>, tests: impl Iterator<Item = String>) -> Self {
        let rows = tests.map(|test| (test, vec![None; kernels.len()])).collect();
        Self { kernels, rows }
    }

    /// Puts what became of `test` on the kernel with this number.
    pub fn put(&mut self, test: &str, kernel: usize, outcome: Outcome) {
        let row = self.rows.entry(test.to_owned()).or_insert_with(|| vec![None; self.kernels.len()]);
        if let Some(cell) = row.get_mut(kernel) {
            *cell = Some(outcome);
        }
    }

    /// In how many cells the promise held, in how many the kernel cannot show it, and how many are left. A cell without an
    /// outcome is one of the last.
    pub fn counts(&self) -> [usize; 3] {
        let cells = || self.rows.values().flatten();
        let held = cells().filter(|cell| matches!(cell, Some(Outcome::Passed(_)))).count();
        let cannot = cells().filter(|cell| matches!(cell, Some(Outcome::NotApplicable(_)))).count();
        [held, cannot, cells().count() - held - cannot]
    }

    /// As Markdown, the reasons below.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "| promise | {} |\n|---|{}\n",
            self.kernels.join(" | "),
            "---|".repeat(self.kernels.len())
        );
        let mut notes: Vec<&str> = Vec::new();
        for (test, cells) in &self.rows {
            let shown: Vec<String> = cells.iter().map(|cell| shown(cell.as_ref(), &mut notes)).collect();
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
        None => "**not run**".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_was_not_seen_is_not_counted_as_held() {
        let mut table = Table::new(vec!["6.1".into(), "6.12".into()], ["a".to_owned()].into_iter());
        assert_eq!(table.counts(), [0, 0, 2], "before anything has run");
        table.put("a", 0, Outcome::Passed(3));
        assert_eq!(table.counts(), [1, 0, 1], "never run on 6.12");
        table.put("a", 1, Outcome::Lost("the kernel gave up".into()));
        table.put("b", 0, Outcome::NotApplicable("no io_uring".into()));
        table.put("b", 1, Outcome::Failed("status 101".into()));
        assert_eq!(table.counts(), [1, 1, 2]);
    }

    #[test]
    fn the_table_shows_each_reason_once() {
        let mut table = Table::new(vec!["6.1".into()], std::iter::empty());
        for test in ["a", "b"] {
            table.put(test, 0, Outcome::NotApplicable("no io_uring".into()));
        }
        table.put("c", 0, Outcome::Passed(7));
        let shown = "| promise | 6.1 |\n|---|---|\n| a | n/a (1) |\n| b | n/a (1) |\n| c | pass, 7 s |\n\n1. no io_uring\n";
        assert_eq!(table.markdown(), shown);
    }
}
