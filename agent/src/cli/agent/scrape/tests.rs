use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";

/// How many texts are made at once, at most so far, and in all.
#[derive(Default)]
struct Made {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

impl Made {
    fn text(&self) -> Result<String, String> {
        self.all.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(400));
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok("# EOF\n".into())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_leave_no_work_behind() {
    let made = Arc::new(Made::default());
    let own = Arc::clone(&made);
    let scrape = Scrape::new("shop/web".into(), Arc::new(Semaphore::new(1)), move || own.text());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut served = JoinSet::new();
    for _ in 0..8 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        served.spawn(scrape.clone().serve(listener.accept().await.unwrap().0));
        client.write_all(GET).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // All of them have gone while the first's text is being made: nobody waits for the others'.
    while served.join_next().await.is_some() {}
    // Whoever stays is answered, in turn.
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    served.spawn(scrape.serve(listener.accept().await.unwrap().0));
    client.write_all(GET).await.unwrap();
    let mut answer = [0; 15];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert_eq!((made.most.load(Ordering::SeqCst), made.all.load(Ordering::SeqCst)), (1, 2));
}

/// A connection from an address of this host's.
async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

async fn answered(client: &mut TcpStream) -> bool {
    let mut answer = [0; 15];
    client.write_all(GET).await.is_ok()
        && client.read_exact(&mut answer).await.is_ok()
        && &answer == b"HTTP/1.1 200 OK"
}

async fn node() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let scrape = Scrape::new("the node".into(), Arc::new(Semaphore::new(1)), || Ok("# EOF\n".into()));
    (address, tokio::spawn(accept(listener, scrape)))
}

#[tokio::test]
async fn one_address_does_not_keep_others_from_the_nodes_metrics() {
    let (node, serving) = node().await;
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        held.push(connect("127.0.0.1", node).await);
    }
    assert!(answered(&mut connect("127.0.0.2", node).await).await, "another's");
    // Of those that were taken the first are served all the same, and what is over is closed at once.
    assert!(answered(&mut held[0]).await);
    let mut byte = [0];
    let over = tokio::time::timeout(FIRST / 2, held[CLIENTS_EACH].read(&mut byte)).await;
    assert!(matches!(over, Ok(Ok(0) | Err(_))), "{over:?}");
    // Room comes back.
    held.clear();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(answered(&mut connect("127.0.0.1", node).await).await);
    serving.abort();
}

#[tokio::test]
async fn a_client_that_asks_nothing_is_soon_closed_and_one_that_has_asked_is_not() {
    let (node, serving) = node().await;
    let (mut silent, mut regular) = (connect("127.0.0.1", node).await, connect("127.0.0.1", node).await);
    assert!(answered(&mut regular).await);
    let mut byte = [0];
    let closed = tokio::time::timeout(FIRST * 2, silent.read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0))), "{closed:?}");
    let mut rest = vec![0; 4096];
    assert!(regular.read(&mut rest).await.unwrap() > 0, "the rest of the first answer");
    assert!(answered(&mut regular).await, "the control");
    serving.abort();
}
