//! `heddle install`, `upgrade` and `uninstall`: what the chart installs, without Helm.
//!
//! [`bundle`] makes the objects, [`obstacles`] looks at what is in the way, [`objects`] applies them as their own manager,
//! [`record`] remembers what was installed, [`rollout`] waits and [`uninstall`] takes everything away, the nodes' part first.

mod bundle;
mod objects;
mod obstacles;
mod record;
pub(super) mod rollout;
mod uninstall;

use super::{Failure, client, render::print};
use crate::cluster::kubernetes;
use bundle::{Bundle, Values, shown, words};
use kube::Client;
use miette::miette;
use obstacles::{ISSUER, ROOTS, Standing};
use record::Record;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

pub(super) use bundle::{NAMESPACE, admission_bindings, linkerd_kinds};
pub(super) use obstacles::{networks_outside, new_enough};
pub(super) use uninstall::Flags as UninstallFlags;

pub(super) const ABOUT: &str = "Installs agents, authority, controller, roles and admission policies in namespace heddle-system: what the Helm chart \
installs, applied by the API server as field manager `heddle`. It says what it does, refuses with a remedy where something \
is in the way, and waits until everything is ready.

Linkerd's kinds are made where nobody has brought them; those that another release owns, and the Gateway API's, are left as \
they are.

  heddle ca init --directory root && heddle ca issuer --root root --directory issuer
  heddle install --issuer issuer --values mine.yaml --dry-run
  heddle install --issuer issuer --values mine.yaml

--values are the chart's (deploy/helm/heddle/values.yaml); the few that only the chart knows are refused.";

/// For a kind to be served.
const ESTABLISHED: Duration = Duration::from_secs(60);

/// How the API server is reached.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Reach {
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config, or as a pod of the cluster does]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// The arguments of `install` and `upgrade`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Flags {
    #[command(flatten)]
    reach: Reach,
    /// What is another than in the chart's values.yaml; `upgrade` takes those of before where none are named
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// The authority's keys, as `heddle ca issuer` made them: they become Secret heddle-issuer and ConfigMap
    /// heddle-trust-roots
    #[arg(long, value_name = "DIR")]
    issuer: Option<PathBuf>,
    /// Ask the API server what it would take, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until everything is ready; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the manifests and end
    #[arg(long)]
    print_manifests: bool,
}

/// The arguments of `upgrade`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct UpgradeFlags {
    #[command(flatten)]
    flags: Flags,
    /// Take over what `kubectl apply` put there
    #[arg(long)]
    adopt: bool,
}

/// `heddle install`.
///
/// # Errors
/// Something is in the way, or the API server does not take it.
pub(super) fn install(flags: &Flags) -> Result<ExitCode, Failure> {
    run(flags, Wanted::New)
}

/// `heddle upgrade`.
///
/// # Errors
/// As of [`install`].
pub(super) fn upgrade(flags: &UpgradeFlags) -> Result<ExitCode, Failure> {
    run(&flags.flags, if flags.adopt { Wanted::Adopted } else { Wanted::Newer })
}

/// `heddle uninstall`.
///
/// # Errors
/// It was not installed so, or the API server does not do it.
pub(super) fn uninstall(flags: &UninstallFlags) -> Result<ExitCode, Failure> {
    client::run(async {
        let client = reach(&flags.reach).await?;
        uninstall::run(&client, flags).await
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    New,
    Newer,
    Adopted,
}

async fn reach(reach: &Reach) -> Result<Client, Failure> {
    kubernetes::personal(reach.kubeconfig.as_deref()).await.map_err(|error| {
        miette!(help = "name a --kubeconfig, or set KUBECONFIG", "no way to the API server: {error}")
    })
}

fn asked(error: &kube::Error) -> Failure {
    miette!(
        help = "is it there, and may you ask it? Installing takes the rights of a cluster's administrator",
        "the API server: {error}"
    )
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        miette!(
            help = "name a file of UTF-8 text that is there and may be read",
            "{} cannot be read: {error}",
            path.display()
        )
    })
}

fn bundle(text: &str, name: &str) -> Result<Bundle, Failure> {
    let refused = |error: String| {
        miette!(
            help = "deploy/helm/heddle/values.yaml describes every value; metricsFrom, apiServerPorts, agent.config.ca, the issuer's names and createNamespace only Helm knows",
            "{name}: {error}"
        )
    };
    Bundle::of(&Values::read(text).map_err(refused)?).map_err(refused)
}

fn run(flags: &Flags, wanted: Wanted) -> Result<ExitCode, Failure> {
    let given = flags.values.as_deref().map(read).transpose()?;
    let name = flags.values.as_deref().map_or_else(String::new, |it| it.display().to_string());
    if flags.print_manifests {
        let bundle = bundle(given.as_deref().unwrap_or_default(), &name)?;
        for object in &bundle.objects {
            let text = serde_saphyr::to_string(object).map_err(|error| miette!("cannot print: {error}"))?;
            print(&format!("---\n{}", text.trim_end()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let keys = flags.issuer.as_deref().map(keys).transpose()?;
    client::run(async {
        let client = reach(&flags.reach).await?;
        let before = Record::read(&client).await.map_err(|error| asked(&error))?;
        let text = match (wanted, given, &before) {
            (Wanted::New, _, Some(before)) => {
                return Err(miette!(
                    help = "`heddle upgrade` changes it",
                    "Heddle {} is installed already",
                    before.version
                ));
            }
            (Wanted::Newer, _, None) => {
                return Err(miette!(
                    help = "`heddle install`; or `heddle upgrade --adopt` where kubectl applied it",
                    "nothing is installed that could be upgraded"
                ));
            }
            (_, Some(given), _) => given,
            (_, None, Some(before)) => before.values.clone(),
            (_, None, None) => String::new(),
        };
        let bundle = bundle(&text, &name)?;
        let standing = if wanted == Wanted::Adopted { Standing::Adopt } else { Standing::Own };
        let ground = obstacles::look(&client, &bundle, standing, keys.is_some())
            .await
            .map_err(|error| asked(&error))?;
        for note in &ground.notes {
            print(&format!("note: {note}"))?;
        }
        if !ground.obstacles.is_empty() {
            let told = ground.obstacles.iter().map(|it| format!("- {}\n  do: {}", it.what, it.remedy));
            let told: Vec<String> = told.collect();
            return Err(miette!("in the way, and nothing was changed:\n{}", told.join("\n")));
        }
        let record = Record::of(&bundle, &ground.linkerd, &text);
        let apply = Apply { client: &client, force: wanted != Wanted::New, dry: flags.dry_run };
        apply.all(&bundle, &ground.linkerd, keys.as_deref().unwrap_or_default()).await?;
        for object in before.map(|it| it.gone_in(&record)).unwrap_or_default() {
            // One that somebody took over meanwhile is no longer ours.
            let there = objects::get(&client, &object).await.map_err(|error| asked(&error))?;
            if there.is_some_and(|it| objects::owner(&it) == objects::Owner::Own) {
                objects::delete(&client, &object, flags.dry_run).await.map_err(|error| asked(&error))?;
                apply.tell(&object, "removed")?;
            }
        }
        if flags.dry_run {
            print("nothing was changed (--dry-run)")?;
            return Ok(ExitCode::SUCCESS);
        }
        record.write(&client).await.map_err(|error| asked(&error))?;
        if !flags.timeout.is_zero() {
            rollout::wait(&client, flags.timeout).await?;
        }
        print("installed; annotate a namespace heddle.io/mesh: enabled to bring it into the mesh")?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Secret and ConfigMap of a folder that `heddle ca issuer` made.
fn keys(folder: &Path) -> Result<Vec<Value>, Failure> {
    let file = |name: &str| read(&folder.join(name));
    let (certificate, key, roots) = (file("tls.crt")?, file("tls.key")?, file("ca.crt")?);
    Ok(vec![
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": ISSUER, "namespace": NAMESPACE},
            "stringData": {"tls.crt": certificate, "tls.key": key, "ca.crt": roots},
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": ROOTS, "namespace": NAMESPACE},
            "data": {"ca.crt": roots},
        }),
    ])
}

struct Apply<'a> {
    client: &'a Client,
    force: bool,
    dry: bool,
}

impl Apply<'_> {
    fn tell(&self, object: &Value, what: &str) -> Result<(), Failure> {
        let would = if self.dry { "would be " } else { "" };
        print(&format!("{} {would}{what}", shown(object)))
    }

    /// In this order: whatever looks at a kind, or is in a namespace, comes after it.
    async fn all(&self, bundle: &Bundle, linkerd: &[Value], keys: &[Value]) -> Result<(), Failure> {
        let of = |kind: &'static str| bundle.objects.iter().filter(move |it| words(it).0 == kind);
        let kinds: Vec<&Value> = of("CustomResourceDefinition").chain(linkerd).collect();
        for object in &kinds {
            self.one(object).await?;
        }
        if !self.dry {
            self.established(&kinds).await?;
        }
        let first = ["CustomResourceDefinition", "Namespace"];
        let rest = bundle.objects.iter().filter(|it| !first.contains(&words(it).0));
        for object in of("Namespace").chain(keys).chain(rest) {
            self.one(object).await?;
        }
        Ok(())
    }

    async fn one(&self, object: &Value) -> Result<(), Failure> {
        let before = objects::get(self.client, object).await.map_err(|error| asked(&error))?;
        let after = match objects::apply(self.client, object, self.force, self.dry).await {
            Ok(after) => after,
            // Nothing can be tried in a namespace, or of a kind, that is still to be made.
            Err(kube::Error::Api(status)) if self.dry && status.code == 404 => {
                return self.tell(object, "made, in what is to be made first");
            }
            Err(error) => {
                return Err(miette!(
                    help = "what was applied before it stays; correct this and run the same again",
                    "{}: {error}",
                    shown(object)
                ));
            }
        };
        let version = |it: &kube::core::DynamicObject| it.metadata.resource_version.clone();
        let what = match &before {
            None => "made",
            // A trial has no version of its own; what would differ is in the generation.
            Some(before) if self.dry && before.metadata.generation == after.metadata.generation => "kept",
            Some(before) if version(before) == version(&after) => "kept",
            Some(_) => "changed",
        };
        self.tell(object, what)
    }

    async fn established(&self, kinds: &[&Value]) -> Result<(), Failure> {
        let began = Instant::now();
        for kind in kinds {
            loop {
                let there = objects::get(self.client, kind).await.map_err(|error| asked(&error))?;
                let conditions = there.as_ref().and_then(|it| it.data.pointer("/status/conditions"));
                let served = conditions.and_then(Value::as_array).into_iter().flatten().any(|it| {
                    it.get("type") == Some(&json!("Established")) && it.get("status") == Some(&json!("True"))
                });
                if served {
                    break;
                }
                if began.elapsed() > ESTABLISHED {
                    return Err(miette!(
                        help = "`kubectl describe` it: its names may be taken by another kind",
                        "{} is not served within {ESTABLISHED:?}",
                        shown(kind)
                    ));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}
