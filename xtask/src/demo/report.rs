//! What the demo prints and writes.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// One step, as it is shown.
pub struct Step {
    letter: char,
    title: &'static str,
    began: Instant,
    took: Duration,
    checks: Vec<(String, bool, String)>,
    facts: Map<String, Value>,
}

impl Step {
    /// Begins a step, and says so.
    pub fn begin(letter: char, title: &'static str) -> Self {
        println!("{letter}. {title}");
        Self {
            letter,
            title,
            began: Instant::now(),
            took: Duration::ZERO,
            checks: Vec::new(),
            facts: Map::new(),
        }
    }

    /// Says what is done.
    pub fn does(&self, what: impl AsRef<str>) {
        line("did", what.as_ref());
    }

    /// Says why something came back, in the agent's words.
    pub fn why(&self, why: impl AsRef<str>) {
        line("why", why.as_ref());
    }

    /// Shows text as it is.
    pub fn shows(&self, text: &str) {
        for shown in text.lines() {
            println!("            {shown}");
        }
    }

    /// Says what came back, and whether that is what the mesh promises.
    pub fn check(&mut self, promise: &str, held: bool, came: impl Into<String>) {
        let came = came.into();
        let verdict = if held { "" } else { "  <- NOT AS PROMISED" };
        line(if held { "came" } else { "CAME" }, &format!("{promise}: {came}{verdict}"));
        self.checks.push((promise.to_owned(), held, came));
    }

    /// Keeps what was observed for the JSON file.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Ends it, and says whether everything was seen.
    pub fn end(&mut self) {
        self.took = self.began.elapsed();
        println!("   {}\n", if self.seen() { "seen" } else { "NOT SEEN" });
    }

    /// Everything that it promises was seen.
    pub fn seen(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|(_, held, _)| *held)
    }

    /// What was observed.
    pub fn to_json(&self) -> Value {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|(promise, held, came)| json!({ "promise": promise, "held": held, "came": came }))
            .collect();
        json!({
            "step": self.letter.to_string(),
            "title": self.title,
            "seen": self.seen(),
            "seconds": self.took.as_secs_f64(),
            "checks": checks,
            "observed": self.facts,
        })
    }
}

fn line(label: &str, text: &str) {
    for (number, text) in text.lines().enumerate() {
        println!("   {:<8} {text}", if number == 0 { label } else { "" });
    }
}

/// The table at the end.
pub fn summary(steps: &[Step], took: Duration) {
    println!("step  seen  promises  seconds  what");
    for step in steps {
        let held = step.checks.iter().filter(|(_, held, _)| *held).count();
        println!(
            "{:<5} {:<5} {:>3} of {:<3} {:>6.1}  {}",
            step.letter,
            if step.seen() { "yes" } else { "NO" },
            held,
            step.checks.len(),
            step.took.as_secs_f64(),
            step.title
        );
        for (promise, _, came) in step.checks.iter().filter(|(_, held, _)| !held) {
            println!("            not held: {promise}: {came}");
        }
    }
    println!("{} steps in {:.1} s\n", steps.len(), took.as_secs_f64());
}

/// The kernel's release.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
