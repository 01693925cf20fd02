use super::*;
use crate::cli::ca::{attest::Attesting, issuing::tests::source, limits::Rate, scheduled::Unknown};
use heddle_identity::SvidRequest;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, AtomicUsize},
    time::Duration,
};

/// Believes "good", each after a while, and counts.
#[derive(Clone, Debug, Default)]
struct Counting {
    looked: Arc<AtomicU64>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    takes: Duration,
}

impl Attest for Counting {
    fn attest<'a>(&'a self, token: &'a str, _: SystemTime) -> Attesting<'a> {
        Box::pin(async move {
            self.looked.fetch_add(1, Ordering::SeqCst);
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(self.takes).await;
            self.now.fetch_sub(1, Ordering::SeqCst);
            match token {
                "good" | "good too" => Ok(Agent { name: "agent".into(), node: "a".into() }),
                _ => Err(AttestError::Refused("it is not good".into())),
            }
        })
    }
}

struct Everything;

impl Scheduled for Everything {
    fn runs(&self, _: &str, _: &str, _: &str) -> Result<bool, Unknown> {
        Ok(true)
    }
}

struct Serving {
    service: Arc<Service>,
    attest: Counting,
    _keys: tempfile::TempDir,
}

impl Serving {
    fn new(takes: Duration, bounds: Bounds) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let source = source(keys.path(), SystemTime::now());
        let issuing = source.read(SystemTime::now()).unwrap();
        let attest = Counting { takes, ..Counting::default() };
        let service = Service::new(Parts {
            issuing: Arc::new(ArcSwap::from_pointee(issuing)),
            attest: Box::new(attest.clone()),
            scheduled: Box::new(Everything),
            naming: source.naming,
            own: source.own,
            bounds,
            rates: Arc::new(Rates::new(&bounds)),
            counts: Arc::default(),
            repeated: Arc::default(),
        });
        Self { service: Arc::new(service), attest, _keys: keys }
    }

    fn looked(&self) -> u64 {
        self.attest.looked.load(Ordering::SeqCst)
    }

    fn ask(&self, peer: &Peer, token: &str) -> tokio::task::JoinHandle<Result<(), Code>> {
        let identity = IdentityNaming::default().name("shop", "web").unwrap();
        let csr = SvidRequest::new(&identity).unwrap().request().csr.to_vec();
        let mut request = Request::new(IssueRequest {
            node: "a".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            request: csr,
        });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request.extensions_mut().insert(peer.clone());
        let service = Arc::clone(&self.service);
        tokio::spawn(async move { service.issue(request).await.map(drop).map_err(|status| status.code()) })
    }
}

fn peer(host: u8) -> Peer {
    Peer::new(SocketAddr::from(([10, 0, 0, host], 1)))
}

#[tokio::test]
async fn a_strangers_flood_is_looked_at_as_often_as_its_address_may_and_no_more() {
    let serving = Serving::new(Duration::ZERO, Bounds::default());
    let known = peer(1);
    serving.ask(&known, "good").await.unwrap().unwrap();
    let before = serving.looked();
    // Two connections, so that a new one is no way around it; from the agent's own address.
    let strangers = [peer(1), peer(1)];
    let mut refused = 0;
    for number in 0..2000 {
        let answer = serving.ask(&strangers[number % 2], "junk").await.unwrap().unwrap_err();
        refused += usize::from(answer == Code::ResourceExhausted);
    }
    let looked = serving.looked() - before;
    let allowed = u64::from(Bounds::default().strangers_per_address.burst);
    assert!((allowed - 1..allowed + 20).contains(&looked), "{looked} tokens were looked at");
    assert!(refused > 1900, "{refused}");
    // On the connection on which the agent was believed it goes on, as does anybody from another address.
    serving.ask(&known, "good").await.unwrap().unwrap();
    serving.ask(&peer(2), "good").await.unwrap().unwrap();
    // It comes back on a new connection with a token that was believed; with one that was not it is a stranger.
    serving.ask(&peer(1), "good").await.unwrap().unwrap();
    assert_eq!(serving.ask(&peer(1), "good too").await.unwrap(), Err(Code::ResourceExhausted));
    // And so is whoever has the connection once a token on it is not believed.
    assert_eq!(serving.ask(&known, "junk").await.unwrap(), Err(Code::Unauthenticated));
    assert_eq!(serving.ask(&known, "good too").await.unwrap(), Err(Code::ResourceExhausted));
}

#[tokio::test]
async fn strangers_that_are_slow_to_be_judged_leave_places_for_those_that_are_known() {
    let bounds = Bounds { strangers_at_once: (4, 2), at_once: 8, ..Bounds::default() };
    let serving = Serving::new(Duration::from_millis(300), bounds);
    let known = peer(1);
    serving.ask(&known, "good").await.unwrap().unwrap();
    serving.attest.most.store(0, Ordering::SeqCst);
    let flood: Vec<_> = (0..200).map(|n| serving.ask(&peer(10 + n), "junk")).collect();
    while serving.attest.now.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    serving.ask(&known, "good").await.unwrap().unwrap();
    let mut busy = 0;
    for asked in flood {
        busy += usize::from(asked.await.unwrap() == Err(Code::ResourceExhausted));
    }
    assert_eq!(busy, 196);
    assert_eq!(serving.attest.most.load(Ordering::SeqCst), 5, "four strangers and the agent");
}

#[tokio::test]
async fn what_an_agent_asks_first_on_a_new_connection_is_looked_at_once_and_then_all_at_once() {
    let bounds = Bounds { strangers_per_address: Rate { per_second: 1, burst: 1 }, ..Bounds::default() };
    let serving = Serving::new(Duration::from_millis(50), bounds);
    let agent = peer(1);
    let asked: Vec<_> = (0..32).map(|_| serving.ask(&agent, "good")).collect();
    for answer in asked {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(serving.looked(), 32, "each token is reviewed");
    assert!(serving.attest.most.load(Ordering::SeqCst) > 8);
    // A flood on one connection is looked at one by one.
    let serving = Serving::new(Duration::from_millis(20), Bounds::default());
    let stranger = peer(1);
    let asked: Vec<_> = (0..32).map(|_| serving.ask(&stranger, "junk")).collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), Err(Code::Unauthenticated));
    }
    assert_eq!(serving.attest.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_that_wait_have_a_bound() {
    let bounds = Bounds { strangers_waiting: (100, 10), ..Bounds::default() };
    let serving = Serving::new(Duration::from_millis(50), bounds);
    let stranger = peer(1);
    let asked: Vec<_> = (0..30).map(|_| serving.ask(&stranger, "junk")).collect();
    let mut busy = 0;
    for answer in asked {
        busy += usize::from(answer.await.unwrap() == Err(Code::ResourceExhausted));
    }
    assert_eq!(busy, 20);
    // One address leaves the others room, to wait and to be looked at.
    let bounds = Bounds { strangers_at_once: (4, 2), ..Bounds::default() };
    let serving = Serving::new(Duration::from_millis(300), bounds);
    let flood: Vec<_> = (0..10).map(|_| serving.ask(&peer(1), "junk")).collect();
    while serving.attest.now.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    serving.ask(&peer(2), "good").await.unwrap().unwrap();
    let mut busy = 0;
    for answer in flood {
        busy += usize::from(answer.await.unwrap() == Err(Code::ResourceExhausted));
    }
    assert_eq!(busy, 8);
}
