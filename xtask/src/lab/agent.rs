//! A node's real agent: started, killed, stopped, asked through its door.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    cgroup::Cgroup,
    door::{self, Answer},
    place::Place,
    program::eventually,
};

/// How long an agent may take until it says that it is ready.
const READY: Duration = Duration::from_secs(20);

/// Fields of the agents' configuration, beside those that the lab gives each node.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    fields: BTreeMap<String, Value>,
}

impl Settings {
    /// Sets a field.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) -> &mut Self {
        self.fields.insert(field.into(), value.into());
        self
    }

    /// Takes a field out, so that the agent's own default holds.
    pub fn unset(&mut self, field: &str) -> &mut Self {
        self.fields.remove(field);
        self
    }
}

struct Process {
    pid: u32,
    ended: Arc<AtomicBool>,
}

/// A process that was a node's agent, or was to be; it ends with this.
pub struct Former(Option<Process>);

impl Former {
    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let process = self.0.as_ref()?;
        (!process.ended.load(Ordering::Acquire)).then_some(process.pid)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("it does not run any more")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no such process")?;
        kill_process(pid, signal).context("it cannot be signalled")
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn ends_within(&self, limit: Duration) -> Result<()> {
        eventually("the former agent to end", limit, || Ok(self.pid().is_none()))
    }
}

impl Drop for Former {
    fn drop(&mut self) {
        // It has ended where it cannot be signalled.
        drop(self.signal(Signal::KILL));
    }
}

/// The agent of one node.
pub struct Agent {
    node: String,
    directory: PathBuf,
    place: Place,
    attach_point: PathBuf,
    manifests: PathBuf,
    ca: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Agent {
    pub(super) fn new(node: &str, directory: &Path, cgroup: &Cgroup, place: Place, lab: &Path) -> Self {
        Self {
            node: node.into(),
            directory: directory.into(),
            place,
            attach_point: cgroup.path_in_node().into(),
            manifests: lab.join("manifests"),
            ca: lab.join("ca"),
            process: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/agent.sock")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// What it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read(self.directory.join("agent.log")).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of [`Self::log`].
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// Where it runs.
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock()
            .as_ref()
            .filter(|process| !process.ended.load(Ordering::Acquire))
            .map(|process| process.pid)
    }

    /// It has been started and has not ended.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    fn write_config(&self, settings: &Settings) -> Result<()> {
        let mut fields = BTreeMap::from(
            [
                ("node", json!(self.node)),
                ("manifests", json!(self.manifests)),
                ("ca", json!({ "folder": self.ca })),
                ("runDirectory", json!(self.directory.join("run"))),
                ("cgroup", json!(self.attach_point)),
                ("heartbeatMilliseconds", json!(2_000 * super::slowness())),
                ("kubeletCgroup", json!(self.attach_point.join("kubelet"))),
                ("podNetworks", json!(super::POD_NETWORKS)),
                ("serviceNetworks", json!(super::SERVICE_NETWORKS)),
                (
                    "clusterNetworks",
                    json!([super::POD_NETWORKS, super::SERVICE_NETWORKS, super::NODE_NETWORKS].concat()),
                ),
            ]
            .map(|(field, value)| (field.to_owned(), value)),
        );
        fields.extend(settings.fields.clone());
        // A value in JSON is a value in YAML.
        let text: String = fields.iter().map(|(field, value)| format!("{field}: {value}\n")).collect();
        let path = self.config();
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        // The agent refuses a file that others may write, and a user's umask may say anything.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Starts it without waiting for it to be ready.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn launch(&self, heddle: &Path, settings: &Settings) -> Result<()> {
        ensure!(!self.is_running(), "the agent of {} runs already", self.node);
        let process = self.spawn(heddle, settings)?;
        *self.lock() = Some(process);
        Ok(())
    }

    /// Starts another beside the one that runs, and gives that one back: from here on the new one is the node's agent, ready
    /// or not.
    ///
    /// # Errors
    /// When none runs, or it cannot be started.
    pub fn launch_successor(&self, heddle: &Path, settings: &Settings) -> Result<Former> {
        ensure!(self.is_running(), "no agent of {} runs", self.node);
        let process = self.spawn(heddle, settings)?;
        let former = self.lock().replace(process).context("no agent runs")?;
        Ok(Former(Some(former)))
    }

    /// As [`Self::launch_successor`], and waits until the new one answers at the door and is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; its log is in the error.
    pub fn succeed(&self, heddle: &Path, settings: &Settings) -> Result<Former> {
        let former = self.launch_successor(heddle, settings)?;
        self.wait_until_answering()?;
        Ok(former)
    }

    /// Waits until this very process answers at the door and is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; its log is in the error.
    pub fn wait_until_answering(&self) -> Result<()> {
        eventually(&format!("the agent of {} to take over", self.node), READY * 2, || {
            ensure!(self.is_running(), "the agent of {} ended", self.node);
            Ok(self
                .status()
                .is_ok_and(|it| it.get("pid").and_then(Value::as_u64) == self.pid().map(u64::from)))
        })
        .with_context(|| format!("its log ends:\n{}", self.log_tail(30)))?;
        self.wait_until_ready()
    }

    /// The one that ran before is the node's agent again: what was to succeed it is given back.
    pub fn go_back_to(&self, mut former: Former) -> Option<Former> {
        let process = former.0.take()?;
        self.lock().replace(process).map(|process| Former(Some(process)))
    }

    fn spawn(&self, heddle: &Path, settings: &Settings) -> Result<Process> {
        self.write_config(settings)?;
        fs::create_dir_all(&self.ca)?;
        fs::set_permissions(&self.ca, fs::Permissions::from_mode(0o700))?;
        let log = OpenOptions::new().create(true).append(true).open(self.directory.join("agent.log"))?;
        let config = self.config();
        let mut child = self
            .place
            .command(&[&heddle.to_string_lossy(), "agent", "--config", &config.to_string_lossy()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", heddle.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let process = Process { pid: child.id(), ended: Arc::clone(&ended) };
        std::thread::Builder::new().name(format!("agent of {}", self.node)).spawn(move || {
            drop(child.wait());
            ended.store(true, Ordering::Release);
        })?;
        Ok(process)
    }

    /// Starts it and waits until its status says that it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; its log is in the error.
    pub fn start(&self, heddle: &Path, settings: &Settings) -> Result<Duration> {
        let began = Instant::now();
        self.launch(heddle, settings)?;
        self.wait_until_ready()?;
        Ok(began.elapsed())
    }

    /// Waits until its status says that it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; its log is in the error.
    pub fn wait_until_ready(&self) -> Result<()> {
        eventually(&format!("the agent of {} to be ready", self.node), READY, || {
            ensure!(self.is_running(), "the agent of {} ended", self.node);
            let status = door::request(&self.socket(), "GET", "/v1/status", None);
            Ok(status.and_then(|answer| answer.accepted()?.json()).is_ok_and(|status| is_ready(&status)))
        })
        .with_context(|| format!("its log ends:\n{}", self.log_tail(30)))
    }

    fn send(&self, signal: Signal) -> Result<Pid> {
        let pid = self.pid().with_context(|| format!("the agent of {} does not run", self.node))?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no such process")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal the agent of {}", self.node))?;
        Ok(pid)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        self.send(signal)?;
        eventually(&format!("the agent of {} to end", self.node), Duration::from_secs(10), || {
            Ok(!self.is_running())
        })
    }

    /// SIGKILL; it is gone when this returns.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// SIGTERM; it is gone when this returns.
    ///
    /// # Errors
    /// When it does not run, or has not ended after ten seconds.
    pub fn terminate(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.send(Signal::STOP).map(drop)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.send(Signal::CONT).map(drop)
    }

    /// Forgets the process, so that it outlives this program.
    pub(super) fn let_go(&self) {
        self.lock().take();
    }

    /// One request to its door.
    ///
    /// # Errors
    /// When it does not answer. What it answers is for the caller to judge.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        door::request(&self.socket(), method, path, body)
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub fn status(&self) -> Result<Value> {
        self.request("GET", "/v1/status", None)?.accepted()?.json()
    }

    /// `GET /v1/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        Ok(self.request("GET", "/v1/metrics", None)?.accepted()?.body)
    }

    /// The sum of all series of a metric (0 where there is none) whose labels contain all of `labels`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }

    /// Follows `GET /v1/events` from now on.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn events(&self) -> Result<Events> {
        Events::follow(&self.socket())
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("the agent does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }

    /// The CPU time that it has used.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cpu_time(&self) -> Result<Duration> {
        super::program::cpu_time(self.pid().context("the agent does not run")?)
    }

    /// Runs a client command of `heddle` against it, inside its node: `status`, `events`, `check`, …
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn heddle(&self, heddle: &Path, arguments: &[&str]) -> Result<super::Output> {
        let (program, socket) =
            (heddle.to_string_lossy().into_owned(), self.socket().to_string_lossy().into_owned());
        let command = [&[program.as_str()], arguments, &["--socket", &socket]].concat();
        self.place.run(&command)
    }
}

/// Its rules are in force, in the kernel and in its proxy, and so is the capture of every pod that it knows.
fn is_ready(status: &Value) -> bool {
    let generation =
        |name: &str| status.pointer(&format!("/rules/{name}")).and_then(Value::as_u64).unwrap_or(0);
    let pods = status.get("pods").and_then(Value::as_array);
    generation("proxyGeneration") > 0
        && generation("kernelGeneration") == generation("proxyGeneration")
        && pods.is_none_or(|pods| pods.iter().all(|pod| pod.get("inForce") == Some(&json!(true))))
}

fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter_map(|line| {
            // What follows " # " is an exemplar.
            let rest = line.split(" # ").next()?.strip_prefix(name)?;
            // Another metric whose name only begins so has neither brace nor space here.
            if !rest.starts_with(['{', ' ']) || !labels.iter().all(|label| rest.contains(label)) {
                return None;
            }
            let (_, values) = rest.rsplit_once('}').unwrap_or(("", rest));
            values.split_whitespace().next()?.parse::<f64>().ok()
        })
        .sum()
}

/// The events of an agent, as they happen.
pub struct Events {
    lines: mpsc::Receiver<Value>,
    stream: std::os::unix::net::UnixStream,
}

impl Events {
    fn follow(socket: &Path) -> Result<Self> {
        let stream = door::open(socket, "GET", "/v1/events", None)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        // The head of the answer says that the agent follows from here.
        stream.set_read_timeout(Some(super::stretched(Duration::from_secs(5))))?;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).context("no answer to the request for events")? == 0 {
                bail!("the agent closed the stream of events at once");
            }
        }
        stream.set_read_timeout(None)?;
        let (send, lines) = mpsc::channel();
        std::thread::Builder::new().name("events".into()).spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str(&line)
                    && send.send(value).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self { lines, stream })
    }

    /// The next event for which `wanted` holds; none if there is none within `limit`.
    pub fn next(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let until = Instant::now() + super::stretched(limit);
        loop {
            let event = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
            if wanted(&event) {
                return Some(event);
            }
        }
    }

    /// Everything that was told until now.
    pub fn drain(&self) -> Vec<Value> {
        self.lines.try_iter().collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use super::{is_ready, sum};
    use serde_json::json;

    #[test]
    fn an_agent_is_ready_when_its_rules_and_its_pods_are_in_force() {
        let status = |proxy: u64, kernel: u64, pod: bool| json!({ "rules": { "proxyGeneration": proxy, "kernelGeneration": kernel }, "pods": [{ "inForce": pod }] });
        assert!(is_ready(&status(3, 3, true)));
        assert!(!is_ready(&status(0, 0, true)), "nothing was published yet");
        assert!(!is_ready(&status(3, 2, true)), "the kernel still holds older rules");
        assert!(!is_ready(&status(3, 3, false)), "a pod is not captured");
        assert!(!is_ready(&json!({})));
    }

    #[test]
    fn metrics_are_summed_by_name_and_labels() {
        let text = "# TYPE bytes counter\nbytes_total{a=\"x\",b=\"1\"} 5\nbytes_total{a=\"y\"} 7 # {t=\"1\"} 9\nbytes_total_other 100\nbytes_total 1\n";
        assert!((sum(text, "bytes_total", &[]) - 13.0).abs() < f64::EPSILON);
        assert!((sum(text, "bytes_total", &["a=\"x\""]) - 5.0).abs() < f64::EPSILON);
        assert!(sum(text, "missing", &[]).abs() < f64::EPSILON);
    }
}
