//! The agents of the nodes, each asked in its own container: what is captured no API object tells.

use super::super::Finding;
use crate::cli::install::{self, NAMESPACE};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{AttachParams, ListParams},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::io::AsyncReadExt;

/// A status of some hundred pods is far below.
const ANSWER_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(15);

/// What a node's agent said.
#[derive(Debug, Default)]
struct Told {
    version: String,
    /// The pods that are captured, `namespace/name`.
    captured: BTreeSet<String>,
    /// Those in which something is wrong, and what.
    problems: Vec<String>,
}

/// Every node's.
#[derive(Debug, Default)]
pub(super) struct Agents {
    told: BTreeMap<String, Told>,
    /// Nodes without an answer, and why.
    silent: BTreeMap<String, String>,
}

impl Agents {
    /// Asks each.
    ///
    /// # Errors
    /// The nodes cannot be listed.
    pub(super) async fn ask(client: &Client, all: &[Pod]) -> Result<Self, kube::Error> {
        let nodes = Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await?;
        let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        let mut agents = Self::default();
        for node in nodes.items.into_iter().filter_map(|it| it.metadata.name) {
            let of_node = |pod: &&Pod| {
                let labels = pod.metadata.labels.as_ref();
                let namespace = pod.metadata.namespace.as_deref() == Some(NAMESPACE);
                let on = pod.spec.as_ref().and_then(|it| it.node_name.as_deref()) == Some(node.as_str());
                namespace && on && labels.is_some_and(|it| it.get("app").is_some_and(|it| it == "heddle"))
            };
            let here: Vec<&Pod> = all.iter().filter(of_node).collect();
            let ready = here.iter().find(|pod| install::rollout::why(pod).is_none());
            let answer = match ready.and_then(|pod| pod.metadata.name.as_deref()) {
                Some(name) => status(&pods, name).await,
                None => Err(match here.first().and_then(|pod| install::rollout::why(pod)) {
                    Some(why) => format!("its agent is not ready: {why}"),
                    None => "it has no agent".to_owned(),
                }),
            };
            match answer {
                Ok(told) => drop(agents.told.insert(node, told)),
                Err(why) => drop(agents.silent.insert(node, why)),
            }
        }
        Ok(agents)
    }

    /// Whether a node's agent has captured a pod; none: it did not answer.
    pub(super) fn captures(&self, node: &str, namespace: &str, name: &str) -> Option<bool> {
        Some(self.told.get(node)?.captured.contains(&format!("{namespace}/{name}")))
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.silent.is_empty() {
            found.push(Finding::ok("agents", format!("{} nodes have one that is ready", self.told.len())));
        }
        for (node, why) in &self.silent {
            found.push(Finding::missing(
                "agents",
                format!("node {node}: {why}"),
                "kubectl -n heddle-system describe pods -l app=heddle; on the node: heddle check node",
            ));
        }
        let own = env!("CARGO_PKG_VERSION");
        let others: Vec<String> = self
            .told
            .iter()
            .filter(|(_, told)| told.version != own)
            .map(|(node, told)| format!("{node}: {}", told.version))
            .collect();
        found.push(if others.is_empty() {
            Finding::ok("versions", format!("agents and this program are {own}"))
        } else {
            Finding::warning(
                "versions",
                format!("this program is {own}, and agents are not: {}", others.join(", ")),
                "`heddle upgrade`, or use the program of the agents' version",
            )
        });
        let problems = self.told.iter().flat_map(|(node, it)| it.problems.iter().map(move |why| (node, why)));
        found.extend(problems.map(|(node, why)| {
            Finding::missing(
                "capture",
                format!("node {node}: {why}"),
                "the agent repairs what it can; kubectl exec, heddle status says more",
            )
        }));
        found
    }
}

/// What an agent says of itself.
async fn status(pods: &Api<Pod>, name: &str) -> Result<Told, String> {
    let asked = async {
        let parameters = AttachParams::default().container("agent").stderr(false);
        let mut process = pods.exec(name, ["/heddle", "status", "--json"], &parameters).await?;
        let mut text = String::new();
        if let Some(out) = process.stdout() {
            out.take(ANSWER_BYTES).read_to_string(&mut text).await.map_err(kube::Error::ReadEvents)?;
        }
        Ok::<_, kube::Error>(text)
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    let text = answer
        .map_err(|_| format!("its agent did not answer within {PATIENCE:?}"))?
        .map_err(|error| format!("its agent cannot be asked (pods/exec): {error}"))?;
    if text.is_empty() {
        return Err("its agent gave no answer".to_owned());
    }
    read(&text).ok_or_else(|| "its agent's answer is not understood".to_owned())
}

fn read(text: &str) -> Option<Told> {
    let status: Value = serde_json::from_str(text).ok()?;
    let text = |it: &Value, field: &str| it.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut told = Told { version: text(&status, "version"), ..Told::default() };
    for pod in status.get("pods")?.as_array()? {
        let name = format!("{}/{}", text(pod, "namespace"), text(pod, "name"));
        let problems = pod.get("problems").and_then(Value::as_array).into_iter().flatten();
        told.problems.extend(problems.filter_map(Value::as_str).map(|why| format!("{name}: {why}")));
        if pod.get("inForce") == Some(&Value::Bool(true)) {
            told.captured.insert(name);
        } else {
            told.problems.push(format!("{name}: capture and guard are not in force"));
        }
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    impl Agents {
        pub(in crate::cli::check) fn with(node: &str, captured: &[&str]) -> Self {
            let captured = captured.iter().map(|it| (*it).to_owned()).collect();
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let told = Told { captured, version, ..Told::default() };
            Self { told: [(node.to_owned(), told)].into(), silent: BTreeMap::new() }
        }
    }

    #[test]
    fn an_agent_s_word_is_read_and_a_node_without_one_is_named() {
        let told = read(
            r#"{"version": "9", "pods": [
                {"namespace": "shop", "name": "web", "inForce": true, "problems": []},
                {"namespace": "shop", "name": "half", "inForce": false, "problems": ["the guard is gone"]}]}"#,
        )
        .unwrap();
        assert_eq!(told.captured.iter().collect::<Vec<_>>(), ["shop/web"]);
        assert_eq!(told.problems.len(), 2);
        assert!(read("").is_none() && read("{}").is_none());
        let silent = [("b".to_owned(), "it has no agent".to_owned())].into();
        let agents = Agents { told: [("a".to_owned(), told)].into(), silent };
        let found = agents.findings();
        let named = |name: &str, outcome: Outcome, said: &str| {
            found.iter().any(|it| it.name == name && it.outcome == outcome && it.found.contains(said))
        };
        assert!(named("agents", Outcome::Missing, "node b: it has no agent"), "{found:?}");
        assert!(
            named("versions", Outcome::Warning, "a: 9") && named("capture", Outcome::Missing, "the guard")
        );
        let good = Agents::with("a", &["shop/web"]).findings();
        assert!(good.iter().all(|it| it.outcome == Outcome::Ok), "control: {good:?}");
        assert_eq!(Agents::with("a", &["shop/web"]).captures("b", "shop", "web"), None);
    }
}
