//! The images that the cluster runs, built from this tree by buildah and given to the nodes' container runtime: there is no
//! registry.

use super::node::PAUSE;
use super::programs::Programs;
use super::state::State;
use crate::command;
use crate::stage::{Stage, found};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Heddle's own image, as `deploy/kubernetes/heddle.yaml` names it.
pub const HEDDLE: &str = "docker.io/library/heddle:0.1.0";
/// The cluster's DNS server.
pub const COREDNS: &str = "heddle.local/coredns:1";
/// What the cluster's tests run.
pub const APPS: &str = "heddle.local/apps:1";

/// The target of a static binary: with the target named, the flags are not for build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROGRAMS: [&str; 9] = ["sh", "sleep", "cat", "ls", "env", "curl", "nginx", "socat", "timeout"];

/// The folders that images are made from, and the archives that they become.
pub struct Images {
    root: PathBuf,
    folder: PathBuf,
    cache: PathBuf,
}

impl Images {
    /// In the tree's target folder.
    pub fn of(workspace: &Workspace) -> Self {
        Self {
            root: workspace.root.clone(),
            folder: workspace.target.join("images"),
            cache: workspace.cache.join("kubernetes/buildah"),
        }
    }

    /// Builds the programs that go into the images, as the caller.
    pub fn prepare(&self, workspace: &Workspace, release: bool) -> Result<()> {
        let mut build = workspace.cargo();
        build.args(["build", "--package", "heddle", "--target", TARGET]);
        if release {
            build.arg("--release");
        }
        command::run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
        let profile = if release { "release" } else { "debug" };
        let built = workspace.target.join(TARGET).join(profile).join("heddle");
        let heddle = Stage { root: self.folder.join("heddle") };
        heddle.stripped(&built, Path::new("heddle"), "x86_64-linux-gnu")?;

        let pause = self.folder.join("pause");
        fs::create_dir_all(&pause)?;
        let source = workspace.root.join("xtask/src/cluster/pause.rs");
        command::run(
            Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                .args(["-O", "-C", "target-feature=+crt-static", "--target", TARGET, "-o"])
                .arg(pause.join("pause"))
                .arg(source),
        )?;
        fs::write(pause.join("Dockerfile"), "FROM scratch\nCOPY pause /pause\nENTRYPOINT [\"/pause\"]\n")?;
        let coredns = self.folder.join("coredns");
        fs::create_dir_all(&coredns)?;
        fs::copy(Programs::of(workspace).coredns(), coredns.join("coredns"))?;
        fs::write(
            coredns.join("Dockerfile"),
            "FROM scratch\nCOPY coredns /coredns\nUSER 65532:65532\nENTRYPOINT [\"/coredns\"]\n",
        )?;
        self.apps(&crate::tools::path(workspace)?)
    }

    /// The static binary that the image holds.
    pub fn heddle(&self) -> PathBuf {
        self.folder.join("heddle/heddle")
    }

    /// Debian's own programs, as they are on this machine.
    fn apps(&self, search: &OsString) -> Result<()> {
        let context = self.folder.join("apps");
        let stage = Stage { root: context.join("root") };
        if stage.root.exists() {
            fs::remove_dir_all(&stage.root)?;
        }
        for program in PROGRAMS {
            stage.with_libraries(&found(program, search)?, &Path::new("bin").join(program))?;
        }
        stage.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
        stage.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
        for folder in ["tmp", "var/log/nginx", "var/lib/nginx", "run"] {
            stage.folder(folder)?;
        }
        stage.write(
            "etc/nginx.conf",
            "daemon off; error_log /dev/stderr; pid /tmp/nginx.pid; events {}\n\
             http { access_log off; server { listen 8080; location / { return 200 \"served $remote_addr $request_uri $hostname\\n\"; } } }\n",
        )?;
        fs::write(
            context.join("Dockerfile"),
            "FROM scratch\nCOPY root /\nCMD [\"/bin/sleep\", \"infinity\"]\n",
        )?;
        Ok(())
    }

    /// Builds an image of a folder. As root.
    fn build(&self, name: &str, file: &Path, context: &Path) -> Result<PathBuf> {
        let archive = self.folder.join(format!("{}.tar", name.replace(['/', ':'], "-")));
        let buildah = || {
            let mut buildah = Command::new("buildah");
            buildah.args(["--storage-driver", "vfs", "--root"]).arg(&self.cache);
            buildah.arg("--runroot").arg(self.cache.with_extension("run"));
            buildah
        };
        command::output(
            buildah()
                .args(["bud", "--isolation", "chroot", "--quiet", "--tag", name, "--file"])
                .arg(file)
                .arg(context),
        )?;
        // An archive is never written over.
        if archive.exists() {
            fs::remove_file(&archive)?;
        }
        command::output(
            buildah()
                .args(["push", "--quiet", name])
                .arg(format!("docker-archive:{}:{name}", archive.display())),
        )?;
        Ok(archive)
    }

    /// Builds every image and gives it to every node.
    pub fn load(&self, state: &State, programs: &Programs) -> Result<()> {
        let heddle = self.root.join("deploy/Dockerfile");
        let of = |name: &str| self.folder.join(name);
        for (name, file, context) in [
            (PAUSE, of("pause/Dockerfile"), of("pause")),
            (HEDDLE, heddle, of("heddle")),
            (COREDNS, of("coredns/Dockerfile"), of("coredns")),
            (APPS, of("apps/Dockerfile"), of("apps")),
        ] {
            let archive = self.build(name, &file, &context).with_context(|| format!("image {name}"))?;
            for place in state.nodes.values() {
                place.check(&[
                    programs.ctr(),
                    "--namespace=k8s.io".to_owned(),
                    "images".to_owned(),
                    "import".to_owned(),
                    "--snapshotter=native".to_owned(),
                    archive.display().to_string(),
                ])?;
            }
        }
        // The layers of every build before.
        fs::remove_dir_all(&self.cache).with_context(|| format!("cannot clear {}", self.cache.display()))
    }
}
