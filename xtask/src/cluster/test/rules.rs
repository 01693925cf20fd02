//! c: how soon a rule that kubectl applies holds.

use super::scene::{Inside, NODE_A, Scene};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::{Duration, Instant};
use xtask::demo::report::Step;
use xtask::lab::stretched;

const RUNS: usize = 10;
const DENY: &str = "apiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {name: nobody, namespace: shop}\n\
    spec: {action: Deny, podSelector: {matchLabels: {app: web}}, from: [{serviceAccounts: [{name: client}]}]}\n";

const LINKERD: &str = include_str!("linkerd.yaml");
const BAD: &str = "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: bad, namespace: shop}\n\
    spec: {podSelector: {}, port: 70000}\n";

/// Runs kubectl and looks until the client is let in or refused as it is to be; how long after kubectl's end that was.
fn until(scene: &Scene, inside: &Inside, url: &str, wanted: bool, words: &[&str]) -> Result<Duration> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| -> Result<Instant> {
            let until = Instant::now() + stretched(Duration::from_secs(20));
            while inside.reaches(url)? != wanted {
                anyhow::ensure!(Instant::now() < until, "the rule does not hold after 20 s");
            }
            Ok(Instant::now())
        });
        scene.kubectl(words)?;
        let applied = Instant::now();
        match looking.join() {
            Ok(held) => Ok(held?.saturating_duration_since(applied)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// c. Rules by kubectl.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    held(scene, step, RUNS)
}

/// Applies a rule and deletes it, so often, and tells how soon each holds.
pub fn held(scene: &Scene, step: &mut Step, runs: usize) -> Result<()> {
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let url = format!("http://{}:8080/", scene.address("shop", "web")?);
    let file = scene.state.folder.join("deny.yaml");
    std::fs::write(&file, DENY)?;
    let file = file.display().to_string();
    step.does(format!("{runs} times: kubectl apply a rule that denies, then kubectl delete it, while shop/client asks without a pause"));
    let (mut denied, mut allowed) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        denied.push(until(scene, &inside, &url, false, &["apply", "-f", &file])?);
        allowed.push(until(scene, &inside, &url, true, &["delete", "-f", &file])?);
    }
    for (what, took) in [("denies", denied), ("allows again", allowed)] {
        let (median, worst) = median_and_worst(took);
        let came = format!("median {median:.0} ms, worst {worst:.0} ms after kubectl's end");
        // What is promised is a second; a machine that is busy with other things takes longer to look.
        let bound = stretched(Duration::from_secs(3)).as_secs_f64() * 1000.0;
        step.check(&format!("it {what} soon"), worst < bound, came);
        step.fact(what, json!({ "median_ms": median, "worst_ms": worst, "runs": runs }));
    }
    Ok(())
}

/// In milliseconds.
pub fn median_and_worst(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let milliseconds = |at: usize| times.get(at).map_or(f64::MAX, |it| it.as_secs_f64() * 1000.0);
    (milliseconds(times.len() / 2), milliseconds(times.len().saturating_sub(1)))
}

/// g. Linkerd's rules.
pub fn linkerd(scene: &Scene, step: &mut Step) -> Result<()> {
    let url = format!("http://{}:8080/", scene.address("shop", "web")?);
    let before = scene.curl("bank", "stranger", &url)?;
    step.check("the control: bank/stranger is refused", !before.succeeded(), before.last_line());
    step.does("kubectl apply a Server, an AuthorizationPolicy and a MeshTLSAuthentication that let bank/stranger in");
    scene.apply("linkerd.yaml", LINKERD)?;
    let mut last = String::new();
    let let_in = xtask::lab::eventually("bank/stranger to be let in", Duration::from_secs(20), || {
        let output = scene.curl("bank", "stranger", &url)?;
        last = output.last_line().to_owned();
        Ok(output.succeeded())
    });
    step.check("bank/stranger is let in", let_in.is_ok(), last);
    scene.kubectl(&["delete", "authorizationpolicy", "-n", "shop", "strangers"])?;
    let mut last = String::new();
    let shut = xtask::lab::eventually("bank/stranger to be refused", Duration::from_secs(20), || {
        let output = scene.curl("bank", "stranger", &url)?;
        last = output.last_line().to_owned();
        Ok(!output.succeeded())
    });
    step.check("without the policy it is refused again", shut.is_ok(), last);
    scene.kubectl(&["delete", "server", "-n", "shop", "web"])?;
    step.does("kubectl apply a Server on port 70000");
    let file = scene.state.folder.join("bad.yaml");
    std::fs::write(&file, BAD)?;
    let output = scene.state.kubectl_output(scene.programs, &["apply", "-f", &file.display().to_string()])?;
    step.check("the API server rejects it", !output.succeeded(), output.last_line());
    Ok(())
}
