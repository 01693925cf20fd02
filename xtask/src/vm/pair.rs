//! A machine that stays up and does what it is told: one of two that a link joins.

use super::boot::Boot;
use crate::command;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use xtask::machines::{Ask, Told};

/// What a machine of the pair is made of.
pub struct Parts<'a> {
    /// What is booted.
    pub boot: Boot<'a>,
    /// What it is accelerated by.
    pub accelerator: &'a str,
    /// Where the link's ends and the consoles are.
    pub folder: &'a Path,
    /// From power-on until it answers.
    pub limit: Duration,
}

/// A machine that is up. Dropping it cuts its power.
pub struct Machine {
    qemu: Child,
    questions: UnixStream,
    answers: BufReader<UnixStream>,
    console: PathBuf,
}

impl Machine {
    /// Powers on machine `number`, 1 or 2, and waits until it has set its scene.
    pub fn power_on(parts: &Parts<'_>, number: u8, words: &str) -> Result<Self> {
        let place = |name: &str| parts.folder.join(name);
        let (own, other) = (place(&format!("{number}.link")), place(&format!("{}.link", 3 - number)));
        let line = place(&format!("{number}.line"));
        // A machine whose power was cut leaves them.
        for path in [&own, &line] {
            let _ = fs::remove_file(path);
        }
        let console = place(&format!("console-{number}.log"));
        let log = File::options().create(true).append(true).open(&console)?;
        let words = format!("heddle.machine={number} {words}");
        let mut qemu = parts.boot.qemu(parts.accelerator, &words);
        qemu.args(["-serial", "stdio", "-chardev"])
            .arg(format!("socket,id=line,path={},server=on,wait=off", line.display()))
            .args(["-serial", "chardev:line", "-netdev"])
            .arg(format!(
                "dgram,id=link,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                own.display(),
                other.display()
            ))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{number}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = qemu.spawn().with_context(|| format!("cannot run `{}`", command::shown(&qemu)))?;
        let mut child = Uncertain(Some(child));
        let until = Instant::now() + parts.limit;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&line) {
                break stream;
            }
            child.must_live(&console)?;
            if Instant::now() > until {
                bail!("QEMU offers no line at {}", line.display());
            }
            thread::sleep(Duration::from_millis(100));
        };
        stream.set_read_timeout(Some(parts.limit))?;
        let answers = BufReader::new(stream.try_clone()?);
        let qemu = child.0.take().context("no process")?;
        let mut machine = Self { qemu, questions: stream, answers, console };
        machine.told().context("the machine did not come up")?;
        Ok(machine)
    }

    fn told(&mut self) -> Result<Told> {
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line);
            match read {
                Ok(0) => bail!("the machine has gone; its console ends:\n{}", tail(&self.console)),
                Ok(_) => {}
                Err(error) => bail!("no answer ({error}); its console ends:\n{}", tail(&self.console)),
            }
            // Whatever else a serial line carries at its beginning.
            if let Some(at) = line.find('{')
                && let Ok(told) = serde_json::from_str(&line[at..])
            {
                return Ok(told);
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, ask: &Ask) -> Result<Told> {
        writeln!(self.questions, "{}", serde_json::to_string(ask)?)?;
        match self.told()? {
            Told::Failed(why) => bail!("{ask:?}: {why}\nits console ends:\n{}", tail(&self.console)),
            told => Ok(told),
        }
    }

    /// Asks for what is answered by a text.
    pub fn text(&mut self, ask: &Ask) -> Result<String> {
        match self.ask(ask)? {
            Told::Done(text) => Ok(text),
            other => bail!("{ask:?} was answered by {other:?}"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // As if a plug was pulled.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A process that is ended unless it is taken out.
struct Uncertain(Option<Child>);

impl Uncertain {
    fn must_live(&mut self, console: &Path) -> Result<()> {
        if let Some(child) = &mut self.0
            && let Some(status) = child.try_wait()?
        {
            bail!("QEMU ended with {status}:\n{}", tail(console));
        }
        Ok(())
    }
}

impl Drop for Uncertain {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn tail(console: &Path) -> String {
    let text =
        fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
