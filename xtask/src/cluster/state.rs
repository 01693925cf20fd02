//! What is known of a cluster that is up, for the commands that come after `up`.

use super::daemon::Daemon;
use super::network::PodNetwork;
use super::programs::Programs;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xtask::lab::{Lab, Output, Place, Running, kept};

const FILE: &str = "cluster.json";

/// A cluster that is up.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The lab's folder.
    pub folder: PathBuf,
    /// How its pods are connected.
    pub network: PodNetwork,
    /// Where the control plane runs.
    pub router: Place,
    /// The nodes' own places.
    pub nodes: BTreeMap<String, Place>,
    /// The programs of the control plane, and of the nodes (`node-a/kubelet`).
    pub daemons: BTreeMap<String, Daemon>,
    /// The administrator's.
    kubeconfig: String,
}

impl State {
    /// Of a lab that a cluster runs in.
    pub fn of(lab: &Lab, network: PodNetwork, daemons: BTreeMap<String, Daemon>, kubeconfig: String) -> Self {
        Self {
            folder: lab.directory().to_owned(),
            network,
            router: lab.router().clone(),
            nodes: lab.nodes().map(|node| (node.name.clone(), node.host().clone())).collect(),
            daemons,
            kubeconfig,
        }
    }

    /// Leaves it in the lab's folder.
    pub fn write(&self) -> Result<()> {
        let path = self.folder.join(FILE);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what the cluster of this name left.
    pub fn read(name: &str) -> Result<Self> {
        for folder in kept(name)? {
            if let Ok(text) = fs::read(folder.join(FILE)) {
                return Ok(serde_json::from_slice(&text)?);
            }
        }
        bail!("no cluster {name:?} is up: `cargo xtask cluster up`")
    }

    /// One of the programs that a cluster is made of.
    pub fn daemon(&self, name: &str) -> Result<&Daemon> {
        self.daemons.get(name).with_context(|| format!("the cluster has no {name}"))
    }

    /// Whether a lab of this id has a folder still.
    pub fn alive(id: &str) -> bool {
        xtask::lab::exists(id)
    }

    fn words<S: AsRef<str>>(&self, programs: &Programs, arguments: &[S]) -> Vec<String> {
        let mut words = vec![programs.kubernetes("kubectl"), format!("--kubeconfig={}", self.kubeconfig)];
        words.extend(arguments.iter().map(|word| word.as_ref().to_owned()));
        words
    }

    /// Runs kubectl on the caller's terminal.
    pub fn kubectl<S: AsRef<str>>(&self, programs: &Programs, arguments: &[S]) -> Result<ExitCode> {
        let status = self.router.command(&self.words(programs, arguments)).status()?;
        Ok(u8::try_from(status.code().unwrap_or(1)).map_or(ExitCode::FAILURE, ExitCode::from))
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl_output<S: AsRef<str>>(&self, programs: &Programs, arguments: &[S]) -> Result<Output> {
        self.router.run(&self.words(programs, arguments))
    }

    /// Starts kubectl on something that takes long.
    pub fn kubectl_started<S: AsRef<str>>(&self, programs: &Programs, arguments: &[S]) -> Result<Running> {
        self.router.spawn(&self.words(programs, arguments))
    }

    /// Runs heddle as the administrator.
    pub fn heddle(&self, program: &Path, words: &[&str]) -> Result<Output> {
        let program = program.display().to_string();
        let mut all = vec![program.as_str()];
        all.extend(words);
        all.extend(["--kubeconfig", &self.kubeconfig]);
        self.router.run(&all)
    }

    /// Runs kubectl, which must succeed.
    pub fn check<S: AsRef<str>>(&self, programs: &Programs, arguments: &[S]) -> Result<String> {
        self.router.check(&self.words(programs, arguments))
    }
}
