//! `cargo xtask test`: everything that must hold before a change is taken.

pub mod binaries;
mod tally;
mod vagrant;

use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{apt, circles, command, ebpf, privilege, toolchain, tools, vm};
use anyhow::{Context, Result, bail};
use binaries::TestBinary;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use tally::Tally;

/// Formatting, clippy, circles among modules, the demo on another kernel, unit and property tests, and those that need root.
///
/// Installs the Debian packages that are missing, builds the kernel programs and runs everything; ends with one line
/// `N passed, N failed, N skipped`, above it what failed and what could not be tried here. Tests that need root (`#[ignore]`) run through sudo when you are not root, one at a
/// time, each with a time limit. What a failed test wrote is printed and kept in target/test-logs.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this; skips formatting, clippy and circles.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leave out what needs root; those tests are counted as skipped.
    #[arg(long)]
    unprivileged: bool,
    /// How many seconds one test that needs root may take.
    #[arg(long, value_name = "SECONDS", default_value = "180")]
    limit: u32,
}

/// How many seconds a binary of tests that need no root may take.
const BINARY_LIMIT: u32 = 600;

/// Runs it all; the code says whether anything failed.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    privilege::refuse_sudo_around_cargo(workspace)?;
    let started = Instant::now();
    need_component("fmt", "rustfmt")?;
    need_component("clippy", "clippy")?;
    if !arguments.unprivileged {
        apt::install(&xtask::lab::packages())?;
        tools::fetch(workspace)?;
    }
    ebpf::run(workspace, &ebpf::Arguments { compiler: Choice::Auto })?;
    // What the privileged tests start: the agent, and this program's own applications.
    ebpf::cargo_build(workspace, "dev", &["heddle", "xtask"])?;

    let mut suite = Suite { workspace, tally: Tally::default(), failed: Vec::new(), skipped: Vec::new() };
    if arguments.filter.is_none() {
        suite.check("formatting", formatting);
        suite.check("clippy", clippy);
        suite.check("clippy, kernel programs", toolchain::clippy);
        suite.check("no circles among modules", no_circles);
        if !arguments.unprivileged {
            suite.judge("vagrant validate", vagrant::validate);
            suite.judge("the demo on another kernel", vm::show_on_another_kernel);
        }
    }
    println!("== building the tests");
    let built = binaries::build(workspace)?;
    suite.tests(&built, arguments)?;

    let Suite { tally, failed, skipped, .. } = suite;
    println!("\n{} min {} s", started.elapsed().as_secs() / 60, started.elapsed().as_secs() % 60);
    for line in &skipped {
        println!("SKIPPED  {line}");
    }
    for name in &failed {
        println!("FAILED  {name}");
    }
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Suite<'a> {
    workspace: &'a Workspace,
    tally: Tally,
    failed: Vec<String>,
    /// What could not be tried here, and why.
    skipped: Vec<String>,
}

impl Suite<'_> {
    fn check(&mut self, name: &str, check: impl FnOnce(&Workspace) -> Result<()>) {
        self.judge(name, |workspace| check(workspace).map(|()| None));
    }

    /// A check that may say why it cannot be tried here.
    fn judge(&mut self, name: &str, check: impl FnOnce(&Workspace) -> Result<Option<String>>) {
        println!("== {name}");
        match check(self.workspace) {
            Ok(None) => self.tally.passed += 1,
            Ok(Some(why)) => self.skip(name, &why),
            Err(error) => {
                eprintln!("{error:#}");
                self.fail(name);
            }
        }
    }

    fn fail(&mut self, name: &str) {
        self.tally.failed += 1;
        self.failed.push(name.to_owned());
    }

    fn skip(&mut self, name: &str, why: &str) {
        println!("not applicable: {why}");
        self.tally.skipped += 1;
        self.skipped.push(format!("{name}: {why}"));
    }

    fn tests(&mut self, built: &[TestBinary], arguments: &Arguments) -> Result<()> {
        let logs = self.workspace.target.join("test-logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        for binary in built {
            self.unprivileged(binary, arguments, logs.join(format!("{}.log", binary.name)))?;
        }
        if arguments.filter.is_none() {
            self.documentation()?;
        }
        for binary in built {
            let named = binary.ignored(arguments.filter.as_deref())?;
            if arguments.unprivileged {
                self.tally.skipped += named.len();
                continue;
            }
            for name in named {
                self.privileged(binary, &name, arguments.limit, &logs)?;
            }
        }
        privilege::take_back(self.workspace)
    }

    /// The tests of one binary that are not ignored, as the caller.
    fn unprivileged(&mut self, binary: &TestBinary, arguments: &Arguments, log: PathBuf) -> Result<()> {
        let mut command = binary.command(Command::new("timeout"), BINARY_LIMIT);
        command.args(arguments.filter.as_deref());
        println!("== {}", binary.name);
        let (success, text) = logged(command, &log)?;
        self.count(&binary.name, success, &text);
        Ok(())
    }

    fn documentation(&mut self) -> Result<()> {
        println!("== examples in the documentation");
        let mut command = self.workspace.cargo();
        command.args(["test", "--quiet", "--workspace", "--doc"]);
        let (success, text) = logged(command, &self.workspace.target.join("test-logs/doc.log"))?;
        self.count("documentation", success, &text);
        Ok(())
    }

    /// Adds what libtest counted. Ignored tests are counted when they run as root.
    fn count(&mut self, name: &str, success: bool, text: &str) {
        let counted = Tally::of_libtest(text);
        self.tally.passed += counted.passed;
        let failures = tally::failures(text);
        for failure in &failures {
            self.fail(&format!("{name} {failure}"));
        }
        if !success {
            println!("{}", text.trim_end());
            if failures.is_empty() {
                self.fail(&format!("{name}: ended early, or took longer than its limit"));
            }
        }
    }

    /// One test as root: by itself, so that its limit is its own and the next one finds a clean process.
    fn privileged(
        &mut self,
        binary: &TestBinary,
        name: &str,
        limit: u32,
        logs: &std::path::Path,
    ) -> Result<()> {
        let shown = format!("{} {name} (root)", binary.name);
        print!("== {shown} ");
        let log = logs.join(format!("{}-{}.log", binary.name, name.replace("::", "-")));
        let mut command = privilege::as_root("env")?;
        let mut path = std::ffi::OsString::from("PATH=");
        path.push(tools::path(self.workspace)?);
        command.arg(path).arg("timeout");
        let mut command = binary.command(command, limit);
        command.args(["--exact", name, "--include-ignored", "--test-threads=1", "--show-output"]);
        let began = Instant::now();
        let (success, text) = logged(command, &log)?;
        println!("{:.1} s", began.elapsed().as_secs_f64());
        if success && Tally::of_libtest(&text).passed == 1 {
            match tally::not_applicable(&text) {
                Some(why) => self.skip(&shown, why),
                None => self.tally.passed += 1,
            }
            return Ok(());
        }
        println!("{}", text.trim_end());
        println!("(kept in {})", log.display());
        self.fail(&shown);
        Ok(())
    }
}

/// Runs with both outputs in a file, and returns whether it succeeded and what it wrote.
fn logged(mut command: Command, log: &std::path::Path) -> Result<(bool, String)> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run `{}`", command::shown(&command)))?;
    let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok((status.success(), String::from_utf8_lossy(&text).into_owned()))
}

fn need_component(subcommand: &str, component: &str) -> Result<()> {
    command::output(command::cargo().args([subcommand, "--version"])).map(drop).map_err(|_| {
        anyhow::anyhow!(
            "the component {component} is missing: `rustup component add rustfmt clippy` (both are needed)"
        )
    })
}

fn formatting(workspace: &Workspace) -> Result<()> {
    command::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    command::run(
        command::cargo()
            .args(["fmt", "--check", "--manifest-path"])
            .arg(workspace.root.join("ebpf/programs/Cargo.toml")),
    )
}

fn clippy(workspace: &Workspace) -> Result<()> {
    command::run(workspace.cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn no_circles(workspace: &Workspace) -> Result<()> {
    let crates = ["policy", "identity", "ebpf", "ebpf/programs", "agent", "xtask"];
    let folders: Vec<PathBuf> = crates.iter().map(|name| workspace.root.join(name)).collect();
    let circles = circles::find(&folders)?;
    if circles.is_empty() {
        return Ok(());
    }
    for circle in &circles {
        let files: Vec<String> = circle
            .iter()
            .map(|path| path.strip_prefix(&workspace.root).unwrap_or(path).display().to_string())
            .collect();
        eprintln!("these files import each other: {}", files.join(", "));
    }
    bail!("{} circle(s): move what both sides need into a module that neither imports back", circles.len())
}
