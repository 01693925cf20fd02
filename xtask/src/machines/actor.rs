//! The machine that does what it is asked.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Ask, Told,
    scene::{self, MARKER, Scene},
};
use crate::lab::{Capture, Events, Pod, Running};

struct Actor {
    scene: Scene,
    interface: String,
    node: String,
    events: Option<Events>,
    capture: Option<Capture>,
    press: Option<Running>,
}

/// Does what comes over `line`, one question after the other, until it ends. `number` and `interface`: this machine's on
/// the link to the other.
///
/// # Errors
/// When the scene cannot be set or the line breaks.
pub fn act(number: u8, interface: &str, line: &Path) -> Result<()> {
    let open = || File::options().read(true).write(true).open(line);
    let (questions, mut answers) =
        (open().with_context(|| format!("cannot open {}", line.display()))?, open()?);
    let scene = Scene::set(number, interface)?;
    let node = scene.lab.nodes().next().context("no node")?.name.clone();
    let mut actor =
        Actor { scene, interface: interface.into(), node, events: None, capture: None, press: None };
    let mut say = |told: &Told| -> Result<()> {
        writeln!(answers, "{}", serde_json::to_string(told)?).context("the line broke")
    };
    say(&Told::Done("ready".into()))?;
    for question in BufReader::new(questions).lines() {
        let question = question?;
        if question.trim().is_empty() {
            continue;
        }
        let told = serde_json::from_str(&question)
            .map_err(Into::into)
            .and_then(|ask| actor.answer(ask))
            .unwrap_or_else(|error| Told::Failed(format!("{error:#}")));
        say(&told)?;
    }
    Ok(())
}

impl Actor {
    fn answer(&mut self, ask: Ask) -> Result<Told> {
        let lab = &self.scene.lab;
        let done = |text: String| Ok(Told::Done(text));
        match ask {
            Ask::Who => done(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into()),
            Ask::Authority => done(lab.authority()?),
            Ask::Trust(text) => {
                lab.take_authority(&text)?;
                done(String::new())
            }
            Ask::Start => {
                lab.start_agents()?;
                self.events = Some(lab.agent(&self.node)?.events()?);
                done(String::new())
            }
            Ask::Fetch { from, to } => self.fetch(&from, to),
            Ask::Listen => {
                self.capture = Some(lab.capture_at(lab.router(), &self.interface)?);
                done(String::new())
            }
            Ask::Heard => self.heard(),
            Ask::Press { from, to } => {
                let script = format!("while :; do {} -o /dev/null || sleep 0.2; done", curl(to).join(" "));
                self.press = Some(self.pod(&from)?.spawn(&["sh", "-c", &script])?);
                done(String::new())
            }
            Ask::Calm => {
                self.press = None;
                done(String::new())
            }
            Ask::Why => done(self.why()),
            Ask::Add(pod) => done(self.add(&pod)?),
            Ask::Shell(script) => done(lab.router().shell(&script)?),
        }
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        self.scene.pods.get(name).with_context(|| format!("no pod {name:?} on this machine"))
    }

    fn fetch(&self, from: &str, to: IpAddr) -> Result<Told> {
        if let Some(events) = &self.events {
            events.drain();
        }
        let output = self.pod(from)?.spawn(&curl(to))?.finish(Duration::from_secs(60))?;
        let (body, status) = output.stdout.rsplit_once('\n').unwrap_or_default();
        let status = status.trim().parse().unwrap_or(0);
        let whole = body.trim_end() == scene::page().trim_end();
        let summary = match status {
            0 => output.last_line().to_owned(),
            _ => format!("HTTP {status}, {} bytes", body.len()),
        };
        Ok(Told::Page { status, whole, summary })
    }

    /// What the plugin answers: the result of the plugin before it, or an error of CNI's specification.
    fn add(&self, name: &str) -> Result<String> {
        let (lab, pod) = (&self.scene.lab, self.pod(name)?);
        let node = lab.nodes().next().context("no node")?;
        let network = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "heddle-cni", "socket": lab.agent(&self.node)?.socket(),
            "prevResult": {
                "cniVersion": "1.1.0",
                "ips": [{ "address": format!("{}/32", pod.v4) }, { "address": format!("{}/128", pod.v6) }],
            },
        });
        let arguments = format!(
            "CNI_ARGS=K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.uid
        );
        let netns = format!("CNI_NETNS={}", pod.netns.display());
        let heddle = lab.heddle()?;
        let output = node.host().run(&[
            "env",
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=sandbox",
            "CNI_IFNAME=eth0",
            &netns,
            &arguments,
            "sh",
            "-c",
            "printf %s \"$2\" | \"$1\" cni",
            "sh",
            &heddle.to_string_lossy(),
            &network.to_string(),
        ])?;
        Ok(output.stdout)
    }

    fn heard(&mut self) -> Result<Told> {
        let Some(capture) = self.capture.take() else { bail!("nobody listens") };
        let traffic = capture.stop()?;
        let (mut all_tls, mut encrypted) = (true, 0);
        for stream in &traffic.streams {
            match stream.records() {
                Ok(records) => encrypted += if records.tls13 { records.application_data } else { 0 },
                Err(_) => all_tls = false,
            }
        }
        Ok(Told::Heard {
            hits: traffic.hits(MARKER.as_bytes()),
            packets: traffic.packets,
            all_tls,
            encrypted,
        })
    }

    /// The first connection out of a pod that the agent told that it refused since the last fetch began.
    fn why(&self) -> String {
        let Some(events) = &self.events else { return "no agent runs".into() };
        let text = |event: &Value, name: &str| {
            event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let about = |event: &Value| text(event, "outcome") == "refuse" && text(event, "hook") == "outbound";
        match events.next(Duration::from_secs(3), about) {
            Some(event) => format!(
                "{} ({}, {}): {}",
                self.node,
                text(&event, "hook"),
                text(&event, "reason"),
                text(&event, "sentence"),
            ),
            None => "no refusal was told of".into(),
        }
    }
}

fn curl(to: IpAddr) -> Vec<String> {
    let url = match to {
        IpAddr::V4(address) => format!("http://{address}:8080/?{MARKER}"),
        IpAddr::V6(address) => format!("http://[{address}]:8080/?{MARKER}"),
    };
    ["curl", "-sS", "-g", "--max-time", "50", "--noproxy", "*", "-w", "\\n%{http_code}", &url]
        .map(str::to_owned)
        .to_vec()
}
