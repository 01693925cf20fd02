//! What is in the way of an installation, each with what to do.

use super::{
    bundle::{Bundle, NAMESPACE, shown, words},
    objects::{self, Owner},
};
use crate::cli::config::Config;
use heddle_policy::ClusterSettings;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use kube::{Api, Client, api::ListParams};
use serde_json::Value;
use std::{net::IpAddr, path::Path};

/// The first Kubernetes whose tokens name their node.
const OLDEST: (u32, u32) = (1, 30);
/// The issuer's keys, and the root that agents trust.
pub(super) const ISSUER: &str = "heddle-issuer";
pub(super) const ROOTS: &str = "heddle-trust-roots";
/// Groups of others.
const GATEWAY: &str = "gateway.networking.k8s.io";

/// Something in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub what: String,
    pub remedy: String,
}

/// What was looked at.
#[derive(Debug, Default)]
pub(super) struct Ground {
    pub obstacles: Vec<Obstacle>,
    /// Worth knowing.
    pub notes: Vec<String>,
    /// Of Linkerd's kinds those that nobody has brought.
    pub linkerd: Vec<Value>,
}

impl Ground {
    fn obstacle(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.obstacles.push(Obstacle { what: what.into(), remedy: remedy.into() });
    }
}

/// Who may own what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing of it is there, or it is our own.
    Own,
    /// Whatever `kubectl apply` put there is taken over.
    Adopt,
}

/// Looks at everything.
///
/// # Errors
/// The API server cannot be asked.
pub(super) async fn look(
    client: &Client,
    bundle: &Bundle,
    standing: Standing,
    keys: bool,
) -> Result<Ground, kube::Error> {
    let mut ground = Ground::default();
    version(client, &mut ground).await?;
    for object in &bundle.objects {
        // A namespace is shared with whoever made it.
        if words(object).0 == "Namespace" {
            continue;
        }
        if let Some(there) = objects::get(client, object).await? {
            taken(&mut ground, object, &objects::owner(&there), standing);
        }
    }
    kinds(client, bundle, &mut ground).await?;
    if !keys {
        secrets(client, &mut ground).await?;
    }
    networks(client, bundle, &mut ground).await?;
    Ok(ground)
}

fn taken(ground: &mut Ground, object: &Value, owner: &Owner, standing: Standing) {
    let what = shown(object);
    match (owner, standing) {
        (Owner::Own, _) | (Owner::Others(_), Standing::Adopt) => {}
        (Owner::Helm(release), _) => ground.obstacle(
            format!("{what} belongs to the Helm release {release:?}"),
            "go on with `helm upgrade`, or `helm uninstall` it first",
        ),
        (Owner::Others(managers), Standing::Own) => ground.obstacle(
            format!("{what} is there already, written by {}", managers.join(", ")),
            "where it is Heddle's, of `kubectl apply`: `heddle upgrade --adopt`; else remove it",
        ),
    }
}

async fn version(client: &Client, ground: &mut Ground) -> Result<(), kube::Error> {
    let version = client.apiserver_version().await?;
    if !new_enough(&version.major, &version.minor) {
        ground.obstacle(
            format!("the API server is {}", version.git_version),
            "Kubernetes 1.30 or newer is needed: tokens name their node from there on",
        );
    }
    Ok(())
}

/// Whether an API server is.
pub(in crate::cli) fn new_enough(major: &str, minor: &str) -> bool {
    // `30+` is a vendor's.
    let number = |text: &str| text.trim_end_matches(|it: char| !it.is_ascii_digit()).parse::<u32>().ok();
    matches!((number(major), number(minor)), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

/// Linkerd's and the Gateway API's kinds are whoever's brought them.
async fn kinds(client: &Client, bundle: &Bundle, ground: &mut Ground) -> Result<(), kube::Error> {
    for object in &bundle.linkerd {
        let (_, _, name) = words(object);
        let Some(there) = objects::get(client, object).await? else {
            ground.linkerd.push(object.clone());
            continue;
        };
        match objects::owner(&there) {
            Owner::Own => ground.linkerd.push(object.clone()),
            Owner::Helm(release) => {
                ground.notes.push(format!("{name} is the Helm release {release:?}'s: left as it is"));
            }
            Owner::Others(managers) => {
                ground.notes.push(format!("{name} is of {}: left as it is", managers.join(", ")));
            }
        }
    }
    let groups = client.list_api_groups().await?.groups;
    if !groups.iter().any(|it| it.name == GATEWAY) {
        ground.notes.push(
            "the Gateway API's kinds are not there: install them (sigs.k8s.io/gateway-api) to write routes"
                .to_owned(),
        );
    }
    Ok(())
}

async fn secrets(client: &Client, ground: &mut Ground) -> Result<(), kube::Error> {
    const REMEDY: &str =
        "make keys (`heddle ca init`, `heddle ca issuer`) and name their folder: --issuer DIR";
    // Whether it is there, not what is in it.
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    if secrets.get_metadata_opt(ISSUER).await?.is_none() {
        ground.obstacle(format!("the authority's keys are missing: no Secret {NAMESPACE}/{ISSUER}"), REMEDY);
    }
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    if maps.get_metadata_opt(ROOTS).await?.is_none() {
        ground.obstacle(format!("the agents trust no root: no ConfigMap {NAMESPACE}/{ROOTS}"), REMEDY);
    }
    Ok(())
}

/// Networks that are not the cluster's would refuse everything, or let pass what is not known.
async fn networks(client: &Client, bundle: &Bundle, ground: &mut Ground) -> Result<(), kube::Error> {
    let map = bundle.objects.iter().find(|it| matches!(words(it), ("ConfigMap", _, "heddle-agent")));
    let text = map.and_then(|it| it.pointer("/data/heddle.yaml")).and_then(Value::as_str).unwrap_or_default();
    let settings = match Config::shared(Path::new("agent.config"), Some(text.to_owned())) {
        Ok(settings) => settings,
        Err(error) => {
            for problem in error.problems {
                ground.obstacle(problem.to_string(), "correct it in --values");
            }
            return Ok(());
        }
    };
    for (what, remedy) in networks_outside(client, &settings).await? {
        ground.obstacle(what, remedy);
    }
    Ok(())
}

/// Networks of the cluster's that the agents do not know, each with what to do.
///
/// # Errors
/// The API server cannot be asked.
pub(in crate::cli) async fn networks_outside(
    client: &Client,
    settings: &ClusterSettings,
) -> Result<Vec<(String, String)>, kube::Error> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let of_nodes = nodes.items.iter().filter_map(|it| it.spec.as_ref()?.pod_cidrs.clone()).flatten();
    let service = Api::<Service>::namespaced(client.clone(), "default").get_opt("kubernetes").await?;
    let addresses = service.and_then(|it| it.spec?.cluster_ips).unwrap_or_default();
    Ok(outside(settings, of_nodes, &addresses))
}

fn outside(
    settings: &ClusterSettings,
    of_nodes: impl Iterator<Item = String>,
    of_services: &[String],
) -> Vec<(String, String)> {
    let pods = of_nodes
        .filter_map(|it| it.parse::<IpNet>().ok())
        .filter(|network| !settings.pod_networks.iter().any(|it| it.contains(network)));
    let pods = pods.map(|network| {
        (
            format!("a node's pods are in {network}, which is in none of agent.config.podNetworks"),
            format!("write `agent: {{config: {{podNetworks: [{network}, …]}}}}` in --values"),
        )
    });
    let services = of_services
        .iter()
        .filter_map(|it| it.parse::<IpAddr>().ok())
        .filter(|address| !settings.service_networks.iter().any(|it| it.contains(address)));
    let services = services.map(|address| {
        (
            format!(
                "Service default/kubernetes has {address}, which is in none of agent.config.serviceNetworks"
            ),
            "write the API server's --service-cluster-ip-range as agent.config.serviceNetworks in --values"
                .to_owned(),
        )
    });
    pods.chain(services).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_another_s_is_in_the_way_and_what_was_applied_can_be_adopted() {
        let object =
            json!({"kind": "DaemonSet", "metadata": {"namespace": "heddle-system", "name": "heddle"}});
        let look = |owner: Owner, standing| {
            let mut ground = Ground::default();
            taken(&mut ground, &object, &owner, standing);
            ground.obstacles.pop().map(|it| it.what + ": " + &it.remedy)
        };
        let kubectl = Owner::Others(vec!["kubectl".to_owned()]);
        assert_eq!(look(Owner::Own, Standing::Own), None);
        assert_eq!(look(kubectl.clone(), Standing::Adopt), None);
        assert!(look(kubectl, Standing::Own).unwrap().contains("--adopt"));
        for standing in [Standing::Own, Standing::Adopt] {
            let said = look(Owner::Helm("mesh".to_owned()), standing).unwrap();
            assert!(said.contains("DaemonSet heddle-system/heddle") && said.contains("helm"), "{said}");
        }
    }

    #[test]
    fn a_version_is_read_as_vendors_write_it() {
        for (major, minor, expected) in
            [("1", "30", true), ("1", "34+", true), ("2", "0", true), ("1", "29", false), ("1", "x", false)]
        {
            assert_eq!(new_enough(major, minor), expected, "{major}.{minor}");
        }
    }

    #[test]
    fn networks_that_are_not_the_cluster_s_are_in_the_way() {
        let settings = ClusterSettings {
            pod_networks: vec!["10.244.0.0/16".parse().unwrap()],
            service_networks: vec!["10.96.0.0/12".parse().unwrap()],
            ..ClusterSettings::default()
        };
        let look = |pods: &[&str], services: &[&str]| {
            let services: Vec<String> = services.iter().map(|it| (*it).to_owned()).collect();
            outside(&settings, pods.iter().map(|it| (*it).to_owned()), &services).len()
        };
        assert_eq!(look(&["10.244.1.0/24", "10.244.2.0/24"], &["10.96.0.1"]), 0);
        assert_eq!(look(&["10.245.1.0/24", "fd00::/64"], &["10.96.0.1"]), 2);
        assert_eq!(look(&["10.0.0.0/8"], &["172.16.0.1"]), 2);
        assert_eq!(look(&[], &[]), 0);
    }
}
