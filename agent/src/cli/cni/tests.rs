use super::{
    away::{PLAIN, Plain},
    install::{Installed, PLUGIN, Places, Sound, uninstall},
    request::{ANNOTATIONS, Config, Pod},
    *,
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

fn config(socket: &Path, more: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "type": "heddle-cni", "socket": "{}", "exempt": ["kube-system"],
            "prevResult": {{"cniVersion": "1.0.0", "ips": [{{"address": "10.0.0.7/24"}}, {{"address": "fd00::7/64"}}]}}{more}}}"#,
        socket.display()
    )
}

fn called(command: &str, namespace: &str, text: &str) -> Result<Value, Fault> {
    let (command, namespace) = (command.to_owned(), namespace.to_owned());
    let variable = move |name: &str| match name {
        "CNI_COMMAND" => Some(command.clone()),
        "CNI_CONTAINERID" => Some("c1".to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_NETNS" => Some("/proc/1/ns/net".to_owned()),
        "CNI_ARGS" => Some(format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"
        )),
        _ => None,
    };
    answer(variable, text)
}

#[test]
fn versions_are_told_and_others_refused() {
    let told = answer(|name| (name == "CNI_COMMAND").then(|| "VERSION".to_owned()), "{}").unwrap();
    assert_eq!(told["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let text = config(Path::new("/nowhere"), "").replace("1.0.0", "0.2.0");
    assert_eq!(called("ADD", "shop", &text).unwrap_err().code, 1);
    assert_eq!(called("ADD", "shop", "{").unwrap_err().code, 6);
    assert_eq!(called("MEND", "shop", &config(Path::new("/nowhere"), "")).unwrap_err().code, 4);
}

#[test]
fn a_plugin_that_is_chained_after_nothing_refuses() {
    let alone = r#"{"cniVersion": "1.0.0", "name": "pods", "type": "heddle-cni"}"#;
    assert_eq!(called("ADD", "shop", alone).unwrap_err().code, 7);
    let without = config(Path::new("/nowhere"), "")
        .replace(r#"{"address": "10.0.0.7/24"}, {"address": "fd00::7/64"}"#, "");
    assert_eq!(called("ADD", "shop", &without).unwrap_err().code, 7);
}

#[test]
fn while_the_agent_is_away_a_pod_that_may_be_meshed_waits() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let known = |annotations: &str| {
        config(&socket, &format!(r#", "runtimeConfig": {{"{ANNOTATIONS}": {annotations}}}"#))
    };
    // Nothing is known: as after a reboot.
    assert_eq!(called("ADD", "plain", &known("null")).unwrap_err().code, 11);
    fs::write(dir.path().join(PLAIN), r#"{"namespaces": ["plain"]}"#).unwrap();
    let passed = called("ADD", "plain", &known("null")).unwrap();
    assert_eq!(passed["ips"][0]["address"], "10.0.0.7/24", "the chain's result goes on as it came");
    called("ADD", "plain", &known(r#"{"heddle.io/mesh": "disabled"}"#)).unwrap();
    called("ADD", "kube-system", &config(&socket, "")).unwrap();
    for (namespace, text) in [
        ("shop", known("null")),
        ("plain", known(r#"{"heddle.io/mesh": "enabled"}"#)),
        ("plain", known(r#"{"heddle.io/mesh": "what?"}"#)),
        // Annotations that cannot be read are not taken for none.
        ("plain", known("7")),
        ("plain", known(r#"{"heddle.io/mesh": true}"#)),
        // The runtime does not pass annotations on.
        ("plain", config(&socket, "")),
    ] {
        let fault = called("ADD", namespace, &text).unwrap_err();
        assert_eq!(fault.code, 11);
        let shown = fault.to_json(&text);
        assert!(shown["msg"].as_str().unwrap().contains("waits for Heddle's agent"), "{shown}");
        assert_eq!(shown["cniVersion"], "1.0.0");
    }
    // A list that cannot be read is none.
    fs::write(dir.path().join(PLAIN), "{").unwrap();
    assert_eq!(called("ADD", "plain", &known("null")).unwrap_err().code, 11);
    assert_eq!(Plain::read(&socket), Plain::default());
}

#[test]
fn nothing_else_needs_the_agent() {
    let text = config(Path::new("/nowhere/agent.sock"), "");
    for command in ["DEL", "CHECK", "STATUS"] {
        assert_eq!(called(command, "shop", &text), Ok(Value::Null), "{command}");
    }
    assert_eq!(called("GC", "shop", &text).unwrap_err().code, 7, "without a list nobody is let go");
    let none = config(Path::new("/nowhere/agent.sock"), VALID);
    assert_eq!(called("GC", "shop", &none), Ok(Value::Null), "nobody is attached");
}

/// Of all attachments one is in use.
const VALID: &str = r#", "cni.dev/valid-attachments": [{"containerID": "c0", "ifname": "eth0"}]"#;

/// Answers like an agent: each request by the first of the answers that its first line begins with. Gives what is asked.
fn agent(socket: &Path, answers: &'static [(&str, &str, &str)]) -> std::sync::mpsc::Receiver<String> {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let (asked, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let (_, status, body) = answers.iter().find(|(begin, ..)| line.starts_with(begin)).unwrap();
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).unwrap();
            if asked.send(line.trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    received
}

#[test]
fn a_check_fails_where_a_pod_of_the_mesh_is_not_captured_as_the_runtime_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let asked = agent(
        &socket,
        &[
            ("GET /v1/pods/shop/", "200", r#"{"addresses": ["fd00::7", "10.0.0.7"], "inForce": true}"#),
            ("GET /v1/pods/other/", "200", r#"{"addresses": ["10.0.0.8"], "inForce": true}"#),
            ("GET /v1/pods/plain/", "409", r#"{"error": "is not in the mesh", "code": "not_meshed"}"#),
            ("GET /v1/pods/early/", "503", r#"{"error": "no rules are in force yet", "code": "not_ready"}"#),
            ("GET /v1/pods/gone/", "404", r#"{"error": "no such pod", "code": "unknown_pod"}"#),
            (
                "GET /v1/pods/loose/",
                "409",
                r#"{"error": "is not captured", "code": "not_captured", "remedy": "delete it"}"#,
            ),
            ("GET /v1/pods/odd/", "500", "what?"),
        ],
    );
    let text = config(&socket, "");
    for (namespace, expected) in [
        ("shop", None),
        ("plain", None),
        ("early", None),
        ("other", Some((100, "10.0.0.8"))),
        ("gone", Some((3, "no such pod"))),
        ("loose", Some((100, "is not captured"))),
        ("odd", Some((100, ""))),
    ] {
        let answer = called("CHECK", namespace, &text);
        assert!(asked.recv().unwrap().contains(&format!("/v1/pods/{namespace}/web?netns=/proc/1/ns/net")));
        match expected {
            None => assert_eq!(answer, Ok(Value::Null), "{namespace}"),
            Some((code, said)) => {
                let fault = answer.unwrap_err();
                assert!(fault.code == code && fault.message.contains(said), "{namespace}: {fault:?}");
            }
        }
    }
    let without = text.replace("prevResult", "result");
    assert_eq!(called("CHECK", "shop", &without).unwrap_err().code, 7);
}

#[test]
fn gc_lets_go_whoever_is_attached_and_not_in_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let asked = agent(
        &socket,
        &[
            ("POST", "200", "{}"),
            ("DELETE /v1/pods/refused/", "503", r#"{"error": "not now", "code": "not_ready"}"#),
            ("DELETE", "200", "{}"),
        ],
    );
    let text = config(&socket, "");
    let valid = |container: &str| config(&socket, &VALID.replace("c0", container));
    let next = || asked.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    called("ADD", "shop", &text).unwrap();
    next();
    assert_eq!(called("GC", "", &valid("c1")), Ok(Value::Null));
    assert!(asked.try_recv().is_err(), "who is in the list is left alone");
    assert_eq!(called("GC", "", &valid("c0")), Ok(Value::Null));
    assert_eq!(next(), "DELETE /v1/pods/shop/web?netns=/proc/1/ns/net HTTP/1.1");
    assert_eq!(called("GC", "", &valid("c0")), Ok(Value::Null));
    assert!(asked.try_recv().is_err(), "once");

    // Whom the agent does not let go stays attached; whom it let go by `DEL` does not.
    called("ADD", "refused", &text).unwrap();
    assert!(called("GC", "", &valid("c0")).unwrap_err().message.contains("not now"));
    assert!(called("GC", "", &valid("c0")).is_err(), "it is tried again");
    called("ADD", "shop", &text).unwrap();
    called("DEL", "shop", &text).unwrap();
    assert_eq!(called("GC", "", &valid("c0")), Ok(Value::Null));
}

#[test]
fn a_pod_passes_the_agent_only_where_it_is_captured_or_outside_the_mesh() {
    use heddle_policy::{Standing, WorkloadInfo};
    let pod = super::super::door::PodName::new("shop", "web").unwrap();
    let mut known = WorkloadInfo {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u".into(),
        digest: 1,
        node: "a".into(),
        local: true,
        service_account: "web".into(),
        addresses: Vec::new(),
        standing: Standing::Meshed,
        passage: heddle_policy::resources::Passage::Over,
        identity: None,
        probes: Vec::new(),
        labels: std::sync::Arc::default(),
    };
    pod.to_be_captured(&known).unwrap();
    for (standing, code) in [
        (Standing::Plain, "not_meshed"),
        (Standing::HostNetwork, "not_meshed"),
        // These are refused everywhere: to let them start as if they were outside the mesh would let them out.
        (Standing::Contested, "in_doubt"),
        (Standing::NoIdentity, "in_doubt"),
        (Standing::NoAddress, "in_doubt"),
        (Standing::Finished, "in_doubt"),
    ] {
        known.standing = standing;
        assert_eq!(pod.to_be_captured(&known).unwrap_err().code.as_str(), code, "{standing:?}");
    }
}

#[test]
fn addresses_are_the_chain_s() {
    let config = Config::read(&config(Path::new("/nowhere"), "")).unwrap();
    let addresses: Vec<String> = config.addresses().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.7", "fd00::7"]);
    let pod = Pod { namespace: "shop".into(), name: "web".into(), uid: "u".into() };
    assert!(Plain::default().lets(&config, &pod).is_err());
}

fn places(dir: &Path) -> Places {
    for name in ["bin", "net.d"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    Places {
        plugins: dir.join("bin"),
        networks: dir.join("net.d"),
        socket: "/run/heddle/agent.sock".into(),
        exempt: vec!["kube-system".into()],
    }
}

fn first(networks: &Path) -> Value {
    let mut names: Vec<_> = fs::read_dir(networks).unwrap().flatten().map(|it| it.path()).collect();
    names.sort();
    serde_json::from_slice(&fs::read(&names[0]).unwrap()).unwrap()
}

#[test]
fn the_plugin_is_chained_before_whatever_is_there_and_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (places, mut sound) = (places(dir.path()), Sound::default());
    assert_eq!(places.put(&mut sound).unwrap(), Installed::NoNetwork);
    let ptp = |subnet: &str| {
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{{"type": "ptp", "subnet": "{subnet}"}}]}}"#
        )
    };
    fs::write(places.networks.join("10-pods.conflist"), ptp("a")).unwrap();
    assert_eq!(places.put(&mut sound).unwrap(), Installed::After("10-pods.conflist".into()));
    let chained = first(&places.networks);
    assert_eq!(chained["plugins"][0]["type"], "ptp");
    assert_eq!(chained["plugins"][1]["type"], PLUGIN);
    assert_eq!(chained["name"], "pods");
    let mode = fs::metadata(places.plugins.join(PLUGIN)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // Another subnet, another file before it, a plain `.conf`: what the runtime takes first is ours.
    fs::write(places.networks.join("10-pods.conflist"), ptp("b")).unwrap();
    places.put(&mut sound).unwrap();
    assert_eq!(first(&places.networks)["plugins"][0]["subnet"], "b");
    fs::write(
        places.networks.join("00-a.conf"),
        r#"{"cniVersion": "0.3.1", "name": "one", "type": "bridge"}"#,
    )
    .unwrap();
    places.put(&mut sound).unwrap();
    let chained = first(&places.networks);
    assert_eq!(
        (&chained["plugins"][0]["type"], &chained["plugins"][1]["type"]),
        (&"bridge".into(), &PLUGIN.into())
    );
    fs::remove_file(places.networks.join("00-a.conf")).unwrap();
    places.put(&mut sound).unwrap();
    assert_eq!(first(&places.networks)["plugins"][0]["type"], "ptp");
    assert_eq!(fs::read_dir(&places.networks).unwrap().count(), 2);
    // Whatever somebody made of the plugin, it is this program again.
    let plugin = places.plugins.join(PLUGIN);
    let program = fs::metadata("/proc/self/exe").unwrap().len();
    fs::write(&plugin, "#!/bin/true").unwrap();
    places.put(&mut sound).unwrap();
    assert_eq!(fs::metadata(&plugin).unwrap().len(), program);
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o600)).unwrap();
    places.put(&mut sound).unwrap();
    assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o777, 0o755);
    uninstall(&places.plugins, &places.networks).unwrap();
    assert_eq!(fs::read_dir(&places.networks).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&places.plugins).unwrap().count(), 0);
    uninstall(&places.plugins, &places.networks).unwrap();
}

#[test]
fn what_somebody_takes_away_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let places = places(dir.path());
    let own = places.networks.join("00-heddle.conflist");
    fs::write(places.networks.join("10-pods.conflist"), r#"{"cniVersion": "1.0.0", "plugins": []}"#).unwrap();
    let others = std::sync::Arc::default();
    places.clone().keep(std::sync::Arc::clone(&others)).unwrap();
    let back = || {
        let began = std::time::Instant::now();
        while !own.exists() {
            assert!(began.elapsed() < std::time::Duration::from_secs(20));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    back();
    fs::remove_file(&own).unwrap();
    back();

    // The folders themselves, too: removed, and made anew by whoever brings the network.
    // In one step: whatever is removed from them one by one comes back meanwhile.
    for folder in [&places.plugins, &places.networks] {
        fs::rename(folder, folder.with_extension("gone")).unwrap();
    }
    while !places.plugins.join(PLUGIN).exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::create_dir(&places.networks).unwrap();
    fs::write(places.networks.join("10-pods.conflist"), r#"{"cniVersion": "1.0.0", "plugins": []}"#).unwrap();
    back();

    // Not where another agent keeps them: a change wakes the thread, which leaves it alone.
    others.store(true, std::sync::atomic::Ordering::Release);
    fs::remove_file(&own).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!own.exists());
}
