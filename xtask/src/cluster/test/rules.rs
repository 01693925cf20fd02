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
    let netns = scene.captured(NODE_A)?.remove("shop/client").context("shop/client is not captured")?;
    let inside = Inside { place: scene.node(NODE_A)?, netns };
    let url = format!("http://{}:8080/", scene.address("shop", "web")?);
    let file = scene.state.folder.join("deny.yaml");
    std::fs::write(&file, DENY)?;
    let file = file.display().to_string();
    step.does(format!("{RUNS} times: kubectl apply a rule that denies, then kubectl delete it, while shop/client asks without a pause"));
    let (mut denied, mut allowed) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        denied.push(until(scene, &inside, &url, false, &["apply", "-f", &file])?);
        allowed.push(until(scene, &inside, &url, true, &["delete", "-f", &file])?);
    }
    for (what, mut took) in [("denies", denied), ("allows again", allowed)] {
        took.sort();
        let milliseconds = |at: usize| took.get(at).map_or(f64::MAX, |it| it.as_secs_f64() * 1000.0);
        let (median, worst) = (milliseconds(took.len() / 2), milliseconds(took.len() - 1));
        let came = format!("median {median:.0} ms, worst {worst:.0} ms after kubectl's end");
        // What is promised is a second; a machine that is busy with other things takes longer to look.
        let bound = stretched(Duration::from_secs(3)).as_secs_f64() * 1000.0;
        step.check(&format!("it {what} soon"), worst < bound, came);
        step.fact(what, json!({ "median_ms": median, "worst_ms": worst, "runs": took.len() }));
    }
    Ok(())
}
