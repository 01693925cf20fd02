//! `cargo xtask vm test`: the promises' own tests, the very binaries that run on the host, on Debian's kernels.

use super::architecture::{Architecture, kvm_offered};
use super::guest::Guest;
use super::kept::Kept;
use super::kernel::{self, Kernel, Version};
use super::table::{Outcome, Table};
use super::{boot, initramfs};
use crate::test::binaries;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Run the tests of the promises on Debian's kernels, and print one table: kernel by promise.
///
/// The tests that need root, as built for `cargo xtask test`, run inside QEMU, several machines at a time. A kernel that
/// panics or hangs costs the test that ran, which is told, and the rest goes on in a fresh machine. A test that cannot
/// show its promise on a kernel says why and stands as n/a. Consoles and the table are kept in target/vm/; the table is
/// written after each test, beside what earlier runs saw, so that a run that is stopped leaves what it saw.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernel series, as in 6.1 or 6.12; may be repeated.
    #[arg(long, value_name = "VERSION", default_values = ["6.1", "6.12", "7.2"])]
    kernel: Vec<Version>,
    /// Only tests whose name or file contains this; may be repeated, and the first test of each filter runs before the
    /// second of any. Where each is the name of a file of the agent's tests, nothing else is built.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// How many machines run at a time; each has two processors. Default: half the processors.
    #[arg(long, value_name = "COUNT")]
    machines: Option<usize>,
    /// How many times slower than a real one a machine is: every limit in the tests is stretched by it.
    #[arg(long, value_name = "FACTOR", default_value_t = if kvm_offered() { 2 } else { 10 })]
    slowness: u32,
    /// How many seconds one test may take on a real machine.
    #[arg(long, value_name = "SECONDS", default_value = "180")]
    limit: u32,
    /// How many minutes one machine may live.
    #[arg(long, value_name = "MINUTES", default_value = "180")]
    life: u64,
    /// Memory of each machine.
    #[arg(long, value_name = "MIB", default_value = "3072")]
    memory: u32,
    /// Also write the table here, below the line that says so where the file has one.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// The agent of an earlier build, which the tests of mixed versions run beside this one
    #[arg(long, value_name = "FILE")]
    earlier: Option<PathBuf>,
    /// Leave out what the kept table shows as held or not applicable.
    #[arg(long)]
    missing: bool,
    /// Cargo's profile for the agent and the tests: optimized unless you say dev, which takes less to build and more to run.
    #[arg(long, value_name = "NAME", default_value = "emulated")]
    profile: String,
}

/// What each machine runs inside.
const SCRIPT: &str = include_str!("promises.sh");

struct Test {
    binary: String,
    name: String,
}

impl Test {
    fn has(&self, text: &str) -> bool {
        self.name.contains(text) || self.binary.contains(text)
    }

    /// As in the table: the promise's file, and what of it is shown.
    fn title(&self) -> String {
        format!("{} {}", self.binary.trim_start_matches("agent-"), self.name).replace('_', " ")
    }
}

/// Some tests on one kernel: one machine's work.
struct Share {
    kernel: usize,
    number: usize,
    tests: VecDeque<usize>,
}

struct Run<'a> {
    guest: &'a Guest,
    arguments: &'a Arguments,
    tests: &'a [Test],
    kernels: &'a [(Kernel, initramfs::Image, PathBuf)],
    table: Mutex<Table>,
    kept: Kept,
    /// Every test that there is, where the run began with all.
    every: Option<BTreeSet<String>>,
}

/// Runs them all.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let guest = Guest::prepare(workspace, Architecture::own()?, &arguments.profile)?;
    ensure!(arguments.slowness > 0, "--slowness: at least 1");
    let (tests, programs) = collect(workspace, &arguments.profile, &arguments.filter)?;
    let (mut kernels, mut own_folders) = (Vec::new(), Vec::new());
    for version in &arguments.kernel {
        let kernel = kernel::find(workspace, version, Architecture::own()?)?;
        let folder = workspace.target.join("vm").join(&kernel.release);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut contents = guest.contents(SCRIPT);
        contents
            .others
            .extend(programs.iter().map(|(name, program)| (program.clone(), Path::new("tests").join(name))));
        contents.files.push((PathBuf::from("tests/list"), list(&tests)));
        contents
            .others
            .extend(arguments.earlier.iter().map(|file| (file.clone(), PathBuf::from("tests/earlier"))));
        // Another run with machines of this kernel has its own. It goes with the run.
        let own =
            tempfile::tempdir_in(&folder).with_context(|| format!("no room in {}", folder.display()))?;
        let image = initramfs::build(&kernel, &contents, own.path())?;
        kernels.push((kernel, image, folder));
        own_folders.push(own);
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let machines = arguments.machines.unwrap_or(processors / 2).max(1);
    let kept = Kept {
        results: workspace.target.join("vm/promises.json"),
        shown: [Some(workspace.target.join("vm/promises.md")), arguments.table.clone()]
            .into_iter()
            .flatten()
            .collect(),
    };
    let known = if arguments.missing { kept.read()? } else { Table::default() };
    let wanted: Vec<Vec<usize>> = kernels
        .iter()
        .map(|(kernel, ..)| {
            let settled = |test: &Test| known.is_settled(&test.title(), &kernel.release);
            (0..tests.len()).filter(|number| !settled(&tests[*number])).collect()
        })
        .collect();
    eprintln!(
        "{} tests on {} kernels, {machines} machines at a time, limits stretched {} times",
        wanted.iter().map(Vec::len).sum::<usize>(),
        kernels.len(),
        arguments.slowness
    );
    let shares = Mutex::new(shared_out(&wanted, machines));

    let mut table = Table::default();
    for ((kernel, ..), wanted) in kernels.iter().zip(&wanted) {
        let titles = wanted.iter().map(|number| tests[*number].title());
        table.merge(&Table::new([kernel.release.clone()].into_iter(), titles));
    }
    let run = Run {
        guest: &guest,
        arguments,
        tests: &tests,
        kernels: &kernels,
        table: Mutex::new(table),
        kept,
        every: arguments.filter.is_empty().then(|| tests.iter().map(Test::title).collect()),
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..machines)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(share) = taken(&shares) {
                        run.share(share)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;

    let table = run.table.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("\n{}", table.markdown());
    let [held, cannot] = table.counts();
    // What has no outcome is not good.
    let bad = wanted.iter().map(Vec::len).sum::<usize>() - held - cannot;
    println!("{held} held, {cannot} not applicable, {bad} not good");
    Ok(if bad == 0 && held > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tests that need root, and the programs that hold them, by name.
fn collect(
    workspace: &Workspace,
    profile: &str,
    filter: &[String],
) -> Result<(Vec<Test>, BTreeMap<String, PathBuf>)> {
    let mut tests = Vec::new();
    let mut programs = BTreeMap::new();
    for binary in binaries::build_files(workspace, profile, filter)? {
        for name in binary.ignored(None)? {
            // What another test starts shows nothing by itself.
            if name.ends_with("::is_started_by_a_test") {
                continue;
            }
            let test = Test { binary: binary.name.clone(), name };
            if filter.is_empty() || filter.iter().any(|text| test.has(text)) {
                programs.insert(binary.name.clone(), binary.executable.clone());
                tests.push(test);
            }
        }
    }
    ensure!(!tests.is_empty(), "--filter {}: no test that needs root has that in its name", filter.join(" "));
    Ok((ordered(tests, filter), programs))
}

/// The first test of each filter, then the second of each: a run that is stopped has seen something of every promise.
fn ordered(tests: Vec<Test>, filter: &[String]) -> Vec<Test> {
    let mut seen = BTreeMap::<Option<usize>, usize>::new();
    let mut turns = Vec::new();
    for test in tests {
        let asked = filter.iter().position(|text| test.has(text));
        let nth = seen.entry(asked).or_default();
        *nth += 1;
        turns.push((*nth, asked, test));
    }
    turns.sort_by_key(|(nth, asked, _)| (*nth, *asked));
    turns.into_iter().map(|(.., test)| test).collect()
}

fn list(tests: &[Test]) -> String {
    tests.iter().fold(String::new(), |mut text, test| {
        let _ = writeln!(text, "{} {}", test.binary, test.name);
        text
    })
}

/// Neighbors in the list go to different machines: tests of one file take about as long as each other.
fn shared_out(wanted: &[Vec<usize>], machines: usize) -> VecDeque<Share> {
    let each = machines.div_ceil(wanted.len().max(1));
    let share = |kernel: usize, number| Share {
        kernel,
        number,
        tests: wanted[kernel].iter().copied().skip(number).step_by(each).collect(),
    };
    (0..each)
        .flat_map(|number| (0..wanted.len()).map(move |kernel| (kernel, number)))
        .map(|(kernel, number)| share(kernel, number))
        .filter(|share| !share.tests.is_empty())
        .collect()
}

fn taken(shares: &Mutex<VecDeque<Share>>) -> Option<Share> {
    shares.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

impl Run<'_> {
    /// All tests of a share, in as many machines as that takes: one, unless a machine ends early.
    fn share(&self, mut share: Share) -> Result<()> {
        let mut machine = 0;
        while !share.tests.is_empty() {
            machine += 1;
            let before = share.tests.len();
            let end = self.machine(&mut share, machine)?;
            let Some(lost) = share.tests.front().copied() else { break };
            // Each further machine has at least one test less to do, so that this ends.
            if !end.is_good() || before == share.tests.len() {
                share.tests.pop_front();
                self.put(share.kernel, lost, Outcome::Lost(end.to_string()))?;
            }
        }
        Ok(())
    }

    /// One machine; what it has done is taken from the share.
    fn machine(&self, share: &mut Share, machine: usize) -> Result<boot::End> {
        let (kernel, image, folder) = &self.kernels[share.kernel];
        let console = folder.join(format!("console-{}-{}-{machine}.log", std::process::id(), share.number));
        let numbers: Vec<String> = share.tests.iter().map(usize::to_string).collect();
        let slowness = self.arguments.slowness;
        let words = format!(
            "heddle.slowness={slowness} heddle.limit={} heddle.tests={}",
            self.arguments.limit.saturating_mul(slowness),
            numbers.join(",")
        );
        eprintln!("{}: booting for {} tests (console: {})", kernel.release, numbers.len(), console.display());
        let machine = boot::Machine {
            boot: boot::Boot {
                emulator: &self.guest.emulator,
                kernel: &kernel.image,
                initramfs: &image.file,
                memory: self.arguments.memory,
            },
            words: &words,
            marker: &image.marker,
            limit: Duration::from_secs(self.arguments.life * 60),
            console: &console,
        };
        let mut kept = Ok(());
        let end = machine.run(&mut |line| {
            if let Some((number, outcome)) = line.strip_prefix(image.marker.as_str()).and_then(ended)
                && share.tests.front() == Some(&number)
            {
                share.tests.pop_front();
                if let Err(error) = self.put(share.kernel, number, outcome) {
                    kept = Err(error);
                }
            }
        })?;
        kept.map(|()| end)
    }

    fn put(&self, kernel: usize, test: usize, outcome: Outcome) -> Result<()> {
        let title = self.tests[test].title();
        let release = &self.kernels[kernel].0.release;
        println!("{release:<12} {title}: {outcome:?}");
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.put(&title, release, outcome);
        self.kept.add(&table, self.every.as_ref())
    }
}

/// Reads ` ended NUMBER CODE SECONDS REASON`, as `promises.sh` prints it behind the marker.
fn ended(line: &str) -> Option<(usize, Outcome)> {
    let mut words = line.strip_prefix(" ended ")?.splitn(4, ' ');
    let number = words.next()?.parse().ok()?;
    let code: i32 = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    let reason = words.next().unwrap_or_default().trim();
    let outcome = match code {
        0 if reason.is_empty() => Outcome::Passed(seconds),
        0 => Outcome::NotApplicable(reason.to_owned()),
        124 | 137 => Outcome::Failed(format!("not done within its limit, after {seconds} s")),
        code if reason.is_empty() => Outcome::Failed(format!("status {code}; the console has its output")),
        _ => Outcome::Failed(reason.to_owned()),
    };
    Some((number, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_prints_of_a_test_is_read() {
        assert_eq!(ended(" ended 3 0 17 "), Some((3, Outcome::Passed(17))));
        assert_eq!(
            ended(" ended 3 0 1 no io_uring here"),
            Some((3, Outcome::NotApplicable("no io_uring here".into())))
        );
        assert!(matches!(ended(" ended 0 101 2 "), Some((0, Outcome::Failed(_)))));
        assert_eq!(ended(" ended 0 101 2 not refused"), Some((0, Outcome::Failed("not refused".into()))));
        assert!(
            matches!(ended(" ended 0 137 2 said"), Some((0, Outcome::Failed(_)))),
            "a failure is one whatever it says"
        );
        for wrong in ["", " 0", " begins 3", " ended x 0 1", " ended 3"] {
            assert_eq!(ended(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_was_asked_for_first_comes_first_and_each_promise_has_its_turn() {
        let test = |binary: &str, name: &str| Test { binary: binary.into(), name: name.into() };
        let all = || {
            vec![
                test("agent-door", "a"),
                test("agent-door", "b"),
                test("agent-door", "c"),
                test("agent-wire", "a"),
            ]
        };
        let order = |filter: &[&str]| {
            let filter: Vec<String> = filter.iter().map(|&text| text.to_owned()).collect();
            ordered(all(), &filter).iter().map(Test::title).collect::<Vec<_>>()
        };
        assert_eq!(order(&["wire", "door"]), ["wire a", "door a", "door b", "door c"]);
        assert_eq!(order(&["door", "wire"]), ["door a", "wire a", "door b", "door c"]);
        assert_eq!(order(&[]), ["door a", "door b", "door c", "wire a"]);
    }

    #[test]
    fn every_test_is_given_to_one_machine_of_each_kernel() {
        for (tests, kernels, machines) in [(7, 1, 3), (1, 3, 2), (10, 3, 4), (5, 2, 1)] {
            let shares = shared_out(&vec![(0..tests).collect(); kernels], machines);
            for kernel in 0..kernels {
                let mut given: Vec<usize> = shares
                    .iter()
                    .filter(|share| share.kernel == kernel)
                    .flat_map(|share| share.tests.clone())
                    .collect();
                given.sort_unstable();
                assert_eq!(given, (0..tests).collect::<Vec<_>>());
            }
        }
    }
}
