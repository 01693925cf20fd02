//! Taking everything away: first what looks after the mesh, then on each node what holds it, then the rest. Rules, their
//! kinds, the authority's keys and the namespace stay unless they are named.

use super::{
    Reach, asked,
    bundle::{NAMESPACE, shown, words},
    objects::{self, Owner},
    record::Record,
    rollout,
};
use crate::cli::{Failure, render::print};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use miette::miette;
use serde_json::{Value, json};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const CLEANUP: &str = "heddle-cleanup";

/// The arguments.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(super) reach: Reach,
    /// Remove the kinds too, and with them every rule: Heddle's own, and of Linkerd's those that Heddle made and nobody else
    /// owns
    #[arg(long)]
    kinds: bool,
    /// Also where namespaces require the mesh: their pods go on without it
    #[arg(long)]
    even_where_required: bool,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for each step
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) async fn run(client: &Client, flags: &Flags) -> Result<ExitCode, Failure> {
    let ask = |error: kube::Error| asked(&error);
    let Some(record) = Record::read(client).await.map_err(ask)? else {
        return Err(miette!(
            help = "`helm uninstall`, where Helm installed it; where kubectl did: `heddle upgrade --adopt` first",
            "nothing was installed by `heddle install`"
        ));
    };
    let required = required(client).await.map_err(ask)?;
    if !required.is_empty() && !flags.even_where_required {
        return Err(miette!(
            help = "change the annotation, or say --even-where-required",
            "these namespaces require the mesh (heddle.io/mesh: required): {}",
            required.join(", ")
        ));
    }
    let sort = |it: &Value| {
        let (kind, _, name) = words(it);
        match (kind, name) {
            ("CustomResourceDefinition", _) => 4,
            ("Namespace", _) => 5,
            // They refuse at once what nobody looks after any more.
            ("ValidatingAdmissionPolicyBinding", _) => 0,
            ("Deployment", "heddle-controller") | ("ValidatingAdmissionPolicy", _) => 1,
            ("DaemonSet", _) => 2,
            _ => 3,
        }
    };
    let mut all = record.objects.clone();
    all.sort_by_key(sort);
    for object in &all {
        let (kind, ..) = words(object);
        match kind {
            "Namespace" => print(&format!("{} stays, with the authority's keys", shown(object)))?,
            "CustomResourceDefinition" => definition(client, object, flags).await?,
            "DaemonSet" => agents(client, object, flags).await?,
            _ => remove(client, object, flags.dry_run).await?,
        }
    }
    if flags.dry_run {
        print("nothing was changed (--dry-run)")?;
    } else {
        Record::remove(client).await.map_err(ask)?;
        print("uninstalled")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn required(client: &Client) -> Result<Vec<String>, kube::Error> {
    let all = Api::<Namespace>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    let required = all.items.into_iter().filter(|it| {
        let mesh = it.metadata.annotations.as_ref().and_then(|it| it.get(heddle_policy::MESH));
        mesh.is_some_and(|it| it == "required")
    });
    Ok(required.filter_map(|it| it.metadata.name).collect())
}

/// Removes it, if it is ours still.
async fn remove(client: &Client, object: &Value, dry: bool) -> Result<(), Failure> {
    let Some(there) = objects::get(client, object).await.map_err(|error| asked(&error))? else {
        return Ok(());
    };
    if let Owner::Helm(_) | Owner::Others(_) = objects::owner(&there) {
        return print(&format!("{} stays: it is no longer Heddle's", shown(object)));
    }
    objects::delete(client, object, dry).await.map_err(|error| asked(&error))?;
    print(&format!("{} {}", shown(object), if dry { "would be removed" } else { "removed" }))
}

/// A kind stays where anybody but Heddle has a part in it.
async fn definition(client: &Client, object: &Value, flags: &Flags) -> Result<(), Failure> {
    if !flags.kinds {
        return print(&format!("{} stays, with every rule of it (--kinds)", shown(object)));
    }
    let Some(there) = objects::get(client, object).await.map_err(|error| asked(&error))? else {
        return Ok(());
    };
    let fields = there.metadata.managed_fields.iter().flatten();
    let others = fields.filter_map(|it| it.manager.as_deref()).filter(|it| {
        // The API server itself, which writes what became of it.
        *it != objects::MANAGER && *it != "kube-apiserver"
    });
    let mut others: Vec<&str> = others.collect();
    others.dedup();
    if !words(object).2.ends_with(".heddle.io") && !others.is_empty() {
        return print(&format!("{} stays: it is of {} too", shown(object), others.join(", ")));
    }
    remove(client, object, flags.dry_run).await
}

/// The agents end, and on each node what they left in force is taken down: else its pods would wait for them, and what they
/// carried would be refused.
async fn agents(client: &Client, object: &Value, flags: &Flags) -> Result<(), Failure> {
    let ask = |error: kube::Error| asked(&error);
    let api = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE);
    let Some(set) = api.get_opt(words(object).2).await.map_err(ask)? else { return Ok(()) };
    remove(client, object, flags.dry_run).await?;
    if flags.dry_run {
        return print("on each node Heddle's plugin and programs would be removed");
    }
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let of_agents = ListParams::default().labels("app=heddle");
    wait("the agents to end", flags.timeout, async || {
        Ok(pods
            .list_metadata(&of_agents)
            .await?
            .items
            .iter()
            .filter_map(|it| it.metadata.name.clone())
            .collect())
    })
    .await?;
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await.map_err(ask)?;
    let names: Vec<String> = nodes.items.into_iter().filter_map(|it| it.metadata.name).collect();
    for node in &names {
        let pod = cleanup(&set, node)?;
        match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(ask(error)),
        }
    }
    let cleaning = ListParams::default().labels(&format!("app={CLEANUP}"));
    wait("every node to be cleared", flags.timeout, async || {
        Ok(pods.list(&cleaning).await?.items.iter().filter_map(rollout::why).collect())
    })
    .await?;
    pods.delete_collection(&DeleteParams::default(), &cleaning).await.map_err(ask)?;
    for node in names {
        print(&format!("node {node} is cleared: the plugin, programs and maps are removed"))?;
    }
    Ok(())
}

async fn wait(
    what: &str,
    at_most: Duration,
    left: impl AsyncFn() -> Result<Vec<String>, kube::Error>,
) -> Result<(), Failure> {
    let (began, mut told) = (Instant::now(), Vec::new());
    loop {
        let left = left().await.map_err(|error| asked(&error))?;
        if left.is_empty() {
            return Ok(());
        }
        if left != told {
            print(&format!("{:>5} s  waiting for {what}: {}", began.elapsed().as_secs(), left.join(", ")))?;
            told.clone_from(&left);
        }
        if began.elapsed() > at_most {
            return Err(miette!(
                help = "run the same again; on a node that is gone for good delete its Node",
                "waited {at_most:?} for {what}: {}",
                left.join(", ")
            ));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A pod like the agent's, which ends: it takes away the plugin first, so that pods start, then what is in force.
fn cleanup(set: &DaemonSet, node: &str) -> Result<Pod, Failure> {
    let unlike = |what: &str| miette!("the agents' DaemonSet has no {what}: was it changed by hand?");
    let template = serde_json::to_value(set).map_err(|error| miette!("{error}"))?;
    let mut spec = template.pointer("/spec/template/spec").cloned().ok_or_else(|| unlike("pods"))?;
    let container = spec.pointer("/containers/0").cloned().ok_or_else(|| unlike("container"))?;
    let with = |name: &str, arguments: &[&str]| {
        let mut container = container.clone();
        container["name"] = name.into();
        container["args"] = arguments.into();
        if let Some(fields) = container.as_object_mut() {
            fields.remove("readinessProbe");
        }
        container
    };
    spec["initContainers"] = json!([with("plugin", &["cni", "uninstall"])]);
    spec["containers"] = json!([with("release", &["release", "--config=/etc/heddle/heddle.yaml"])]);
    spec["restartPolicy"] = "OnFailure".into();
    spec["nodeName"] = node.into();
    spec["terminationGracePeriodSeconds"] = 5.into();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{CLEANUP}-{node}"), "namespace": NAMESPACE, "labels": {"app": CLEANUP}},
        "spec": spec,
    });
    serde_json::from_value(pod).map_err(|error| miette!("the agents' pods cannot be followed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::install::bundle::{Bundle, Values};

    #[test]
    fn a_node_is_cleared_by_a_pod_like_the_agent_s() {
        let bundle = Bundle::of(&Values::default()).unwrap();
        let set = bundle.objects.iter().find(|it| words(it).0 == "DaemonSet").unwrap();
        let pod = cleanup(&serde_json::from_value(set.clone()).unwrap(), "node-a").unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.host_pid), (Some("node-a"), Some(true)));
        let [first] = &spec.init_containers.unwrap()[..] else { panic!() };
        assert_eq!(first.args.as_ref().unwrap(), &["cni", "uninstall"]);
        let [then] = &spec.containers[..] else { panic!() };
        assert_eq!(then.args.as_ref().unwrap()[0], "release");
        assert!(then.readiness_probe.is_none() && then.volume_mounts.as_ref().unwrap().len() > 5);
    }
}
