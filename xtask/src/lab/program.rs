//! Programs that the lab runs: started, watched, ended.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The CPU time that a process has used, its threads that have ended included.
///
/// # Errors
/// When it does not run.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    // The kernel tells it in hundredths of a second, on every architecture that the lab runs on.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in parentheses, may contain anything; utime and stime are the 12th and 13th after it.
    let (_, fields) = stat.rsplit_once(')').context("no process")?;
    let field = |number: usize| -> Result<u32> {
        Ok(fields.split_whitespace().nth(number).context("too few fields")?.parse()?)
    };
    Ok(TICK * (field(11)? + field(12)?))
}

/// What a program that ended left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    /// From its start to its end, the ends of `nsenter` and `sh` included (some milliseconds).
    pub took: Duration,
}

impl Output {
    /// It ended with 0.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// The last line of standard error, else of standard output: what a person would quote.
    pub fn last_line(&self) -> &str {
        let line =
            |text: &'_ str| text.trim_end().lines().next_back().is_some_and(|line| !line.trim().is_empty());
        let text = if line(&self.stderr) { &self.stderr } else { &self.stdout };
        text.trim_end().lines().next_back().unwrap_or_default()
    }
}

#[derive(Default)]
struct Stream {
    text: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: Arc<Self>, mut pipe: impl Read + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("output".into()).spawn(move || {
            let mut buffer = [0u8; 8192];
            loop {
                let read = pipe.read(&mut buffer).unwrap_or(0);
                let mut text = self.lock();
                match buffer.get(..read) {
                    Some(bytes) if read > 0 => text.0.extend_from_slice(bytes),
                    _ => text.1 = true,
                }
                self.grown.notify_all();
                if text.1 {
                    return;
                }
            }
        })
    }
}

/// A program that runs. Dropping it kills it.
pub struct Running {
    left: bool,
    name: String,
    child: Child,
    began: Instant,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    followers: Vec<JoinHandle<()>>,
}

impl Running {
    pub(super) fn start(mut command: Command, name: String) -> Result<Self> {
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The janitor ends it; a Ctrl-C on the terminal is not for it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (stdout, stderr) = (Arc::new(Stream::default()), Arc::new(Stream::default()));
        let followers = vec![
            Arc::clone(&stdout).follow(child.stdout.take().context("no pipe")?)?,
            Arc::clone(&stderr).follow(child.stderr.take().context("no pipe")?)?,
        ];
        Ok(Self { left: false, name, child, began, stdout, stderr, followers })
    }

    /// Its process id. `nsenter` and `sh` become the program, so this is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed until now.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().0).into_owned()
    }

    /// What it has complained of until now.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().0).into_owned()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it has closed it.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin =
            self.child.stdin.as_mut().with_context(|| format!("{}: its input is closed", self.name))?;
        stdin.write_all(text.as_bytes())?;
        stdin.flush()?;
        Ok(())
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until what it printed contains `text`.
    ///
    /// # Errors
    /// When it ends or the time is over first; what it did print is in the error.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        let limit = stretched(limit);
        let until = Instant::now() + limit;
        let mut seen = self.stdout.lock();
        loop {
            if seen.0.windows(text.len()).any(|window| window == text.as_bytes()) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || seen.1 {
                let printed = String::from_utf8_lossy(&seen.0).into_owned();
                drop(seen);
                bail!(
                    "{}: no {text:?} within {limit:?}; it printed {printed:?}, {:?}",
                    self.name,
                    self.stderr()
                );
            }
            seen = self.stdout.grown.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Self::wait_for`], on standard error.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_complaint(&self, text: &str, limit: Duration) -> Result<()> {
        eventually(&format!("{} to say {text:?}", self.name), limit, || Ok(self.stderr().contains(text)))
            .with_context(|| format!("it said {:?}", self.stderr()))
    }

    /// It has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most `limit`; none if it is still running then.
    pub fn ended_within(&mut self, limit: Duration) -> Option<Duration> {
        let until = Instant::now() + stretched(limit);
        while self.is_running() {
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(self.began.elapsed())
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `limit`; it is killed then.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        self.close_input();
        let Some(took) = self.ended_within(limit) else {
            self.end();
            bail!(
                "{} did not end within {limit:?}; it printed {:?}, {:?}",
                self.name,
                self.stdout(),
                self.stderr()
            );
        };
        let code = self.child.wait()?.code();
        // Descendants may keep the pipes open longer than the program ran; without any, a busy machine alone takes time.
        let until = Instant::now() + stretched(Duration::from_secs(5));
        while !self.followers.iter().all(JoinHandle::is_finished) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Output { code, stdout: self.stdout(), stderr: self.stderr(), took })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("no such process")?, signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Leaves it running; it ends with its lab.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Kills it.
    pub fn end(&mut self) {
        // An error says that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.left {
            self.end();
        }
    }
}

/// How many times slower than a machine of its own this one is, as `HEDDLE_SLOWNESS` states it: 10 or so under
/// emulation. Every limit of the lab's is stretched by it.
pub fn slowness() -> u32 {
    std::env::var("HEDDLE_SLOWNESS").ok().and_then(|text| text.parse().ok()).filter(|it| *it > 0).unwrap_or(1)
}

/// A limit as this machine needs it.
pub fn stretched(limit: Duration) -> Duration {
    limit * slowness()
}

/// Looks every few milliseconds until `condition` holds.
///
/// # Errors
/// When it does not within `limit`, or as `condition` says.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = stretched(limit);
    let until = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= until {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Finds a program of this workspace: by an environment variable, else in the folder of the running program or,
/// for a test, in the folder above.
pub fn beside_this_program(name: &str, variable: &str, remedy: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    if own.file_stem().is_some_and(|stem| stem == name) {
        return Ok(own);
    }
    let mut looked = Vec::new();
    for folder in own.ancestors().skip(1).take(2) {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        looked.push(path.display().to_string());
    }
    bail!("no {name} at {}: run `{remedy}` or set {variable}", looked.join(" or "))
}
