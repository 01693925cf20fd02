//! p: pods of every kind live as without a mesh, and are judged.

use super::scene::{Inside, NODE_A, NODE_B, Scene};
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::{Output, eventually, stretched};

const PODS: &str = include_str!("pods.yaml");
const HOSTS: &str = include_str!("hosts.yaml");
const IMAGE: &str = "--image=heddle.local/apps:1";
/// Where the API server's machine finds a port that is forwarded.
const FORWARDED: &str = "18080";

/// p. Every kind of pod.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("kubectl apply a StatefulSet, a CronJob, pods on the host's network, with init containers, one slow to end");
    let web = scene.address("shop", "web")?.to_string();
    scene.apply("pods.yaml", &PODS.replace("WEB", &web))?;
    for pod in ["shelf-0", "shelf-1", "host-a", "host-b", "leaving"] {
        ready(scene, pod)?;
    }
    initialized(scene, step)?;
    headless(scene, step)?;
    hosts(scene, step)?;
    kubectl(scene, step)?;
    restarted(scene, step)?;
    drains(scene, step)?;
    let done = || {
        let words = ["get", "cronjob", "-n", "shop", "daily", "-o", "jsonpath={.status.lastSuccessfulTime}"];
        scene.kubectl(&words)
    };
    let ran = eventually("the CronJob's Job to succeed", Duration::from_secs(90), || Ok(!done()?.is_empty()));
    step.check("the CronJob's Jobs finish", ran.is_ok(), done()?.trim());
    for what in
        ["statefulset/shelf", "cronjob/daily", "service/shelf", "service/door", "pod/host-a", "pod/host-b"]
    {
        scene.kubectl(&["delete", "-n", "shop", what, "--wait=false"])?;
    }
    Ok(())
}

/// Waits until a pod of the shop is ready.
pub fn ready(scene: &Scene, pod: &str) -> Result<()> {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    let words = ["get", "pod", "-n", "shop", pod, "--ignore-not-found", "-o", path];
    eventually(&format!("{pod} to be ready"), Duration::from_secs(60), || {
        Ok(scene.kubectl(&words)?.trim() == "True")
    })
}

/// Asks until it is answered or not as is wanted, and says so.
fn expect(
    step: &mut Step,
    promise: &str,
    wanted: bool,
    mut ask: impl FnMut() -> Result<Output>,
) -> Result<()> {
    let mut last = String::new();
    let held = eventually(promise, Duration::from_secs(20), || {
        let output = ask()?;
        last = output.last_line().to_owned();
        Ok(output.succeeded() == wanted && output.stdout.contains("served") == wanted)
    });
    step.check(promise, held.is_ok(), last);
    Ok(())
}

fn initialized(scene: &Scene, step: &mut Step) -> Result<()> {
    for (namespace, pod, wanted) in [("shop", "may", "Succeeded"), ("bank", "may-not", "Failed")] {
        let phase = || {
            let words = ["get", "pod", "-n", namespace, pod, "-o", "jsonpath={.status.phase}"];
            Ok::<_, anyhow::Error>(scene.kubectl(&words)?.trim().to_owned())
        };
        let ended =
            eventually("its init container to end", Duration::from_secs(60), || Ok(phase()? == wanted));
        let said = scene.kubectl(&["logs", "-n", namespace, pod, "-c", "first"])?;
        step.check(
            &format!("the first act of {namespace}/{pod} is to connect: {wanted}"),
            ended.is_ok() && said.contains("served") == (wanted == "Succeeded"),
            said.lines().last().unwrap_or_default(),
        );
        scene.kubectl(&["delete", "pod", "-n", namespace, pod, "--wait=false"])?;
    }
    Ok(())
}

fn headless(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("the StatefulSet's pods by their own names, through the headless Service; one of them deleted");
    let url = |pod| format!("http://{pod}.shelf.shop.svc.cluster.local:8080/");
    for pod in ["shelf-0", "shelf-1"] {
        expect(step, &format!("shop/client reaches {pod}"), true, || {
            scene.curl("shop", "client", &url(pod))
        })?;
        expect(step, &format!("bank/stranger does not reach {pod}"), false, || {
            scene.curl("bank", "stranger", &url(pod))
        })?;
    }
    scene.kubectl(&["delete", "pod", "-n", "shop", "shelf-0", "--timeout=25s"])?;
    ready(scene, "shelf-0")?;
    expect(step, "the new shelf-0 is reached by the old name", true, || {
        scene.curl("shop", "client", &url("shelf-0"))
    })
}

/// Who has no identity is judged by its address; the probe's port and path are the kubelet's alone.
fn hosts(scene: &Scene, step: &mut Step) -> Result<()> {
    let probed = format!("http://{}:8080/healthz", scene.address("shop", "web")?);
    let path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
    let address = |node| -> Result<IpAddr> {
        let told = scene.kubectl(&["get", "node", node, "-o", path])?;
        Ok(told.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let (a, b) = (address(NODE_A)?, address(NODE_B)?);
    let by_port = || {
        let url = format!("http://{b}:30080/healthz");
        scene.state.router.run(&["curl", "-sS", "--max-time", "5", &url])
    };
    step.does("pods on the hosts' network and a client from outside, at a NodePort, ask for the probe's port and path");
    expect(step, "the pod on node-a's network is refused", false, || scene.curl("shop", "host-a", &probed))?;
    expect(step, "so is the one on node-b's, the server's own node", false, || {
        scene.curl("shop", "host-b", &probed)
    })?;
    expect(step, "so is the client at the NodePort", false, by_port)?;

    step.does("kubectl apply a MeshTLSAuthentication of every identity");
    scene.apply("hosts.yaml", HOSTS)?;
    expect(step, "the control: it lets bank/stranger in", true, || scene.curl("bank", "stranger", &probed))?;
    expect(step, "not the pod on node-a's network", false, || scene.curl("shop", "host-a", &probed))?;

    step.does("kubectl apply a NetworkAuthentication of node-a's address");
    networks(scene, &format!("{a}/32"))?;
    expect(step, "it lets the pod on node-a's network in", true, || scene.curl("shop", "host-a", &probed))?;
    expect(step, "not the one on node-b's", false, || scene.curl("shop", "host-b", &probed))?;
    expect(step, "nor the client at the NodePort", false, by_port)?;
    step.does("kubectl apply a NetworkAuthentication of every address");
    networks(scene, "0.0.0.0/0")?;
    expect(step, "the control: it lets the client at the NodePort in", true, by_port)?;
    for kind in ["authorizationpolicy/everybody", "authorizationpolicy/networks", "server/web"] {
        scene.kubectl(&["delete", "-n", "shop", kind])?;
    }
    expect(step, "and without it it is refused again", false, by_port)
}

fn networks(scene: &Scene, network: &str) -> Result<()> {
    let yaml = format!(
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {{name: networks, namespace: shop}}\n\
         spec: {{networks: [{{cidr: {network}}}]}}\n---\n\
         apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: networks, namespace: shop}}\n\
         spec:\n  targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}\n  \
         requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: NetworkAuthentication, name: networks}}]\n"
    );
    scene.apply("networks.yaml", &yaml)
}

/// What a person does to a pod goes on as before; a container that is put beside is judged as its pod.
fn kubectl(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("kubectl port-forward, kubectl debug and kubectl logs");
    let ports = format!("{FORWARDED}:8080");
    let mut forward =
        scene.state.kubectl_started(scene.programs, &["port-forward", "-n", "shop", "pod/web", &ports])?;
    expect(step, "port-forward reaches the pod", true, || {
        let url = format!("http://127.0.0.1:{FORWARDED}/");
        scene.state.router.run(&["curl", "-sS", "--max-time", "5", &url])
    })?;
    forward.end();
    let url = format!("http://{}:8080/", scene.address("shop", "web")?);
    for (namespace, pod, wanted) in [("shop", "client", true), ("bank", "stranger", false)] {
        let debug = ["debug", "-n", namespace, pod, "--container=beside", IMAGE, "--"];
        let ask = ["curl", "-sS", "--max-time", "5", &url];
        scene.kubectl(&[&debug[..], &ask].concat())?;
        let mut said = String::new();
        let told = eventually("the ephemeral container's word", Duration::from_secs(60), || {
            // Until it has been started there is no log.
            let words = ["logs", "-n", namespace, pod, "--container=beside"];
            said = scene.state.kubectl_output(scene.programs, &words)?.stdout;
            Ok(!said.trim().is_empty())
        });
        let verb = if wanted { "reaches" } else { "does not reach" };
        step.check(
            &format!("an ephemeral container of {namespace}/{pod} {verb} web"),
            told.is_ok() && said.contains("served") == wanted,
            said.trim(),
        );
    }
    Ok(())
}

/// A container that ends and is started again: the same pod, the same capture.
fn restarted(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("the container of shelf-1 ends, and the kubelet starts it again");
    let of = |path: &str| scene.kubectl(&["get", "pod", "-n", "shop", "shelf-1", "-o", path]);
    let address = of("jsonpath={.status.podIP}")?;
    scene.kubectl(&["exec", "-n", "shop", "shelf-1", "--", "sh", "-c", "kill 1"])?;
    eventually("it to be started again", Duration::from_secs(60), || {
        Ok(of("jsonpath={.status.containerStatuses[0].restartCount}")?.trim() == "1")
    })?;
    let url = format!("http://{}:8080/", address.trim());
    expect(step, "shop/client reaches it", true, || scene.curl("shop", "client", &url))?;
    expect(step, "bank/stranger does not", false, || scene.curl("bank", "stranger", &url))?;
    let same = of("jsonpath={.status.podIP}")? == address;
    step.check("it is the pod of before", same, address.trim());
    Ok(())
}

/// A pod that is told to end goes on for as long as it takes.
fn drains(scene: &Scene, step: &mut Step) -> Result<()> {
    let leaving = scene.address("shop", "leaving")?;
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let mut line = inside.line(leaving)?;
    step.check("the control: a connection to shop/leaving", line.asks(), "answered");
    step.does("kubectl delete pod shop/leaving, which takes fifteen seconds to end");
    scene.kubectl(&["delete", "pod", "-n", "shop", "leaving", "--wait=false"])?;
    let (began, mut kept, mut anew) = (Instant::now(), 0, 0);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(500));
        kept += usize::from(line.asks());
        anew += usize::from(inside.reaches(&format!("http://{leaving}:8080/"))?);
    }
    let ending = scene.kubectl(&[
        "get",
        "pod",
        "-n",
        "shop",
        "leaving",
        "-o",
        "jsonpath={.metadata.deletionTimestamp}",
    ]);
    step.check(
        "while it ends, connections go on, and new ones are let in as before",
        kept == 5 && anew == 5,
        format!("{kept} and {anew} of 5 in {:.1} s", began.elapsed().as_secs_f64()),
    );
    step.check("it was on its way out then", ending.is_ok(), ending.unwrap_or_default().trim());
    let gone = eventually("its capture to end", stretched(Duration::from_secs(60)), || {
        Ok(!scene.captured(NODE_B)?.contains_key("shop/leaving"))
    });
    step.check("and then it is let go", gone.is_ok(), "");
    Ok(())
}
