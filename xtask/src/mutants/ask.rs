//! Asking the tests about one mutant after the other.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::tree::{TESTS, Tree};

/// How much longer than over the code as it is the tests may take over a mutant, and what is added to that. Of the processor's
/// time: beside other work they take longer and are not endless for that.
const PATIENCE: (u32, Duration) = (5, Duration::from_secs(20));
/// How many times as long on the wall: for those that wait for ever.
const WALL: u32 = 10;
/// Some mutants never stop asking for memory.
const MEMORY: u64 = 4 << 30;
/// About time alone, and it takes more of that than all others together.
const SKIPPED: &str = "--skip=a_hundred_thousand_rules";
/// How many of the tests that caught others of a file are asked before all the rest, and over how few clusters.
const FIRST: (usize, &str) = (5, "8");

/// What the tests said of a mutant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// They failed; the first of them.
    Caught(String),
    /// They did not come to an end.
    TooLong,
    /// They passed.
    Survived,
}

/// A test as its program names it.
type Test = (&'static str, String);

/// Which of the programs, and over how many random clusters (all of them if that is not said).
#[derive(Clone, Copy)]
pub struct Look {
    pub programs: &'static [&'static str],
    pub clusters: Option<&'static str>,
}

/// Asks about each of `mutants` (number and file), `jobs` at a time; `told` hears each answer.
///
/// # Errors
/// When the tests fail over the code as it is.
pub fn ask(
    tree: &Tree,
    look: Look,
    mutants: &[(u32, &str)],
    jobs: usize,
    told: impl Fn(u32, &Answer) + Sync,
) -> Result<Vec<(u32, Answer)>> {
    let mut programs = Vec::new();
    let processors = thread::available_parallelism().map_or(1, |it| u32::try_from(it.get()).unwrap_or(1));
    for (name, path) in TESTS.iter().zip(&tree.tests).filter(|(name, _)| look.programs.contains(name)) {
        let started = Instant::now();
        let Said { passed: true, .. } = run(tree, path, &[SKIPPED], look.clusters, 0, Duration::MAX)? else {
            bail!("the tests of {name} fail over the code as it is");
        };
        println!("{name}: {:.1} s", started.elapsed().as_secs_f32());
        programs.push(Program {
            name,
            path,
            limit: started.elapsed() * processors * PATIENCE.0 + PATIENCE.1,
        });
    }
    let next = Mutex::new(mutants.iter());
    let answers = Mutex::new(Vec::new());
    // What caught mutants of a file, the latest last: most likely to catch the next.
    let caught: Mutex<BTreeMap<&str, Vec<Test>>> = Mutex::default();
    let work = || -> Result<()> {
        loop {
            let mutant = next.lock().ok().and_then(|mut next| next.next().copied());
            let Some((number, file)) = mutant else { return Ok(()) };
            let likely: Vec<Test> =
                caught.lock().map_or(Vec::new(), |it| it.get(file).cloned().unwrap_or_default());
            let (answer, by) = one(tree, look, &programs, number, &likely)?;
            told(number, &answer);
            if let (Some(by), Ok(mut caught)) = (by, caught.lock()) {
                let tests = caught.entry(file).or_default();
                tests.retain(|test| *test != by);
                tests.push(by);
            }
            if let Ok(mut answers) = answers.lock() {
                answers.push((number, answer));
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a worker panicked"),
        })
    })?;
    let mut answers = answers.into_inner().unwrap_or_default();
    answers.sort_by_key(|(number, _)| *number);
    Ok(answers)
}

struct Program<'a> {
    name: &'static str,
    path: &'a Path,
    limit: Duration,
}

fn one(
    tree: &Tree,
    look: Look,
    programs: &[Program<'_>],
    number: u32,
    likely: &[Test],
) -> Result<(Answer, Option<Test>)> {
    let judge = |program: &Program<'_>, arguments: &[&str], clusters| {
        let said = run(tree, program.path, arguments, clusters, number, program.limit)?;
        anyhow::Ok(match said {
            Said { passed: true, .. } => None,
            Said { too_long: true, .. } => Some((Answer::TooLong, None)),
            _ => {
                let test = said.first_failure();
                let by = test.map(|test| (program.name, test.to_owned()));
                Some((Answer::Caught(format!("{}: {}", program.name, test.unwrap_or("ended early"))), by))
            }
        })
    };
    let latest = &likely[likely.len().saturating_sub(FIRST.0)..];
    for program in programs {
        let mut arguments: Vec<&str> =
            latest.iter().rev().filter(|(name, _)| *name == program.name).map(|(_, test)| &**test).collect();
        if !arguments.is_empty() {
            arguments.push("--exact");
            if let Some(answer) = judge(program, &arguments, look.clusters.and(Some(FIRST.1)))? {
                return Ok(answer);
            }
        }
    }
    for program in programs {
        if let Some(answer) = judge(program, &[SKIPPED], look.clusters)? {
            return Ok(answer);
        }
    }
    Ok((Answer::Survived, None))
}

struct Said {
    passed: bool,
    too_long: bool,
    text: String,
}

impl Said {
    fn first_failure(&self) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
    }
}

fn run(
    tree: &Tree,
    program: &Path,
    arguments: &[&str],
    clusters: Option<&str>,
    number: u32,
    limit: Duration,
) -> Result<Said> {
    let mut output = tempfile::tempfile()?;
    let mut command = Command::new(program);
    command.current_dir(&tree.folder).args(arguments).env("HEDDLE_MUTANT", number.to_string());
    match clusters {
        Some(clusters) => command.env("HEDDLE_CLUSTERS", clusters),
        None => command.env_remove("HEDDLE_CLUSTERS"),
    };
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let finished = finish(&mut child, limit);
    if finished.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = finished?;
    Ok(Said { passed: status == Some(true), too_long: status.is_none(), text: written(&mut output)? })
}

/// Whether it passed; `None` if it took longer than it may.
fn finish(child: &mut Child, limit: Duration) -> Result<Option<bool>> {
    let pid = Pid::from_child(child);
    let seconds = limit.as_secs().max(1);
    for (resource, most) in [(Resource::As, MEMORY), (Resource::Cpu, seconds)] {
        // It may have ended.
        let _ = prlimit(Some(pid), resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let endless = status.signal() == Some(Signal::KILL.as_raw())
                || status.signal() == Some(Signal::XCPU.as_raw());
            return Ok((!endless).then_some(status.success()));
        }
        if started.elapsed() > limit.saturating_mul(WALL) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a program wrote, from the beginning of the file.
fn written(output: &mut File) -> Result<String> {
    std::io::Seek::rewind(output)?;
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
