//! The lab itself: its network, its captures, and that it leaves the machine as it was.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use anyhow::Result;
use xtask::lab::{
    Lab, OUTSIDE, PodSpec, ServiceSpec, Traces,
    apps::{self, Attempt},
    eventually,
};

/// Every new lab sweeps up after dead ones: while what they leave is looked at, no other test makes a lab.
static SWEEPING: RwLock<()> = RwLock::new(());

const MARKER: &str = "heddle-marker-5d1f";

fn two_nodes(name: &str) -> Result<(Lab, xtask::lab::Pod, xtask::lab::Pod, xtask::lab::Pod)> {
    let mut lab = Lab::new(name)?.node("node-a")?.node("node-b")?;
    let client = lab.pod(&PodSpec::new("client", "node-a").namespace("shop").account("client"))?;
    let near =
        lab.pod(&PodSpec::new("near", "node-a").namespace("shop").account("server").port("http", 8080))?;
    let far =
        lab.pod(&PodSpec::new("far", "node-b").namespace("shop").account("server").port("http", 8080))?;
    Ok((lab, client, near, far))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn pods_reach_each_other_and_outside_over_both_families() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, client, near, far) = two_nodes("reach")?;
    for target in [&near, &far] {
        assert!(client.pings(target.v4.into())?, "{} over IPv4", target.name);
        assert!(client.pings(target.v6.into())?, "{} over IPv6", target.name);
    }
    for address in OUTSIDE {
        assert!(far.pings(address)?, "outside over {address}");
    }
    assert!(!client.pings("10.77.1.200".parse()?)?, "an address that no pod has answered");
    let node_b = lab.at("node-b")?;
    assert!(client.pings(node_b.v4.into())? && client.pings(node_b.v6.into())?);
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_capture_between_the_nodes_sees_what_crosses_and_only_that() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, client, near, far) = two_nodes("wire")?;
    let _near = near.nginx(8080, &format!("near {MARKER}\n"))?;
    let _far = far.nginx(8080, &format!("far {MARKER}\n"))?;
    let fetch =
        |to: SocketAddr| client.place().check(&["curl", "-sS", "--max-time", "5", &format!("http://{to}/")]);

    let capture = lab.capture("node-a")?;
    assert!(fetch((near.v4, 8080).into())?.contains(MARKER));
    let traffic = capture.stop()?;
    assert_eq!(traffic.hits(MARKER.as_bytes()), 0, "same-node bytes do not cross the router");

    for to in [SocketAddr::from((far.v4, 8080)), SocketAddr::from((far.v6, 8080))] {
        let capture = lab.capture("node-a")?;
        assert!(fetch(to)?.contains(MARKER));
        let traffic = capture.stop()?;
        assert_eq!(traffic.hits(MARKER.as_bytes()), 1, "{to}");
        let own: IpAddr = if to.is_ipv4() { client.v4.into() } else { client.v6.into() };
        let streams = traffic.between(own, to.ip());
        assert_eq!(streams.len(), 2, "{to}: a request and an answer");
        assert!(
            streams.iter().all(|stream| stream.missing == 0 && stream.records().is_err()),
            "{to}: no TLS"
        );
    }
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn tls_1_3_is_told_from_plain_text() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, client, _, far) = two_nodes("tls")?;
    let folder = far.directory().display().to_string();
    far.place().shell(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=far \
         -keyout {folder}/key.pem -out {folder}/cert.pem -days 1 2>/dev/null"
    ))?;
    let listen =
        format!("OPENSSL-LISTEN:8443,fork,reuseaddr,cert={folder}/cert.pem,key={folder}/key.pem,verify=0");
    let _server = far.spawn(&["socat", &listen, "EXEC:cat"])?;
    let url = format!("https://{}:8443/{MARKER}", far.v4);
    eventually("the TLS server to listen", Duration::from_secs(5), || {
        Ok(apps::connect(client.place(), &Attempt { milliseconds: 200, ..Attempt::new((far.v4, 8443), "") })?
            .connected)
    })?;
    let capture = lab.capture("node-b")?;
    client.run(&["curl", "-k", "-sS", "--http0.9", "--max-time", "1", &url])?;
    let traffic = capture.stop()?;
    assert_eq!(traffic.hits(MARKER.as_bytes()), 0);
    let records = traffic
        .between(client.v4.into(), far.v4.into())
        .iter()
        .map(|stream| stream.records())
        .collect::<Result<Vec<_>>>()?;
    assert_eq!(records.len(), 2);
    assert!(
        records.iter().all(|records| records.handshake > 0 && records.application_data > 0),
        "{records:?}"
    );
    assert!(records.iter().any(|records| records.tls13), "{records:?}");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn applications_tell_errno_peer_and_first_byte() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, client, near, far) = two_nodes("apps")?;
    let _echo = far.app(&["echo", "[::]:7000"])?;
    let _greeter = near.app(&["greet", "0.0.0.0:7001", "hello"])?;
    let echoed = client.connect(&Attempt::new((far.v4, 7000), "abc"))?;
    assert_eq!((echoed.received.as_str(), echoed.peer), ("abc", Some((far.v4, 7000).into())), "{echoed:?}");
    assert_eq!(echoed.local.map(|local| local.ip()), Some(client.v4.into()));
    let mapped = client.connect(&Attempt::new((far.v4.to_ipv6_mapped(), 7000), "abc"))?;
    assert_eq!(mapped.received, "abc", "{mapped:?}");
    let greeted = client.connect(&Attempt { enough: 5, ..Attempt::new((near.v4, 7001), "") })?;
    assert_eq!(greeted.received, "hello");
    assert!(greeted.first_byte_microseconds.is_some());
    let refused = client.connect(&Attempt::new((far.v4, 7999), ""))?;
    assert_eq!((refused.error.as_deref(), refused.refused()), (Some("ECONNREFUSED"), true), "{refused:?}");
    let silent = client.connect(&Attempt { milliseconds: 300, ..Attempt::new((far.v4, 7000), "") })?;
    assert_eq!((silent.error.as_deref(), silent.refused()), (Some("TIMEOUT"), false), "{silent:?}");
    assert_eq!(far.place().as_user(4321).check(&["id", "-u"])?.trim(), "4321");
    let cgroup = near.place().check(&["cat", "/proc/self/cgroup"])?;
    assert!(cgroup.contains(&format!("/{}/node-a/pods/pod", lab.id())), "{cgroup}");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_frame_and_a_raw_packet_leave_as_they_were_made() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, client, _, far) = two_nodes("raw")?;
    let mut packet = vec![0x45, 0, 0, 20 + 18, 0, 1, 0, 0, 64, 253, 0, 0];
    packet.extend(client.v4.octets());
    packet.extend(far.v4.octets());
    packet.extend(MARKER.as_bytes());
    let capture = lab.capture("node-b")?;
    apps::send_raw(client.place(), far.v4.into(), 253, &packet)?;
    // The receiver knows no such protocol, says so, and quotes the packet.
    assert!((1..=2).contains(&capture.stop()?.hits(MARKER.as_bytes())), "raw socket");

    let sum = packet
        .chunks(2)
        .take(10)
        .fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!u16::try_from(folded & 0xffff)?).to_be_bytes());
    let mut frame = client.gateway_mac()?.to_vec();
    frame.extend(client.mac("eth0")?);
    frame.extend([8, 0]);
    frame.extend(&packet);
    let capture = lab.capture("node-b")?;
    client.send_frame(&frame)?;
    assert!((1..=2).contains(&capture.stop()?.hits(MARKER.as_bytes())), "packet socket");
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn manifests_are_written_whole_and_private() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (mut lab, client, _, _) = two_nodes("yaml")?;
    let service = lab.service(&ServiceSpec::new("shop", "web", "far").port("http", 80, "http"))?;
    let manifests = lab.manifests();
    let pod = manifests.read("pod-shop-client.yaml")?;
    assert!(pod.contains(&format!("podIP: {}", client.v4)) && pod.contains("nodeName: node-a"), "{pod}");
    assert!(manifests.read("service-shop-web.yaml")?.contains(&service.v6.to_string()));
    lab.apply("rule.yaml", "a: 1\n")?;
    manifests.edit("rule.yaml", "1", "2")?;
    assert_eq!(manifests.read("rule.yaml")?, "a: 2\n");
    assert!(manifests.edit("rule.yaml", "3", "4").is_err());
    assert!(lab.apply("../escape.yaml", "").is_err());
    let mode = |path| {
        std::fs::metadata(path).map(|data| std::os::unix::fs::PermissionsExt::mode(&data.permissions()))
    };
    assert_eq!(mode(manifests.directory().to_path_buf())? & 0o777, 0o700);
    assert_eq!(mode(manifests.directory().join("rule.yaml"))? & 0o777, 0o600);
    lab.close()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_goes_and_another_takes_its_address() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (mut lab, client, near, _) = two_nodes("reuse")?;
    let _sleeper = near.spawn(&["sleep", "100"])?;
    lab.remove_pod(&near)?;
    assert!(!client.pings(near.v4.into())?);
    assert!(lab.manifests().read("pod-shop-near.yaml").is_err());
    let next = lab.pod(&PodSpec::new("next", "node-a").addresses(near.v4, near.v6))?;
    assert!(client.pings(near.v4.into())? && client.pings(near.v6.into())?);
    let (v4, v6, _) = next.second_interface()?;
    assert!(lab.at("node-a")?.host().run(&["ping", "-c", "1", "-W", "2", &v4.to_string()])?.succeeded());
    assert!(lab.at("node-a")?.host().run(&["ping", "-c", "1", "-W", "2", &v6.to_string()])?.succeeded());
    lab.close()
}

/// The machine is as it was: after a drop, after a panic, after the owner was killed, after its janitor was killed too.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn nothing_is_left_behind() -> Result<()> {
    let _turn = SWEEPING.write().unwrap_or_else(PoisonError::into_inner);
    // In a network and mount namespace of other tests nothing is compared: only what bears this lab's name, and what
    // belongs to the machine itself.
    let of = |traces: &Traces, id: &str| {
        traces
            .directories
            .iter()
            .chain(&traces.cgroups)
            .chain(&traces.mounts)
            .filter(|name| name.contains(id))
            .count()
    };
    let before = Traces::now()?;
    let (lab, client, ..) = two_nodes("left")?;
    let id = lab.id().to_owned();
    let mut sleeper = client.spawn(&["sleep", "1000"])?;
    assert!(of(&Traces::now()?, &id) > 0, "the comparison sees a lab that is there");
    drop(lab);
    assert!(sleeper.ended_within(Duration::from_secs(1)).is_some(), "the lab's processes end with it");
    let after = Traces::now()?;
    assert_eq!(of(&after, &id), 0, "{after:?}");
    assert_eq!((after.sysctls, after.links, after.pins), (before.sysctls, before.links, before.pins));

    // The test runs itself again as the owner that is killed.
    let owner = |janitor_dies: bool| -> Result<String> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "an_owner_to_be_killed", "--ignored", "--nocapture"])
            .env("HEDDLE_LAB_TO_KILL", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let id = loop {
            let line = lines.next().expect("the owner says which lab is its")?;
            if let Some((_, id)) = line.split_once("lab is ") {
                break id.to_owned();
            }
        };
        assert!(of(&Traces::now()?, &id) > 0);
        if janitor_dies {
            for entry in std::fs::read_dir("/proc")?.flatten() {
                let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).into_owned();
                if command.contains("heddle-janitor") && command.contains(&id) {
                    let pid = entry.file_name().to_string_lossy().parse::<i32>()?;
                    rustix::process::kill_process(
                        rustix::process::Pid::from_raw(pid).unwrap(),
                        rustix::process::Signal::KILL,
                    )?;
                }
            }
        }
        child.kill()?;
        child.wait()?;
        Ok(id)
    };
    let id = owner(false)?;
    eventually("the janitor to remove the lab of a killed owner", Duration::from_secs(5), || {
        Ok(of(&Traces::now()?, &id) == 0)
    })?;
    let id = owner(true)?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(of(&Traces::now()?, &id) > 0, "without its janitor the lab stays");
    Lab::new("sweeper")?.close()?;
    assert_eq!(of(&Traces::now()?, &id), 0, "the next lab sweeps it up");
    Ok(())
}

/// Not a test of its own: the owner that [`nothing_is_left_behind`] kills.
#[test]
#[ignore = "run by nothing_is_left_behind"]
fn an_owner_to_be_killed() -> Result<()> {
    if std::env::var_os("HEDDLE_LAB_TO_KILL").is_none() {
        return Ok(());
    }
    let (lab, client, ..) = two_nodes("killed")?;
    let _sleeper = client.spawn(&["sleep", "1000"])?;
    println!("lab is {}", lab.id());
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_kept_lab_outlives_its_owner_until_it_is_removed() -> Result<()> {
    let _turn = SWEEPING.read().unwrap_or_else(PoisonError::into_inner);
    let (lab, ..) = two_nodes("kept")?;
    let directory = lab.directory().to_owned();
    lab.keep()?;
    Lab::new("other")?.close()?;
    assert!(directory.exists(), "a lab of another name leaves it alone");
    assert!(xtask::lab::remove_kept("kept")? >= 1);
    assert!(!directory.exists());
    Ok(())
}
