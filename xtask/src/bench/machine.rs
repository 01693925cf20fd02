//! What a figure depends on and says nothing of.

use std::fs;

use anyhow::Result;
use serde::Serialize;

use super::field::{ECHO, Field, Through, Way};

/// The machine that was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub cores: usize,
    pub processor: String,
    pub memory_megabytes: u64,
    pub kernel: String,
    /// In the pods.
    pub congestion_control: String,
    /// Average number of waiting processes before the bench began: a busy machine measures its neighbors.
    pub load_before: String,
    /// By which rule the kernel gives out its cores here: with real time (`chrt -r 1`) a busy machine's other programs
    /// do not get between.
    pub scheduling: &'static str,
    pub heddle: String,
    /// Whether the load generator was built without optimization.
    pub unoptimized_load: bool,
}

impl Facts {
    pub fn of(field: &Field) -> Result<Self> {
        let value = |path: &str, name: &str| -> String {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let (client, _) = field.ends(Way::Across, Through::Heddle, ECHO);
        let control = client.place().check(&["cat", "/proc/sys/net/ipv4/tcp_congestion_control"])?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: value("/proc/cpuinfo", "model name"),
            memory_megabytes: value("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0)
                / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            congestion_control: control.trim().to_owned(),
            load_before: fs::read_to_string("/proc/loadavg")?
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            scheduling: match value("/proc/self/sched", "policy").as_str() {
                "1" | "2" => "real time",
                _ => "as any program",
            },
            heddle: field.lab.heddle()?.display().to_string(),
            unoptimized_load: cfg!(debug_assertions),
        })
    }
}
