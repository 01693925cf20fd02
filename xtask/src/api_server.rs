//! A real kube-apiserver and etcd on this machine's loopback, without nodes and controllers: for tests of what an API
//! server takes, refuses and tells. `cargo xtask cluster` has put both into the cache.

use crate::lab::eventually;
use anyhow::{Context, Result, anyhow, ensure};
use std::{
    env, fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

const TOKEN: &str = "of-a-server-that-lives-for-one-test";
/// Patience with a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// An API server, gone with this value.
pub struct ApiServer {
    folder: tempfile::TempDir,
    kubectl: PathBuf,
    port: u16,
    children: Vec<Child>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the newest Kubernetes in the cache is, and etcd.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    let folder = cache.join("heddle/kubernetes");
    let versions = fs::read_dir(&folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let kubernetes = versions.filter(|it| it.join("kube-apiserver").exists()).max()?;
    let etcd = [folder.join("debian/usr/bin/etcd"), PathBuf::from("/usr/bin/etcd")];
    Some((kubernetes, etcd.into_iter().find(|it| it.exists())?))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl ApiServer {
    /// Starts one and waits until it is ready. None, and why is told, where there is no kube-apiserver.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start() -> Result<Option<Self>> {
        let Some((kubernetes, etcd)) = programs() else {
            eprintln!("not applicable: there is no kube-apiserver or no etcd in ~/.cache/heddle/kubernetes");
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let key = rcgen::KeyPair::generate()?;
        fs::write(at("accounts.key"), key.serialize_pem())?;
        fs::write(at("accounts.pub"), key.public_key_pem())?;
        fs::write(at("tokens.csv"), format!("{TOKEN},test,test,system:masters\n"))?;
        let (port, client, peer) = (free_port()?, free_port()?, free_port()?);
        let run = |program: &Path, log: &str, arguments: &[String]| -> Result<Child> {
            let log = fs::File::create(at(log))?;
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))
        };
        let etcd = run(
            &etcd,
            "etcd.log",
            &[
                format!("--data-dir={}", at("etcd").display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        let api = run(
            &kubernetes.join("kube-apiserver"),
            "api.log",
            &[
                format!("--etcd-servers=http://127.0.0.1:{client}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", at("certificates").display()),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("accounts.pub").display()),
                format!("--service-account-signing-key-file={}", at("accounts.key").display()),
                format!("--token-auth-file={}", at("tokens.csv").display()),
                "--authorization-mode=RBAC".to_owned(),
                "--allow-privileged".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                // No controller makes the accounts that pods are given.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ],
        )?;
        let it = Self { kubectl: kubernetes.join("kubectl"), port, children: vec![etcd, api], folder };
        let ready = || Ok(it.kubectl(&["get", "--raw", "/readyz"], "")?.status.success());
        if let Err(error) = eventually("an API server that is ready", PATIENCE, ready) {
            let log = fs::read_to_string(it.folder.path().join("api.log")).unwrap_or_default();
            return Err(anyhow!("{error}: {}", log.lines().last().unwrap_or_default()));
        }
        Ok(Some(it))
    }

    /// Runs kubectl as one who may do everything.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(&self.kubectl)
            .arg(format!("--server=https://127.0.0.1:{}", self.port))
            .args(["--insecure-skip-tls-verify", "--token", TOKEN])
            .args(arguments)
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that takes no input may have ended already.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// Runs kubectl, which must succeed, and gives what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn check(&self, arguments: &[&str], input: &str) -> Result<String> {
        let out = self.kubectl(arguments, input)?;
        ensure!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Writes a kubeconfig: of one who may do everything, or who acts as `user`, with just what that one may.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig(&self, user: Option<&str>) -> Result<PathBuf> {
        let path =
            self.folder.path().join(format!("kubeconfig-{}", user.unwrap_or("all").replace([':', '/'], "-")));
        let mut who = serde_json::json!({"token": TOKEN});
        if let Some(user) = user {
            who["as"] = user.into();
        }
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "it", "user": who}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// A folder that is gone with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
