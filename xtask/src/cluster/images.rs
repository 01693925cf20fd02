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
/// Redis and etcd, with the clients of both.
pub const STORES: &str = "heddle.local/stores:1";
/// Prometheus.
pub const PROMETHEUS: &str = "heddle.local/prometheus:1";

/// The target of a static binary: with the target named, the flags are not for build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROGRAMS: [&str; 9] = ["sh", "sleep", "cat", "ls", "env", "curl", "nginx", "socat", "timeout"];
const RUNS: &str = "FROM scratch\nCOPY root /\nCMD [\"/bin/sleep\", \"infinity\"]\n";

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
        let search = crate::tools::path(workspace)?;
        self.apps(&search)?;
        self.workloads(&Programs::of(workspace), &search)
    }

    /// The folder of an image's files, emptied.
    fn stage(&self, name: &str) -> Result<Stage> {
        let stage = Stage { root: self.folder.join(name).join("root") };
        if stage.root.exists() {
            fs::remove_dir_all(&stage.root)?;
        }
        stage.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
        stage.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
        stage.folder("tmp")?;
        fs::write(self.folder.join(name).join("Dockerfile"), RUNS)?;
        Ok(stage)
    }

    /// What is unpacked of Debian's, beside the programs by which it is asked.
    fn workloads(&self, programs: &Programs, search: &OsString) -> Result<()> {
        let debian = programs.workloads();
        let stores = self.stage("stores")?;
        for program in ["sh", "sleep", "cat", "curl", "timeout"] {
            stores.with_libraries(&found(program, search)?, &Path::new("bin").join(program))?;
        }
        for program in ["redis-server", "redis-cli", "etcdctl"] {
            let file = debian.join("usr/bin").join(program);
            stores.with_libraries_of(debian, &file, &Path::new("bin").join(program))?;
        }
        stores.with_libraries(Path::new(&programs.etcd()), Path::new("bin/etcd"))?;
        let prometheus = self.stage("prometheus")?;
        let file = debian.join("usr/bin/prometheus");
        prometheus.with_libraries_of(debian, &file, Path::new("bin/prometheus"))
    }

    /// The static binary that the image holds.
    pub fn heddle(&self) -> PathBuf {
        self.folder.join("heddle/heddle")
    }

    /// Debian's own programs, as they are on this machine.
    fn apps(&self, search: &OsString) -> Result<()> {
        let stage = self.stage("apps")?;
        for program in PROGRAMS {
            stage.with_libraries(&found(program, search)?, &Path::new("bin").join(program))?;
        }
        for folder in ["var/log/nginx", "var/lib/nginx", "run"] {
            stage.folder(folder)?;
        }
        stage.write(
            "etc/nginx.conf",
            "daemon off; error_log /dev/stderr; pid /tmp/nginx.pid; events {}\n\
             http { access_log off; server { listen 8080; listen [::]:8080; location / { return 200 \"served $remote_addr $request_uri $hostname\\n\"; } } }\n",
        )
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
            (STORES, of("stores/Dockerfile"), of("stores")),
            (PROMETHEUS, of("prometheus/Dockerfile"), of("prometheus")),
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
