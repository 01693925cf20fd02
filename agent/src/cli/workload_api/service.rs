//! The calls: each answered for the pod that its caller is a process of, and again whenever something changes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_identity::{Issue, IssueError, RenewalSettings, Svid, SvidRequest, Trust, is_set_back};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{
    attest::{Caller, Pod, Pods},
    counts::Counts,
    limits::{Limits, TooMuch, give},
    listener::{SILENCE, Teller, connections},
    rpc::{
        X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};
use crate::cli::places::Place;

/// What every call must bear: a browser or a proxy that was led here does not send it.
const MARK: &str = "workload.spiffe.io";
/// Calls at once on one connection.
const CALLS: u32 = 8;
/// Bytes of a request: they are all empty.
const REQUEST_BYTES: usize = 4096;
/// How long an authority is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// A stream is attested again after this time at the latest; the clock may have been set, too.
const LOOK: Duration = Duration::from_secs(10);

/// What the API is made of.
pub struct Parts<P, I> {
    /// The captured pods.
    pub pods: Arc<P>,
    /// Issues certificates.
    pub issuer: Arc<I>,
    /// The anchors that they rest on.
    pub trust: Arc<Trust>,
    /// When they are renewed.
    pub renewal: RenewalSettings,
    /// What was answered.
    pub counts: Arc<Counts>,
}

struct Service<P, I> {
    parts: Arc<Parts<P, I>>,
    teller: Arc<Teller>,
    limits: Arc<Limits>,
}

/// Serves workloads for ever.
///
/// # Errors
/// The server ended by itself.
pub async fn serve<P: Pods, I: Issue>(
    listener: UnixListener,
    parts: Parts<P, I>,
) -> Result<(), tonic::transport::Error> {
    let teller = Arc::new(Teller::new(Arc::clone(&parts.counts)));
    let pods = Arc::clone(&parts.pods);
    let service =
        Service { parts: Arc::new(parts), teller: Arc::clone(&teller), limits: Arc::new(Limits::default()) };
    Server::builder()
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(SpiffeWorkloadApiServer::new(service).max_decoding_message_size(REQUEST_BYTES))
        .serve_with_incoming(connections(listener, pods, SILENCE, teller))
        .await
}

impl<P: Pods, I: Issue> Service<P, I> {
    /// The caller and its pod.
    fn caller<T>(&self, request: &Request<T>) -> Result<(Arc<Caller>, Pod), Status> {
        let Some(caller) = request.extensions().get::<Arc<Caller>>().cloned() else {
            return Err(Status::internal("the connection has no caller"));
        };
        let mut marks = request.metadata().get_all(MARK).iter();
        if marks.next().is_none_or(|mark| mark != "true") || marks.next().is_some() {
            let why = format!("the metadata {MARK}: true is missing");
            self.teller.refused("no_mark", caller.pid(), &why);
            return Err(Status::invalid_argument(why));
        }
        let pod = caller.attest(&*self.parts.pods).map_err(|refusal| {
            self.teller.refused(refusal.as_str(), caller.pid(), &refusal.to_string());
            // What is wrong with it is for the log: a stranger need not learn how it was known.
            Status::permission_denied("no identity issued")
        })?;
        caller.keep();
        Ok((caller, pod))
    }

    /// A stream of the caller's, if it may have one more.
    fn stream<T>(&self, request: &Request<T>) -> Result<Streaming<P, I>, Status> {
        let (caller, pod) = self.caller(request)?;
        let place = self.limits.begin(caller.cookie()).map_err(|TooMuch { reason, why }| {
            self.teller.refused(reason, caller.pid(), why);
            Status::resource_exhausted(why)
        })?;
        Ok(Streaming {
            parts: Arc::clone(&self.parts),
            limits: Arc::clone(&self.limits),
            pods: self.parts.pods.changes(),
            trust: self.parts.trust.watch(),
            caller,
            pod,
            _place: place,
        })
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl<P: Pods, I: Issue> SpiffeWorkloadApi for Service<P, I> {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let stream = self.stream(&request)?;
        let (send, answers) = mpsc::channel(1);
        tokio::spawn(stream.svids(send));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let stream = self.stream(&request)?;
        let (send, answers) = mpsc::channel(1);
        tokio::spawn(stream.bundles(send));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One call that is under way.
struct Streaming<P, I> {
    parts: Arc<Parts<P, I>>,
    limits: Arc<Limits>,
    pods: watch::Receiver<u64>,
    trust: watch::Receiver<u64>,
    caller: Arc<Caller>,
    pod: Pod,
    _place: Place<u64>,
}

impl<P: Pods, I: Issue> Streaming<P, I> {
    async fn svids(mut self, send: mpsc::Sender<Result<X509svidResponse, Status>>) {
        let (mut failures, mut usable_until) = (0, None::<SystemTime>);
        loop {
            self.trust.mark_unchanged();
            let asked = tokio::select! {
                asked = self.issue() => asked,
                () = send.closed() => return,
            };
            let now = SystemTime::now();
            let until = match asked {
                Ok(svid) => {
                    failures = 0;
                    usable_until = Some(svid.not_after);
                    let renewed = self.parts.renewal.after_success(now, svid.not_after);
                    if !self.still_the_same(&send).await || !give(&send, Ok(self.answer(&svid))).await {
                        return;
                    }
                    self.parts.counts.issued();
                    tracing::info!(
                        target: "heddle::workload_api",
                        pod = %self.pod.name,
                        pid = self.caller.pid(),
                        identity = self.pod.identity.spiffe(),
                        serial = svid.serial,
                        "a workload has a certificate of its own"
                    );
                    renewed
                }
                Err(error) => {
                    tracing::warn!(target: "heddle::workload_api", pod = %self.pod.name, %error, "a workload's certificate could not be obtained");
                    if usable_until.is_none() {
                        give(&send, Err(Status::unavailable("no certificate can be had now"))).await;
                        return;
                    }
                    failures += 1;
                    now + self.parts.renewal.after_failures(failures, usable_until > Some(now))
                }
            };
            if !self.wait(Some(until), &send).await {
                return;
            }
        }
    }

    async fn bundles(mut self, send: mpsc::Sender<Result<X509BundlesResponse, Status>>) {
        loop {
            self.trust.mark_unchanged();
            let trust = &self.parts.trust;
            let own = format!("spiffe://{}", trust.naming().trust_domain());
            let answer = X509BundlesResponse {
                crl: lists(&trust.lists()),
                bundles: [(own, in_a_row(&trust.anchors()))].into_iter().chain(federated(trust)).collect(),
            };
            if !self.still_the_same(&send).await
                || !give(&send, Ok(answer)).await
                || !self.wait(None, &send).await
            {
                return;
            }
        }
    }

    /// Asks for a certificate on a fresh key.
    async fn issue(&self) -> Result<Svid, IssueError> {
        let request = SvidRequest::new(&self.pod.identity).map_err(IssueError::Unable)?;
        let asking = async {
            let _one_of_few = self.limits.turn().await;
            self.parts.issuer.issue(request.request().clone(), SystemTime::now()).await
        };
        let issued = tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
            Err(IssueError::Away(format!("no answer within {} s", PATIENCE.as_secs())))
        })?;
        request.complete(issued, &self.parts.trust, SystemTime::now()).map_err(IssueError::Unable)
    }

    fn answer(&self, svid: &Svid) -> X509svidResponse {
        let trust = &self.parts.trust;
        X509svidResponse {
            svids: vec![X509svid {
                spiffe_id: self.pod.identity.spiffe().to_owned(),
                x509_svid: in_a_row(&svid.chain),
                x509_svid_key: svid.key.to_vec(),
                bundle: in_a_row(&trust.anchors()),
                hint: String::new(),
            }],
            crl: lists(&trust.lists()),
            federated_bundles: federated(trust).collect(),
        }
    }

    /// The caller is still a process of the same pod; if not, it is told, and the stream is over.
    async fn still_the_same<T>(&self, send: &mpsc::Sender<Result<T, Status>>) -> bool {
        let same = self
            .caller
            .attest(&*self.parts.pods)
            .is_ok_and(|pod| pod.uid == self.pod.uid && pod.identity == self.pod.identity);
        if !same {
            tracing::info!(target: "heddle::workload_api", pod = %self.pod.name, pid = self.caller.pid(), "a workload's stream ends with its pod");
            give(send, Err(Status::permission_denied("no identity issued"))).await;
        }
        same
    }

    /// Waits until `until`, or until other anchors are in force; false: the stream is over.
    async fn wait<T>(&mut self, until: Option<SystemTime>, send: &mpsc::Sender<Result<T, Status>>) -> bool {
        let since = SystemTime::now();
        loop {
            let left = until
                .map_or(LOOK, |until| until.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK));
            tokio::select! {
                changed = self.trust.changed() => return changed.is_ok(),
                changed = self.pods.changed() => if changed.is_err() { return false },
                () = tokio::time::sleep(left) => {}
                () = send.closed() => return false,
            }
            if !self.still_the_same(send).await {
                return false;
            }
            let now = SystemTime::now();
            if until.is_some_and(|until| until <= now || is_set_back(since, now)) {
                return true;
            }
        }
    }
}

/// In DER, one after the other.
fn in_a_row(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// Other trust domains' anchors, by their SPIFFE ids.
fn federated(trust: &Trust) -> impl Iterator<Item = (String, Vec<u8>)> {
    trust.federated().into_iter().map(|(domain, anchors)| (format!("spiffe://{domain}"), in_a_row(&anchors)))
}

fn lists(lists: &[CertificateRevocationListDer<'_>]) -> Vec<Vec<u8>> {
    lists.iter().map(|list| list.to_vec()).collect()
}
