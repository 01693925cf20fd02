//! Who issues this node's certificates: an authority within the agent, or one that is asked.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use heddle_identity::{
    Authority, CertificateRequest, Client, Issue, IssueError, Issued, TlsSettings, Trust, authority_client,
    files::{self, Readers},
};
use hyper_util::rt::TokioIo;
use miette::miette;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

use super::super::Failure;
use super::{spire::Spire, status::said};
use crate::cli::{
    ca::rpc::{IssueRequest, certificate_authority_client::CertificateAuthorityClient},
    config::RemoteCa,
};

/// How long reaching the authority may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Kubernetes' tokens have about 1.5 KiB.
const TOKEN_BYTES: usize = 8 * 1024;
/// A chain of four certificates has about 3 KiB.
const ANSWER_BYTES: usize = 64 * 1024;

/// Whoever issues.
pub(in super::super) enum Issuer {
    /// Within the agent.
    Embedded(Box<Authority>),
    /// Over the network.
    Remote(Box<Remote>),
    /// SPIRE's agent on this node, which makes the keys as well.
    Spire(Box<Spire>),
}

impl Issue for Issuer {
    async fn issue(&self, request: CertificateRequest, now: SystemTime) -> Result<Issued, IssueError> {
        match self {
            Self::Embedded(authority) => authority.issue(&request, now),
            Self::Remote(remote) => remote.issue(request).await,
            Self::Spire(spire) => spire.issue(&request.identity).await,
        }
    }
}

/// An authority that is asked.
pub(in super::super) struct Remote {
    node: String,
    token: PathBuf,
    endpoint: Endpoint,
    tls: Client,
    trust: Arc<Trust>,
    /// With the generation of trust that it was made under: a connection to an authority that is trusted no longer must
    /// not be given another token.
    client: Mutex<(u64, CertificateAuthorityClient<Channel>)>,
}

impl Remote {
    /// Nothing is connected until something is asked.
    ///
    /// # Errors
    /// An address or a name that cannot be.
    pub fn new(
        config: &RemoteCa,
        node: &str,
        trust: &Arc<Trust>,
        settings: &TlsSettings,
    ) -> Result<Self, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| miette!("the authority {} cannot be asked: {error}", config.url);
        let account = trust.naming().name(&config.account.namespace, &config.account.name);
        let account = account.map_err(|error| failed(&error))?;
        let tls = authority_client(trust, &account, settings).map_err(|error| failed(&error))?;
        let endpoint = Endpoint::from_shared(config.url.clone())
            .map_err(|error| failed(&error))?
            .timeout(ANSWER)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let client = Mutex::new((trust.generation(), over(&endpoint, &tls)));
        let (node, token) = (node.to_owned(), config.token_file.clone());
        Ok(Self { node, token, endpoint, tls, trust: Arc::clone(trust), client })
    }

    /// Asks over a connection whose other end was verified by what is trusted now.
    fn client(&self) -> CertificateAuthorityClient<Channel> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.trust.generation();
        if client.0 != generation {
            *client = (generation, over(&self.endpoint, &self.tls));
        }
        client.1.clone()
    }

    /// The kubelet renews the token where it lies: it is read anew each time.
    fn authorization(&self) -> Result<MetadataValue<Ascii>, IssueError> {
        let unable = |why: String| IssueError::Unable(format!("the agent cannot prove itself: {why}"));
        let bytes = files::read(&self.token, Readers::Group, TOKEN_BYTES)
            .map_err(|error| unable(error.to_string()))?;
        let token = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        if token.is_empty() {
            return Err(unable(format!("{} holds no token", self.token.display())));
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| unable("its token cannot be sent".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn issue(&self, request: CertificateRequest) -> Result<Issued, IssueError> {
        let CertificateRequest { identity, csr } = request;
        let mut asked = Request::new(IssueRequest {
            node: self.node.clone(),
            namespace: identity.namespace().to_owned(),
            service_account: identity.service_account().to_owned(),
            request: csr.to_vec(),
        });
        asked.metadata_mut().insert("authorization", self.authorization()?);
        let answer = self.client().issue(asked).await.map_err(|status| refusal(&status))?;
        Ok(Issued { chain: answer.into_inner().chain.into_iter().map(Into::into).collect(), key: None })
    }
}

/// Nothing is connected until something is asked.
fn over(endpoint: &Endpoint, tls: &Client) -> CertificateAuthorityClient<Channel> {
    let tls = tls.clone();
    let connect = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let reaching = reach(uri, tls);
            tokio::time::timeout(CONNECT, reaching)
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                .map(TokioIo::new)
        }
    });
    CertificateAuthorityClient::new(endpoint.connect_with_connector_lazy(connect))
        .max_decoding_message_size(ANSWER_BYTES)
}

async fn reach(uri: Uri, tls: Client) -> std::io::Result<TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(tls.config).connect(tls.server_name, stream).await
}

/// A refusal of the authority's, or that there was no answer.
fn refusal(status: &Status) -> IssueError {
    let said = said(status);
    match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => IssueError::Denied(said),
        _ => IssueError::Away(said),
    }
}

#[cfg(test)]
mod tests;
