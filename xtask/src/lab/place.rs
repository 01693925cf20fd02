//! Where a program runs: a network namespace, a mount namespace, a cgroup, a user.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::Cgroup,
    program::{Output, Running},
};

/// Joins the cgroup, then becomes the program: a socket belongs for ever to the cgroup that it was made in.
const JOIN: &str = r#"echo 0 >"$1/cgroup.procs" || exit 126; shift; exec "$@""#;

/// Where a program runs. Cheap to clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    net: PathBuf,
    mount: Option<PathBuf>,
    cgroup: Cgroup,
    user: Option<u32>,
    /// The `/proc/<pid>` of the process that holds the mount namespace in which new namespaces are mounted.
    holder: PathBuf,
    directory: PathBuf,
}

impl Place {
    /// The namespaces of the process whose `/proc/<pid>` is `holder`.
    pub(super) fn new(holder: &str, directory: &Path, cgroup: Cgroup) -> Self {
        Self {
            net: Path::new(holder).join("ns/net"),
            mount: Some(Path::new(holder).join("ns/mnt")),
            cgroup,
            user: None,
            holder: holder.into(),
            directory: directory.to_owned(),
        }
    }

    /// Makes a network namespace that stays as long as this place's mount namespace does, and the place inside it
    /// (in the host's mount namespace, in the same cgroup).
    pub(super) fn new_netns(&self, name: &str) -> Result<Self> {
        let folder = self.directory.join("netns");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // The namespace is mounted upon its file in the holder's mount namespace only: the host sees an empty file.
        let status = Command::new("nsenter")
            .arg(format!("--mount={}", self.holder.join("ns/mnt").display()))
            .args(["unshare", &format!("--net={}", path.display()), "true"])
            .stdin(Stdio::null())
            .output()
            .context("cannot run nsenter")?;
        ensure!(
            status.status.success(),
            "cannot make network namespace {name}: {}",
            String::from_utf8_lossy(&status.stderr).trim()
        );
        let net = self.holder.join("root").join(path.strip_prefix("/")?);
        Ok(Self { net, mount: None, ..self.clone() })
    }

    /// Forgets a network namespace that [`Self::new_netns`] made. It goes when its last process and socket go.
    pub(super) fn delete_netns(&self, name: &str) -> Result<()> {
        let path = self.directory.join("netns").join(name);
        let output = Command::new("nsenter")
            .arg(format!("--mount={}", self.holder.join("ns/mnt").display()))
            .args(["umount", &path.display().to_string()])
            .output()
            .context("cannot run nsenter")?;
        ensure!(
            output.status.success(),
            "cannot delete network namespace {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        std::fs::remove_file(&path)?;
        Ok(())
    }

    /// The path of the namespace [`Self::new_netns`] made, for whoever is in the holder's mount namespace.
    pub(super) fn netns_path(&self, name: &str) -> PathBuf {
        self.directory.join("netns").join(name)
    }

    /// The same place, in another cgroup.
    #[must_use]
    pub fn in_cgroup(&self, cgroup: Cgroup) -> Self {
        Self { cgroup, ..self.clone() }
    }

    /// The same place, as another user and group without capabilities.
    #[must_use]
    pub fn as_user(&self, id: u32) -> Self {
        Self { user: Some(id), ..self.clone() }
    }

    /// The same cgroup, in a new network namespace without links: as a process in a pod could make one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn nested(&self, name: &str) -> Result<Self> {
        self.new_netns(name)
    }

    /// Its network namespace, as a path that this process can open.
    pub fn netns(&self) -> &Path {
        &self.net
    }

    /// The cgroup that programs are started in.
    pub const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The command that runs a program here; for whoever needs its own pipes.
    pub fn command<S: AsRef<str>>(&self, program: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.net.display()));
        let cgroup = match &self.mount {
            Some(mount) => {
                command.arg(format!("--mount={}", mount.display()));
                self.cgroup.path_in_node()
            }
            None => self.cgroup.path(),
        };
        command.args(["--", "sh", "-c", JOIN, "sh"]).arg(cgroup);
        if let Some(user) = self.user {
            command.args([
                "setpriv",
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
                "--",
            ]);
        }
        command.args(program.iter().map(AsRef::as_ref));
        // A user's PATH that went through sudo may lack the system's tools.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"));
        command
    }

    /// [`Self::command`] as a shell would be told it; `program` is put at its end as it is.
    pub fn shell_words(&self, program: &str) -> String {
        let command = self.command::<&str>(&[]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let quoted: Vec<String> =
            words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
        format!("{} {program}", quoted.join(" "))
    }

    /// Runs a program to its end, at most 30 seconds.
    ///
    /// # Errors
    /// When it cannot be started or does not end. That it failed is for the caller to see in the output.
    pub fn run<S: AsRef<str>>(&self, program: &[S]) -> Result<Output> {
        self.spawn(program)?.finish(Duration::from_secs(30))
    }

    /// Runs a program that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// As [`Self::run`], and with its standard error when it failed.
    pub fn check<S: AsRef<str>>(&self, program: &[S]) -> Result<String> {
        let output = self.run(program)?;
        ensure!(
            output.code == Some(0),
            "{} ended with {:?}: {}{}",
            program.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Runs a shell script that must succeed.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn shell(&self, script: &str) -> Result<String> {
        self.check(&["sh", "-ec", script])
    }

    /// Starts a program; it is killed when the handle is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<str>>(&self, program: &[S]) -> Result<Running> {
        let name = program.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        Running::start(self.command(program), name)
    }

    /// Runs `work` on a thread of its own inside the network namespace. The thread stays in this process's cgroup:
    /// sockets that it makes are no pod's, as far as programs attached to a node's cgroup can tell.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(&self.net).with_context(|| format!("cannot open {}", self.net.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the network namespace")?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}
