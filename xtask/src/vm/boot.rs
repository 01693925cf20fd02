//! One machine's life under QEMU: its console is read until the result, a panic, the time limit or its end.

use super::architecture::Emulator;
use crate::command;
use anyhow::{Context, Result};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// A machine under KVM writes its first line in a second or two.
const SILENCE: Duration = Duration::from_secs(40);

/// What is booted.
#[derive(Clone, Copy)]
pub struct Boot<'a> {
    /// QEMU.
    pub emulator: &'a Emulator,
    /// The kernel's image.
    pub kernel: &'a Path,
    /// Its first and only file system.
    pub initramfs: &'a Path,
    /// In MiB.
    pub memory: u32,
}

impl Boot<'_> {
    /// The command that boots a machine without devices but for those that are added to it. `words`: more for the kernel's
    /// command line, which the machine's work reads in `/proc/cmdline`.
    pub fn qemu(&self, accelerator: &str, words: &str) -> Command {
        // A machine whose owner was killed would go on for ever.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--"])
            .arg(&self.emulator.program)
            .args(self.emulator.architecture.board())
            .args(["-accel", accelerator, "-smp", "2"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-m", &format!("{}M", self.memory)])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            // A machine in doubt must end: QEMU then exits, and without a result that is a failure. The kernel's test
            // of its timer counts ticks against a busy loop, which an emulator on a busy host loses.
            .arg("-append")
            // Mitigations of real processors' faults make an emulated one a third slower.
            .arg(format!(
                "console={} loglevel=4 panic=-1 oops=panic no_timer_check mitigations=off rdinit=/init {words}",
                self.emulator.architecture.console()
            ));
        qemu
    }
}

/// A machine that does its work and ends.
pub struct Machine<'a> {
    /// What is booted.
    pub boot: Boot<'a>,
    /// More for the kernel's command line.
    pub words: &'a str,
    /// The word before the result.
    pub marker: &'a str,
    /// From power-on to the result.
    pub limit: Duration,
    /// Where the console is kept.
    pub console: &'a Path,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The work ended with this exit status.
    Result(i32, Duration),
    /// The kernel said this before it gave up.
    Panic(String),
    /// Nothing came within the limit.
    Hang(Duration),
    /// Not a sign of life from a machine under KVM.
    Silent,
    /// The machine went away without a result.
    Early,
}

impl End {
    /// Whether the work was done and succeeded.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Result(0, _))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Result(0, took) => write!(f, "good, after {:.1} s", took.as_secs_f64()),
            Self::Result(code, took) => {
                write!(f, "FAILED with status {code}, after {:.1} s", took.as_secs_f64())
            }
            Self::Panic(line) => write!(f, "FAILED: the kernel gave up: {line}"),
            Self::Hang(limit) => write!(f, "FAILED: no result within {} s", limit.as_secs()),
            Self::Silent => write!(f, "FAILED: nothing came from the machine"),
            Self::Early => write!(f, "FAILED: the machine ended without a result"),
        }
    }
}

impl Machine<'_> {
    /// Boots and waits, with KVM where the machine has it. What the machine prints is kept, and given to `each`.
    pub fn run(&self, each: &mut dyn FnMut(&str)) -> Result<End> {
        if self.boot.emulator.may_use_kvm() {
            match self.boot("kvm", each)? {
                End::Silent => eprintln!("KVM is offered but nothing boots with it: emulating"),
                end => return Ok(end),
            }
        }
        self.boot("tcg", each)
    }

    fn boot(&self, accelerator: &str, each: &mut dyn FnMut(&str)) -> Result<End> {
        let mut log =
            File::create(self.console).with_context(|| format!("cannot write {}", self.console.display()))?;
        let mut qemu = self.boot.qemu(accelerator, self.words);
        qemu.args(["-serial", "stdio"]);
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{}`", command::shown(&qemu)))?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let (lines, console) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        let mut patience = if accelerator == "kvm" { SILENCE.min(self.limit) } else { self.limit };
        let mut watch = Watch { marker: self.marker, panicked: None };
        let end = loop {
            match console.recv_timeout(patience.saturating_sub(started.elapsed())) {
                Ok(line) => {
                    patience = self.limit;
                    writeln!(log, "{line}")?;
                    if let Some(code) = watch.line(&line) {
                        break End::Result(code, started.elapsed());
                    }
                    each(&line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    break if patience == self.limit { End::Hang(self.limit) } else { End::Silent };
                }
                Err(RecvTimeoutError::Disconnected) => {
                    break watch.panicked.take().map_or(End::Early, End::Panic);
                }
            }
        };
        // After a result it is about to end by itself; otherwise it must.
        let _ = child.kill();
        child.wait().context("QEMU cannot be waited for")?;
        drop(console);
        let _ = reader.join();
        Ok(end)
    }
}

/// Reads the console for the result and for the kernel's last words.
struct Watch<'a> {
    marker: &'a str,
    panicked: Option<String>,
}

impl Watch<'_> {
    /// The exit status, where this line tells it.
    fn line(&mut self, line: &str) -> Option<i32> {
        if line.contains("Kernel panic") {
            self.panicked = Some(line.to_owned());
        }
        line.strip_prefix(self.marker)?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::architecture::Architecture;
    use super::*;

    #[test]
    fn only_the_marker_at_a_line_s_start_is_a_result() {
        let mut watch = Watch { marker: "RESULT-1", panicked: None };
        assert_eq!(watch.line("RESULT-1 3"), Some(3));
        assert_eq!(watch.line("echo RESULT-1 0"), None);
        assert_eq!(watch.line("RESULT-1"), None);
        assert_eq!(watch.line("RESULT-2 0"), None);
    }

    #[test]
    fn a_machine_that_ends_without_a_result_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let ended = |script: &str| {
            let emulator = folder.path().join("emulator");
            std::fs::write(&emulator, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&emulator, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let emulator = Emulator { architecture: Architecture::own().unwrap(), program: emulator };
            let machine = Machine {
                boot: Boot {
                    emulator: &emulator,
                    kernel: Path::new("k"),
                    initramfs: Path::new("i"),
                    memory: 1,
                },
                words: "",
                marker: "RESULT-1",
                limit: Duration::from_secs(1),
                console: &folder.path().join("console"),
            };
            machine.run(&mut |_| ()).unwrap()
        };
        assert!(ended("echo; echo 'RESULT-1 0'").is_good());
        assert!(matches!(ended("echo 'RESULT-1 7'"), End::Result(7, _)));
        assert_eq!(ended("echo fine"), End::Early);
        assert_eq!(ended("exec sleep 5"), End::Hang(Duration::from_secs(1)));
        assert!(matches!(ended("echo '[ 1.0] Kernel panic - not syncing: x'"), End::Panic(_)));
    }
}
