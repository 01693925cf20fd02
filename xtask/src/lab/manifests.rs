//! The folder of Kubernetes YAML that every agent of a lab reads.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::pod::{Placed, PodSpec};

/// A folder that only its owner can write, whose files are replaced whole.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
    unfinished: PathBuf,
}

/// What a Service is to be.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    namespace: String,
    name: String,
    selector: Vec<(String, String)>,
    ports: Vec<(String, u16, String)>,
}

impl ServiceSpec {
    /// A Service that selects pods by the label `app`.
    pub fn new(namespace: &str, name: &str, app: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            selector: vec![("app".into(), app.into())],
            ports: Vec::new(),
        }
    }

    /// With this TCP port; `target` is a number or the name of a container port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, target: &str) -> Self {
        self.ports.push((name.into(), port, target.into()));
        self
    }
}

/// A Service's addresses.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its first cluster address.
    pub v4: Ipv4Addr,
    /// Its second.
    pub v6: Ipv6Addr,
}

impl Manifests {
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let unfinished = directory.with_extension("unfinished");
        for folder in [directory, &unfinished] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { directory: directory.into(), unfinished })
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file whole: readers see the old text or the new one, never a part.
    ///
    /// # Errors
    /// When `name` is no plain file name or the folder cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        ensure!(Path::new(name).file_name().is_some_and(|own| own == name), "{name:?} is no plain file name");
        let unfinished = self.unfinished.join(name);
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&unfinished, self.directory.join(name))
            .with_context(|| format!("cannot write manifest {name}"))
    }

    /// What a file holds.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Replaces `from`, which must occur, by `to` in a file.
    ///
    /// # Errors
    /// When there is no such file or `from` does not occur in it.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let text = self.read(name)?;
        ensure!(text.contains(from), "manifest {name} does not contain {from:?}");
        self.write(name, &text.replace(from, to))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn write_unless_there(&self, name: &str, text: &str) -> Result<()> {
        if self.directory.join(name).exists() { Ok(()) } else { self.write(name, text) }
    }

    /// Writes a pod's manifest, and its Namespace's and ServiceAccount's unless they are there.
    pub(super) fn write_pod(&self, placed: &Placed<'_>, spec: &PodSpec) -> Result<()> {
        let PodSpec { namespace, account, .. } = spec;
        self.write_unless_there(
            &file_name("namespace", "", namespace),
            &format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n"),
        )?;
        self.write_unless_there(
            &file_name("serviceaccount", namespace, account),
            &format!("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {account}\n  namespace: {namespace}\n"),
        )?;
        self.write(&file_name("pod", namespace, &spec.name), &pod_yaml(placed, spec)?)
    }

    /// The same for a pod of another machine's node. The addresses: its own, and its node's.
    pub(super) fn write_pod_elsewhere(
        &self,
        (v4, v6, host): (Ipv4Addr, Ipv6Addr, IpAddr),
        spec: &PodSpec,
    ) -> Result<()> {
        // Only a pod's own node compares it.
        let uid = format!("{}-elsewhere", spec.name);
        self.write_pod(&Placed { uid: &uid, v4, v6, host }, spec)
    }

    pub(super) fn write_service(&self, spec: &ServiceSpec, number: u16) -> Result<Service> {
        let [high, low] = number.to_be_bytes();
        let service = Service {
            name: spec.name.clone(),
            v4: Ipv4Addr::new(10, 78, high, low),
            v6: Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number),
        };
        let ServiceSpec { namespace, name, .. } = spec;
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
             clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
             ipFamilyPolicy: RequireDualStack\n  selector:\n",
            v4 = service.v4,
            v6 = service.v6
        );
        for (key, value) in &spec.selector {
            writeln!(yaml, "    {key}: {value}")?;
        }
        yaml.push_str("  ports:\n");
        for (name, port, target) in &spec.ports {
            writeln!(
                yaml,
                "    - name: {name}\n      port: {port}\n      targetPort: {target}\n      protocol: TCP"
            )?;
        }
        self.write(&file_name("service", namespace, name), &yaml)?;
        Ok(service)
    }
}

/// The name of an object's file.
pub fn file_name(kind: &str, namespace: &str, name: &str) -> String {
    [kind, namespace, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
        + ".yaml"
}

fn pod_yaml(placed: &Placed<'_>, spec: &PodSpec) -> Result<String> {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n  labels:\n",
        spec.name, spec.namespace, placed.uid
    );
    for (key, value) in &spec.labels {
        writeln!(yaml, "    {key}: {value}")?;
    }
    let mesh = spec.meshed.then(|| ("heddle.io/mesh".to_owned(), "enabled".to_owned()));
    let annotations: Vec<_> = mesh.into_iter().chain(spec.annotations.clone()).collect();
    if !annotations.is_empty() {
        yaml.push_str("  annotations:\n");
        for (key, value) in annotations {
            writeln!(yaml, "    {key}: {}", serde_json::Value::String(value))?;
        }
    }
    write!(
        yaml,
        "spec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n    - name: app\n      image: none\n",
        spec.node, spec.account
    )?;
    if !spec.ports.is_empty() {
        yaml.push_str("      ports:\n");
        for (name, port) in &spec.ports {
            writeln!(
                yaml,
                "        - name: {name}\n          containerPort: {port}\n          protocol: TCP"
            )?;
        }
    }
    if let Some(probe) = &spec.probe {
        writeln!(yaml, "      readinessProbe: {probe}")?;
    }
    let Placed { host, .. } = placed;
    write!(
        yaml,
        "status:\n  phase: Running\n  hostIP: {host}\n  podIP: {v4}\n  podIPs:\n    - ip: {v4}\n    - ip: \"{v6}\"\n  \
         conditions:\n    - type: Ready\n      status: \"True\"\n",
        v4 = placed.v4,
        v6 = placed.v6
    )?;
    Ok(yaml)
}
