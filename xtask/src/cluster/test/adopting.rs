//! u: how a cluster comes to deny: watched first, then namespace by namespace.

use super::scene::{NODE_A, NODE_B, Scene};
use super::story::{NAMESPACES, Pair, answered, begin, intended, pairs};
use anyhow::Result;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

/// Prometheus reads both tenants, rules or none.
const SCRAPED: [(&str, &str); 1] = [("watch/prometheus", "films/ledger:2381")];
const MESHED: [&str; 3] = ["books", "films", "watch"];
/// The rules that are suggested.
const SUGGESTED: &str = "suggested.yaml";
const ANNOTATION: &str = "config.linkerd.io/default-inbound-policy";

/// u. Audit, recorded flows, suggested rules, deny.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("every namespace of the application annotated with audit, and no rule");
    begin(scene)?;
    for namespace in MESHED {
        annotate(scene, namespace, "=audit")?;
    }
    let meant = intended(&SCRAPED);
    let mut happened = BTreeSet::new();
    let held = eventually("audit to hold", Duration::from_secs(60), || {
        happened = answered(scene, &meant)?;
        Ok(happened == meant)
    });
    step.check(
        "what is meant works",
        held.is_ok(),
        format!("{} of {} answered", happened.len(), meant.len()),
    );

    step.does("heddle flows at both agents, while everybody does what is meant");
    let mut recorders = Vec::new();
    for node in [NODE_A, NODE_B] {
        let agent = scene.agent(node)?;
        let words = ["exec", "-n", "heddle-system", &agent, "--", "/heddle", "flows"];
        recorders.push(scene.state.kubectl_started(scene.programs, &words)?);
    }
    // Each is asked until it is written down: a recorder may have begun after the first time.
    let recorded = eventually("every pair to be recorded", Duration::from_secs(60), || {
        answered(scene, &meant)?;
        let flows = recorders.iter().map(|it| it.stdout()).collect::<String>();
        Ok(meant.iter().all(|pair| flows.lines().any(|line| is_of(line, pair))))
    });
    // A line that is being written is left out.
    let whole = |text: &str| text.rsplit_once('\n').map_or(String::new(), |(lines, _)| format!("{lines}\n"));
    let flows: String = recorders.iter().map(|it| whole(&it.stdout())).collect();
    for mut recorder in recorders {
        recorder.end();
    }
    let observed = scene.state.folder.join("flows.jsonl");
    fs::write(&observed, &flows)?;
    let lines = flows.lines().count();
    step.check("every pair that is meant is recorded", recorded.is_ok(), format!("{lines} lines"));
    let (same, came) = settled(scene, &pairs())?;
    step.check("the control: everybody else is let in, too", same, came);
    adopted(scene, step, &observed.display().to_string(), &meant)?;

    step.does("the annotations taken away: the cluster's own default, which denies");
    for namespace in MESHED {
        annotate(scene, namespace, "-")?;
    }
    let (same, came) = settled(scene, &meant)?;
    step.check("it is the same", same, came);
    // Some are of namespaces that stay: whatever was recorded there was suggested, too.
    let rules = scene.state.folder.join(SUGGESTED).display().to_string();
    scene.kubectl(&["delete", "--ignore-not-found", "--filename", &rules])?;
    scene.clear_namespaces(&NAMESPACES)
}

fn annotate(scene: &Scene, namespace: &str, value: &str) -> Result<()> {
    let annotation = format!("{ANNOTATION}{value}");
    scene.kubectl(&["annotate", "namespace", namespace, &annotation, "--overwrite"]).map(drop)
}

fn adopted(scene: &Scene, step: &mut Step, observed: &str, meant: &BTreeSet<Pair>) -> Result<()> {
    let all = pairs();
    step.does("heddle policy suggest --cluster --observed, and kubectl apply of what it writes");
    let output = scene.heddle(&["policy", "suggest", "--cluster", "--observed", observed])?;
    let servers = output.stdout.lines().filter(|line| *line == "kind: Server").count();
    step.check("it writes rules", servers > 0, format!("{servers} Servers; {}", output.stderr.trim()));
    scene.apply(SUGGESTED, &output.stdout)?;

    let mut denied: Vec<&str> = Vec::new();
    for namespace in MESHED {
        step.does(format!("kubectl annotate namespace {namespace} {ANNOTATION}=deny"));
        annotate(scene, namespace, "=deny")?;
        denied.push(namespace);
        let (broken, came) = kept(scene, meant)?;
        step.check("nothing that is meant is broken", !broken, came);
        let within: BTreeSet<Pair> = all.iter().filter(|(_, end)| is_in(end, &denied)).cloned().collect();
        let wanted: BTreeSet<Pair> = meant.iter().filter(|(_, end)| is_in(end, &denied)).cloned().collect();
        let mut happened = BTreeSet::new();
        let same = eventually("the annotation to hold", Duration::from_secs(30), || {
            happened = answered(scene, &within)?;
            Ok(happened == wanted)
        });
        let others: Vec<_> = happened.symmetric_difference(&wanted).collect();
        step.check(
            "and there nobody else is let in",
            same.is_ok(),
            format!("{} of {} answered, other than meant: {others:?}", happened.len(), within.len()),
        );
    }
    Ok(())
}

fn is_in(end: &str, namespaces: &[&str]) -> bool {
    namespaces.iter().any(|name| end.starts_with(&format!("{name}/")))
}

/// Whether a recorded flow is of a pair.
fn is_of(line: &str, (client, end): &Pair) -> bool {
    let (server, port) = end.rsplit_once(':').unwrap_or((end, ""));
    let flow: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    flow["source"]["pod"] == client.as_str()
        && flow["destination"]["pod"] == server
        && flow["destination"]["port"].as_u64() == port.parse().ok()
}

/// Whether any of the pairs is not answered, and which.
fn kept(scene: &Scene, wanted: &BTreeSet<Pair>) -> Result<(bool, String)> {
    let happened = answered(scene, wanted)?;
    let lost: Vec<_> = wanted.difference(&happened).collect();
    Ok((!lost.is_empty(), format!("{} of {} answered, lost: {lost:?}", happened.len(), wanted.len())))
}

/// Waits until of all pairs just these are answered.
fn settled(scene: &Scene, wanted: &BTreeSet<Pair>) -> Result<(bool, String)> {
    let all = pairs();
    let mut happened = BTreeSet::new();
    let same = eventually("the rules to hold", Duration::from_secs(60), || {
        happened = answered(scene, &all)?;
        Ok(happened == *wanted)
    });
    let others: Vec<_> = happened.symmetric_difference(wanted).take(6).collect();
    Ok((same.is_ok(), format!("{} of {} answered, other than meant: {others:?}", happened.len(), all.len())))
}
