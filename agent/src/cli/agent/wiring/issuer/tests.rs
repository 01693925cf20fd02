use super::*;
use crate::cli::{
    ca::rpc::{
        IssueResponse,
        certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer},
    },
    placed::Placed,
    places::Places,
};
use heddle_identity::{
    AuthorityServer, AuthoritySettings, IdentityName, IdentityNaming, SvidRequest, provider,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::{Response, transport::Server};

/// Certifies nobody, and counts who asks.
#[derive(Clone, Default)]
struct Counting {
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl CertificateAuthority for Counting {
    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        Err(Status::unavailable("not now"))
    }
}

impl Counting {
    fn seen(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }

    /// Serves with the authority's own certificate; gives the port.
    async fn serve(&self, authority: &Authority, own: &IdentityName) -> u16 {
        let server =
            AuthorityServer::new(authority, own, &TlsSettings::default(), SystemTime::now()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ready, connections) = tokio::sync::mpsc::channel(8);
        let counting = self.clone();
        tokio::spawn(async move {
            let tls = tokio_rustls::TlsAcceptor::from(server.config);
            let places = Places::new(8, 8);
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = tls.accept(stream).await {
                    counting.connections.fetch_add(1, Ordering::SeqCst);
                    let placed = Placed::new(stream, (), places.enter(()).unwrap());
                    ready.send(Ok::<_, std::io::Error>(placed)).await.unwrap();
                }
            }
        });
        let service = CertificateAuthorityServer::new(self.clone());
        let incoming = tokio_stream::wrappers::ReceiverStream::new(connections);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        port
    }
}

#[tokio::test]
async fn an_authority_that_is_trusted_no_longer_is_given_no_token_on_the_connection_that_stands() {
    let (naming, now) = (IdentityNaming::default(), SystemTime::now());
    let make = || Authority::in_memory(naming.clone(), AuthoritySettings::default(), now).unwrap();
    let (authority, next) = (make(), make());
    let own = naming.name("heddle-system", "heddle-ca").unwrap();
    let counting = Counting::default();
    let port = counting.serve(&authority, &own).await;

    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "token").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let config = RemoteCa {
        url: format!("https://127.0.0.1:{port}"),
        trust_bundle: folder.path().join("bundle.pem"),
        token_file: token,
        account: heddle_policy::resources::ObjectName::new("heddle-system", "heddle-ca"),
    };
    let trust = Trust::new(naming.clone(), authority.anchors().to_vec(), Arc::new(provider())).unwrap();
    let trust = Arc::new(trust);
    let remote = Remote::new(&config, "a", &trust, &TlsSettings::default()).unwrap();
    let ask = async || {
        let identity = naming.name("shop", "web").unwrap();
        let request = SvidRequest::new(&identity).unwrap().request().clone();
        remote.issue(request).await.unwrap_err()
    };
    ask().await;
    ask().await;
    assert_eq!(counting.seen(), (1, 2), "one connection for both");
    trust.reload([authority.anchors(), next.anchors()].concat(), &[]).unwrap();
    ask().await;
    assert_eq!(counting.seen(), (2, 3), "verified anew");
    trust.reload(next.anchors().to_vec(), &[]).unwrap();
    let error = ask().await;
    assert!(matches!(error, IssueError::Away(_)), "{error}");
    assert_eq!(counting.seen(), (2, 3), "not asked");
}
