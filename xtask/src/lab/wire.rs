//! What a wire really carried: tcpdump writes, [`super::pcap`] reads.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{pcap::Traffic, place::Place, program::eventually};

/// A capture under way.
pub struct Capture {
    child: Child,
    file: PathBuf,
    complaints: PathBuf,
}

impl Capture {
    /// Starts a capture on an interface of a place; what it writes goes into `directory`.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(place: &Place, interface: &str, directory: &Path) -> Result<Self> {
        Self::start_of(&[], place, interface, directory)
    }

    /// Starts a capture of those packets alone that tcpdump's `filter` names: over a long time on a busy link others
    /// would make it lose some.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start_of(filter: &[&str], place: &Place, interface: &str, directory: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = directory.join("wire");
        fs::create_dir_all(&folder)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = folder.join(format!("{number}-{interface}.pcap"));
        let complaints = folder.join(format!("{number}-{interface}.log"));
        // Every byte of every packet, each written as it is seen, no names looked up.
        let all =
            ["tcpdump", "-i", interface, "-s", "0", "-B", "32768", "--immediate-mode", "-U", "-n", "-w", "-"];
        let child = place
            .command(&[&all[..], filter].concat())
            .stdin(Stdio::null())
            .stdout(File::create(&file)?)
            .stderr(File::create(&complaints)?)
            .spawn()
            .context("cannot start tcpdump")?;
        let capture = Self { child, file, complaints };
        eventually("tcpdump to listen", Duration::from_secs(10), || {
            Ok(capture.complaints()?.contains("listening on"))
        })
        .with_context(|| format!("tcpdump said: {}", capture.complaints().unwrap_or_default()))?;
        Ok(capture)
    }

    fn complaints(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.complaints)?)
    }

    /// The file that it writes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// When tcpdump lost packets (then nothing can be said of what the wire carried) or its file cannot be read.
    pub fn stop(mut self) -> Result<Traffic> {
        // Whatever was sent before this call has crossed a veth already; tcpdump may not have read it yet.
        std::thread::sleep(Duration::from_millis(150));
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("tcpdump has ended")?;
        kill_process(pid, Signal::INT).context("cannot stop tcpdump")?;
        self.child.wait()?;
        let said = self.complaints()?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump lost packets: {said}");
        Traffic::read(&fs::read(&self.file)?)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
