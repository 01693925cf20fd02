//! SPIRE as the issuer: its agent on this node hands out the certificates of the pods' accounts, with their keys, to
//! whoever it takes for a delegate (the Delegated Identity API), and the anchors that they rest on.
//!
//! SPIRE's agent renews by itself and tells when it has; a renewal here asks it for what it has then. Which accounts it has entries for is
//! decided by SPIRE's own attestation of the node.

mod bundles;
mod watch;

pub(super) use bundles::SpireBundles;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use heddle_identity::{CertificateFacts, GivenKey, IdentityName, IssueError, Issued};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use self::rpc::{
    BundlesRequest, BundlesResponse, Selector, SvidsRequest, SvidsResponse, X509SvidWithKey,
    delegated_identity_client::DelegatedIdentityClient,
};

use super::status::said;

/// The protocol, as `proto/spire.proto` has it.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
mod rpc {
    tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
}

/// How long reaching SPIRE's agent may take.
const CONNECT: Duration = Duration::from_secs(5);
/// An account has one certificate, of some 4 KiB with its key; a hundred trust domains' anchors have 200.
const ANSWER_BYTES: usize = 1024 * 1024;

/// SPIRE's agent on this node.
#[derive(Clone, Debug)]
pub(super) struct Spire {
    socket: PathBuf,
    client: DelegatedIdentityClient<Channel>,
}

impl Spire {
    /// Nothing is connected until something is asked.
    pub fn at(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let reaching = tokio::time::timeout(CONNECT, reach(&path)).await;
                reaching.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
            }
        });
        // The name is nobody's: the socket says where.
        let channel = Endpoint::from_static("http://spire-agent").connect_with_connector_lazy(connect);
        let client = DelegatedIdentityClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Self { socket: socket.to_owned(), client }
    }

    /// The certificate that SPIRE's agent has for an account now.
    pub async fn issue(&self, identity: &IdentityName) -> Result<Issued, IssueError> {
        let away = |status: Status| self.refusal(&status);
        let answer = self.certificates(identity).await.map_err(away)?.message().await.map_err(away)?;
        choose(identity, answer.unwrap_or_default().x509_svids).map_err(IssueError::Denied)
    }

    /// The certificates that an account's selectors match, and again whenever they change.
    async fn certificates(&self, identity: &IdentityName) -> Result<Streaming<SvidsResponse>, Status> {
        let selector = |value| Selector { r#type: "k8s".to_owned(), value };
        let asked = SvidsRequest {
            selectors: vec![
                selector(format!("ns:{}", identity.namespace())),
                selector(format!("sa:{}", identity.service_account())),
            ],
        };
        self.client.clone().subscribe_to_x509svi_ds(asked).await.map(tonic::Response::into_inner)
    }

    /// The anchors of every trust domain, and again whenever they change.
    async fn bundles(&self) -> Result<Streaming<BundlesResponse>, String> {
        let answers = self.client.clone().subscribe_to_x509_bundles(BundlesRequest {}).await;
        answers.map(tonic::Response::into_inner).map_err(|status| self.refusal(&status).to_string())
    }

    /// A refusal of SPIRE's agent, or that there was no answer.
    fn refusal(&self, status: &Status) -> IssueError {
        let said = said(status);
        let socket = self.socket.display();
        match status.code() {
            Code::PermissionDenied => IssueError::Denied(format!(
                "SPIRE's agent at {socket}: {said}; an entry must make this agent's process one of its `authorized_delegates`"
            )),
            Code::Unimplemented => IssueError::Denied(format!(
                "{socket} has no Delegated Identity API: name the `admin_socket_path` of SPIRE's agent, not its Workload API's"
            )),
            _ => IssueError::Away(format!("SPIRE's agent at {socket}: {said}")),
        }
    }
}

/// Connects to the socket. What comes from there is believed: whoever listens must be root or this agent's own user.
async fn reach(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let (who, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if who != 0 && who != own {
        let problem = format!("uid {who} listens there, neither root nor the agent's own user");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(stream)
}

/// The certificate of an account among those that its selectors match: entries of a whole namespace match, too. Of several
/// with its SPIFFE name, one that bears its DNS name.
fn choose(identity: &IdentityName, offered: Vec<X509SvidWithKey>) -> Result<Issued, String> {
    let mut others = Vec::new();
    let mut found = None;
    for one in offered {
        let svid = one.x509_svid.unwrap_or_default();
        let id = svid.id.unwrap_or_default();
        let key = GivenKey::from_pkcs8(one.x509_svid_key);
        let id = format!("spiffe://{}{}", id.trust_domain, id.path);
        if id != identity.spiffe() {
            others.push(id);
            continue;
        }
        let chain: Vec<_> = svid.cert_chain.into_iter().map(Into::into).collect();
        let whole = CertificateFacts::of(&chain)
            .is_ok_and(|facts| facts.names.iter().any(|name| name == identity.dns()));
        if whole || found.is_none() {
            found = Some(Issued { chain, key: Some(key) });
        }
        if whole {
            break;
        }
    }
    found.ok_or_else(|| {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        format!(
            "SPIRE's agent has {others} for k8s:ns:{namespace} and k8s:sa:{account}; an entry for this node with these selectors, \
             the SPIFFE ID {} and the DNS name {} is missing",
            identity.spiffe(),
            identity.dns()
        )
    })
}

#[cfg(test)]
mod tests {
    use heddle_identity::IdentityNaming;

    use super::{
        rpc::{SpiffeId, X509Svid},
        *,
    };

    fn offered(path: &str, dns: Option<&str>) -> X509SvidWithKey {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(dns.map(str::to_owned).into_iter().collect::<Vec<_>>());
        let certificate = params.unwrap().self_signed(&key).unwrap();
        X509SvidWithKey {
            x509_svid: Some(X509Svid {
                cert_chain: vec![certificate.der().to_vec()],
                id: Some(SpiffeId { trust_domain: "cluster.local".to_owned(), path: path.to_owned() }),
            }),
            x509_svid_key: key.serialize_der(),
        }
    }

    #[test]
    fn an_accounts_own_certificate_is_chosen_and_rather_one_with_its_dns_name() {
        let web = IdentityNaming::default().name("shop", "web").unwrap();
        let (alone, whole) = (offered("/ns/shop/sa/web", None), offered("/ns/shop/sa/web", Some(web.dns())));
        let of_all = offered("/ns/shop", Some("all.shop.example"));
        let leaf = |one: &X509SvidWithKey| one.x509_svid.clone().unwrap().cert_chain.remove(0);
        let chosen = |offered: Vec<X509SvidWithKey>| {
            choose(&web, offered).map(|issued| (issued.chain[0].to_vec(), issued.key.unwrap()))
        };
        for (all, expected) in [
            (vec![of_all.clone(), alone.clone()], &alone),
            (vec![alone.clone(), of_all.clone(), whole.clone()], &whole),
            (vec![whole.clone(), alone.clone()], &whole),
        ] {
            let key = GivenKey::from_pkcs8(expected.x509_svid_key.clone());
            assert_eq!(chosen(all).unwrap(), (leaf(expected), key));
        }
        let told = chosen(vec![of_all]).unwrap_err();
        assert!(told.contains("spiffe://cluster.local/ns/shop for k8s:ns:shop"), "{told}");
        assert!(chosen(Vec::new()).unwrap_err().contains("has nothing for"));
        let elsewhere = choose(
            &IdentityNaming::new("linkerd", "other").unwrap().name("shop", "web").unwrap(),
            vec![whole],
        );
        assert!(elsewhere.is_err(), "another trust domain's account is another's");
    }
}
