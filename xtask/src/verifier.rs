//! What the kernel's verifier spends on each program, beside what it spent when somebody last looked.
//!
//! A program that grows until some kernel refuses it does so a little at a time. The table in `verifier.json` holds
//! the figures for each kernel series that was measured; a rise of more than a tenth must be looked at and recorded.

use std::{
    collections::BTreeMap, fs, io::BufRead, io::BufReader, path::Path, process::Command, process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What was recorded.
const RECORDED: &str = include_str!("../verifier.json");
/// Mounts a bpf file system of its own, loads there, says everything, leaves nothing.
const LOAD: &str = "mount -t bpf bpf /sys/fs/bpf && bpftool -d prog loadall \"$1\" /sys/fs/bpf/heddle-verifier pinmaps /sys/fs/bpf";

/// What one program costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Instructions that the verifier walked through; a million are its limit.
    pub instructions: u64,
    /// States that it kept.
    pub states: u64,
    /// Bytes of stack of the program and of each of its functions; no chain of calls may need more than 512.
    pub stack: String,
}

/// Programs by name.
pub type Costs = BTreeMap<String, Cost>;

/// Loads the object with `shell` (`unshare` as root) and reads what the verifier says of each program.
///
/// # Errors
/// When a program is refused: with the verifier's last words.
pub fn measure(mut unshare: Command, object: &Path) -> Result<Costs> {
    let mut child = unshare
        .args(["--mount", "--propagation", "private", "sh", "-c", LOAD, "load"])
        .arg(object)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run unshare, sh and bpftool")?;
    let said = child.stderr.take().context("no output")?;
    let mut reading = Reading::default();
    // Some 70 MB of which a few lines matter.
    for line in BufReader::new(said).split(b'\n') {
        reading.line(&String::from_utf8_lossy(&line?));
    }
    let status = child.wait()?;
    ensure!(status.success(), "the kernel or libbpf refuses the programs:\n{}", reading.last.join("\n"));
    ensure!(!reading.costs.is_empty(), "the verifier said nothing of any program");
    Ok(reading.costs)
}

#[derive(Default)]
struct Reading {
    program: String,
    stack: String,
    costs: Costs,
    /// The last lines, for a failure's report.
    last: Vec<String>,
}

impl Reading {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("libbpf: prog '") {
            self.program = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if let Some(stack) = line.strip_prefix("stack depth ") {
            self.stack = stack.trim().to_owned();
        } else if let Some(rest) = line.strip_prefix("processed ") {
            // processed 446 insns (limit 1000000) max_states_per_insn 1 total_states 18 peak_states 18 mark_read 0
            let words: Vec<&str> = rest.split(' ').collect();
            let number = |word: Option<&&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0);
            let after = words.iter().position(|word| *word == "total_states").map(|at| at + 1);
            let cost = Cost {
                instructions: number(words.first()),
                states: number(after.and_then(|at| words.get(at))),
                stack: std::mem::take(&mut self.stack),
            };
            self.costs.insert(self.program.clone(), cost);
        }
        if self.last.len() > 30 {
            self.last.remove(0);
        }
        self.last.push(line.to_owned());
    }
}

/// The running kernel's series, as in `6.18`.
///
/// # Errors
/// When /proc is not mounted.
pub fn series() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().split('.').take(2).collect::<Vec<_>>().join("."))
}

/// What was recorded for a kernel series.
///
/// # Errors
/// When the table cannot be read.
pub fn recorded(series: &str) -> Result<Option<Costs>> {
    let mut all: BTreeMap<String, Costs> = serde_json::from_str(RECORDED).context("xtask/verifier.json")?;
    Ok(all.remove(series))
}

/// Puts the figures for a kernel series into the table.
///
/// # Errors
/// When it cannot be read or written.
pub fn record(table: &Path, series: &str, costs: &Costs) -> Result<()> {
    let text = fs::read_to_string(table).with_context(|| format!("cannot read {}", table.display()))?;
    let mut all: BTreeMap<String, Costs> = serde_json::from_str(&text)?;
    all.insert(series.to_owned(), costs.clone());
    fs::write(table, serde_json::to_string_pretty(&all)? + "\n")
        .with_context(|| format!("cannot write {}", table.display()))
}

/// What has risen by more than a tenth, or is not in the table, in words.
pub fn risen(now: &Costs, before: &Costs) -> Vec<String> {
    let mut risen = Vec::new();
    for (program, cost) in now {
        let Some(before) = before.get(program) else {
            risen.push(format!("{program} is not in the table"));
            continue;
        };
        for (what, now, before) in
            [("instructions", cost.instructions, before.instructions), ("states", cost.states, before.states)]
        {
            // Small programs change by more than a tenth when a line does.
            if now > before + before / 10 && now > before + 100 {
                risen.push(format!("{program}: the verifier's {what} rose from {before} to {now}"));
            }
        }
    }
    risen
}

/// Prints the figures beside the recorded ones.
pub fn print(now: &Costs, before: Option<&Costs>) {
    println!(
        "{:<18} {:>13} {:>10} {:>8} {:>10}  stack of each function",
        "program", "instructions", "recorded", "states", "recorded"
    );
    for (program, cost) in now {
        let before = before.and_then(|before| before.get(program));
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        println!(
            "{program:<18} {:>13} {:>10} {:>8} {:>10}  {}",
            cost.instructions,
            number(before.map(|before| before.instructions)),
            cost.states,
            number(before.map(|before| before.states)),
            cost.stack
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Costs, Reading, risen};

    fn read(instructions: u32) -> Costs {
        let mut reading = Reading::default();
        for line in [
            "libbpf: prog 'heddle_one': -- BEGIN PROG LOAD LOG --",
            "0: R1=ctx() R10=fp0",
            "stack depth 128+24",
            &format!(
                "processed {instructions} insns (limit 1000000) max_states_per_insn 9 total_states 538 peak_states 360 mark_read 0"
            ),
        ] {
            reading.line(line);
        }
        reading.costs
    }

    #[test]
    fn the_verifiers_last_words_are_read() {
        let costs = read(8823);
        let cost = &costs["heddle_one"];
        assert_eq!((cost.instructions, cost.states, cost.stack.as_str()), (8823, 538, "128+24"));
    }

    #[test]
    fn more_than_a_tenth_is_told_and_less_is_not() {
        assert_eq!(risen(&read(9700), &read(8823)), Vec::<String>::new());
        let told = risen(&read(9800), &read(8823));
        assert_eq!(told, ["heddle_one: the verifier's instructions rose from 8823 to 9800"]);
        assert_eq!(risen(&read(1), &Costs::new()), ["heddle_one is not in the table"]);
    }
}
