//! Where rules are read from: a folder, a file, standard input, or a running agent.

use crate::{
    cli::{
        Failure, client,
        config::{Config, ConfigError, bundle_of},
        door::api::PolicyInForce,
    },
    cluster::{
        folder::{Folder, Limits},
        kubernetes::{self, whole},
    },
};
use heddle_policy::{
    ClusterSettings, EndpointSource, Origin, Problem, Severity,
    resources::{DefaultPolicy, Document, Parsed, parse_file, read_documents},
};
use hyper::Method;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap};
use kube::Api;
use miette::miette;
use std::{
    collections::BTreeMap,
    io::Read as _,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a person writes for the API server in the place of a folder.
const CLUSTER: &str = "cluster:";
/// Where the agents are, and their configuration.
const NAMESPACE: &str = "heddle-system";
const AGENTS: &str = "heddle-agent";
/// The bundles of other trust domains, where the agents mount no others.
const FEDERATION: &str = "heddle-federation";
/// For everything to be listed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the rules are read from.
#[derive(clap::Args, Clone, Debug, Default)]
pub(in crate::cli) struct Rules {
    /// A folder of manifests, one file of them, `-` for standard input (as of `kubectl get … -o yaml`), or the socket of a
    /// running agent
    #[arg(value_name = "DIR", required_unless_present_any = ["socket", "cluster"])]
    place: Option<PathBuf>,
    /// Ask the agent at this socket for the resources that it has in force
    #[arg(long, value_name = "PATH", conflicts_with = "place")]
    socket: Option<PathBuf>,
    /// Ask the API server for the whole cluster's resources, by --kubeconfig
    #[arg(long, conflicts_with_all = ["place", "socket"])]
    cluster: bool,
    #[command(flatten)]
    settings: SettingFlags,
}

/// What holds for the whole cluster and stands in no manifest.
#[derive(clap::Args, Clone, Debug, Default)]
pub(in crate::cli) struct SettingFlags {
    /// The agents' configuration: networks, default policies and the names of identities are taken from it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What holds for a port that no Server selects [default: deny, or what --config or the agent says]
    #[arg(long, value_name = "POLICY")]
    default_inbound_policy: Option<DefaultPolicy>,
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config, or as a pod of the cluster does]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// What was read, before anything is made of it.
pub(super) struct Source {
    /// As a person named it.
    pub name: String,
    pub settings: ClusterSettings,
    pub files: Vec<SourceFile>,
    /// Files and folders that cannot be read: their content is not known.
    pub unread: Vec<Problem>,
}

/// One file.
pub(super) struct SourceFile {
    pub name: String,
    pub text: String,
    pub parsed: Parsed,
}

impl SourceFile {
    pub fn new(name: String, text: String) -> Self {
        let parsed = parse_file(&name, &text);
        Self { name, text, parsed }
    }

    /// Its resources as they are written.
    pub fn documents(&self) -> Vec<Document> {
        read_documents(&self.name, &self.text)
    }
}

impl Rules {
    /// As a person named them.
    pub fn name(&self) -> String {
        if self.cluster {
            return CLUSTER.to_owned();
        }
        self.socket.as_ref().or(self.place.as_ref()).map_or_else(String::new, |it| it.display().to_string())
    }

    pub fn read(&self) -> Result<Source, Failure> {
        if self.cluster {
            return from_cluster(&self.settings);
        }
        match (&self.socket, &self.place) {
            (Some(socket), _) => from_agent(socket, &self.settings),
            (None, Some(place)) => read(place, &self.settings),
            (None, None) => Err(miette!("name a folder of manifests or an agent's socket")),
        }
    }
}

impl SettingFlags {
    fn settings(&self) -> Result<ClusterSettings, Failure> {
        let mut settings = match &self.config {
            None => ClusterSettings::default(),
            Some(path) => configured(path)?,
        };
        self.lay_over(&mut settings);
        Ok(settings)
    }

    fn lay_over(&self, settings: &mut ClusterSettings) {
        if let Some(policy) = self.default_inbound_policy {
            settings.default_inbound_policy = policy;
        }
    }
}

/// What an agent's configuration says.
fn configured(path: &Path) -> Result<ClusterSettings, Failure> {
    // Of a cluster's agents it names neither node nor authority: each is told its own.
    Config::shared(path, None).map_err(|error| unfit(&error))
}

fn unfit(error: &ConfigError) -> Failure {
    let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    miette!(help = "`heddle agent --help` lists the fields", "{}", problems.join("\n"))
}

/// Reads a folder, a file, `-`, asks the agent whose socket it is, or (`cluster:`) the API server.
pub(super) fn read(place: &Path, flags: &SettingFlags) -> Result<Source, Failure> {
    if place == Path::new(CLUSTER) {
        return from_cluster(flags);
    }
    if place == Path::new("-") {
        let mut text = String::new();
        let limit = Limits::default().total_bytes;
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|error| miette!("standard input cannot be read: {error}"))?;
        let files = vec![SourceFile::new("-".into(), text)];
        return Ok(Source { name: "-".into(), settings: flags.settings()?, files, unread: Vec::new() });
    }
    match std::fs::metadata(place) {
        Ok(meta) if meta.file_type().is_socket() => from_agent(place, flags),
        Ok(meta) if meta.is_file() => from_file(place, meta.len(), flags),
        _ => from_folder(place, flags),
    }
}

/// Asks the API server. What holds for the whole cluster is what the agents' ConfigMap says, if it can be read.
fn from_cluster(flags: &SettingFlags) -> Result<Source, Failure> {
    let (look, config, bundles) = client::run(async {
        let client = kubernetes::personal(flags.kubeconfig.as_deref()).await.map_err(|error| {
            miette!(help = "name a --kubeconfig, or set KUBECONFIG", "no way to the API server: {error}")
        })?;
        let look = whole::look(&client, PATIENCE).await.map_err(|unseen| {
            miette!(
                help =
                    "it takes the right to list it in every namespace: ClusterRole heddle-viewer, and view",
                "{unseen}"
            )
        })?;
        let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
        let agents = maps.get_opt(AGENTS).await.ok().flatten();
        let set = Api::<DaemonSet>::namespaced(client, NAMESPACE).get_opt("heddle").await.ok().flatten();
        let bundles = set.as_ref().and_then(bundles_of).unwrap_or(FEDERATION);
        Ok((look, agents, maps.get_opt(bundles).await.ok().flatten()))
    })?;
    let text = config.and_then(|mut it| it.data.as_mut()?.remove("heddle.yaml"));
    let mut settings = match (&flags.config, text) {
        (None, Some(text)) => {
            let name = Path::new("configmaps/heddle-system/heddle-agent");
            Config::shared(name, Some(text)).map_err(|error| unfit(&error))?
        }
        _ => flags.settings()?,
    };
    let bundles = bundles.and_then(|it| it.data).unwrap_or_default();
    settings.federated.extend(bundles.keys().filter_map(|file| bundle_of(file)).map(str::to_owned));
    flags.lay_over(&mut settings);
    Ok(of_look(CLUSTER, &look, settings))
}

/// The ConfigMap of other trust domains' bundles that the agents mount.
fn bundles_of(agents: &DaemonSet) -> Option<&str> {
    let volumes = agents.spec.as_ref()?.template.spec.as_ref()?.volumes.as_ref()?;
    Some(&volumes.iter().find(|it| it.name == "federation")?.config_map.as_ref()?.name)
}

/// What was read of a cluster.
pub(super) fn of_look(name: &str, look: &whole::Look, settings: ClusterSettings) -> Source {
    // A controller writes slices for whatever a Service selects.
    let settings = ClusterSettings { endpoints: EndpointSource::Slices, ..settings };
    let files = look.iter().map(|(file, object)| SourceFile::new(file.clone(), object.text.to_string()));
    Source { name: name.to_owned(), settings, files: files.collect(), unread: Vec::new() }
}

fn from_file(path: &Path, length: u64, flags: &SettingFlags) -> Result<Source, Failure> {
    let name = path.display().to_string();
    let limit = Limits::default().total_bytes;
    if length > limit {
        return Err(miette!(
            help = "divide it into a folder of files",
            "{name} is longer than {limit} bytes"
        ));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| miette!(help = "name a file of UTF-8 text", "{name} cannot be read: {error}"))?;
    let files = vec![SourceFile::new(name.clone(), text)];
    Ok(Source { name, settings: flags.settings()?, files, unread: Vec::new() })
}

fn from_folder(path: &Path, flags: &SettingFlags) -> Result<Source, Failure> {
    let name = path.display().to_string();
    let folder = Folder::inspect(path, Limits::default(), |text, _| Ok(text.to_owned()))
        .map_err(|fault| miette!(help = fault.remedy(&name), "{name} cannot be read: {fault}"))?;
    let status = folder.status();
    let stale = status.stale.iter().map(|it| (&it.file, &it.error, &it.remedy));
    let blind = status.alarms.iter().map(|it| (&it.folder, &it.error, &it.remedy));
    let unread = stale
        .chain(blind)
        .map(|(file, error, remedy)| {
            Problem::new(Severity::Error, &Origin::new(file, 0), error).remedy(remedy)
        })
        .collect();
    let here = std::path::absolute(".").unwrap_or_default();
    // As the caller named them, so that an editor finds them and CI shows them beside the change.
    let shown = |file: &str| {
        let file = Path::new(file);
        let relative = if path.is_absolute() { None } else { file.strip_prefix(&here).ok() };
        relative.unwrap_or(file).display().to_string()
    };
    let files =
        folder.contents().map(|(file, text)| SourceFile::new(shown(&file), text.as_ref().clone())).collect();
    Ok(Source { name, settings: flags.settings()?, files, unread })
}

fn from_agent(socket: &Path, flags: &SettingFlags) -> Result<Source, Failure> {
    let answer =
        client::run(async { client::Client::new(socket).ask(Method::GET, "/v1/policy", Vec::new()).await })?;
    let told: PolicyInForce = serde_json::from_slice(&answer).map_err(|error| {
        miette!(
            help = "are agent and command of one version?",
            "the agent's answer is not understood: {error}"
        )
    })?;
    let mut settings = told
        .settings
        .cluster_settings()
        .map_err(|error| miette!("the agent's answer is not understood: settings: {error}"))?;
    if flags.config.is_some() {
        settings = flags.settings()?;
    }
    flags.lay_over(&mut settings);
    let name = format!("the agent of {} (generation {})", told.node, told.generation);
    let files = told.files.into_iter().map(|file| SourceFile::new(file.file, file.text)).collect();
    Ok(Source { name, settings, files, unread: Vec::new() })
}

impl Source {
    /// The files' texts, to quote from.
    pub fn texts(&self) -> BTreeMap<String, String> {
        self.files.iter().map(|file| (file.name.clone(), file.text.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_agents_configuration_names_no_authority_and_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("heddle.yaml");
        std::fs::write(&file, "cluster: {}\nclusterNetworks: [10.0.0.0/8]\n").unwrap();
        let settings = configured(&file).unwrap();
        assert_eq!(settings.cluster_networks, ["10.0.0.0/8".parse().unwrap()]);
        std::fs::write(&file, "cluster: {}\nclusterNetwork: [10.0.0.0/8]\n").unwrap();
        assert!(configured(&file).unwrap_err().to_string().contains("clusterNetwork"));
    }
}
