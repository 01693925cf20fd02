//! The plugin on the host: beside the CNI that is there, chained after it, and kept there.
//!
//! The runtime takes the first network configuration in its folder. So a copy of the first that is another's, with this
//! plugin at the end of its chain, is put before it. When that one changes, so does the copy; when somebody takes the copy
//! away, it is back a moment later.

use super::request::ANNOTATIONS;
use crate::cluster::folder::is_change;
use notify::{RecursiveMode, Watcher};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

/// The plugin's file in the runtime's folder of plugins, by which it is called.
pub const PLUGIN: &str = "heddle-cni";
/// The chained configuration.
const CHAINED: &str = "00-heddle.conflist";
/// The same, where another's name goes before that.
const BEFORE_ALL: &str = "-heddle.conflist";
/// The plugin's.
const MODE: u32 = 0o755;
/// How often the folders are looked at without a sign of change.
const LOOK: Duration = Duration::from_secs(5);

/// Where the plugin is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The runtime's plugins, usually /opt/cni/bin.
    pub plugins: PathBuf,
    /// The runtime's network configurations, usually /etc/cni/net.d.
    pub networks: PathBuf,
    /// The agent's socket, as the host names it.
    pub socket: PathBuf,
    /// Namespaces whose pods start without the agent.
    pub exempt: Vec<String>,
}

/// What a look at the host's folders brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Everything is in its place, chained after the configuration in this file.
    After(String),
    /// There is no network to be chained to yet.
    NoNetwork,
}

/// The plugin's file, as it was when it was this program: it need not be read again before it is another.
#[derive(Debug, Default)]
pub struct Sound(Option<[i64; 6]>);

impl Sound {
    fn of(path: &Path) -> Option<[i64; 6]> {
        let it = fs::symlink_metadata(path).ok()?;
        #[allow(clippy::cast_possible_wrap, reason = "compared alone")]
        Some([
            it.dev() as i64,
            it.ino() as i64,
            it.size() as i64,
            it.mtime_nsec(),
            it.ctime(),
            it.ctime_nsec(),
        ])
    }
}

impl Places {
    /// Puts plugin and configuration in their places, where they are not.
    ///
    /// # Errors
    /// A folder cannot be read or written.
    pub fn put(&self, sound: &mut Sound) -> io::Result<Installed> {
        self.put_plugin(sound)?;
        let Some((name, other)) = first_other(&self.networks)? else {
            remove_configurations(&self.networks, None)?;
            return Ok(Installed::NoNetwork);
        };
        let own = if name.as_str() < CHAINED { BEFORE_ALL } else { CHAINED };
        let chained = serde_json::to_string_pretty(&self.chained(other))?;
        let path = self.networks.join(own);
        if fs::read_to_string(&path).ok().as_deref() != Some(chained.as_str()) {
            replace(&path, &mut chained.as_bytes(), 0o600)?;
            tracing::info!(path = %path.display(), after = name, "the plugin is chained");
        }
        remove_configurations(&self.networks, Some(own))?;
        Ok(Installed::After(name))
    }

    fn put_plugin(&self, sound: &mut Sound) -> io::Result<()> {
        match fs::create_dir(&self.plugins) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = self.plugins.join(PLUGIN);
        let now = Sound::of(&path);
        if now.is_some() && now == sound.0 {
            return Ok(());
        }
        let mut program = File::open("/proc/self/exe")?;
        let runs = fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.mode() & 0o7777 == MODE);
        if !runs || !File::open(&path).and_then(|there| same(there, &program)).unwrap_or(false) {
            io::Seek::rewind(&mut program)?;
            // The old one may be running: its file stays whole until the new one bears its name.
            replace(&path, &mut program, MODE)?;
            tracing::info!(path = %path.display(), "the plugin is installed");
        }
        sound.0 = Sound::of(&path);
        Ok(())
    }

    /// `network` with this plugin at the end of its chain.
    fn chained(&self, mut network: Value) -> Value {
        let own = json!({
            "type": PLUGIN,
            "socket": self.socket,
            "exempt": self.exempt,
            "capabilities": { ANNOTATIONS: true },
        });
        match network.get_mut("plugins").and_then(Value::as_array_mut) {
            Some(plugins) => {
                plugins.push(own);
                network
            }
            // A configuration of one plugin, as a `.conf` file has it.
            None => json!({
                "cniVersion": network.get("cniVersion").cloned().unwrap_or_else(|| "0.3.1".into()),
                "name": network.get("name").cloned().unwrap_or_else(|| "pods".into()),
                "plugins": [network, own],
            }),
        }
    }

    /// Why nothing can be put there, for a person.
    fn why(&self, error: &io::Error) -> String {
        let above = [&self.plugins, &self.networks].into_iter().filter_map(|folder| folder.parent());
        // In a container a folder of the host's is seen as long as it is the one that was mounted.
        let mut removed = above.filter(|above| fs::metadata(above).is_ok_and(|it| it.nlink() == 0));
        match removed.next() {
            Some(folder) => format!(
                "{}, as it was when this agent started, was removed: delete the agent's pod, and the next one sees the new one",
                folder.display()
            ),
            None => error.to_string(),
        }
    }

    /// Keeps everything in its place on a thread of its own, until `others` says that another agent does, or the program
    /// ends.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn keep(self, others: Arc<AtomicBool>) -> io::Result<()> {
        std::thread::Builder::new().name("heddle-cni".into()).spawn(move || {
            let (signs, received) = channel();
            let mut watching = watcher(signs).ok();
            let (mut told, mut sound) = (None, Sound::default());
            while !others.load(Ordering::Acquire) {
                if let Some(watcher) = &mut watching {
                    for folder in [&self.networks, &self.plugins] {
                        // One that is removed and made anew is seen from the folder above it; what is missing is looked at
                        // without a sign.
                        for folder in [Some(folder.as_path()), folder.parent()].into_iter().flatten() {
                            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
                        }
                    }
                }
                let now = self.put(&mut sound).map_err(|error| self.why(&error));
                if told.as_ref() != Some(&now) {
                    match &now {
                        Ok(Installed::After(_)) => {}
                        Ok(Installed::NoNetwork) => tracing::warn!(
                            folder = %self.networks.display(),
                            "there is no network configuration to be chained to yet"
                        ),
                        Err(error) => tracing::error!(error, "the plugin cannot be installed"),
                    }
                    told = Some(now);
                }
                wait(&received);
            }
        })?;
        Ok(())
    }
}

/// Tells of changes in the folders that it is given, and not of what is read there.
fn watcher(signs: Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|it| !is_change(&it.kind)) {
            return;
        }
        // The thread that listens ends with the program.
        let _ = signs.send(());
    })
}

/// Whether two files hold the same. A program is too large to be held in memory for that.
fn same(mut one: File, mut other: &File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        let Some((left, right)) = left.get(..count).zip(right.get_mut(..count)) else { return Ok(false) };
        if let Err(error) = other.read_exact(right) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(error) };
        }
        if left != right {
            return Ok(false);
        }
    }
}

/// For a sign of change and the quiet after it, or for a while.
fn wait(signs: &Receiver<()>) {
    if signs.recv_timeout(LOOK).is_ok() {
        while signs.recv_timeout(Duration::from_millis(20)).is_ok() {}
    }
}

/// Takes the configuration away and then the plugin, in this order: a chain that names a plugin that is not there starts no
/// pod.
///
/// # Errors
/// A folder cannot be written.
pub fn uninstall(plugins: &Path, networks: &Path) -> io::Result<()> {
    remove_configurations(networks, None)?;
    match fs::remove_file(plugins.join(PLUGIN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_configurations(networks: &Path, but: Option<&str>) -> io::Result<()> {
    for name in [CHAINED, BEFORE_ALL].into_iter().filter(|name| Some(*name) != but) {
        match fs::remove_file(networks.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The configuration that the runtime would take if this plugin were not there.
fn first_other(networks: &Path) -> io::Result<Option<(String, Value)>> {
    let listed = match fs::read_dir(networks) {
        // It is its owner's to make.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        listed => listed?,
    };
    let mut names: Vec<String> = listed
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)))
        .filter(|name| ![CHAINED, BEFORE_ALL].contains(&name.as_str()))
        .collect();
    names.sort();
    for name in names {
        // The runtime passes over what it cannot read too.
        let text = fs::read(networks.join(&name))?;
        if let Ok(network @ Value::Object(_)) = serde_json::from_slice(&text) {
            return Ok(Some((name, network)));
        }
    }
    Ok(None)
}

fn replace(path: &Path, content: &mut dyn Read, mode: u32) -> io::Result<()> {
    // Of no ending that the runtime reads.
    let mut unborn = path.as_os_str().to_owned();
    unborn.push(".new");
    let unborn = PathBuf::from(unborn);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unborn)?;
    io::copy(content, &mut file)?;
    file.sync_all()?;
    fs::rename(&unborn, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_what_it_watches_comes_to_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("10-pods.conflist");
        fs::write(&path, "{}").unwrap();
        let (signs, received) = channel();
        let mut watcher = watcher(signs).unwrap();
        watcher.watch(folder.path(), RecursiveMode::NonRecursive).unwrap();
        fs::read(&path).unwrap();
        fs::read_dir(folder.path()).unwrap().count();
        assert!(received.recv_timeout(Duration::from_millis(300)).is_err(), "its own reading is no sign");
        fs::write(&path, "[]").unwrap();
        assert!(received.recv_timeout(Duration::from_secs(10)).is_ok(), "control: a change is one");
    }

    #[test]
    fn files_are_the_same_where_every_byte_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            File::open(path).unwrap()
        };
        let mut long = vec![7; 200_000];
        let one = file("one", &long);
        assert!(same(file("two", &long), &one).unwrap());
        let one = file("one", &long);
        long[199_999] = 8;
        assert!(!same(file("two", &long), &one).unwrap());
        assert!(!same(file("three", &long[..100]), &file("one", &long)).unwrap());
    }
}
