//! A real authority beside the lab's agents, and whoever asks it by hand.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use heddle::cli::ca::rpc::{IssueRequest, certificate_authority_client::CertificateAuthorityClient};
use heddle_identity::{IdentityNaming, TlsSettings, Trust, anchors_from_pem, authority_client};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use serde_json::Value;
use tonic::{Request, Status, transport::Endpoint};
use xtask::lab::{Lab, Place, Running, Settings, eventually};

/// Where the authority listens: an address of the router's, which both nodes reach.
pub const ADDRESS: &str = "10.79.1.1";

/// Long enough for a slow machine; a test that passes never waits so long.
pub const SOON: Duration = Duration::from_secs(30);

/// Keys, tokens and a bundle of a lab's authority.
pub struct Ceremony {
    heddle: PathBuf,
    place: Place,
    manifests: PathBuf,
    /// What the commands made.
    pub directory: PathBuf,
}

impl Ceremony {
    /// A root, an issuer, the agents' key and a token for each node, all by `heddle ca`'s own commands.
    pub fn hold(lab: &Lab) -> Result<Self> {
        let ceremony = Self {
            heddle: lab.heddle()?,
            place: lab.router().clone(),
            manifests: lab.manifests().directory().to_owned(),
            directory: lab.directory().join("authority"),
        };
        std::fs::create_dir_all(&ceremony.directory)?;
        ceremony.root("root")?;
        ceremony.issuer("root", "issuer")?;
        ceremony.heddle(&["ca", "agents-key", "--directory", &ceremony.path("agents")])?;
        for node in lab.nodes() {
            ceremony.token(&node.name, "1h")?;
        }
        std::fs::copy(ceremony.directory.join("root/ca.crt"), ceremony.bundle())?;
        Ok(ceremony)
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// The anchors that the agents follow.
    pub fn bundle(&self) -> PathBuf {
        self.directory.join("bundle.pem")
    }

    /// Puts other anchors into the agents' bundle, as a mounted ConfigMap changes: all at once.
    pub fn trust(&self, roots: &[&str]) -> Result<()> {
        let mut text = String::new();
        for root in roots {
            text += &std::fs::read_to_string(self.directory.join(root).join("ca.crt"))?;
        }
        let fresh = self.directory.join("bundle.fresh");
        std::fs::write(&fresh, text)?;
        Ok(std::fs::rename(fresh, self.bundle())?)
    }

    /// Runs a command of `heddle` that must succeed.
    pub fn heddle(&self, arguments: &[&str]) -> Result<String> {
        let program = self.heddle.display().to_string();
        self.place.check(&[&[program.as_str()], arguments].concat())
    }

    pub fn root(&self, name: &str) -> Result<()> {
        self.heddle(&["ca", "init", "--directory", &self.path(name)]).map(drop)
    }

    pub fn issuer(&self, root: &str, name: &str) -> Result<()> {
        self.heddle(&["ca", "issuer", "--root", &self.path(root), "--directory", &self.path(name)]).map(drop)
    }

    /// Signs a token for a node's agent and puts it where that agent reads it.
    pub fn token(&self, node: &str, lifetime: &str) -> Result<String> {
        let key = self.path("agents/agents.key");
        let token = self.heddle(&["ca", "token", "--key", &key, "--node", node, "--lifetime", lifetime])?;
        let path = self.directory.join(format!("{node}.token"));
        std::fs::write(&path, &token)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400))?;
        Ok(token.trim().to_owned())
    }

    /// Starts a replica that issues with the keys of `issuer`.
    pub fn serve(&self, issuer: &str, port: u16, more: &[&str]) -> Result<Running> {
        let program = self.heddle.display().to_string();
        let (keys, listen) = (self.path(issuer), format!("[::]:{port}"));
        let (manifests, agents) = (self.manifests.display().to_string(), self.path("agents/agents.pub"));
        let arguments = [
            program.as_str(),
            "ca",
            "serve",
            "--keys",
            &keys,
            "--listen",
            &listen,
            "--manifests",
            &manifests,
            "--agents-key",
            &agents,
            "--log-format",
            "json",
        ];
        let running = self.place.spawn(&[&arguments, more].concat())?;
        running.wait_for_complaint("is ready", SOON)?;
        Ok(running)
    }

    /// A node's agent's settings, with this authority.
    pub fn settings(&self, base: &Settings, node: &str, port: u16) -> Settings {
        let mut settings = base.clone();
        settings.set(
            "ca",
            serde_json::json!({
                "url": format!("https://{ADDRESS}:{port}"),
                "trustBundle": self.bundle(),
                "tokenFile": self.directory.join(format!("{node}.token")),
            }),
        );
        settings
    }

    /// Starts every node's agent with this authority and attaches the pods.
    pub fn start_agents(&self, lab: &mut Lab, port: u16) -> Result<()> {
        let base = lab.settings().clone();
        let heddle = lab.heddle()?;
        let nodes: Vec<String> = lab.nodes().map(|node| node.name.clone()).collect();
        for node in nodes {
            lab.agent(&node)?.start(&heddle, &self.settings(&base, &node, port))?;
            lab.start_agent(&node)?;
        }
        Ok(())
    }
}

/// The records of an authority's audit for which `wanted` holds.
pub fn audited(authority: &Running, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let lines = authority.stderr();
    let records = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter(|record| record.get("target") == Some(&"heddle::ca::audit".into()) && wanted(record))
        .collect()
}

/// Waits for a record of an authority's audit with these fields.
pub fn recorded(authority: &Running, fields: &[(&str, &str)]) -> Result<Value> {
    let matches = |record: &Value| {
        fields.iter().all(|(field, value)| record.get(*field).and_then(Value::as_str) == Some(*value))
    };
    eventually(&format!("the record {fields:?}"), SOON, || Ok(!audited(authority, matches).is_empty()))?;
    audited(authority, matches).pop().context("the record is gone")
}

/// What somebody asks the authority for by hand.
#[derive(Clone)]
pub struct Asking {
    pub token: String,
    pub node: String,
    pub namespace: String,
    pub account: String,
    pub csr: Vec<u8>,
}

impl Asking {
    /// As an agent would, with a fresh key.
    pub fn properly(token: &str, node: &str, account: &str) -> Result<Self> {
        Ok(Self {
            token: token.into(),
            node: node.into(),
            namespace: "shop".into(),
            account: account.into(),
            csr: csr(&KeyPair::generate()?, account, |_| {})?,
        })
    }
}

/// A request of an account of `shop`, but for what `change` does to it.
pub fn csr(key: &KeyPair, account: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let [dns, uri] = super::peers::names(account);
    params.subject_alt_names =
        vec![SanType::DnsName(dns.as_str().try_into()?), SanType::URI(uri.as_str().try_into()?)];
    change(&mut params);
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Somebody who can reach the authority from a place of the lab.
pub struct Asker {
    /// `None`: where the test is.
    place: Option<Place>,
    bundle: PathBuf,
    to: SocketAddr,
}

impl Asker {
    pub fn at(place: &Place, bundle: &Path, port: u16) -> Result<Self> {
        Ok(Self {
            place: Some(place.clone()),
            bundle: bundle.into(),
            to: (ADDRESS.parse::<std::net::IpAddr>()?, port).into(),
        })
    }

    /// One who asks from where the test is.
    pub fn here(bundle: &Path, to: SocketAddr) -> Self {
        Self { place: None, bundle: bundle.into(), to }
    }

    /// Asks once: the chain, or how it was refused.
    pub fn ask(&self, asking: &Asking) -> Result<Result<Vec<Vec<u8>>, Status>> {
        self.ask_all(std::slice::from_ref(asking))?.pop().context("no answer")
    }

    /// Asks all at once on one connection.
    pub fn ask_all(&self, asking: &[Asking]) -> Result<Vec<Result<Vec<Vec<u8>>, Status>>> {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.converse(asking))
        };
        match &self.place {
            Some(place) => place.enter(ask),
            None => ask(),
        }
    }

    async fn converse(&self, asking: &[Asking]) -> Result<Vec<Result<Vec<Vec<u8>>, Status>>> {
        let naming = IdentityNaming::default();
        let settings = TlsSettings::default();
        let anchors = anchors_from_pem(&std::fs::read(&self.bundle)?)?;
        let trust = Arc::new(Trust::new(naming.clone(), anchors, Arc::clone(&settings.provider))?);
        let tls = authority_client(&trust, &naming.name("heddle-system", "heddle-ca")?, &settings)?;
        let to = self.to;
        let connect = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(to).await?;
                tokio_rustls::TlsConnector::from(tls.config)
                    .connect(tls.server_name, stream)
                    .await
                    .map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_shared(format!("https://{to}"))?
            .timeout(Duration::from_secs(30))
            .connect_with_connector(connect)
            .await?;
        let client = CertificateAuthorityClient::new(channel);
        let calls = asking.iter().map(|asking| {
            let mut client = client.clone();
            let mut request = Request::new(IssueRequest {
                node: asking.node.clone(),
                namespace: asking.namespace.clone(),
                service_account: asking.account.clone(),
                request: asking.csr.clone(),
            });
            let bearer = format!("Bearer {}", asking.token).parse();
            async move {
                if let Ok(bearer) = bearer {
                    request.metadata_mut().insert("authorization", bearer);
                }
                client.issue(request).await.map(|answer| answer.into_inner().chain)
            }
        });
        Ok(futures_util::future::join_all(calls).await)
    }
}

/// When the certificate of an identity on a node expires, by the agent's metrics; `None`: there is none.
pub fn expiry(lab: &Lab, node: &str, identity: &str) -> Result<Option<SystemTime>> {
    let label = format!("identity=\"{identity}\"");
    let seconds = lab.agent(node)?.metric("heddle_certificate_expiry_seconds", &[&label])?;
    ensure!(seconds >= 0.0, "no such certificate");
    Ok((seconds > 0.0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)))
}
