mod followed;

use super::*;
use crate::cluster::{folder::FolderStatus, snapshot::Publication};
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketType},
    process::geteuid,
};
use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::watch,
};

/// Knows one pod, `shop/web`; attaching `shop/slow` takes 300 ms.
#[derive(Clone)]
struct Fake {
    events: broadcast::Sender<Arc<str>>,
    slow_done: Arc<AtomicUsize>,
}

impl Door for Fake {
    async fn attach(&self, request: AttachRequest) -> Result<Attached, AttachError> {
        let unknown = || {
            AttachError::new(AttachErrorCode::UnknownPod, format!("no pod {} is known", request.pod))
                .field("name")
                .remedy("put it into the manifests")
        };
        match request.pod.name.as_str() {
            "web" => Ok(Attached {
                namespace: request.pod.namespace,
                name: request.pod.name,
                addresses: vec!["10.0.0.1".parse().unwrap()],
                identity: "web.shop.serviceaccount.identity.linkerd.cluster.local".into(),
                generation: 7,
            }),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.slow_done.fetch_add(1, Ordering::SeqCst);
                Err(unknown())
            }
            "crash" => panic!("the fake door was told to"),
            _ => Err(unknown()),
        }
    }

    fn check(&self, request: &CheckRequest) -> Result<PodStatus, AttachError> {
        let PodName { namespace, name } = request.pod.clone();
        if name != "web" || request.netns.as_ref().is_some_and(|netns| netns.as_os_str() != "/run/netns/web")
        {
            return Err(AttachError::new(AttachErrorCode::NotCaptured, "is not captured").remedy("ask again"));
        }
        Ok(PodStatus {
            namespace,
            name,
            netns: "/run/netns/web".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            identity: "web".into(),
            in_force: true,
            problems: vec![],
            repairs: vec![],
        })
    }

    async fn detach(&self, request: DetachRequest) -> Result<(), AttachError> {
        if request.pod.name == "web" {
            Ok(())
        } else {
            Err(AttachError::new(AttachErrorCode::UnknownPod, "not captured"))
        }
    }

    fn status(&self) -> Status {
        Status {
            version: "0".into(),
            schema: 1,
            node: "a".into(),
            pid: 1,
            started: time::OffsetDateTime::UNIX_EPOCH,
            rules: Publication::default(),
            manifests: Some(FolderStatus::default()),
            cluster: None,
            problems: vec![],
            pods: vec![],
            door: BTreeMap::new(),
        }
    }

    fn events(&self) -> broadcast::Receiver<Arc<str>> {
        self.events.subscribe()
    }

    fn identities(&self) -> Identities {
        Identities {
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
        3
    }

    fn metrics(&self) -> String {
        "# EOF\n".into()
    }

    fn flows(&self) -> broadcast::Receiver<Arc<str>> {
        self.events.subscribe()
    }

    fn flows_missed(&self, lines: u64) -> String {
        format!("{{\"leftOut\":{lines}}}")
    }

    fn policy(&self) -> PolicyInForce {
        PolicyInForce {
            node: "a".into(),
            generation: 7,
            settings: (&heddle_policy::ClusterSettings::default()).into(),
            files: vec![ManifestText { file: "/m/a.yaml".into(), text: "a: 1\n".into() }],
        }
    }
}

struct Open {
    _dir: tempfile::TempDir,
    run: RunDirectory,
    socket: PathBuf,
    fake: Fake,
    counts: Arc<Counts>,
    _stop: watch::Sender<bool>,
}

fn open(bounds: Bounds) -> Open {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDirectory::take(&dir.path().join("run")).unwrap();
    let listener = tokio::net::UnixListener::from_std(run.listen(SOCKET).unwrap()).unwrap();
    let fake = Fake { events: broadcast::channel(16).0, slow_done: Arc::default() };
    let server = Server::new(fake.clone(), bounds).unwrap();
    let (stop, stopped) = watch::channel(false);
    let counts = server.counts();
    tokio::spawn(server.run(listener, stopped));
    let socket = run.path().join(SOCKET);
    Open { _dir: dir, run, socket, fake, counts, _stop: stop }
}

impl Open {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends bytes and reads until the door closes; an answer may come before everything was sent.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes).await;
        rest(&mut stream).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let answer = self.say(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).unwrap_or("0").parse().unwrap(), body.to_owned())
    }

    async fn still_works(&self) {
        assert_eq!(self.ask("GET", "/v1/status", "").await.0, 200);
    }
}

async fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the door neither answered nor closed");
    String::from_utf8_lossy(&answer).into_owned()
}

const WEB: &str = r#"{"namespace":"shop","name":"web","netns":"/run/netns/web"}"#;

#[tokio::test]
async fn pods_come_and_go_and_what_is_in_force_can_be_read() {
    let door = open(Bounds::default());
    let (status, body) = door.ask("POST", "/v1/pods", WEB).await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        "{\"namespace\":\"shop\",\"name\":\"web\",\"addresses\":[\"10.0.0.1\"],\
         \"identity\":\"web.shop.serviceaccount.identity.linkerd.cluster.local\",\"generation\":7}\n"
    );
    for (path, expected) in [
        ("/v1/pods/shop/web", 200),
        ("/v1/pods/shop/web?netns=/run/netns/web", 200),
        ("/v1/pods/shop/web?netns=/run/netns/older", 409),
        ("/v1/pods/shop/other", 409),
        ("/v1/pods/shop/web?what=else", 400),
    ] {
        assert_eq!(door.ask("GET", path, "").await.0, expected, "{path}");
    }
    assert_eq!(door.ask("DELETE", "/v1/pods/shop/web", "").await.0, 200);
    assert_eq!(door.ask("GET", "/v1/metrics", "").await, (200, "# EOF\n".into()));
    let (code, body) = door.ask("GET", "/v1/policy", "").await;
    let policy: PolicyInForce = serde_json::from_str(&body).unwrap();
    assert_eq!((code, policy.generation, policy.files[0].text.as_str()), (200, 7, "a: 1\n"));
    let defaults = heddle_policy::ClusterSettings::default();
    assert_eq!(
        policy.settings.cluster_settings(),
        Ok(defaults),
        "nothing of the settings is lost on the way"
    );
    let (status, body) = door.ask("GET", "/v1/status", "").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["node"], &body["door"]["attached"]), (200, &"a".into(), &1.into()));
}

#[tokio::test]
async fn errors_name_field_and_remedy() {
    let door = open(Bounds::default());
    for (body, status, code, field) in [
        (r#"{"namespace":"shop","name":"other","netns":"/n"}"#, 404, "unknown_pod", "name"),
        (r#"{"namespace":"Shop","name":"web","netns":"/n"}"#, 400, "bad_request", "namespace"),
        (r#"{"namespace":"shop","name":"../web","netns":"/n"}"#, 400, "bad_request", "name"),
        (r#"{"namespace":"shop","name":"web","netns":"netns"}"#, 400, "bad_request", "netns"),
        (r#"{"namespace":"shop","name":"web","netns":"/n","uid":0}"#, 400, "bad_request", ""),
        (r#"{"namespace":"shop","name":"web"}"#, 400, "bad_request", ""),
        (r#"["shop"]"#, 400, "bad_request", ""),
        ("", 400, "bad_request", ""),
    ] {
        let (got, answer) = door.ask("POST", "/v1/pods", body).await;
        let answer: api::ErrorBody = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (got, answer.code.as_str(), answer.field.as_str()),
            (status, code, field),
            "{body}: {answer:?}"
        );
        assert!(!answer.error.is_empty() && !answer.remedy.is_empty(), "{body}: {answer:?}");
    }
    assert_eq!(door.ask("DELETE", "/v1/pods/shop/other", "").await.0, 404);
    assert_eq!(door.ask("DELETE", "/v1/pods/shop/..%2fweb", "").await.0, 400);
    assert_eq!(door.ask("GET", "/v1/pods", "").await.0, 405);
    assert_eq!(door.ask("GET", "/", "").await.0, 404);
    assert_eq!(door.counts.read()["attach_refused_unknown_pod"], 1);
}

#[tokio::test]
async fn garbage_is_a_400_and_nothing_worse() {
    let door = open(Bounds::default());
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP at all\r\n\r\n"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: minus\r\n\r\n",
        &noise,
    ] {
        let answer = door.say(bytes).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer:?} to {bytes:?}");
    }
    // HTTP/2's preface gets no words, as hyper has it, but an end.
    assert_eq!(door.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, "");
    assert!(door.counts.read()["no_http"] >= 4, "{:?}", door.counts.read());
    door.still_works().await;
}

#[tokio::test]
async fn heads_and_bodies_that_are_huge_or_slow_are_cut_off() {
    let quick = Duration::from_millis(200);
    let door = open(Bounds { head_time: quick, body_time: quick, ..Bounds::default() });
    let huge = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = door.say(huge.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer:?}");
    assert_eq!(door.ask("POST", "/v1/pods", &"x".repeat(1 << 20)).await.0, 413);
    let chunked = "POST /v1/pods HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
        + &format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(4);
    assert!(door.say(chunked.as_bytes()).await.starts_with("HTTP/1.1 413"));

    let started = Instant::now();
    for said in ["", "GET /v1/st", "POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"name"]
    {
        let mut stream = door.connect().await;
        stream.write_all(said.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer:?}");
    }
    // One byte after another, each in time.
    let mut stream = door.connect().await;
    for byte in b"GET /v1/status HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!rest(&mut stream).await.contains(" 200 "));
    assert!(started.elapsed() < Duration::from_secs(5));
    door.still_works().await;
}

#[tokio::test]
async fn more_callers_than_fit_are_told_so_and_room_comes_back() {
    let door = open(Bounds { connections: 4, head_time: Duration::from_millis(400), ..Bounds::default() });
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(door.connect().await);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (status, body) = door.ask("GET", "/v1/status", "").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("4 callers are at the door already"));
    // A flood that is turned away does no harm.
    for _ in 0..200 {
        idle.push(door.connect().await);
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    door.still_works().await;
}

#[tokio::test]
async fn an_attachment_goes_on_when_its_caller_leaves_or_is_tired_of_waiting() {
    let door = open(Bounds { work_time: Duration::from_millis(50), ..Bounds::default() });
    let slow = WEB.replace("web", "slow");
    let (status, body) = door.ask("POST", "/v1/pods", &slow).await;
    assert_eq!(status, 504, "{body}");
    let mut stream = door.connect().await;
    let request =
        format!("POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{slow}", slow.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(door.fake.slow_done.load(Ordering::SeqCst), 2);
    // A failure within is an answer too.
    let (status, body) = door.ask("POST", "/v1/pods", &WEB.replace("web", "crash")).await;
    assert_eq!(status, 500, "{body}");
    door.still_works().await;
}

#[tokio::test]
async fn events_stream_line_by_line_and_tell_what_was_lost() {
    let door = open(Bounds { streams: 1, quiet: Duration::from_millis(100), ..Bounds::default() });
    let mut stream = door.connect().await;
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    assert_eq!(door.ask("GET", "/v1/events", "").await.0, 503);
    // More than the channel's sixteen at once: the reader is told how many it missed.
    for n in 0..40 {
        door.fake.events.send(format!("{{\"n\":{n}}}").into()).unwrap();
    }
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("\"n\":39")) {
        let line =
            tokio::time::timeout(Duration::from_secs(5), lines.next_line()).await.unwrap().unwrap().unwrap();
        if line.starts_with('{') {
            seen.push(line);
        }
    }
    assert_eq!(seen[0], "{\"lost\":24}");
    assert_eq!(seen.len(), 17);
    drop(lines);
    // The empty line every 100 ms shows that nobody reads any more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut stream = door.connect().await;
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn the_socket_is_reachable_by_its_owner_alone_and_one_agent_holds_it() {
    let door = open(Bounds::default());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(door.run.path()), mode(&door.socket)), (0o700, 0o600));
    let held = RunDirectory::take(door.run.path()).err().unwrap();
    assert!(
        matches!(&held, RunDirectoryError::Held { pid: Some(pid), .. } if *pid == std::process::id()),
        "{held}"
    );
    door.still_works().await;
    let path = door.run.path().to_owned();
    drop(door.run);
    // The dead agent's socket is still there, and is replaced.
    let next = RunDirectory::take(&path).unwrap();
    assert!(path.join(SOCKET).exists());
    drop(next.listen(SOCKET).unwrap());
    next.close();
    assert!(!path.join(SOCKET).exists());
    std::fs::write(path.join(SOCKET), "precious").unwrap();
    assert!(matches!(next.listen(SOCKET), Err(RunDirectoryError::NoSocket { .. })));
}

#[test]
fn a_run_folder_that_others_reach_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o755, 0o770, 0o701] {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let error = RunDirectory::take(dir.path()).err().unwrap();
        assert!(matches!(error, RunDirectoryError::Insecure { mode: found, .. } if found == mode), "{error}");
        assert!(error.remedy().contains("chmod 700"));
    }
    let link = dir.path().join("link");
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    assert!(RunDirectory::take(&link).is_err());
    let long = dir.path().join("x".repeat(120));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = RunDirectory::take(&long).unwrap().listen(SOCKET).err().unwrap();
    assert!(error.remedy().contains("107 bytes"), "{error}");
}

/// Asks for the status from another process, by way of a command that changes who it is first.
async fn ask_as(door: &Open, command: &[&str]) -> String {
    let (program, before) = command.split_first().unwrap();
    let output = tokio::process::Command::new(program)
        .args(before)
        .args(["curl", "--silent", "--show-error", "--include", "--max-time", "60", "--unix-socket"])
        .arg(&door.socket)
        .arg("http://x/v1/status")
        .output()
        .await
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn callers_of_another_user_or_in_a_container_are_refused_whatever_their_uid() {
    assert!(geteuid().is_root());
    let door = open(Bounds::default());
    let control = ask_as(&door, &["env"]).await;
    assert!(control.starts_with("HTTP/1.1 200"), "{control}");
    // A pod's process: root, in a pid namespace of its own.
    let answer = ask_as(&door, &["unshare", "--pid", "--fork", "--mount-proc"]).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("another pid namespace"), "{answer}");
    // Root of a user namespace of its own.
    let answer = ask_as(&door, &["unshare", "--user", "--map-root-user"]).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("another user namespace"), "{answer}");
    // Another user, even if somebody had opened the folder and the socket to it.
    let all = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap()
    };
    all(&door.socket);
    all(door.run.path());
    all(door.run.path().parent().unwrap());
    let answer = ask_as(&door, &["setpriv", "--reuid=12345", "--clear-groups"]).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("uid 12345"), "{answer}");
    let counts = door.counts.read();
    for refused in ["refused_pid_namespace", "refused_user_namespace", "refused_user"] {
        assert_eq!(counts.get(refused), Some(&1), "{counts:?}");
    }
    door.still_works().await;
}

/// Connects what it was given as its standard input, and ends.
#[test]
#[ignore = "is started by a test"]
fn is_started_by_a_test() {
    let Some(path) = std::env::var_os("SOCKET") else { return };
    let address = SocketAddrUnix::new(std::path::Path::new(&path)).unwrap();
    rustix::net::connect(std::io::stdin(), &address).unwrap();
}

/// A process connects, hands its socket to another and ends: nobody is behind the connection who could be asked.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_connection_whose_process_is_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDirectory::take(&dir.path().join("run")).unwrap();
    let listener = run.listen(SOCKET).unwrap();
    let own = caller::Own::read().unwrap();
    let kept = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let connected = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cli::door::tests::is_started_by_a_test", "--ignored"])
        .env("SOCKET", run.path().join(SOCKET))
        .stdin(kept.try_clone().unwrap())
        .output()
        .unwrap();
    assert!(connected.status.success(), "{connected:?}");
    listener.set_nonblocking(false).unwrap();
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(own.admit(&stream), Err(caller::Refusal::Gone));
    // The control: a process that is alive.
    let _client = std::os::unix::net::UnixStream::connect(run.path().join(SOCKET)).unwrap();
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(own.admit(&stream).unwrap().pid, std::process::id());
}
