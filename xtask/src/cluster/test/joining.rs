//! j: a namespace comes into the mesh and goes out of it while its pods run.

use super::scene::{MARKER, NODE_A, NODE_B, Scene};
use super::wire::request;
use anyhow::Result;
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::{eventually, stretched};

/// Until every agent takes TLS alone from those who joined, and lets those be who left; a little more.
const WAY: Duration = Duration::from_secs(12);
/// Requests, each over a connection of its own, for as long as both ways take.
const REQUESTS: usize = 900;
const EACH_SECOND: usize = 20;
const RULE: &str = r#"apiVersion: heddle.io/v1alpha1
kind: AccessRule
metadata: {name: among-us, namespace: plain}
spec: {action: Allow, podSelector: {}, ports: [8080], from: [{serviceAccounts: [{name: default}]}]}
"#;

fn both_captured(scene: &Scene) -> Result<usize> {
    let captured = |node, name| anyhow::Ok(usize::from(scene.captured(node)?.contains_key(name)));
    Ok(captured(NODE_A, "plain/client")? + captured(NODE_B, "plain/web")?)
}

/// The containers of the namespace, and how often they were started: none is another, none started again.
fn containers(scene: &Scene) -> Result<String> {
    let path = "jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount} {end}";
    scene.kubectl(&["get", "pods", "-n", "plain", "-o", path])
}

/// j. Joined and left under load.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    scene.apply("among-us.yaml", RULE)?;
    let web = scene.address("plain", "web")?;
    let before = containers(scene)?;
    let (_, traffic) = request(scene, "plain")?;
    step.check(
        "outside the mesh the marker is seen",
        traffic.hits(MARKER.as_bytes()) > 0,
        format!("{} times", traffic.hits(MARKER.as_bytes())),
    );
    step.does(format!(
        "plain/client asks plain/web {EACH_SECOND} times a second, each time anew; meanwhile kubectl annotates the namespace"
    ));
    let url = format!("http://{web}:8080/?[1-{REQUESTS}]");
    let rate = format!("{EACH_SECOND}/s");
    let words = ["exec", "-n", "plain", "client", "--", "curl", "-sS", "--max-time", "8", "--rate", &rate];
    let each = ["-H", "Connection: close", "-o", "/dev/null", "-w", "%{http_code} %{errormsg}\n", &url];
    let words: Vec<&str> = words.iter().chain(&each).copied().collect();
    let asking = scene.state.kubectl_started(scene.programs, &words)?;
    std::thread::sleep(stretched(Duration::from_secs(2)));
    let annotated = Instant::now();
    scene.kubectl(&["annotate", "namespace", "plain", "heddle.io/mesh=enabled"])?;
    let there =
        eventually("both pods to be captured", Duration::from_secs(20), || Ok(both_captured(scene)? == 2));
    step.check(
        "pods that run are captured",
        there.is_ok(),
        format!("{} of 2 after {:.1} s", both_captured(scene)?, annotated.elapsed().as_secs_f32()),
    );
    std::thread::sleep(stretched(WAY).saturating_sub(annotated.elapsed()));
    let (page, traffic) = request(scene, "plain")?;
    let hits = traffic.hits(MARKER.as_bytes());
    step.check(
        "in the mesh not one byte of the marker is on the wire",
        page.contains(MARKER) && hits == 0,
        format!("{hits} times in {} packets; {}", traffic.packets, page.trim()),
    );
    let stranger = scene.curl("bank", "stranger", &format!("http://{web}:8080/"))?;
    step.check("a stranger is refused", !stranger.succeeded(), stranger.last_line());
    let annotated = Instant::now();
    scene.kubectl(&["annotate", "namespace", "plain", "heddle.io/mesh-"])?;
    let gone =
        eventually("both pods to be let go", Duration::from_secs(40), || Ok(both_captured(scene)? == 0));
    step.check(
        "pods that leave are let go",
        gone.is_ok(),
        format!("{} captured after {:.1} s", both_captured(scene)?, annotated.elapsed().as_secs_f32()),
    );
    let asked = asking.finish(Duration::from_secs(90))?;
    let answered = asked.stdout.lines().filter(|line| line.starts_with("200 ")).count();
    let failed: Vec<&str> = asked.stdout.lines().filter(|line| !line.starts_with("200 ")).take(3).collect();
    step.check(
        "no request fails meanwhile",
        answered == REQUESTS && failed.is_empty(),
        format!("{answered} of {REQUESTS} answered {failed:?}"),
    );
    let after = containers(scene)?;
    step.check("no container was started again", before == after && !before.is_empty(), after.trim());
    let (page, _) = request(scene, "plain")?;
    step.check("and outside again it is answered", page.contains(MARKER), page.trim());
    scene.kubectl(&["delete", "accessrule", "-n", "plain", "among-us"]).map(drop)
}
