//! The two nodes, their pods and applications, and what the steps ask of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::rules;
use crate::lab::{
    Agent, Events, Lab, OUTSIDE, Output, Place, Pod, PodSpec, Running, Service, ServiceSpec, apps,
};

/// The lab's name.
pub const LAB: &str = "demo";

/// What every answer of the web server carries, and what no capture of the mesh's wire may show.
pub const MARKER: &str = "THE-LOOM-IS-OPEN-7f3a9c";
/// Pod and node that the steps name.
pub const NODE_A: &str = "node-a";
/// The other node.
pub const NODE_B: &str = "node-b";

/// Everything that the steps play with.
pub struct Scene {
    pub lab: Lab,
    pub heddle: PathBuf,
    /// On node a: may reach web, echo and near.
    pub client: Pod,
    /// On node a: another identity, which no rule names.
    pub stranger: Pod,
    /// On node a: an echo server on the client's own node.
    pub near: Pod,
    /// On node a: in no mesh.
    pub plain: Pod,
    /// On node b: nginx.
    pub web: Pod,
    /// On node b: an echo server.
    pub echo: Pod,
    /// On node b: the client's identity on the other node.
    pub buyer: Pod,
    /// The Service in front of near.
    pub near_service: Service,
    events: BTreeMap<String, Events>,
    pub applications: Vec<Running>,
}

impl Scene {
    /// Makes the nodes and pods, writes the YAML and starts the applications. No agent runs yet.
    pub fn set(heddle: Option<&Path>) -> Result<Self> {
        let mut lab = Lab::new(LAB)?.node(NODE_A)?.node(NODE_B)?;
        if let Some(path) = heddle {
            lab.binary(path);
        }
        let heddle = lab.heddle()?;
        let meshed = |name: &str, node: &str, account: &str| {
            PodSpec::new(name, node).namespace("shop").account(account).meshed()
        };
        let client = lab.pod(&meshed("client", NODE_A, "client"))?;
        let stranger = lab.pod(&meshed("stranger", NODE_A, "stranger"))?;
        let near = lab.pod(&meshed("near", NODE_A, "near").port("echo", 7000))?;
        let plain = lab.pod(&PodSpec::new("plain", NODE_A))?;
        let web = lab.pod(&meshed("web", NODE_B, "web").port("http", 8080))?;
        let echo = lab.pod(&meshed("echo", NODE_B, "echo").port("echo", 7000))?;
        let buyer = lab.pod(&meshed("buyer", NODE_B, "client"))?;
        let near_service = lab.service(&ServiceSpec::new("shop", "near", "near").port("echo", 7, "echo"))?;
        lab.service(&ServiceSpec::new("shop", "web", "web").port("http", 80, "http"))?;
        let [office, _] = OUTSIDE;
        lab.apply(rules::SERVERS, &rules::servers(office))?;
        lab.apply(rules::CLIENTS, &rules::clients())?;

        let page = format!("welcome, {MARKER}\n");
        let outside = lab.directory().join("outside");
        std::fs::create_dir_all(&outside)?;
        let echo_server = ["socat", "TCP6-LISTEN:7000,ipv6-v6only=0,fork,reuseaddr,nodelay", "EXEC:cat"];
        let applications = vec![
            web.nginx(8080, &page)?,
            apps::nginx(lab.outside(), &outside, 80, "the world outside\n")?,
            near.spawn(&echo_server)?,
            echo.spawn(&echo_server)?,
        ];
        let scene = Self {
            lab,
            heddle,
            client,
            stranger,
            near,
            plain,
            web,
            echo,
            buyer,
            near_service,
            events: BTreeMap::new(),
            applications,
        };
        scene.tell();
        Ok(scene)
    }

    fn tell(&self) {
        for node in self.lab.nodes() {
            println!("   {} {}", node.name, node.v4);
            for pod in self.lab.pods().iter().filter(|pod| pod.node == node.name) {
                let who = if pod.meshed { pod.identity() } else { "in no mesh".into() };
                println!(
                    "      {:<14} {:<12} {:<14} {who}",
                    pod.full_name(),
                    pod.v4.to_string(),
                    pod.v6.to_string()
                );
            }
        }
        println!("   outside {}", OUTSIDE.map(|address| address.to_string()).join(" "));
        println!("   manifests in {}\n", self.lab.manifests().directory().display());
    }

    /// Starts both agents, attaches the meshed pods and follows the agents' events.
    pub fn start_agents(&mut self) -> Result<()> {
        println!("   two agents: {} agent --config …\n", self.heddle.display());
        self.lab.start_agents()?;
        for node in [NODE_A, NODE_B] {
            self.follow(node)?;
        }
        Ok(())
    }

    fn follow(&mut self, node: &str) -> Result<()> {
        let events = self.lab.agent(node)?.events()?;
        self.events.insert(node.to_owned(), events);
        Ok(())
    }

    /// Starts an agent that was killed or ended. It finds its pods by the pins: none is attached again.
    pub fn start_again(&mut self, node: &str) -> Result<Duration> {
        let settings = self.lab.settings().clone();
        let took = self.lab.agent(node)?.start(&self.heddle, &settings)?;
        self.follow(node)?;
        Ok(took)
    }

    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.lab.agent(node)
    }

    /// Throws away what the agents have told until now.
    pub fn forget_events(&self) {
        for events in self.events.values() {
            events.drain();
        }
    }

    /// The next event of a node's agent that gives one of these reasons, as the agent tells it.
    pub fn told(&self, node: &str, reasons: &[&str]) -> Option<Value> {
        let events = self.events.get(node)?;
        events.next(Duration::from_secs(2), |event| {
            event.get("reason").and_then(Value::as_str).is_some_and(|reason| reasons.contains(&reason))
        })
    }

    /// Fetches a page with curl.
    pub fn curl(&self, from: &Place, to: SocketAddr, more: &[&str]) -> Result<Page> {
        let url = format!("http://{to}/?{MARKER}");
        let format = "\n%{http_code} %{time_total}";
        let limit = patience();
        let fixed = ["curl", "-sS", "--max-time", &limit, "--noproxy", "*", "-w", format];
        let output = from.run(&[&fixed[..], more, &[url.as_str()]].concat())?;
        Ok(Page::read(output))
    }

    /// Ends the applications and the lab.
    pub fn close(mut self) -> Result<()> {
        self.applications.clear();
        self.events.clear();
        self.lab.close()
    }
}

/// For how many seconds curl waits.
pub fn patience() -> String {
    crate::lab::stretched(Duration::from_secs(5)).as_secs().to_string()
}

/// What curl brought.
pub struct Page {
    pub status: u16,
    pub body: String,
    /// As curl counts it.
    pub milliseconds: f64,
    pub output: Output,
}

impl Page {
    /// From what curl printed: the body, then a line of its own with the status and the seconds.
    pub fn read(output: Output) -> Self {
        let (body, told) = output.stdout.rsplit_once('\n').unwrap_or_default();
        let (status, seconds) = told.split_once(' ').unwrap_or_default();
        Self {
            status: status.parse().unwrap_or(0),
            body: body.to_owned(),
            milliseconds: seconds.parse::<f64>().unwrap_or(0.0) * 1e3,
            output,
        }
    }

    /// It is the page that was asked for.
    pub fn arrived(&self) -> bool {
        self.status == 200
    }

    /// Nothing of HTTP came back.
    pub fn refused(&self) -> bool {
        // 28 is curl's time limit: a hang is no refusal.
        self.status == 0 && self.body.is_empty() && !matches!(self.output.code, Some(0 | 28) | None)
    }

    pub fn summary(&self) -> String {
        let (milliseconds, body) = (self.milliseconds, self.body.trim_end());
        if self.arrived() {
            return format!("HTTP 200, {body:?}, {milliseconds:.1} ms");
        }
        format!("{} ({milliseconds:.1} ms)", self.output.last_line())
    }
}

/// An event in a line, in the agent's words: who decided, why, by which rule.
pub fn quote(node: &str, event: Option<&Value>) -> String {
    if event.is_none() {
        return format!("{node}: no event told why");
    }
    let [hook, reason, sentence, rule] =
        ["hook", "reason", "sentence", "rule"].map(|name| field(event, name));
    let rule = if rule.is_empty() { "no rule".into() } else { rule };
    format!("{node} ({hook}, {reason}): {sentence} [{rule}]")
}

/// The text of an event's field.
pub fn field(event: Option<&Value>, name: &str) -> String {
    event.and_then(|event| event.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A person's line between two programs, which stays open: ncat in a pod to an echo server.
pub struct Line {
    program: Running,
}

impl Line {
    /// Opens it and proves that it carries words there and back.
    pub fn open(from: &Place, to: SocketAddr) -> Result<Self> {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let mut line = Self { program: from.spawn(&["ncat", "--no-shutdown", &host, &port])? };
        line.carries("hello").with_context(|| format!("the line to {to} carries nothing"))?;
        Ok(line)
    }

    /// A word goes there and back.
    pub fn carries(&mut self, word: &str) -> Result<()> {
        self.program.write(&format!("{word}\n"))?;
        self.program.wait_for(word, Duration::from_secs(3))
    }

    /// Waits until it is ended by somebody else.
    pub fn ended_within(&mut self, limit: Duration) -> bool {
        self.program.ended_within(limit).is_some()
    }

    /// What ncat said at its end.
    pub fn last_words(&self) -> String {
        let said = self.program.stderr();
        if said.trim().is_empty() { "closed".into() } else { said.trim().to_owned() }
    }
}
