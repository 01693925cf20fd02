//! Waiting, with what is waited for.

use super::bundle::NAMESPACE;
use crate::cli::{Failure, render::print};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use kube::{Api, Client, api::ListParams};
use miette::miette;
use std::time::{Duration, Instant};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// How many of a workload's pods are as they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Progress {
    pub ready: i32,
    pub wanted: i32,
}

impl Progress {
    /// Of the workload as it is written now: a roll-out that was not begun yet counts nobody.
    const fn of(seen: bool, ready: i32, updated: i32, wanted: i32) -> Self {
        let both = if ready < updated { ready } else { updated };
        Self { ready: if seen { both } else { 0 }, wanted }
    }

    pub(in crate::cli) const fn done(self) -> bool {
        self.ready >= self.wanted
    }
}

/// A DaemonSet's.
fn of_daemon_set(it: &DaemonSet) -> Progress {
    let status = it.status.clone().unwrap_or_default();
    let seen = status.observed_generation.is_some() && status.observed_generation == it.metadata.generation;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    Progress::of(seen, status.number_ready, updated, status.desired_number_scheduled)
}

/// A Deployment's.
pub(in crate::cli) fn of_deployment(it: &Deployment) -> Progress {
    let status = it.status.clone().unwrap_or_default();
    let seen = status.observed_generation.is_some() && status.observed_generation == it.metadata.generation;
    let wanted = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    Progress::of(seen, status.ready_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0), wanted)
}

/// Waits until authority, controller and agents are ready.
///
/// # Errors
/// They are not in time; with the pods that are not, and why.
pub(super) async fn wait(client: &Client, at_most: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    let mut told = String::new();
    loop {
        let all =
            progress(client).await.map_err(|error| miette!("the API server cannot be asked: {error}"))?;
        let words: Vec<String> =
            all.iter().map(|(name, it)| format!("{name} {} of {}", it.ready, it.wanted)).collect();
        let words = words.join(", ");
        if words != told {
            print(&format!("{:>5} s  ready: {words}", began.elapsed().as_secs()))?;
            told = words;
        }
        if all.iter().all(|(_, it)| it.done()) {
            return Ok(());
        }
        if began.elapsed() > at_most {
            let pods = waiting(client).await.unwrap_or_default();
            return Err(miette!(
                help = "`heddle check cluster` says more; everything that was applied stays, and `heddle upgrade` goes on",
                "not ready within {at_most:?}: {told}\n{}",
                pods.join("\n")
            ));
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn progress(client: &Client) -> Result<Vec<(String, Progress)>, kube::Error> {
    let mut all = Vec::new();
    let deployments = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
    for name in ["heddle-ca", "heddle-controller"] {
        if let Some(it) = deployments.get_opt(name).await? {
            all.push((name.to_owned(), of_deployment(&it)));
        }
    }
    let agents = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE);
    if let Some(it) = agents.get_opt("heddle").await? {
        all.push(("agents".to_owned(), of_daemon_set(&it)));
    }
    Ok(all)
}

/// Heddle's pods that are not ready, and why.
async fn waiting(client: &Client) -> Result<Vec<String>, kube::Error> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await?;
    Ok(pods.items.iter().filter_map(why).collect())
}

/// Why a pod is not ready; none: it is.
pub(in crate::cli) fn why(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
    if ready || status.phase.as_deref() == Some("Succeeded") {
        return None;
    }
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let mut reasons: Vec<String> = containers
        .filter_map(|it| {
            let state = it.state.as_ref()?;
            let waiting = state.waiting.as_ref().map(|it| (it.reason.clone(), it.message.clone()));
            let ended = state.terminated.as_ref().map(|it| (it.reason.clone(), it.message.clone()));
            let (reason, message) = waiting.or(ended)?;
            Some([reason, message].into_iter().flatten().collect::<Vec<_>>().join(": "))
        })
        .collect();
    let unscheduled =
        status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status != "True");
    reasons.extend(unscheduled.and_then(|it| it.message.clone()));
    let node = pod.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_else(|| "no node".to_owned());
    let name = pod.metadata.name.clone().unwrap_or_default();
    let reasons = if reasons.is_empty() { "it runs and is not ready".to_owned() } else { reasons.join("; ") };
    Some(format!("{name} on {node}: {reasons}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_roll_out_that_was_not_begun_yet_is_not_done() {
        let agents = |generation: i64, seen: i64, updated: i32, ready: i32| -> Progress {
            of_daemon_set(
                &serde_json::from_value(json!({
                    "metadata": {"generation": generation}, "spec": {"selector": {}, "template": {}},
                    "status": {"observedGeneration": seen, "desiredNumberScheduled": 2, "numberReady": ready,
                        "currentNumberScheduled": 2, "numberMisscheduled": 0, "updatedNumberScheduled": updated},
                }))
                .unwrap(),
            )
        };
        assert!(agents(2, 2, 2, 2).done());
        for unfinished in [agents(2, 1, 2, 2), agents(2, 2, 1, 2), agents(2, 2, 2, 1)] {
            assert!(!unfinished.done(), "{unfinished:?}");
        }
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a", "containers": []}, "status": status}))
                .unwrap()
        };
        assert_eq!(why(&pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}))), None);
        let waiting = json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no image"}}}]});
        assert_eq!(why(&pod(waiting)).unwrap(), "p on a: ErrImageNeverPull: no image");
        let never =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]});
        assert_eq!(why(&pod(never)).unwrap(), "p on a: 0/2 nodes");
    }
}
