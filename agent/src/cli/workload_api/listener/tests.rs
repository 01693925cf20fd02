use super::super::attest::Pod;
use super::*;
use crate::capture::Namespace;
use heddle_identity::IdentityNaming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use tokio_stream::StreamExt;

const TIME: Duration = Duration::from_millis(200);

/// One captured pod, whose network namespace has this cookie.
struct One(u64);

impl Pods for One {
    fn pod(&self, cookie: u64) -> Option<Pod> {
        (cookie == self.0).then(|| Pod {
            name: "shop/web".into(),
            uid: 1,
            identity: IdentityNaming::default().name("shop", "web").unwrap(),
            namespace: Namespace::own().unwrap(),
        })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

#[test]
fn namespaces_of_no_pod_share_places_and_keep_no_pod_out() {
    let (pods, places) = (One(7), Places::new(CONNECTIONS, CONNECTIONS_EACH));
    // Far more namespaces than places, with as many connections as each could have.
    let strangers: Vec<_> = (100..200)
        .flat_map(|cookie| std::iter::repeat_n(cookie, CONNECTIONS_EACH))
        .filter_map(|cookie| places.enter(Whose::of(cookie, &pods)))
        .collect();
    assert_eq!(strangers.len(), CONNECTIONS_EACH);
    let own: Vec<_> = (0..=CONNECTIONS_EACH).filter_map(|_| places.enter(Whose::of(7, &pods))).collect();
    assert_eq!(own.len(), CONNECTIONS_EACH, "the pod's own");
}

#[tokio::test]
async fn a_connection_without_an_attested_call_ends_and_one_with_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut connections =
        connections(listener, Arc::new(One(0)), TIME, Arc::new(Teller::new(Arc::default())));
    let mut silent = UnixStream::connect(&path).await.unwrap();
    let mut served = connections.next().await.unwrap().unwrap();
    let mut byte = [0];
    // What it says makes no difference, unless it is a call of a pod's.
    silent.write_all(b"P").await.unwrap();
    assert_eq!(served.read(&mut byte).await.unwrap(), 1);
    let ended = tokio::time::timeout(TIME * 2, served.read(&mut byte)).await;
    let ended = ended.expect("it is waited for").unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    drop(served);

    let mut known = UnixStream::connect(&path).await.unwrap();
    let mut served = connections.next().await.unwrap().unwrap();
    tonic::transport::server::Connected::connect_info(&served).keep();
    assert!(tokio::time::timeout(TIME * 2, served.read(&mut byte)).await.is_err(), "the control");
    known.write_all(b"P").await.unwrap();
    assert_eq!(served.read(&mut byte).await.unwrap(), 1);
}
