//! Counting, from what libtest prints.

use std::fmt;

/// How many tests ended how.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Held.
    pub passed: usize,
    /// Did not hold.
    pub failed: usize,
    /// Were not run.
    pub skipped: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    /// The sum of every `test result:` line.
    pub fn of_libtest(text: &str) -> Self {
        let mut sum = Self::default();
        for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("test result: ")) {
            // "ok. 3 passed; 0 failed; 1 ignored; …"
            for part in line.split(". ").nth(1).unwrap_or(line).split("; ") {
                let Some((number, word)) = part.split_once(' ') else { continue };
                let number = number.parse().unwrap_or(0);
                match word {
                    "passed" => sum.passed += number,
                    "failed" => sum.failed += number,
                    "ignored" => sum.skipped += number,
                    _ => {}
                }
            }
        }
        sum
    }
}

/// The names under libtest's last `failures:` heading.
pub fn failures(text: &str) -> Vec<String> {
    let Some((_, after)) = text.rsplit_once("\nfailures:\n") else { return Vec::new() };
    let names = after.lines().map_while(|line| line.strip_prefix("    "));
    names.map(str::to_owned).collect()
}

/// Why a test that succeeded shows nothing here, if it says so: in a line of its own, `not applicable: WHY`.
pub fn not_applicable(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("not applicable: "))
}

#[cfg(test)]
mod tests {
    use super::{Tally, failures, not_applicable};

    const FAILED: &str = "running 3 tests\n\nfailures:\n\n---- a::b stdout ----\nboom\n\n\nfailures:\n    a::b\n    c\n\n\
        test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 7 filtered out; finished in 0.00s\n";

    #[test]
    fn libtest_s_lines_are_summed() {
        let text = format!(
            "{FAILED}\ntest result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n"
        );
        let sum = Tally::of_libtest(&text);
        assert_eq!(sum, Tally { passed: 11, failed: 2, skipped: 5 });
        assert_eq!(sum.to_string(), "11 passed, 2 failed, 5 skipped");
        assert_eq!(Tally::of_libtest("killed"), Tally::default());
    }

    #[test]
    fn a_test_says_that_it_does_not_apply() {
        let text =
            "successes:\n\n---- a stdout ----\nnot applicable: there is no helm\n\ntest result: ok. 1 passed";
        assert_eq!(not_applicable(text), Some("there is no helm"));
        assert_eq!(not_applicable("it said \"not applicable: x\""), None);
    }

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failures(FAILED), ["a::b", "c"]);
        assert!(failures("test result: ok. 1 passed; 0 failed").is_empty());
    }
}
