use super::{
    super::{
        client::Client,
        config::PlaceFlags,
        door::{AttachError, AttachRequest, Attached, PodName, PodStatus, SOCKET},
    },
    *,
};
use crate::cluster::snapshot::{PublishError, Snapshot};
use hyper::Method;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

/// A node without a kernel: holds what it is given, and can be made to fail.
pub(super) struct Bench {
    published: AtomicU64,
    full: AtomicBool,
    pub(super) forsaken: AtomicBool,
    drained: AtomicBool,
    /// Whether it carries connections that do not end.
    pub(super) carries: AtomicBool,
    /// Whether it writes.
    pub(super) writes: AtomicBool,
    /// Whether it fails to stop writing.
    pub(super) unstoppable: AtomicBool,
    rules: std::sync::OnceLock<SnapshotReader<Compiled>>,
    events: broadcast::Sender<Arc<str>>,
}

impl Bench {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            published: AtomicU64::new(0),
            full: AtomicBool::new(false),
            forsaken: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            carries: AtomicBool::new(false),
            writes: AtomicBool::new(true),
            unstoppable: AtomicBool::new(false),
            rules: std::sync::OnceLock::new(),
            events: broadcast::channel(4).0,
        })
    }
}

impl Enforcer<Compiled> for Bench {
    fn publish(&self, snapshot: &Snapshot<Compiled>) -> Result<(), PublishError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(PublishError::Full { table: "workloads_1".into(), capacity: 1, needed: 3 });
        }
        self.published.store(snapshot.generation, Ordering::SeqCst);
        Ok(())
    }
}

struct OpenBench(Arc<Bench>);

impl Fence for OpenBench {
    fn lift(&self) -> Result<u64, Failure> {
        Ok(100)
    }
}

impl Opened for OpenBench {
    type Ready = ReadyBench;
    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(Self(Arc::clone(&self.0)))
    }
    fn enforcer(&self) -> Arc<dyn Enforcer<Compiled>> {
        Arc::clone(&self.0) as Arc<dyn Enforcer<Compiled>>
    }
    async fn prepare(self, rules: SnapshotReader<Compiled>) -> Result<ReadyBench, Failure> {
        assert!(rules.load().is_some(), "rules come before the data plane");
        assert!(self.0.rules.set(rules).is_ok());
        Ok(ReadyBench(self.0))
    }
}

struct ReadyBench(Arc<Bench>);

impl Ready for ReadyBench {
    type Node = BenchNode;
    async fn certificates(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    async fn listeners(&self) -> Result<(), Failure> {
        Ok(())
    }
    async fn start(self, _succeeds: bool) -> Result<BenchNode, Failure> {
        Ok(BenchNode(self.0))
    }
}

pub(super) struct BenchNode(pub(super) Arc<Bench>);

impl Node for BenchNode {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        let rules = self.0.rules.get().unwrap().load().unwrap();
        let PodName { namespace, name } = request.pod;
        let known = rules.compiled.pod(&namespace, &name).unwrap();
        let (addresses, identity) = (known.addresses.to_vec(), "identity".into());
        Ok(Attached { namespace, name, addresses, identity, generation: rules.generation })
    }
    async fn detach(&self, _request: super::super::door::DetachRequest) -> Result<(), AttachError> {
        Ok(())
    }
    async fn follow_the_mesh(self: Arc<Self>) {}
    fn pod(&self, _pod: &PodName) -> Option<PodStatus> {
        None
    }
    fn pods(&self) -> Vec<PodStatus> {
        vec![]
    }
    fn problems(&self) -> Vec<heddle_policy::problems::Problem> {
        Vec::new()
    }
    fn events(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.events.subscribe()
    }
    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
    fn flows(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.events.subscribe()
    }
    fn identities(&self) -> super::super::door::Identities {
        super::super::door::Identities {
            identities: vec![],
            anchors: vec![],
            federated: Default::default(),
            revocation_lists: Vec::new(),
            by_spire: false,
            stale: None,
            warnings: vec![],
        }
    }
    fn renew_identities(&self) -> usize {
        0
    }
    async fn drain(&self, _at_most: Duration) {
        self.0.drained.store(true, Ordering::SeqCst);
    }
    async fn suspend(&self) -> Result<(), Failure> {
        if self.0.unstoppable.load(Ordering::SeqCst) {
            return Err(miette!("it writes on"));
        }
        self.0.writes.store(false, Ordering::SeqCst);
        Ok(())
    }
    async fn resume(&self) -> Result<u64, Failure> {
        self.0.writes.store(true, Ordering::SeqCst);
        Ok(100)
    }
    async fn settle(&self, _at_most: Duration) {}
    async fn close_listeners(&self, _pod: u64) {}
    async fn drained(&self) {
        if self.0.carries.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }
    async fn forsaken(&self) {
        if !self.0.forsaken.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }
    fn succeeds(&self, _before: Option<Before>) {}
}

fn pod(name: &str, node: &str, address: &str, mesh: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}-1, annotations: {{heddle.io/mesh: {mesh}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: c, image: i}}]}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    )
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

async fn status(client: &Client) -> Value {
    serde_json::from_slice(&client.ask(Method::GET, "/v1/status", vec![]).await.unwrap()).unwrap()
}

async fn until(client: &Client, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let status = status(client).await;
        if seen(&status) {
            return status;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn attach(client: &Client, name: &str) -> Result<Value, String> {
    let body = serde_json::json!({"namespace": "shop", "name": name, "netns": "/run/netns/x"}).to_string();
    match client.ask(Method::POST, "/v1/pods", body.into_bytes()).await {
        Ok(answer) => Ok(serde_json::from_slice(&answer).unwrap()),
        Err(error) => {
            Err(format!("{error}; {}", error.help().map(|help| help.to_string()).unwrap_or_default()))
        }
    }
}

/// From the configuration to the last signal, with everything real but the kernel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_lives_from_its_configuration_to_the_signal() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let pods = pod("web", "a", "10.0.0.1", "enabled")
        + &pod("far", "b", "10.0.1.1", "enabled")
        + &pod("plain", "a", "10.0.0.2", "disabled");
    write(&folder.join("pods.yaml"), &pods);
    let flags = Flags {
        node: Some("a".into()),
        manifests: Some(folder.display().to_string()),
        ca_memory: true,
        place: PlaceFlags {
            run_directory: Some(dir.path().join("run").display().to_string()),
            ..PlaceFlags::default()
        },
        ..Flags::default()
    };
    let config = configuration(&flags).unwrap();
    let directory = take(&config.run_directory).unwrap();
    let bench = Bench::new();
    let manifests = Source::open(&config.resources).await.unwrap();
    let opened = OpenBench(Arc::clone(&bench));
    let run = directory.path().to_owned();
    let claim = Claim::Alone(directory);
    let agent = tokio::spawn(async move { serve(&config, claim, manifests, false, |_| Ok(opened)).await });
    let client = Client::new(&run.join(SOCKET));
    let started = Instant::now();
    while !run.join(SOCKET).exists() {
        assert!(!agent.is_finished() && started.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let seen = status(&client).await;
    assert_eq!(seen["rules"]["kernelGeneration"], 101, "goes on after the generation that was found: {seen}");
    assert_eq!((&seen["node"], &seen["manifests"]["files"]), (&"a".into(), &1.into()));

    // The door knows pods by the snapshot.
    assert_eq!(attach(&client, "web").await.unwrap()["addresses"][0], "10.0.0.1");
    for (name, said) in [
        ("nobody", "no pod shop/nobody is known; put it into the manifests"),
        ("far", "does not run on a; ask the agent of its node"),
        ("plain", "is not in the mesh; annotate it"),
    ] {
        let error = attach(&client, name).await.unwrap_err();
        assert!(error.contains(said), "{error}");
    }

    // And whether a pod that is to be captured is: of this node, which has no kernel, none is.
    for (name, status, code) in
        [("web", 409, "not_captured"), ("plain", 409, "not_meshed"), ("nobody", 404, "unknown_pod")]
    {
        let path = format!("/v1/pods/shop/{name}");
        let (answered, told) = client.exchange(Method::GET, &path, vec![]).await.unwrap();
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((answered.as_u16(), told["code"].as_str()), (status, Some(code)), "{told}");
    }

    // A change is in force well within a second; a broken file takes nothing away.
    let changed = Instant::now();
    write(&folder.join("more.yaml"), &pod("new", "a", "10.0.0.3", "enabled"));
    until(&client, "the new pod", |seen| seen["rules"]["kernelGeneration"] == 102).await;
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    attach(&client, "new").await.unwrap();
    write(&folder.join("more.yaml"), "a: [\n");
    let seen =
        until(&client, "the stale file", |seen| seen["manifests"]["stale"][0]["lastGoodInForce"] == true)
            .await;
    assert_eq!(seen["rules"]["kernelGeneration"], 102, "{seen}");
    attach(&client, "new").await.unwrap();
    // What is asked for is what is in force, and not what is broken now.
    let policy = client.ask(Method::GET, "/v1/policy", vec![]).await.unwrap();
    let policy: crate::cli::door::PolicyInForce = serde_json::from_slice(&policy).unwrap();
    let more = policy.files.iter().find(|it| it.file.ends_with("more.yaml")).unwrap();
    assert_eq!(
        (more.text.as_str(), policy.generation),
        (pod("new", "a", "10.0.0.3", "enabled").as_str(), 102)
    );

    // Tables that are full are told and tried again by themselves.
    bench.full.store(true, Ordering::SeqCst);
    write(&folder.join("more.yaml"), &pod("newer", "a", "10.0.0.4", "enabled"));
    let seen = until(&client, "full tables", |seen| seen["rules"]["kernelError"].is_string()).await;
    assert_eq!(
        (&seen["rules"]["proxyGeneration"], &seen["rules"]["kernelGeneration"]),
        (&103.into(), &102.into())
    );
    bench.full.store(false, Ordering::SeqCst);
    until(&client, "the second try", |seen| seen["rules"]["kernelGeneration"] == 103).await;
    assert_eq!(bench.published.load(Ordering::SeqCst), 103);

    // Events reach whoever follows them.
    let mut events = client.follow("/v1/events").await.unwrap();
    bench.events.send("{\"n\":1}".into()).unwrap();
    let frame = http_body_util::BodyExt::frame(&mut events).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "{\"n\":1}\n");

    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    agent.await.unwrap().unwrap();
    assert!(bench.drained.load(Ordering::SeqCst));
    let gone = client.ask(Method::GET, "/v1/status", vec![]).await.unwrap_err();
    assert!(gone.to_string().contains("no agent runs here"), "{gone}");
}

#[tokio::test]
async fn a_missing_agent_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error =
        Client::new(&dir.path().join(SOCKET)).ask(Method::GET, "/v1/status", vec![]).await.unwrap_err();
    assert!(error.to_string().contains("no agent runs here"), "{error}");
    assert!(error.help().unwrap().to_string().contains("heddle agent --config"), "{error:?}");
}

#[tokio::test]
async fn an_agent_does_not_start_on_a_folder_of_which_something_cannot_be_read() {
    let own = tempfile::tempdir().unwrap();
    let folder = own.path();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let resources = Resources::Manifests(folder.to_owned());
    let open = || Source::open(&resources);
    write(&folder.join("a.yaml"), &pod("web", "a", "10.0.0.1", "enabled"));
    assert!(open().await.is_ok(), "the control");
    // A route that is no YAML: without it the Server that it is attached to would take every request.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
                 spec: {rules: [{matches: [{path: {value: \"\u{7f}\"}}]}]}\n";
    for broken in [route, "a: [\n", "kind: Server\n"] {
        write(&folder.join("b.yaml"), broken);
        let error =
            open().await.err().map(|error| (error.to_string(), error.help().map(|it| it.to_string())));
        let (error, help) = error.unwrap();
        assert!(error.contains("b.yaml is not taken: ") && error.contains("line"), "{error}");
        assert!(help.unwrap().contains("would be let in"));
    }
    write(&folder.join("c.yaml"), "a: [\n");
    assert!(open().await.err().unwrap().to_string().contains("(2 such in all"));
    write(&folder.join("b.yaml"), "");
    write(&folder.join("c.yaml"), "");
    assert!(open().await.is_ok());
}
