//! The programs of a cluster, built or fetched once and kept in the cache: Kubernetes from its own Go modules, etcd,
//! containerd, runc and the CNI's reference plugins from Debian. Nothing is installed: each of Debian's would start a
//! server on the machine.

use crate::workspace::Workspace;
use crate::{apt, command};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::chart;

/// What the module in `kubernetes/` requires.
const VERSION: &str = "v1.34.4";
const MODULE: [(&str, &str); 3] = [
    ("main.go", include_str!("kubernetes/main.go")),
    ("go.mod", include_str!("kubernetes/go.mod")),
    ("go.sum", include_str!("kubernetes/go.sum")),
];
/// The names under which the one binary is a program.
const NAMES: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];
/// The cluster's DNS server.
const COREDNS: &str = "v1.14.7";
/// Whose CustomResourceDefinitions are put into the cluster.
const GATEWAY_API: &str = "v1.3.0";
const DEBIAN: [&str; 4] = ["etcd-server", "containerd", "runc", "containernetworking-plugins"];
/// What pods of the cluster's tests run, with the libraries that Debian's other packages do not bring.
const WORKLOADS: [&str; 6] =
    ["redis-server", "redis-tools", "liblzf1", "libjemalloc2", "etcd-client", "prometheus"];

/// Where the programs are.
pub struct Programs {
    kubernetes: PathBuf,
    debian: PathBuf,
    workloads: PathBuf,
    helm: PathBuf,
    coredns: PathBuf,
    gateway_api: PathBuf,
}

impl Programs {
    /// Builds and fetches what is not there yet.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let programs = Self::of(workspace);
        for (packages, folder) in [(&DEBIAN[..], &programs.debian), (&WORKLOADS, &programs.workloads)] {
            if !folder.is_dir() {
                eprintln!("fetching {} into {}", packages.join(", "), folder.display());
                apt::update_if_empty()?;
                let packages: Vec<String> = packages.iter().map(|it| (*it).to_owned()).collect();
                apt::unpack(&packages, folder, &[])?;
            }
        }
        programs.build(&workspace.cache.join("kubernetes"))?;
        let helm = format!("helm.sh/helm/v3/cmd/helm@{}", chart::VERSION);
        build(&programs.helm, &helm, "about 5 minutes of a core's time")?;
        let coredns = format!("github.com/coredns/coredns@{COREDNS}");
        build(&programs.coredns, &coredns, "about 4 minutes of a core's time")?;
        programs.fetch_gateway_api()?;
        Ok(programs)
    }

    /// Where they are once [`Self::prepare`] has been called.
    pub fn of(workspace: &Workspace) -> Self {
        let folder = workspace.cache.join("kubernetes");
        Self {
            kubernetes: folder.join(VERSION),
            debian: folder.join("debian"),
            workloads: folder.join("workloads"),
            helm: chart::helm(&folder),
            coredns: folder.join(format!("coredns-{COREDNS}/coredns")),
            gateway_api: folder.join(format!("gateway-api-{GATEWAY_API}")),
        }
    }

    fn build(&self, folder: &Path) -> Result<()> {
        if NAMES.iter().all(|name| self.kubernetes.join(name).exists()) {
            return Ok(());
        }
        if command::find("go").is_none() {
            bail!(
                "Kubernetes {VERSION} is built from its Go modules, and there is no go in PATH: install Go 1.24 or newer"
            );
        }
        eprintln!(
            "building Kubernetes {VERSION}, once: about 13 minutes of a core's time and 1 GB of Go modules"
        );
        let source = folder.join("source");
        fs::create_dir_all(&source)?;
        for (name, text) in MODULE {
            fs::write(source.join(name), text)?;
        }
        let built = folder.join("kubernetes.partial");
        command::run(
            Command::new("go")
                .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o"])
                .arg(&built)
                .arg(format!(
                    "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion={VERSION} \
                     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
                ))
                .arg(".")
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "")
                .current_dir(&source),
        )?;
        fs::create_dir_all(&self.kubernetes)?;
        fs::rename(&built, self.kubernetes.join("kubernetes"))?;
        for name in NAMES {
            let link = self.kubernetes.join(name);
            if !link.exists() {
                symlink("kubernetes", &link).with_context(|| format!("cannot make {}", link.display()))?;
            }
        }
        Ok(())
    }

    /// The standard kinds of the Gateway API, as they come with its Go module.
    fn fetch_gateway_api(&self) -> Result<()> {
        if self.gateway_api.is_dir() {
            return Ok(());
        }
        let mut fetch = go()?;
        fetch.args(["mod", "download", "-json", &format!("sigs.k8s.io/gateway-api@{GATEWAY_API}")]);
        // Outside any module.
        let told = command::output(fetch.current_dir("/"))?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        let folder = told.get("Dir").and_then(serde_json::Value::as_str).context("go names no folder")?;
        let partial = PathBuf::from(format!("{}.partial", self.gateway_api.display()));
        fs::create_dir_all(&partial)?;
        for file in fs::read_dir(Path::new(folder).join("config/crd/standard"))? {
            let file = file?;
            fs::copy(file.path(), partial.join(file.file_name()))?;
        }
        fs::rename(&partial, &self.gateway_api)
            .with_context(|| format!("cannot make {}", self.gateway_api.display()))
    }

    /// CoreDNS, statically linked.
    pub fn coredns(&self) -> &Path {
        &self.coredns
    }

    /// The folder of the Gateway API's kinds.
    pub fn gateway_api(&self) -> &Path {
        &self.gateway_api
    }

    /// helm.
    pub fn helm(&self) -> &Path {
        &self.helm
    }

    /// One of Kubernetes' programs.
    pub fn kubernetes(&self, name: &str) -> String {
        self.kubernetes.join(name).display().to_string()
    }

    /// etcd.
    pub fn etcd(&self) -> String {
        self.debian.join("usr/bin/etcd").display().to_string()
    }

    /// containerd.
    pub fn containerd(&self) -> String {
        self.debian.join("usr/bin/containerd").display().to_string()
    }

    /// containerd's client.
    pub fn ctr(&self) -> String {
        self.debian.join("usr/bin/ctr").display().to_string()
    }

    /// runc.
    pub fn runc(&self) -> String {
        self.debian.join("usr/sbin/runc").display().to_string()
    }

    /// The folder of the CNI's reference plugins.
    pub fn plugins(&self) -> PathBuf {
        self.debian.join("usr/lib/cni")
    }

    /// The folder of what the tests' pods run: Redis, etcd's client, Prometheus.
    pub fn workloads(&self) -> &Path {
        &self.workloads
    }

    /// PATH for programs that start these.
    pub fn path(&self) -> String {
        let own = std::env::var("PATH").unwrap_or_default();
        format!("{0}/usr/bin:{0}/usr/sbin:{own}:/usr/sbin:/sbin:/usr/bin:/bin", self.debian.display())
    }
}

fn go() -> Result<Command> {
    if command::find("go").is_none() {
        bail!("there is no go in PATH: install Go 1.24 or newer");
    }
    let mut go = Command::new("go");
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "");
    Ok(go)
}

/// Builds a program from its Go module, whose sum the module's own database vouches for, unless it is there.
fn build(program: &Path, module: &str, takes: &str) -> Result<()> {
    let Some(folder) = program.parent().filter(|_| !program.exists()) else { return Ok(()) };
    eprintln!("building {module}, once: {takes}");
    // Not by extension: a version has dots.
    let built = PathBuf::from(format!("{}.partial", folder.display()));
    command::run(
        go()?.args(["install", "-trimpath", "-ldflags=-s -w", module]).env("GOBIN", &built).current_dir("/"),
    )?;
    fs::rename(&built, folder).with_context(|| format!("cannot make {}", folder.display()))
}
