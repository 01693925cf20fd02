//! `heddle check cluster`: what is wrong with a cluster's mesh, and what cannot be held in it, pod by pod.
//!
//! The API server tells most of it; which pods are captured only each node's agent knows, which is asked in its own
//! container.

mod agents;
mod pods;

use super::{Finding, limits::NOT_HELD};
use crate::{
    cli::{Failure, client, config::Config, install, render::print},
    cluster::kubernetes,
};
use agents::Agents;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use miette::miette;
use pods::not_held;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitCode,
};

const NAMESPACE: &str = install::NAMESPACE;
const AUDIENCE: &str = crate::cli::ca::AUDIENCE;
/// So many pods are named in a line.
const NAMED: usize = 8;

/// Ends with 1 where something is missing.
pub(super) fn run(kubeconfig: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let (findings, limits) = client::run(async {
        let client = kubernetes::personal(kubeconfig).await.map_err(|error| {
            miette!(help = "name a --kubeconfig, or set KUBECONFIG", "no way to the API server: {error}")
        })?;
        look(&client).await.map_err(|error| {
            miette!(
                help = "is it there, and may you read what it says of pods and nodes?",
                "the API server: {error}"
            )
        })
    })?;
    let sound = super::sound(&findings);
    if json {
        let all = serde_json::json!({
            "sound": sound, "findings": findings, "notHeld": NOT_HELD, "podsNotHeld": limits,
        });
        print(&all.to_string())?;
        return Ok(ExitCode::from(u8::from(!sound)));
    }
    super::show(&findings)?;
    print(if sound { "\nThe mesh is as it should be." } else { "\nSomething is missing." })?;
    print("\nWhat is not held, pod by pod:")?;
    for (pod, why) in &limits {
        print(&format!("- {pod}: {}", why.join("; ")))?;
    }
    if limits.is_empty() {
        print("- nothing beyond what holds for every pod (`heddle check node` lists it)")?;
    }
    Ok(ExitCode::from(u8::from(!sound)))
}

type Limits = BTreeMap<String, Vec<String>>;

async fn look(client: &Client) -> Result<(Vec<Finding>, Limits), kube::Error> {
    let every = ListParams::default();
    let all: Vec<Pod> = Api::<Pod>::all(client.clone()).list(&every).await?.items;
    let namespaces = Api::<Namespace>::all(client.clone()).list_metadata(&every).await?;
    let mesh_of = |annotations: Option<&BTreeMap<String, String>>| {
        annotations.and_then(|it| it.get(heddle_policy::MESH)).cloned()
    };
    let meshed: BTreeMap<String, Option<String>> = namespaces
        .items
        .iter()
        .filter_map(|it| Some((it.metadata.name.clone()?, mesh_of(it.metadata.annotations.as_ref()))))
        .collect();
    let wishes = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_ref().and_then(|it| meshed.get(it)?.clone());
        let wish = mesh_of(pod.metadata.annotations.as_ref()).or(namespace);
        wish.is_some_and(|it| it != "disabled")
    };

    let mut findings = vec![version(client).await?];
    findings.extend(kinds(client).await?);
    findings.push(admission(client).await?);
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let configuration =
        maps.get_opt("heddle-agent").await?.and_then(|mut it| it.data.as_mut()?.remove("heddle.yaml"));
    findings.extend(parts(client, configuration.as_deref().and_then(spire)).await?);
    findings.push(networks(client, configuration).await?);
    let agents = Agents::ask(client, &all).await?;
    findings.extend(agents.findings());
    findings.push(captured(&agents, &all, &wishes));
    findings.push(policies(client).await?);
    Ok((findings, limits(&all, &wishes)))
}

async fn version(client: &Client) -> Result<Finding, kube::Error> {
    let version = client.apiserver_version().await?;
    Ok(if install::new_enough(&version.major, &version.minor) {
        Finding::ok("API server", version.git_version)
    } else {
        Finding::missing(
            "API server",
            version.git_version,
            "Kubernetes 1.30 or newer is needed: tokens name their node from there on",
        )
    })
}

fn all_of(group: &str, version: &str, kind: &str, client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)))
}

async fn kinds(client: &Client) -> Result<Vec<Finding>, kube::Error> {
    let api = all_of("apiextensions.k8s.io", "v1", "CustomResourceDefinition", client);
    let there = api.list_metadata(&ListParams::default()).await?.items;
    let names: BTreeSet<String> = there.into_iter().filter_map(|it| it.metadata.name).collect();
    let missing = |wanted: &mut dyn Iterator<Item = String>| {
        wanted.filter(|it| !names.contains(it)).collect::<Vec<_>>().join(", ")
    };
    let rules = |name: &'static str, missing: String, remedy: &str| match missing.as_str() {
        "" => Finding::ok(name, "every kind is there"),
        _ => Finding::missing(name, format!("not there: {missing}"), remedy),
    };
    let own = ["accessrules.heddle.io", "clusteraccessrules.heddle.io"].map(str::to_owned);
    let own = rules(
        "Heddle's kinds",
        missing(&mut own.into_iter()),
        "`heddle upgrade`, `helm upgrade`, or kubectl apply --server-side -f deploy/crds",
    );
    let theirs = rules(
        "Linkerd's kinds",
        missing(&mut install::linkerd_kinds().into_iter()),
        "`heddle upgrade` makes those that nobody has brought; or kubectl apply --server-side -f deploy/crds/linkerd",
    );
    let routes = ["httproutes", "grpcroutes"].map(|it| format!("{it}.gateway.networking.k8s.io"));
    let routes = match missing(&mut routes.into_iter()) {
        none if none.is_empty() => Finding::ok("Gateway API", "its routes are there"),
        some => Finding::warning(
            "Gateway API",
            format!("not there: {some}"),
            "install its kinds (sigs.k8s.io/gateway-api) to write routes; agents look for them every five seconds",
        ),
    };
    Ok(vec![own, theirs, routes])
}

async fn admission(client: &Client) -> Result<Finding, kube::Error> {
    const GROUP: &str = "admissionregistration.k8s.io";
    let api = all_of(GROUP, "v1", "ValidatingAdmissionPolicyBinding", client);
    let there = api.list_metadata(&ListParams::default()).await?.items;
    let names: BTreeSet<String> = there.into_iter().filter_map(|it| it.metadata.name).collect();
    let missing: Vec<String> =
        install::admission_bindings().into_iter().filter(|it| !names.contains(it)).collect();
    Ok(if missing.is_empty() {
        Finding::ok("admission", "bad rules are refused when they are written")
    } else {
        Finding::warning(
            "admission",
            format!("not there: {}: what cannot be in force is taken and told later", missing.join(", ")),
            "`heddle upgrade`, or helm upgrade with admission: true",
        )
    })
}

/// The socket of SPIRE's agent, where the agents' configuration has SPIRE issue.
fn spire(configuration: &str) -> Option<String> {
    let read: serde_json::Value = serde_saphyr::from_str(configuration).ok()?;
    read.pointer("/ca/spire")?.as_str().map(str::to_owned)
}

/// Authority, controller and the agents' set.
async fn parts(client: &Client, spire: Option<String>) -> Result<Vec<Finding>, kube::Error> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
    let agents = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE).get_opt("heddle").await?;
    let mut found = match spire {
        Some(socket) => vec![by_spire(&socket, agents.as_ref())],
        None => vec![authority(&deployments).await?, tokens_of(agents.as_ref())],
    };
    let controller = deployments.get_opt("heddle-controller").await?;
    found.push(match controller.as_ref().map(install::rollout::of_deployment) {
        None => Finding::warning(
            "controller",
            "it is not installed: nothing tells on a rule what it lacks",
            "set controller.replicas, or ask `heddle policy check --cluster`",
        ),
        Some(it) if it.ready == 0 => Finding::warning(
            "controller",
            "no replica is ready: nothing tells on a rule what it lacks",
            "kubectl -n heddle-system describe pods -l app=heddle-controller",
        ),
        Some(it) => Finding::ok("controller", format!("{} of {} replicas are ready", it.ready, it.wanted)),
    });
    Ok(found)
}

/// What issues is another's: of it no more is known here than whether the agents can reach its socket.
fn by_spire(socket: &str, agents: Option<&DaemonSet>) -> Finding {
    let folder = Path::new(socket).parent();
    let reached = agents.is_some_and(|set| {
        host_folders(set).any(|path| folder.is_some_and(|folder| folder.starts_with(path)))
    });
    match (agents, reached) {
        (None, _) => Finding::missing(
            "authority",
            "SPIRE issues, and the agents are not installed",
            "helm install, with agent.config.ca.spire: `heddle install` sets up Heddle's own authority",
        ),
        (Some(_), true) => Finding::ok("authority", format!("SPIRE issues, at {socket} on each node")),
        (Some(_), false) => Finding::missing(
            "authority",
            format!("SPIRE is to issue, and the agents do not mount the folder of {socket}"),
            "helm upgrade puts the DaemonSet right",
        ),
    }
}

fn host_folders(set: &DaemonSet) -> impl Iterator<Item = &str> {
    let spec = set.spec.as_ref().and_then(|it| it.template.spec.as_ref());
    let volumes = spec.and_then(|it| it.volumes.as_ref()).into_iter().flatten();
    volumes.filter_map(|it| Some(&*it.host_path.as_ref()?.path))
}

async fn authority(deployments: &Api<Deployment>) -> Result<Finding, kube::Error> {
    let authority = deployments.get_opt("heddle-ca").await?;
    Ok(match authority.as_ref().map(install::rollout::of_deployment) {
        None => Finding::missing("authority", "it is not installed", "`heddle install`"),
        Some(it) if it.ready == 0 => Finding::missing(
            "authority",
            format!("no replica of {} is ready: certificates are not renewed", it.wanted),
            "kubectl -n heddle-system describe pods -l app=heddle-ca; its keys are in Secret heddle-issuer",
        ),
        Some(it) if !it.done() || it.wanted < 2 => Finding::warning(
            "authority",
            format!("{} of {} replicas are ready", it.ready, it.wanted),
            "two or more let one be away: ca.replicas",
        ),
        Some(it) => Finding::ok("authority", format!("{} of {} replicas are ready", it.ready, it.wanted)),
    })
}

fn tokens_of(agents: Option<&DaemonSet>) -> Finding {
    match agents {
        None => Finding::missing("tokens", "the agents are not installed", "`heddle install`"),
        Some(set) if tokens(set) => Finding::ok("tokens", format!("agents' tokens are for {AUDIENCE} alone")),
        Some(_) => Finding::missing(
            "tokens",
            format!("the agents mount no token for {AUDIENCE}: the authority refuses them"),
            "`heddle upgrade` puts the DaemonSet right",
        ),
    }
}

fn tokens(set: &DaemonSet) -> bool {
    let spec = set.spec.as_ref().and_then(|it| it.template.spec.as_ref());
    let volumes = spec.and_then(|it| it.volumes.as_ref()).into_iter().flatten();
    let sources = volumes.filter_map(|it| it.projected.as_ref()?.sources.as_ref()).flatten();
    let mut tokens = sources.filter_map(|it| it.service_account_token.as_ref()?.audience.as_deref());
    tokens.any(|it| it == AUDIENCE)
}

async fn networks(client: &Client, configuration: Option<String>) -> Result<Finding, kube::Error> {
    let Some(text) = configuration else {
        return Ok(Finding::missing("networks", "there is no ConfigMap heddle-agent", "`heddle install`"));
    };
    let settings = match Config::shared(Path::new("configmaps/heddle-system/heddle-agent"), Some(text)) {
        Ok(settings) => settings,
        Err(error) => {
            let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
            return Ok(Finding::missing("networks", problems.join("; "), "correct ConfigMap heddle-agent"));
        }
    };
    let outside = install::networks_outside(client, &settings).await?;
    Ok(match outside.first() {
        None => Finding::ok("networks", "the nodes' and Services' networks are known to the agents"),
        Some((what, remedy)) => Finding::missing("networks", what.clone(), remedy.clone()),
    })
}

/// Pods that ask for the mesh and are not in it.
fn captured(agents: &Agents, all: &[Pod], wishes: &impl Fn(&Pod) -> bool) -> Finding {
    let mut outside = Vec::new();
    let mut inside = 0usize;
    for pod in all.iter().filter(|it| wishes(it) && runs(it)) {
        let (namespace, name) = named(pod);
        match agents.captures(node(pod), &namespace, &name) {
            Some(true) => inside += 1,
            Some(false) => outside.push(format!("{namespace}/{name}")),
            // Of a node without an answer that is told already.
            None => {}
        }
    }
    if outside.is_empty() {
        return Finding::ok("pods", format!("{inside} pods that ask for the mesh are in it"));
    }
    let count = outside.len();
    outside.truncate(NAMED);
    let more =
        if count > outside.len() { format!(" and {} more", count - outside.len()) } else { String::new() };
    Finding::missing(
        "pods",
        format!("{count} pods ask for the mesh and are not captured: {}{more}", outside.join(", ")),
        "restart them; where that does not help, their node's agent says why: kubectl exec, heddle status",
    )
}

/// Whether a pod is there to be captured.
fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default();
    let host = pod.spec.as_ref().and_then(|it| it.host_network).unwrap_or(false);
    phase == "Running" && !host && pod.metadata.deletion_timestamp.is_none()
}

fn named(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|it| it.node_name.as_deref()).unwrap_or_default()
}

/// No API tells whether anybody enforces a NetworkPolicy.
async fn policies(client: &Client) -> Result<Finding, kube::Error> {
    let there = Api::<NetworkPolicy>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    Ok(Finding::warning(
        "NetworkPolicy",
        format!(
            "{} are there; whether the CNI enforces them no API tells: the authority's own closes nothing where it does not",
            there.items.len()
        ),
        "ask the CNI's documentation; no promise of the mesh depends on it",
    ))
}

fn limits(all: &[Pod], wishes: &impl Fn(&Pod) -> bool) -> Limits {
    let mut limits = Limits::new();
    for pod in all {
        let (namespace, name) = named(pod);
        // The agents must own their node.
        if namespace == NAMESPACE {
            continue;
        }
        let found = not_held(pod);
        let mut why: Vec<String> =
            found.owns.into_iter().map(|it| format!("{it} (owns node {})", node(pod))).collect();
        if wishes(pod) {
            why.extend(found.escapes);
        }
        if !why.is_empty() {
            limits.insert(format!("{namespace}/{name}"), why);
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;
    use serde_json::json;

    fn pod(name: &str, annotations: serde_json::Value, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        spec["nodeName"] = "a".into();
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "annotations": annotations},
            "spec": spec, "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_are_not_captured_are_named_and_those_of_the_host_s_network_cannot_be() {
        let all = [
            pod("in", json!({}), json!({})),
            pod("out", json!({}), json!({})),
            pod("host", json!({}), json!({"hostNetwork": true})),
        ];
        let agents = Agents::with("a", &["shop/in"]);
        let found = captured(&agents, &all, &|_| true);
        assert_eq!(found.outcome, Outcome::Missing);
        assert!(found.found.contains("1 pods") && found.found.contains("shop/out"), "{}", found.found);
        assert_eq!(captured(&agents, &all, &|_| false).outcome, Outcome::Ok);
        assert_eq!(captured(&agents, &all[..1], &|_| true).outcome, Outcome::Ok, "control");
    }

    #[test]
    fn where_spire_issues_no_authority_of_heddles_is_missed() {
        let issues = |text: &str| spire(text);
        assert_eq!(
            issues("podNetworks: [10.0.0.0/8]\nca: {spire: /run/spire/admin/admin.sock}").as_deref(),
            Some("/run/spire/admin/admin.sock")
        );
        assert_eq!(issues("podNetworks: [10.0.0.0/8]"), None);
        let agents = |folder: &str| -> DaemonSet {
            serde_json::from_value(json!({"spec": {"selector": {}, "template": {"spec": {
                "containers": [], "volumes": [{"name": "spire", "hostPath": {"path": folder}}],
            }}}}))
            .unwrap()
        };
        let socket = "/run/spire/admin/admin.sock";
        assert_eq!(by_spire(socket, Some(&agents("/run/spire/admin"))).outcome, Outcome::Ok);
        assert_eq!(by_spire(socket, Some(&agents("/run/other"))).outcome, Outcome::Missing);
        assert_eq!(by_spire(socket, None).outcome, Outcome::Missing);
    }

    #[test]
    fn whoever_owns_a_node_is_told_anywhere_and_the_rest_in_the_mesh_alone() {
        let all = [
            pod("owner", json!({}), json!({"hostPID": true})),
            pod("host", json!({}), json!({"hostNetwork": true})),
            pod("usual", json!({}), json!({})),
        ];
        let names = |wishes: bool| limits(&all, &|_| wishes).into_keys().collect::<Vec<_>>();
        assert_eq!(names(true), ["shop/host", "shop/owner"]);
        assert_eq!(names(false), ["shop/owner"]);
    }
}
