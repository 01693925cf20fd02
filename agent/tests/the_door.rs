//! The door hands out identities: who may not ask is refused and recorded, what is not as it should be is refused with
//! its reason, and no nonsense, at the door or in the folder, takes anything away.

#[path = "common/tables_shop.rs"]
mod shop;

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::lab::{Pod, apps::Attempt, eventually};

use shop::{Shop, meshed};

const SOON: Duration = Duration::from_secs(10);

fn works(shop: &Shop) -> Result<bool> {
    Ok(shop.client.connect(&Attempt::new((shop.near.v4, 7000), "hello"))?.answered())
}

/// How often something happened at the door.
fn counted(shop: &Shop, name: &str) -> Result<u64> {
    Ok(shop.lab.agent("node-a")?.status()?["door"][name].as_u64().unwrap_or(0))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_caller_from_within_a_pod_is_refused_and_recorded() -> Result<()> {
    let shop = Shop::open("caller")?;
    let agent = shop.lab.agent("node-a")?;
    let socket = agent.socket().display().to_string();
    let curl = ["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", "--unix-socket", &socket];
    let body = json!({"namespace": "shop", "name": "near", "netns": shop.near.netns}).to_string();
    let asks: [&[&str]; 3] = [
        &["http://heddle/v1/status"],
        &["-X", "POST", "-d", &body, "http://heddle/v1/pods"],
        &["-X", "DELETE", "http://heddle/v1/pods/shop/near"],
    ];
    let host = shop.lab.at("node-a")?.host();
    let control = host.check(&[&curl[..], asks[0]].concat())?;
    assert!(control.ends_with("\n200"), "the control: root on the node itself may ask: {control}");

    // The lab's pods share the host's mounts, as a pod does into which the socket is mounted. Root in each.
    let guises: [(&str, &[&str]); 3] = [
        ("refused_pid_namespace", &["unshare", "--pid", "--fork", "--kill-child"]),
        ("refused_user_namespace", &["unshare", "--user", "--map-root-user"]),
        (
            "refused_pid_namespace",
            &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"],
        ),
    ];
    for (reason, guise) in guises {
        for ask in asks {
            let before = counted(&shop, reason)?;
            let answer = shop.stranger.run(&[guise, &curl[..], ask].concat())?;
            assert!(
                answer.stdout.ends_with("\n403") && answer.stdout.contains("caller_refused"),
                "{guise:?}: {answer:?}"
            );
            assert_eq!(counted(&shop, reason)?, before + 1, "{guise:?} is recorded");
        }
        assert!(agent.log().contains("a caller at the door was refused"), "{guise:?}: the log tells");
    }
    // Nobody else reaches the socket at all.
    let other = shop.stranger.place().as_user(4321).run(&[&curl[..], asks[0]].concat())?;
    assert!(!other.succeeded() && !other.stdout.ends_with("200"), "{other:?}");
    let modes = [("agent.sock", 0o600), ("", 0o700)];
    for (name, mode) in modes {
        let path = agent.socket().parent().context("no folder")?.join(name);
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, mode, "{}", path.display());
    }
    let status = agent.status()?;
    assert_eq!(status["pods"].as_array().map(Vec::len), Some(3), "nothing was attached or let go: {status}");
    shop.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_namespace_that_is_not_the_pods_is_refused() -> Result<()> {
    let mut shop = Shop::open("netns")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let sleeper = shop.far.spawn(&["sleep", "100"])?;
    let folder = shop.lab.directory().join("nonsense");
    fs::create_dir(&folder)?;
    let made = |name: &str| folder.join(name).display().to_string();
    shop.lab.outside().check(&["mkfifo", &made("fifo")])?;
    fs::write(made("file"), "no namespace")?;
    // Known to the cluster, on this node, and not attached yet.
    let guest = shop.lab.pod(&meshed("guest", "node-a"))?;
    let agent = shop.lab.agent("node-a")?;
    let ask = |name: &str, netns: &str| {
        let namespace = if name == "plain" { "default" } else { "shop" };
        agent.request(
            "POST",
            "/v1/pods",
            Some(&json!({ "namespace": namespace, "name": name, "netns": netns })),
        )
    };
    let path = |pod: &Pod| pod.netns.display().to_string();
    eventually("the agent to know the guest", SOON, || {
        Ok(ask("guest", "/nowhere")?.json()?["code"] == "no_namespace")
    })?;
    let far = format!("/proc/{}/ns/net", sleeper.pid());
    let other_kind = format!("/proc/{}/ns/mnt", sleeper.pid());
    // Not every machine lets root look at its first process.
    let first = "/proc/1/ns/net";
    let the_hosts = if fs::File::open(first).is_ok() { first } else { "/proc/thread-self/ns/net" }.to_owned();
    let cases = [
        ("guest", path(&shop.near), "namespace_taken"),
        ("near", path(&guest), "pod_taken"),
        ("guest", path(&shop.plain), "addresses_differ"),
        ("guest", far.clone(), "addresses_differ"),
        ("guest", "/proc/self/ns/net".into(), "host_namespace"),
        ("guest", the_hosts, "host_namespace"),
        ("far", path(&shop.far), "not_on_this_node"),
        ("far", far, "not_on_this_node"),
        ("plain", path(&shop.plain), "not_meshed"),
        ("nobody", path(&guest), "unknown_pod"),
        ("guest", other_kind, "no_namespace"),
        ("guest", made("fifo"), "no_namespace"),
        ("guest", made("file"), "no_namespace"),
        ("guest", folder.display().to_string(), "no_namespace"),
        ("guest", "/dev/zero".into(), "no_namespace"),
        ("guest", "run/netns/x".into(), "bad_request"),
        ("guest", format!("/{}", "x".repeat(200)), "bad_request"),
    ];
    for (name, netns, code) in cases {
        let before = counted(&shop, &format!("attach_refused_{code}"))?;
        let answer = ask(name, &netns)?;
        let told = answer.json()?;
        assert_eq!(told["code"], code, "{name} with {netns}: {told}");
        assert!((400..500).contains(&answer.status), "{}", answer.status);
        for field in ["error", "remedy"] {
            assert!(told[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {told}");
        }
        // What is no request at all is not counted by its kind.
        assert!(
            code == "bad_request" || counted(&shop, &format!("attach_refused_{code}"))? == before + 1,
            "{code} is recorded"
        );
    }
    // Its row would tell no more of its name than of another's that begins alike.
    let long = format!("guest-{}", "x".repeat(120));
    shop.lab.apply(
        "long.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {long}\n  namespace: shop\n  uid: long\n  \
             annotations: {{heddle.io/mesh: enabled}}\nspec: {{nodeName: node-a, serviceAccountName: guest, containers: []}}\n\
             status: {{phase: Running, podIP: 10.77.1.99, podIPs: [{{ip: 10.77.1.99}}]}}\n"
        ),
    )?;
    eventually("a name that is too long to be refused", SOON, || {
        let told = ask(&long, &path(&guest))?.json()?;
        Ok(told["code"] == "bad_request" && told["field"] == "name")
    })?;
    guest.place().check(&["ip", "address", "add", "10.77.1.222/32", "dev", "eth0"])?;
    assert_eq!(ask("guest", &path(&guest))?.json()?["code"], "addresses_differ");
    guest.place().check(&["ip", "address", "del", "10.77.1.222/32", "dev", "eth0"])?;
    // Nothing of all this stays with the pods: the guest may still come in, once and again.
    let [first, again] = [ask("guest", &path(&guest))?, ask("guest", &path(&guest))?];
    assert_eq!((first.status, &first.body), (200, &again.body), "attaching twice changes nothing");
    assert_eq!(again.status, 200);
    assert_eq!(agent.attach(&shop.near)?.status, 200);
    assert!(works(&shop)?, "and disturbs nobody");
    shop.close()
}

/// Sends bytes and reads the answer to its end.
fn converse(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    // It may have heard enough before the end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn garbage_at_the_door_is_answered_or_cut_off() -> Result<()> {
    let shop = Shop::open("garbage")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent = shop.lab.agent("node-a")?;
    let post = |body: &str| {
        format!("POST /v1/pods HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let noise: Vec<u8> = (0u32..100_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let long = format!("GET /{} HTTP/1.0\r\n\r\n", "x".repeat(1 << 20)).into_bytes();
    let headers = format!("GET /v1/status HTTP/1.0\r\n{}\r\n", "a: b\r\n".repeat(500)).into_bytes();
    let huge =
        format!("POST /v1/pods HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}", 1 << 20, "{".repeat(1 << 20))
            .into_bytes();
    let cases: [(&str, Vec<u8>, &[&str]); 13] = [
        ("nothing", Vec::new(), &[""]),
        ("noise", noise, &["", "HTTP/1.1 4", "HTTP/1.0 4"]),
        ("a TLS hello", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &["", "HTTP/1.1 4", "HTTP/1.0 4"]),
        ("half a head", b"POST /v1/pods HT".to_vec(), &["", "HTTP/1.1 4", "HTTP/1.0 4"]),
        ("a path without end", long, &["HTTP/1.1 4", "HTTP/1.0 4", ""]),
        ("headers without end", headers, &["HTTP/1.1 4", "HTTP/1.0 4", ""]),
        ("a body without end", huge, &["HTTP/1.0 413", "HTTP/1.1 413", ""]),
        ("no JSON", post("netns"), &["HTTP/1.0 400"]),
        ("other JSON", post("[1,2]"), &["HTTP/1.0 400"]),
        (
            "a field too many",
            post(r#"{"namespace":"a","name":"b","netns":"/c","uid":"d"}"#),
            &["HTTP/1.0 400"],
        ),
        (
            "a name that leads elsewhere",
            post(r#"{"namespace":"../a","name":"b","netns":"/c"}"#),
            &["HTTP/1.0 400"],
        ),
        ("no such path", b"GET /v2/../v1/status HTTP/1.0\r\n\r\n".to_vec(), &["HTTP/1.0 404"]),
        ("no such method", b"PATCH /v1/status HTTP/1.0\r\n\r\n".to_vec(), &["HTTP/1.0 405"]),
    ];
    for (what, bytes, expected) in cases {
        let answer = converse(&agent.socket(), &bytes)?;
        let fits = expected
            .iter()
            .any(|start| if start.is_empty() { answer.is_empty() } else { answer.starts_with(start) });
        assert!(fits, "{what}: {answer}");
        if let Some((_, body)) = answer.split_once("\r\n\r\n").filter(|(_, body)| !body.is_empty()) {
            let told: Value = serde_json::from_str(body).with_context(|| format!("{what}: {body}"))?;
            assert!(told["error"].is_string() && told["remedy"].is_string(), "{what}: {told}");
        }
    }
    // More callers than the door takes, who say nothing: the next is turned away, not kept waiting, and soon let in.
    let silent: Vec<UnixStream> = (0..80).map_while(|_| UnixStream::connect(agent.socket()).ok()).collect();
    assert!(silent.len() > 64);
    let turned_away = converse(&agent.socket(), b"GET /v1/status HTTP/1.0\r\n\r\n")?;
    assert!(turned_away.is_empty() || turned_away.contains(" 503 "), "{turned_away}");
    eventually("the silent ones to be cut off", SOON, || Ok(agent.status().is_ok()))?;
    drop(silent);
    assert!(works(&shop)? && agent.is_running());
    shop.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_folder_that_others_may_write_is_refused_at_start_and_keeps_the_last_good_state_live() -> Result<()> {
    let mut shop = Shop::open("folder")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent_a = || shop.lab.agent("node-a");
    let folder = shop.lab.manifests().directory().to_owned();
    let mode = |mode| fs::set_permissions(&folder, Permissions::from_mode(mode));
    let stranger = || shop.stranger.connect(&Attempt::new((shop.near.v4, 7000), "let me in"));
    assert!(works(&shop)? && !stranger()?.answered());
    let alarms = || -> Result<Vec<Value>> {
        let status = agent_a()?.status()?;
        Ok(status.pointer("/manifests/alarms").and_then(Value::as_array).cloned().unwrap_or_default())
    };

    mode(0o777)?;
    let evil = shop
        .lab
        .manifests()
        .read("clients.yaml")?
        .replace("name: client}", "name: client}, {kind: ServiceAccount, name: stranger}");
    assert!(evil.contains("stranger"));
    shop.lab.apply("clients.yaml", &evil)?;
    eventually("the alarm", SOON, || Ok(alarms()?.iter().any(|alarm| alarm["insecure"] == true)))?;
    let alarm = &alarms()?[0];
    assert!(alarm["error"].as_str().is_some_and(|error| error.contains("0777")), "{alarm}");
    assert!(alarm["remedy"].as_str().is_some_and(|remedy| remedy.contains("chmod go-w")), "{alarm}");
    for _ in 0..20 {
        assert!(!stranger()?.answered(), "what somebody else may have written is in force");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(works(&shop)?, "the last good state stays");

    agent_a()?.kill()?;
    let (heddle, settings) = (shop.lab.heddle()?, shop.lab.settings().clone());
    let agent = shop.lab.agent("node-a")?;
    agent.launch(&heddle, &settings)?;
    eventually("the agent to refuse to start", SOON, || Ok(!agent.is_running()))?;
    let said = agent.log_tail(20);
    assert!(said.contains("0777") && said.contains("chmod go-w"), "{said}");
    // Put right, everything is as its owner wrote it: the edit was real.
    fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
    agent.start(&heddle, &settings)?;
    let outcome = shop.stranger.connect(&Attempt::new((shop.near.v4, 7000), "let me in"))?;
    assert!(outcome.answered(), "the control: {}", outcome.summary());
    shop.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn bad_files_are_told_of_and_take_nothing_away() -> Result<()> {
    let shop = Shop::open("bad-files")?;
    let _echo = shop.near.app(&["echo", "[::]:7000"])?;
    let agent = shop.lab.agent("node-a")?;
    let folder = shop.lab.manifests().directory().to_owned();
    // Of two writings the first is in force: this file is the last.
    let bad = folder.join("zz-bad.yaml");
    let resource = |kind: &str, rest: &str| {
        format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: {kind}\nmetadata: {{name: bad, namespace: shop}}\n{rest}\n"
        )
    };
    let pod = |status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: bad, namespace: shop, uid: bad, annotations: {{heddle.io/mesh: enabled}}}}\n\
             spec: {{nodeName: node-a, serviceAccountName: bad, containers: [{{name: c, image: i}}]}}\nstatus: {{{status}}}\n"
        )
    };
    let twice = shop.lab.manifests().read("clients.yaml")?.replace("name: client}", "name: stranger}");
    // What is written, words that say what is wrong, and the exit code of `heddle policy check`.
    let cases: [(&str, String, &[&str], i32); 11] = [
        ("malformed", "kind: [\n".into(), &["not YAML"], 1),
        ("no text", "\u{fffd}".into(), &["bad.yaml"], 2),
        (
            "an unknown field",
            pod("phase: Running").replace("spec: {", "spec: {colour: red, "),
            &["colour"],
            0,
        ),
        (
            "an unknown field of a rule",
            resource("Server", "spec: {podSelector: {}, port: 1, colour: red}"),
            &["colour"],
            1,
        ),
        (
            "an unknown kind",
            "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: bad, namespace: shop}\n"
                .into(),
            &["CronTab"],
            0,
        ),
        ("written twice", twice, &["written twice"], 1),
        ("no address", pod("phase: Running"), &["bad"], 0),
        (
            "a port out of range",
            resource("Server", "spec: {podSelector: {}, port: 70000}"),
            &["spec.port", "65535"],
            1,
        ),
        (
            "a container port out of range",
            pod("phase: Running, podIP: 10.77.1.250")
                .replace("image: i", "image: i, ports: [{containerPort: 99999}]"),
            &["containerPort"],
            1,
        ),
        ("10 MB", format!("# {}\n", "x".repeat(10 << 20)), &["bytes long", "split"], 2),
        ("a FIFO", String::new(), &["named pipe", "regular file"], 2),
    ];
    let all = |text: &str, words: &[&str]| {
        words.iter().all(|word| text.to_lowercase().contains(&word.to_lowercase()))
    };
    for (what, text, words, code) in cases {
        match what {
            "a FIFO" => {
                drop(shop.lab.outside().check(&["mkfifo", "-m", "600", &bad.display().to_string()])?)
            }
            "no text" => fs::write(&bad, b"kind: \xff\xfe\n")?,
            _ => fs::write(&bad, text)?,
        }
        if what != "a FIFO" {
            fs::set_permissions(&bad, Permissions::from_mode(0o600))?;
        }
        let heddle = shop.lab.heddle()?.display().to_string();
        let checked = shop.lab.at("node-a")?.host().run(&[
            &heddle,
            "policy",
            "check",
            &folder.display().to_string(),
        ])?;
        let said = checked.stdout.replace(['\n', '│'], " ").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(all(&said, words), "{what}: `heddle policy check` says {said} {}", checked.stderr);
        assert_eq!(checked.code, Some(code), "{what}: {said}");
        eventually(&format!("the status to tell of {what}"), SOON, || {
            let status = agent.status()?;
            Ok(all(&format!("{}{}", status["problems"], status["manifests"]), words))
        })
        .with_context(|| {
            format!(
                "{}{}",
                agent.status().unwrap_or_default()["problems"],
                agent.status().unwrap_or_default()["manifests"]
            )
        })?;
        assert!(works(&shop)?, "{what} took something away");
        let stranger = shop.stranger.connect(&Attempt::new((shop.near.v4, 7000), "let me in"))?;
        assert!(!stranger.answered(), "{what} let somebody in");
        fs::remove_file(&bad)?;
    }
    eventually("nothing to be wrong any more", SOON, || {
        let status = agent.status()?;
        let errors = status["problems"]
            .as_array()
            .context("no problems")?
            .iter()
            .filter(|it| it["severity"] == "error")
            .count();
        Ok(errors == 0 && status["manifests"]["stale"] == json!([]))
    })?;
    assert!(agent.is_running() && works(&shop)?);
    shop.close()
}
