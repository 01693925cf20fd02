use super::*;
use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    routing::get,
};
use futures_util::stream;
use std::{
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicUsize, Ordering},
};

fn pod(name: &str, node: &str, more: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: c, image: i}}]{more}}}\n\
         status: {{phase: {status}}}\n"
    )
}

#[test]
fn what_runs_is_what_the_manifests_say_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    write(
        &(pod("web", "a", "", "Running")
            + &pod("over", "a", "", "Succeeded")
            + &pod("host", "a", ", hostNetwork: true", "Running")
            + &pod("later", "''", "", "Pending")),
    );
    let pods = FolderPods::open(dir.path()).unwrap();
    assert_eq!(pods.runs("a", "shop", "web"), Ok(true));
    for (node, namespace, account) in [
        ("b", "shop", "web"),
        ("a", "bank", "web"),
        ("a", "shop", "db"),
        ("a", "shop", "over"),
        ("a", "shop", "host"),
        ("", "shop", "later"),
    ] {
        assert_eq!(pods.runs(node, namespace, account), Ok(false), "{node} {namespace} {account}");
    }
    write(&pod("db", "a", "", "Pending"));
    let began = Instant::now();
    while pods.runs("a", "shop", "db") != Ok(true) {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(pods.runs("a", "shop", "web"), Ok(false), "gone");
}

/// An API server of pods: the first list has `web`; the first watch breaks at once; what comes after is `then`'s to say.
struct Breaking {
    lists: AtomicUsize,
    watches: AtomicUsize,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    /// A list begins and never ends.
    Hangs,
    /// A list that has `db` instead, and a watch that says nothing.
    IsQuiet,
}

fn listed(name: &str) -> String {
    serde_json::json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" },
        "items": [{
            "metadata": { "name": name, "namespace": "shop", "uid": name, "resourceVersion": "1" },
            "spec": { "nodeName": "a", "serviceAccountName": name, "containers": [] },
            "status": { "phase": "Running" },
        }],
    })
    .to_string()
}

async fn pods(State(api): State<Arc<Breaking>>, RawQuery(query): RawQuery) -> Body {
    if query.unwrap_or_default().contains("watch=") {
        if api.watches.fetch_add(1, Ordering::SeqCst) == 0 {
            let broken = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}}"#;
            return Body::from(format!("{broken}\n"));
        }
        return Body::from_stream(stream::pending::<Result<String, std::io::Error>>());
    }
    match (api.lists.fetch_add(1, Ordering::SeqCst), api.then) {
        (0, _) => Body::from(listed("web")),
        (_, Then::IsQuiet) => Body::from(listed("db")),
        (_, Then::Hangs) => {
            let begun = stream::once(async { Ok::<_, std::io::Error>(r#"{"kind":"PodList","#.to_owned()) });
            Body::from_stream(begun.chain(stream::pending()))
        }
    }
}

async fn watched(then: Then, believed: Duration) -> (ClusterPods, Arc<Breaking>) {
    let api = Arc::new(Breaking { lists: AtomicUsize::new(0), watches: AtomicUsize::new(0), then });
    let app = Router::new().route("/api/v1/pods", get(pods)).with_state(Arc::clone(&api));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::try_from(kube::Config::new(uri)).unwrap();
    (ClusterPods::believing(client, believed), api)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn pods_that_cannot_be_listed_again_are_not_believed_without_end() {
    let (pods, api) = watched(Then::Hangs, Duration::from_secs(3)).await;
    assert!(pods.runs("a", "shop", "web").is_err(), "not listed yet");
    until("the first list", || pods.runs("a", "shop", "web") == Ok(true)).await;
    until("the second list", || api.lists.load(Ordering::SeqCst) == 2).await;
    assert_eq!(pods.runs("a", "shop", "web"), Ok(true), "for a while");
    until("the doubt", || pods.runs("a", "shop", "web").is_err()).await;
}

#[tokio::test]
async fn pods_that_are_listed_again_are_believed_though_nothing_changes() {
    let (pods, api) = watched(Then::IsQuiet, Duration::from_secs(2)).await;
    until("the second list", || pods.runs("a", "shop", "db") == Ok(true)).await;
    assert_eq!(pods.runs("a", "shop", "web"), Ok(false), "gone with the list that had it");
    until("the second watch", || api.watches.load(Ordering::SeqCst) == 2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(pods.runs("a", "shop", "db"), Ok(true));
}
