//! o: a node is switched off and on again, and its pods start before its agent.

use super::scene::{Inside, MARKER, NODE_A, Scene};
use super::wire::request;
use crate::cluster::images::HEDDLE;
use crate::cluster::node::PARTS;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::fs;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::{Capture, eventually};

/// It asks from its first moment on.
const EAGER: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: eager, namespace: shop}
spec:
  nodeName: node-a
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  containers:
    - {name: shell, image: "heddle.local/apps:1", command: [sh, -c, "while :; do curl -s --max-time 2 'http://WEB:8080/?MARKER'; sleep 0.1; done"]}
"#;
/// What a machine loses with its power: namespaces, mounts of pods, and whatever is in /run and in bpffs.
const WIPE: &str = r#"
for it in $(awk '$5 ~ "^/run/(netns|containerd)/|^/var/lib/kubelet/pods/" {print $5}' /proc/self/mountinfo | sort -r); do
    umount -l "$it" || true
done
ip link delete cni0 2>/dev/null || true
rm -rf /run/netns/* /run/containerd/* /run/heddle /run/cni-addresses /sys/fs/bpf/heddle
"#;

/// o. Power off, power on, and the agent last.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    let web = scene.address("shop", "web")?.to_string();
    scene.apply("eager.yaml", &EAGER.replace("WEB", &web).replace("MARKER", MARKER))?;
    eventually("shop/eager to be answered", Duration::from_secs(60), || served(scene, "shop"))?;
    let node = scene.node(NODE_A)?;
    let image = scene.state.folder.join("heddle.tar").display().to_string();
    let ctr = |words: &[&str]| {
        let program = scene.programs.ctr();
        node.check(&[&[program.as_str(), "--namespace=k8s.io", "images"], words].concat())
    };
    ctr(&["export", &image, HEDDLE])?;
    ctr(&["rm", HEDDLE])?;

    step.does("everything on node-a killed, its namespaces, /run and pins taken away, and the node started without an agent");
    let capture = of_pods(scene)?;
    power_off(scene, step, NODE_A)?;
    power_on(scene, NODE_A)?;
    for (namespace, pod) in [("shop", "eager"), ("plain", "client")] {
        let mut last = String::new();
        let waits = eventually("its event", Duration::from_secs(180), || {
            last = events(scene, namespace, pod)?;
            Ok(last.contains("waits for Heddle's agent"))
        });
        let came = last.split("waits for").nth(1).unwrap_or(&last).chars().take(120).collect::<String>();
        step.check(&format!("{namespace}/{pod} waits for the agent"), waits.is_ok(), came);
    }
    let away = scene.status(NODE_A).is_err();
    step.check("there is no agent", away, "it cannot be asked");

    step.does("the agent's image put back");
    ctr(&["import", "--snapshotter=native", &image])?;
    fs::remove_file(&image).with_context(|| format!("cannot remove {image}"))?;
    let captured = eventually("the pods to be captured", Duration::from_secs(240), || {
        let captured = scene.captured(NODE_A).unwrap_or_default();
        Ok(["shop/eager", "shop/client", "bank/stranger"].iter().all(|name| captured.contains_key(*name)))
    });
    step.check("the pods are captured", captured.is_ok(), "shop/eager, shop/client, bank/stranger");
    answered_in_ciphertext(scene, step, capture)?;
    let mut captured = scene.captured(NODE_A)?;
    let netns = captured.remove("bank/stranger").context("bank/stranger is not captured")?;
    let stranger = Inside { place: node, netns };
    step.check("bank/stranger is refused", !stranger.reaches(&format!("http://{web}:8080/"))?, "refused");
    eventually("plain/client to run", Duration::from_secs(90), || {
        let words = ["exec", "-n", "plain", "client", "--", "sleep", "0"];
        Ok(scene.state.kubectl_output(scene.programs, &words)?.succeeded())
    })?;
    let (_, traffic) = request(scene, "plain")?;
    let hits = traffic.hits(MARKER.as_bytes());
    step.check("the control: outside the mesh the marker is seen", hits > 0, format!("{hits} times"));
    // Until it is gone: another of that name may follow.
    scene.kubectl(&["delete", "pod", "-n", "shop", "eager", "--timeout=90s"]).map(drop)
}

/// A capture of what comes from node-a's pods or goes to them: of the control plane there is much else.
pub fn of_pods(scene: &Scene) -> Result<Capture> {
    let networks = scene.state.network.pod_networks();
    let filter: Vec<String> = networks.iter().map(|network| format!("net {network}")).collect();
    let link = format!("to-{NODE_A}");
    Capture::start_of(&[&filter.join(" or ")], &scene.state.router, &link, &scene.state.folder)
}

/// shop's eager pod is answered in the end, and nothing that it asked since the capture began was in the clear.
pub fn answered_in_ciphertext(scene: &Scene, step: &mut Step, capture: Capture) -> Result<()> {
    let answered = eventually("shop/eager to be answered", Duration::from_secs(60), || served(scene, "shop"));
    let traffic = capture.stop()?;
    let hits = traffic.hits(MARKER.as_bytes());
    step.check("shop/eager is answered", answered.is_ok(), "served");
    step.check(
        "from the first moment to now not one byte of the marker is on the wire",
        hits == 0,
        format!("{hits} times in {} packets", traffic.packets),
    );
    Ok(())
}

/// Whether a namespace's eager pod was answered just now.
pub fn served(scene: &Scene, namespace: &str) -> Result<bool> {
    let words = ["logs", "-n", namespace, "eager", "--since=3s"];
    Ok(scene.state.kubectl_output(scene.programs, &words)?.stdout.contains("served"))
}

fn events(scene: &Scene, namespace: &str, pod: &str) -> Result<String> {
    let object = format!("--field-selector=involvedObject.name={pod}");
    scene.kubectl(&["get", "events", "-n", namespace, &object, "-o", "jsonpath={.items[*].message}"])
}

/// Kills everything on a node, and takes away what a machine loses with its power.
pub fn power_off(scene: &Scene, step: &mut Step, name: &str) -> Result<()> {
    for part in PARTS.iter().rev() {
        scene.state.daemon(&format!("{name}/{part}"))?.kill()?;
    }
    let killed = kill_all(scene, name)?;
    let node = scene.node(name)?;
    node.shell(WIPE)?;
    // The kernel takes away what was in a namespace some time after its last process.
    let mut veths = 0;
    let gone = eventually("the pods' interfaces to be gone", Duration::from_secs(120), || {
        let links = node.check(&["ip", "-o", "link", "show", "type", "veth"])?;
        veths = links.lines().filter(|line| !line.contains(": uplink@")).count();
        Ok(veths == 0)
    });
    let pins = node.shell("ls /sys/fs/bpf")?;
    step.check(
        &format!("on {name} nothing is left of pods, captures and pins"),
        killed > 0 && gone.is_ok() && !pins.contains("heddle"),
        format!("{killed} processes killed, {veths} interfaces of pods, pins: {:?}", pins.trim()),
    );
    Ok(())
}

/// Starts a node's own programs, and no more.
pub fn power_on(scene: &Scene, name: &str) -> Result<()> {
    for part in PARTS {
        let daemon = scene.state.daemon(&format!("{name}/{part}"))?;
        // A kubelet ends where the container runtime is not ready yet, and is started again, as by any init.
        eventually(&format!("{part} to stay"), Duration::from_secs(60), || {
            if daemon.process()?.is_none() {
                daemon.start_again(scene.programs)?;
            }
            std::thread::sleep(Duration::from_secs(2));
            Ok(daemon.process()?.is_some())
        })?;
    }
    Ok(())
}

/// Kills every process of the node's but the one that holds the node's own namespaces. How many.
fn kill_all(scene: &Scene, name: &str) -> Result<usize> {
    let lab = scene.state.folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let of_node = format!("/{lab}/{name}/");
    let own = scene.node(name)?.check(&["readlink", "/proc/self/ns/mnt"])?;
    let mut killed = 0;
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let path = process.path();
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !fs::read_to_string(path.join("cgroup")).is_ok_and(|it| it.contains(&of_node)) {
            continue;
        }
        let namespace = fs::read_link(path.join("ns/mnt")).map(|it| it.display().to_string());
        let holds = namespace.is_ok_and(|it| it == own.trim())
            && fs::read(path.join("cmdline")).is_ok_and(|it| it.starts_with(b"sleep\0infinity"));
        if !holds {
            // One that has ended meanwhile is killed, too.
            killed += usize::from(scene.signal(pid, Signal::KILL).is_ok());
        }
    }
    Ok(killed)
}
