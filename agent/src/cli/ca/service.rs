//! One request for a certificate, from its bytes to its answer and its record.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use heddle_identity::{
    CertificateFacts, CertificateRequest, IdentityName, IssueError, KeyLedger, names::IdentityNaming,
};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use super::{
    attest::{Agent, Attest, AttestError},
    audit::{self, Asked},
    counts::Counts,
    issuing::Issuing,
    limits::{Bounds, Rates},
    listener::Peer,
    repeated::Repeated,
    rpc::{IssueRequest, IssueResponse, certificate_authority_server::CertificateAuthority},
    scheduled::Scheduled,
};
use crate::cli::places::Places;

/// The longest token that is looked at; Kubernetes' have about 1.5 KiB.
const MAX_TOKEN: usize = 8 * 1024;
/// Tokens that are remembered, by their digests: of more agents than a cluster has nodes.
const TOKENS: usize = 1 << 14;
/// For how long: Kubernetes' live an hour, and are renewed before.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Keys that are remembered: 12 MiB.
const KEYS: usize = 1 << 18;

/// Answers requests.
pub struct Service {
    issuing: Arc<ArcSwap<Issuing>>,
    attest: Box<dyn Attest>,
    scheduled: Box<dyn Scheduled>,
    naming: IdentityNaming,
    own: IdentityName,
    bounds: Bounds,
    rates: Arc<Rates>,
    keys: Mutex<KeyLedger>,
    at_once: Semaphore,
    /// Of strangers: those that wait for their turn, and those whose token is looked at.
    strangers: Places<IpAddr>,
    strangers_at_once: Places<IpAddr>,
    /// The tokens that were believed of late.
    tokens: Mutex<KeyLedger>,
    repeated: Arc<Repeated>,
    counts: Arc<Counts>,
    clock: fn() -> SystemTime,
}

/// What a service is made of.
pub struct Parts {
    /// Signs.
    pub issuing: Arc<ArcSwap<Issuing>>,
    /// Knows agents.
    pub attest: Box<dyn Attest>,
    /// Knows pods.
    pub scheduled: Box<dyn Scheduled>,
    /// Whose identities are issued.
    pub naming: IdentityNaming,
    /// The authority's own identity.
    pub own: IdentityName,
    /// Bounds.
    pub bounds: Bounds,
    /// Rates.
    pub rates: Arc<Rates>,
    /// What was answered.
    pub counts: Arc<Counts>,
    /// What is not recorded one by one.
    pub repeated: Arc<Repeated>,
}

/// Why a request is refused: the reason for programs, the sentence for people, and what gRPC calls it.
struct Refusal {
    reason: &'static str,
    why: String,
    code: Code,
}

impl Refusal {
    fn new(reason: &'static str, code: Code, why: impl Into<String>) -> Self {
        Self { reason, why: why.into(), code }
    }
}

fn busy() -> Refusal {
    Refusal::new("busy", Code::ResourceExhausted, "too many requests at once: try again")
}

impl Service {
    /// A service that has certified no key yet.
    pub fn new(parts: Parts) -> Self {
        let Parts { issuing, attest, scheduled, naming, own, bounds, rates, counts, repeated } = parts;
        Self {
            issuing,
            attest,
            scheduled,
            naming,
            own,
            bounds,
            rates,
            keys: Mutex::new(KeyLedger::new(KEYS)),
            at_once: Semaphore::new(bounds.at_once),
            strangers: Places::new(bounds.strangers_waiting.0, bounds.strangers_waiting.1),
            strangers_at_once: Places::new(bounds.strangers_at_once.0, bounds.strangers_at_once.1),
            tokens: Mutex::new(KeyLedger::new(TOKENS)),
            repeated,
            counts,
            clock: SystemTime::now,
        }
    }

    /// Who asks. What a stranger can make the authority do is bounded before it is done: whoever was believed on a
    /// connection has places of its own, and asks as fast as its node may.
    async fn prove(&self, peer: &Peer, token: Option<String>, now: SystemTime) -> Result<Agent, Refusal> {
        if !peer.proved.load(Ordering::Acquire) {
            let address = peer.address.ip();
            let _waiting = self.strangers.enter(address).ok_or_else(busy)?;
            let _turn = peer.turn.lock().await;
            // Whoever was before it may have proved for all of the connection's.
            if !peer.proved.load(Ordering::Acquire) {
                // An agent that comes back with a token that was believed is not kept out by who else has its address.
                let comes_back = token.as_deref().is_some_and(|token| self.tokens().knows(token.as_bytes()));
                if !comes_back && !self.rates.stranger(address) {
                    let why = "too many requests from this address without a token that is believed";
                    return Err(Refusal::new("strangers", Code::ResourceExhausted, why));
                }
                let _place = self.strangers_at_once.enter(address).ok_or_else(busy)?;
                let agent = self.attest(token.as_deref(), now).await?;
                peer.proved.store(true, Ordering::Release);
                if let Some(token) = token {
                    self.tokens().enter(token.as_bytes(), now + REMEMBERED, now);
                }
                return Ok(agent);
            }
        }
        let _place = self.at_once.try_acquire().map_err(|_| busy())?;
        let attested = self.attest(token.as_deref(), now).await;
        if matches!(&attested, Err(refusal) if refusal.code == Code::Unauthenticated) {
            peer.proved.store(false, Ordering::Release);
        }
        attested
    }

    fn tokens(&self) -> MutexGuard<'_, KeyLedger> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attest(&self, token: Option<&str>, now: SystemTime) -> Result<Agent, Refusal> {
        let token = token
            .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN)
            .ok_or_else(|| Refusal::new("no_token", Code::Unauthenticated, "there is no token"))?;
        self.attest.attest(token, now).await.map_err(|error| match error {
            AttestError::Refused(why) => Refusal::new("token", Code::Unauthenticated, why),
            AttestError::Away(why) => Refusal::new("attestation_away", Code::Unavailable, why),
        })
    }

    async fn judge(
        &self,
        asked: &mut Asked,
        peer: &Peer,
        token: Option<String>,
        request: IssueRequest,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let now = (self.clock)();
        let agent = self.prove(peer, token, now).await?;
        asked.agent.clone_from(&agent.name);
        asked.node.clone_from(&agent.node);
        if !self.rates.issue(&agent.node) {
            return Err(Refusal::new("rate", Code::ResourceExhausted, "too many requests from this node"));
        }
        if agent.node != request.node {
            let why = format!("the token is of node {:?}, not of {:?}", agent.node, request.node);
            return Err(Refusal::new("other_node", Code::PermissionDenied, why));
        }
        let identity = self.naming.name(&request.namespace, &request.service_account).map_err(|error| {
            Refusal::new("name", Code::InvalidArgument, format!("no such account: {error}"))
        })?;
        if identity == self.own {
            return Err(Refusal::new(
                "own_identity",
                Code::PermissionDenied,
                "that is the authority's own identity",
            ));
        }
        match self.scheduled.runs(&agent.node, &request.namespace, &request.service_account) {
            Ok(true) => {}
            Ok(false) => {
                let why = format!("no pod of {} is scheduled on {}", asked.account, agent.node);
                return Err(Refusal::new("not_scheduled", Code::PermissionDenied, why));
            }
            Err(error) => return Err(Refusal::new("pods_unknown", Code::Unavailable, error.to_string())),
        }
        self.sign(asked, identity, request.request, now)
    }

    fn sign(
        &self,
        asked: &Asked,
        identity: IdentityName,
        csr: Vec<u8>,
        now: SystemTime,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let request = CertificateRequest { identity, csr: csr.into() };
        let issuing = self.issuing.load();
        let issued = issuing.authority.issue(&request, now).map_err(|error| match error {
            IssueError::Refused(error) => Refusal::new("request", Code::InvalidArgument, error.to_string()),
            error => Refusal::new("unable", Code::Unavailable, error.to_string()),
        })?;
        let facts = CertificateFacts::of(&issued.chain)
            .map_err(|error| Refusal::new("unable", Code::Internal, error.to_string()))?;
        let fresh = self.keys.lock().unwrap_or_else(PoisonError::into_inner).enter(
            &facts.public_key,
            facts.not_after,
            now,
        );
        if !fresh {
            let why = "its key was certified before: make a fresh one for each request";
            return Err(Refusal::new("key_reused", Code::InvalidArgument, why));
        }
        // The DNS form for the mesh's, the SPIFFE form for a workload's own.
        let name = facts.names.first().map(String::as_str).unwrap_or_default();
        audit::issued(asked, name, &facts.serial, facts.not_after);
        Ok(issued.chain.into_iter().map(|certificate| certificate.to_vec()).collect())
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("the connection has no peer"));
        };
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
        let request = request.into_inner();
        let mut asked = Asked {
            peer: Some(peer.address),
            claimed_node: plain(&request.node),
            account: format!("{}/{}", plain(&request.namespace), plain(&request.service_account)),
            ..Asked::default()
        };
        let judging = self.judge(&mut asked, &peer, token, request);
        let judged = tokio::time::timeout(self.bounds.request, judging)
            .await
            .unwrap_or_else(|_| Err(Refusal::new("timed_out", Code::DeadlineExceeded, "it took too long")));
        match judged {
            Ok(chain) => {
                self.counts.issued();
                Ok(Response::new(IssueResponse { chain }))
            }
            Err(Refusal { reason, why, code }) => {
                self.counts.refused(reason);
                let often = matches!(reason, "strangers" | "busy" | "rate" | "timed_out");
                let times = if often {
                    self.repeated.tell(peer.address.ip(), reason, Instant::now())
                } else {
                    Some(1)
                };
                if let Some(times) = times {
                    audit::refused(&asked, reason, &why, times);
                }
                Err(Status::new(code, why))
            }
        }
    }
}

/// What somebody else wrote, short and without control characters.
fn plain(text: &str) -> String {
    text.chars().take(253).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
