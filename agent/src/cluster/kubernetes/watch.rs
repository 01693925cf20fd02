//! A task for each kind: finds the version in which it is served, lists, watches, and begins anew where that breaks.

use super::{
    kinds::{KINDS, Kind},
    watched::Told,
};
use futures_util::StreamExt;
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt, watcher},
};
use std::{sync::mpsc::Sender, time::Duration};
use tokio::task::JoinSet;

/// How often it is asked whether a kind that was absent has come.
const ABSENT: Duration = Duration::from_secs(5);
/// How soon an API server that is away is asked again for what it serves.
const AWAY: Duration = Duration::from_secs(2);

/// What the watch of the kind with this number tells.
pub(super) type From = (usize, Told);

/// Watches every kind. Ends when the tasks are dropped.
pub(super) fn watch_all<M: Send + 'static>(
    client: &Client,
    told: &Sender<M>,
    message: fn(From) -> M,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let (client, told) = (client.clone(), told.clone());
        tasks.spawn(async move {
            // Whoever listens is gone: so is the agent.
            while watch(&client, kind, &|what| told.send(message((number, what))).is_ok()).await {}
        });
    }
    tasks
}

/// Until it breaks; false when nobody listens any more.
async fn watch(client: &Client, kind: &Kind, tell: &(impl Fn(Told) -> bool + Sync)) -> bool {
    // Begun without a question, as it is served by most: an agent that starts carries nothing before every kind is listed.
    if let Some(resource) = kind.preferably()
        && let Some(listened) = follow(client, &resource, tell, true).await
    {
        return listened;
    }
    match kind.served(client).await {
        Ok(Some(resource)) => follow(client, &resource, tell, false).await.unwrap_or(true),
        Ok(None) => {
            let listened = tell(Told::Absent);
            tokio::time::sleep(ABSENT).await;
            listened
        }
        Err(error) => {
            let listened = tell(Told::Broken(format!("the API server does not say what it serves: {error}")));
            tokio::time::sleep(AWAY).await;
            listened
        }
    }
}

/// As [`watch`]; none where the kind may be `absent` in this version and is.
async fn follow(
    client: &Client,
    resource: &ApiResource,
    tell: &(impl Fn(Told) -> bool + Sync),
    mut absent: bool,
) -> Option<bool> {
    let api = Api::<DynamicObject>::all_with(client.clone(), resource);
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).default_backoff());
    let mut broken = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // A watch that goes on where it broke has nothing to say of a kind of which nothing changes.
            () = answers(&api), if broken => {
                broken = false;
                if !tell(Told::Resumed) {
                    return Some(false);
                }
                continue;
            }
        };
        let Some(event) = event else { return Some(true) };
        broken = event.is_err();
        let listened = match event {
            Ok(watcher::Event::Init) => tell(Told::Listing),
            Ok(watcher::Event::InitApply(object)) => tell_of(object, resource, tell, Told::Listed),
            Ok(watcher::Event::InitDone) => {
                absent = false;
                tell(Told::Complete)
            }
            Ok(watcher::Event::Apply(object)) => tell_of(object, resource, tell, Told::Applied),
            Ok(watcher::Event::Delete(object)) => tell_of(object, resource, tell, Told::Gone),
            Err(error) if absent && is_not_served(&error) => return None,
            Err(error) => {
                let listened = tell(Told::Broken(error.to_string()));
                if is_not_served(&error) {
                    tokio::time::sleep(AWAY).await;
                    return Some(listened);
                }
                listened
            }
        };
        if !listened {
            return Some(false);
        }
    }
}

/// Returns when the kind can be listed.
async fn answers(api: &Api<DynamicObject>) {
    loop {
        tokio::time::sleep(AWAY).await;
        if api.list_metadata(&ListParams::default().limit(1)).await.is_ok() {
            return;
        }
    }
}

/// Objects of a list bear neither kind nor version.
fn tell_of(
    object: DynamicObject,
    resource: &ApiResource,
    tell: &impl Fn(Told) -> bool,
    what: fn(serde_json::Value) -> Told,
) -> bool {
    match serde_json::to_value(object) {
        Ok(serde_json::Value::Object(mut fields)) => {
            fields.insert("apiVersion".to_owned(), resource.api_version.clone().into());
            fields.insert("kind".to_owned(), resource.kind.clone().into());
            tell(what(serde_json::Value::Object(fields)))
        }
        // What came as JSON is an object of JSON.
        _ => true,
    }
}

fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        Json, Router,
        body::Body,
        extract::RawQuery,
        http::{StatusCode, Uri},
        response::IntoResponse,
        routing::get,
    };
    use futures_util::stream;
    use serde_json::json;
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::sync::mpsc;

    /// Lists no namespace; its first watch breaks, the later ones say nothing.
    async fn namespaces(query: Option<String>, watches: Arc<AtomicUsize>) -> Body {
        if !query.unwrap_or_default().contains("watch=") {
            let list =
                r#"{"apiVersion":"v1","kind":"NamespaceList","metadata":{"resourceVersion":"1"},"items":[]}"#;
            return Body::from(list);
        }
        if watches.fetch_add(1, Ordering::SeqCst) == 0 {
            return Body::from_stream(stream::once(async {
                Err::<String, _>(std::io::Error::other("cut off"))
            }));
        }
        Body::from_stream(stream::pending::<Result<String, std::io::Error>>())
    }

    /// An API server at loopback, and a client of it.
    async fn started(app: Router) -> (Client, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        (Client::try_from(config).unwrap(), serving)
    }

    /// Serves this kind of Linkerd's in this version alone, and tells what is asked.
    async fn served_in(version: &'static str) -> (Vec<String>, Vec<String>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let asking = Arc::clone(&asked);
        let answer = move |uri: Uri| {
            asking.lock().unwrap().push(uri.path().to_owned());
            let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
            let (list, group) = (
                format!("/apis/policy.linkerd.io/{version}/servers"),
                format!("/apis/policy.linkerd.io/{version}"),
            );
            let of_group =
                json!({ "groupVersion": format!("policy.linkerd.io/{version}"), "version": version });
            let body = match path.as_str() {
                "/readyz" => json!("ok"),
                "/apis" => {
                    json!({ "groups": [{ "name": "policy.linkerd.io", "versions": [of_group], "preferredVersion": of_group }] })
                }
                path if path == group => json!({
                    "groupVersion": of_group["groupVersion"],
                    "resources": [{ "name": "servers", "singularName": "server", "namespaced": true, "kind": "Server", "verbs": ["list"] }],
                }),
                path if path == list && query.contains("watch=") => {
                    return Err(Body::from_stream(stream::pending::<Result<String, std::io::Error>>()));
                }
                path if path == list => json!({ "metadata": { "resourceVersion": "1" }, "items": [] }),
                _ => return Ok((StatusCode::NOT_FOUND, Json(json!({ "kind": "Status", "code": 404 })))),
            };
            Ok((StatusCode::OK, Json(body)))
        };
        let app = Router::new().fallback(move |uri: Uri| {
            let answered = answer(uri);
            async move { answered.map_err(IntoResponse::into_response) }
        });
        let (client, serving) = started(app).await;
        let (said, mut heard) = mpsc::unbounded_channel();
        let following = tokio::spawn(async move {
            let kind = KINDS.iter().find(|kind| kind.kind == "Server").unwrap();
            watch(&client, kind, &|told: Told| said.send(format!("{told:?}")).is_ok()).await
        });
        let mut told = Vec::new();
        while told.last().is_none_or(|it| it != "Complete") {
            let next = tokio::time::timeout(Duration::from_secs(60), heard.recv());
            told.push(next.await.unwrap().unwrap());
        }
        following.abort();
        serving.abort();
        let asked = asked.lock().unwrap().clone();
        (told, asked)
    }

    #[tokio::test]
    async fn a_kind_is_listed_without_a_question_where_it_is_served_as_it_is_by_most() {
        let (told, asked) = served_in("v1beta3").await;
        assert_eq!(told, ["Listing", "Complete"]);
        assert!(asked.iter().all(|path| path.ends_with("/v1beta3/servers")), "{asked:?}");
    }

    #[tokio::test]
    async fn a_kind_that_is_served_in_an_older_version_alone_is_found_and_not_told_as_broken() {
        let (told, asked) = served_in("v1beta1").await;
        assert_eq!(told, ["Listing", "Listing", "Complete"]);
        assert!(
            asked.contains(&"/readyz".to_owned()),
            "an absence is believed of one that is ready alone: {asked:?}"
        );
    }

    #[tokio::test]
    async fn a_watch_that_goes_on_is_broken_no_more_though_nothing_changes() {
        let watches = Arc::new(AtomicUsize::new(0));
        let served = Arc::clone(&watches);
        let app = Router::new().route(
            "/api/v1/namespaces",
            get(move |RawQuery(query): RawQuery| namespaces(query, Arc::clone(&served))),
        );
        let (client, serving) = started(app).await;
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let following = tokio::spawn(async move {
            let kind = KINDS.iter().find(|kind| kind.kind == "Namespace").unwrap();
            let tell = |told: Told| {
                let word = format!("{told:?}");
                heard.lock().unwrap().push(word.split('(').next().unwrap_or_default().to_owned());
                true
            };
            watch(&client, kind, &tell).await
        });
        let wanted = ["Listing", "Complete", "Broken", "Resumed"];
        for _ in 0..600 {
            if said.lock().unwrap().len() >= wanted.len() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(*said.lock().unwrap(), wanted);
        assert!(watches.load(Ordering::SeqCst) >= 1);
        following.abort();
        serving.abort();
    }
}
