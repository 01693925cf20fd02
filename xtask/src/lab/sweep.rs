//! What a lab claims of the machine, and how it is given back: by its drop, by its janitor, by the next run.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::{self, Cgroup},
    place::Place,
};

/// Where labs keep their files: one folder each.
const LABS: &str = "/run/heddle-lab";
const JANITOR: &str = include_str!("janitor.sh");

/// The lock file of a lab: held while its owner lives, readable by people.
#[derive(Serialize, Deserialize)]
struct Card {
    name: String,
    pid: u32,
    kept: bool,
}

/// A lab's folder, its cgroup, the process that holds its mount namespace and the janitor that removes all three.
pub(super) struct Claim {
    id: String,
    directory: PathBuf,
    cgroup: Cgroup,
    holder: Place,
    janitor: Option<Child>,
    card: Card,
    // Released by the kernel when the owner dies, however it dies.
    lock: File,
}

impl Claim {
    pub(super) fn new(name: &str) -> Result<Self> {
        sweep(Some(name))?;
        let random =
            fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read a random name")?;
        let id = format!("heddle-{name}-{}", random.get(..6).unwrap_or("000000"));
        let directory = Path::new(LABS).join(&id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(LABS)
            .with_context(|| format!("cannot make {LABS}"))?;
        // Locked before it bears its name: a sweep never sees a living lab without its lock.
        let unborn = Path::new(LABS).join(format!(".{id}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&unborn)
            .with_context(|| format!("cannot make {}", unborn.display()))?;
        let card = Card { name: name.to_owned(), pid: std::process::id(), kept: false };
        let mut lock = OpenOptions::new().create_new(true).write(true).open(unborn.join("lab.json"))?;
        lock.write_all(&serde_json::to_vec(&card)?)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("cannot lock the lab's file")?;
        fs::rename(&unborn, &directory)?;

        let mounted = cgroup::mount_point()?;
        let holder = start_holder(&directory, mounted.is_none())?;
        let cgroup = match mounted {
            Some(root) => Cgroup::new(root.join(&id), root.join(&id)),
            None => Cgroup::new(
                Path::new(&format!("/proc/{holder}/root"))
                    .join(directory.strip_prefix("/")?)
                    .join("cgroup")
                    .join(&id),
                directory.join("cgroup").join(&id),
            ),
        };
        fs::create_dir(cgroup.path()).with_context(|| {
            format!("cannot make cgroup {}: the lab needs a writable cgroup v2 tree", cgroup.path().display())
        })?;
        let own = cgroup.child("lab")?;
        fs::write(own.path().join("cgroup.procs"), holder.to_string())?;
        let janitor = janitor(cgroup.path(), &directory, Stdio::piped())?;
        let holder = Place::new(&format!("/proc/{holder}"), &directory, own);
        Ok(Self { id, directory, cgroup, holder, janitor: Some(janitor), card, lock })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The lab's own mount namespace: what belongs to no node is held there.
    pub(super) const fn place(&self) -> &Place {
        &self.holder
    }

    pub(super) fn keep(&mut self) -> Result<()> {
        self.card.kept = true;
        let path = self.directory.join("lab.json");
        fs::write(&path, serde_json::to_vec(&self.card)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut janitor = self.janitor.take().context("the lab is removed already")?;
        janitor.stdin.take().context("the janitor has no standard input")?.write_all(b"keep\n")?;
        janitor.wait()?;
        Ok(())
    }

    /// Removes everything; it is gone when this returns.
    pub(super) fn release(&mut self) -> Result<()> {
        let Some(mut janitor) = self.janitor.take() else { return Ok(()) };
        if let Some(mut stdin) = janitor.stdin.take() {
            // "now" rather than a closed pipe: the janitor then knows that nobody needs to be told.
            stdin.write_all(b"now\n")?;
        }
        let status = janitor.wait()?;
        ensure!(
            status.success(),
            "lab {} could not be removed whole: the janitor ended with {status}",
            self.id
        );
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            eprintln!("{error:#}");
        }
        // A sweep must find the lock free only when there is nothing left to do.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            eprintln!("cannot unlock the file of lab {}: {error}", self.id);
        }
    }
}

/// A process that keeps a mount namespace, and the mounts that the lab makes in it, alive.
fn start_holder(directory: &Path, mount_cgroup: bool) -> Result<u32> {
    let script = if mount_cgroup {
        "mkdir -p \"$1/cgroup\" && mount -t cgroup2 none \"$1/cgroup\" && echo ready && exec sleep infinity"
    } else {
        "echo ready && exec sleep infinity"
    };
    hold(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "holder"])
            .arg(directory),
    )
}

/// Starts a holder and waits for its word. It is ended with its cgroup, so nobody waits for it.
pub(super) fn hold(command: &mut Command) -> Result<u32> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start a process that holds a namespace")?;
    let mut word = [0u8; 6];
    let told = child.stdout.take().context("no pipe")?.read_exact(&mut word);
    if told.is_err() || &word != b"ready\n" {
        let mut why = String::new();
        child.stderr.take().context("no pipe")?.read_to_string(&mut why)?;
        child.wait()?;
        anyhow::bail!("cannot make a namespace: {}", why.trim());
    }
    let pid = child.id();
    // Reaped when it ends, so that its cgroup is not held by a zombie of ours.
    std::thread::Builder::new().name("holder".into()).spawn(move || child.wait())?;
    Ok(pid)
}

fn janitor(cgroup: &Path, directory: &Path, stdin: Stdio) -> Result<Child> {
    Command::new("sh")
        .args(["-c", JANITOR, "heddle-janitor"])
        .arg(cgroup)
        .arg(directory)
        .env("HEDDLE_JANITOR", JANITOR)
        .stdin(stdin)
        .stdout(Stdio::null())
        // Out of reach of the terminal's Ctrl-C: it is what cleans up after one.
        .process_group(0)
        .spawn()
        .context("cannot start the janitor")
}

/// Removes what labs left whose owners are dead; kept ones only if their name is `name`.
fn sweep(name: Option<&str>) -> Result<usize> {
    let mut removed = 0;
    for directory in lab_directories()? {
        let path = directory.join("lab.json");
        let card = match File::open(&path) {
            Ok(mut file) => {
                if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                serde_json::from_str::<Card>(&text).ok()
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        if card.is_some_and(|card| card.kept && Some(card.name.as_str()) != name) {
            continue;
        }
        let Some(id) = directory.file_name() else { continue };
        let cgroup = cgroup::mount_point()?.map_or_else(PathBuf::new, |root| root.join(id));
        let status = janitor(&cgroup, &directory, Stdio::null())?.wait()?;
        ensure!(
            status.success(),
            "cannot remove what {} left: the janitor ended with {status}",
            directory.display()
        );
        removed += 1;
    }
    Ok(removed)
}

/// Removes the kept labs of this name, and whatever dead runs left. Returns how many were removed.
///
/// # Errors
/// When not root, or when something cannot be removed.
pub fn remove_kept(name: &str) -> Result<usize> {
    ensure!(rustix::process::geteuid().is_root(), "a lab can be removed by root only; run it with sudo");
    sweep(Some(name))
}

/// The folders of the kept labs of this name.
///
/// # Errors
/// When they cannot be listed.
pub fn kept(name: &str) -> Result<Vec<PathBuf>> {
    let card = |directory: &PathBuf| -> Option<Card> {
        serde_json::from_slice(&fs::read(directory.join("lab.json")).ok()?).ok()
    };
    let of_name = |directory: &PathBuf| card(directory).is_some_and(|card| card.kept && card.name == name);
    Ok(lab_directories()?.into_iter().filter(of_name).collect())
}

/// Whether a lab of this id is there, alive or not yet swept.
pub fn exists(id: &str) -> bool {
    Path::new(LABS).join(id).exists()
}

fn lab_directories() -> Result<Vec<PathBuf>> {
    match fs::read_dir(LABS) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.path()))
            .filter(|path| path.as_ref().is_ok_and(|path| path.file_name().is_some_and(is_lab)))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {LABS}")),
    }
}

fn is_lab(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"heddle-")
}

/// What a machine shows of labs and agents: compare before and after.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traces {
    /// Folders under `/run/heddle-lab`.
    pub directories: BTreeSet<String>,
    /// Children of the cgroup v2 root whose names begin with `heddle`.
    pub cgroups: BTreeSet<String>,
    /// Mount points of this mount namespace.
    pub mounts: BTreeSet<String>,
    /// Links of this network namespace.
    pub links: BTreeSet<String>,
    /// Network and mount namespaces that some process is in.
    pub namespaces: BTreeSet<String>,
    /// Entries of `/sys/fs/bpf`.
    pub pins: BTreeSet<String>,
    /// Settings of this network namespace that a careless lab would change.
    pub sysctls: BTreeSet<String>,
}

impl Traces {
    /// The machine as it is now.
    ///
    /// # Errors
    /// When `/proc` or `/sys` cannot be read.
    pub fn now() -> Result<Self> {
        let names = |path: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            for kind in ["net", "mnt"] {
                // A process may end between the listing and the reading.
                if let Ok(link) = fs::read_link(entry.path().join("ns").join(kind)) {
                    namespaces.insert(link.to_string_lossy().into_owned());
                }
            }
        }
        let sysctls = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"]
            .into_iter()
            .map(|name| {
                let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
                format!("{name}={}", value.trim())
            })
            .collect();
        Ok(Self {
            directories: lab_directories()?.iter().map(|path| path.display().to_string()).collect(),
            cgroups: match cgroup::mount_point()? {
                Some(root) => {
                    let mut found = names(&root.to_string_lossy());
                    found.retain(|name| name.starts_with("heddle"));
                    found
                }
                None => BTreeSet::new(),
            },
            mounts: fs::read_to_string("/proc/self/mountinfo")?
                .lines()
                .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
                .collect(),
            links: names("/sys/class/net"),
            namespaces,
            pins: names("/sys/fs/bpf"),
            sysctls,
        })
    }

    /// What is in `self` and not in `before`. Other programs may have come meanwhile: compare on a quiet machine.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect();
        Self {
            directories: new(&self.directories, &before.directories),
            cgroups: new(&self.cgroups, &before.cgroups),
            mounts: new(&self.mounts, &before.mounts),
            links: new(&self.links, &before.links),
            namespaces: new(&self.namespaces, &before.namespaces),
            pins: new(&self.pins, &before.pins),
            sysctls: new(&self.sysctls, &before.sysctls),
        }
    }

    /// What bears the name of one lab.
    pub(super) fn of_lab(id: &str) -> Result<Self> {
        let keep = |set: BTreeSet<String>| set.into_iter().filter(|name| name.contains(id)).collect();
        let now = Self::now()?;
        Ok(Self {
            directories: keep(now.directories),
            cgroups: keep(now.cgroups),
            mounts: keep(now.mounts),
            links: keep(now.links),
            pins: keep(now.pins),
            ..Self::default()
        })
    }

    /// Nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
