//! The kernel side, opened: programs loaded or an earlier agent's pins adopted, nothing judged by this agent yet.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_ebpf::attach::Limits;
use heddle_identity::{
    Authority, AuthorityError, AuthoritySettings, Profile, RenewalSettings, Store, TlsSettings, Trust,
    names::IdentityNaming,
};
use heddle_policy::problems::{Origin, Problem, Severity};
use miette::miette;

use super::super::Failure;
use super::{
    anchors::{Anchors, AnchorsFile, Bundle},
    federation::Federation,
    issuer::{Issuer, Remote},
    spire::{Spire, SpireBundles},
};
use crate::{
    capture::{Capture, KeptSize, Kernel, KernelOptions, trial},
    cli::config::{Ca, Config, Place},
};

/// Payload-free segments of sockets that nobody owns: the last words of many short connections, and no channel worth
/// having for anybody else.
const BARE_SEGMENTS_PER_SECOND: u64 = 20_000;

/// What [`open`] opened.
pub(in super::super) struct Wired {
    pub(super) capture: Arc<Capture>,
    pub(super) issuing: Issuing,
    pub(super) node: String,
    pub(super) heartbeat: Duration,
    pub(super) poll: Duration,
    /// Where pods ask for certificates of their own.
    pub(super) workload_api: Option<PathBuf>,
    /// The file that flows are recorded in, and how many bytes it may have.
    pub(super) flow_log: Option<(PathBuf, u64)>,
}

/// Opens this node's kernel side and its certificate authority.
///
/// # Errors
/// What the host or the kernel refuses, with its remedy.
pub(in super::super) fn open(config: &Config) -> Result<Wired, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        miette!(
            help = "`heddle check` says what this host lacks",
            "the kernel side cannot be opened: {error}"
        )
    };
    let naming =
        config.cluster_settings().map_err(|error| miette!("identities cannot be named: {error}"))?.naming;
    let issuing = issuing(config, &naming)?;

    let heartbeat = Duration::from_millis(config.heartbeat_milliseconds);
    let options = KernelOptions {
        bpffs: config.bpffs.clone(),
        // Validation has put the hierarchy's root where none was named.
        cgroup: config.cgroup.clone().ok_or_else(|| miette!("no `cgroup` to attach to"))?,
        limits: Limits {
            heartbeat_ns: u64::try_from(heartbeat.as_nanos()).unwrap_or(u64::MAX),
            bare_segments_per_second: BARE_SEGMENTS_PER_SECOND,
            kubelet_cgroup: kubelet(config.kubelet_cgroup.as_deref())?,
        },
        capacity: config.capacity.clone(),
    };
    can_run_here()?;
    let kernel = Kernel::load(&options).map_err(|error| failed(&error))?;
    tracing::info!(pins = %kernel.pinned_at().display(), adopted = kernel.adopted(), "kernel programs are in force");
    for kept in kernel.kept_sizes() {
        let problem = kept_size(kept);
        tracing::warn!(field = problem.field, remedy = problem.remedy, "{}", problem.reason);
    }
    let capture = Capture::new(kernel, config.workers).map_err(|error| failed(&error))?;
    Ok(Wired {
        capture,
        issuing,
        node: config.node.clone(),
        heartbeat,
        poll: Duration::from_micros(config.poll_microseconds),
        workload_api: config.workload_api.clone(),
        flow_log: config.flow_log.as_ref().map(|log| (log.file.clone(), log.megabytes << 20)),
    })
}

/// Who issues, what is trusted, and where certificates are kept.
pub(super) struct Issuing {
    pub issuer: Arc<Issuer>,
    pub store: Arc<Store>,
    /// The bundle that is followed; `None`: the authority is within the agent.
    pub anchors: Option<Anchors>,
    /// Other trust domains, as far as there is a folder of them.
    pub federation: Option<Federation>,
    pub renewal: RenewalSettings,
}

fn issuing(config: &Config, naming: &IdentityNaming) -> Result<Issuing, Failure> {
    let tls = TlsSettings::default();
    let trust_in = |anchors, profile| {
        let trust = Trust::new(naming.clone(), anchors, Arc::clone(&tls.provider));
        trust.map(|trust| Arc::new(trust.with_profile(profile))).map_err(|error| {
            miette!(help = "see `ca` in the configuration", "nobody can be trusted: {error}")
        })
    };
    let trust = |anchors| trust_in(anchors, Profile::Heddle);
    let embedded = |authority: Result<Authority, AuthorityError>| {
        let authority = authority.map_err(|error| {
            miette!(
                help = "see `ca` in the configuration",
                "the certificate authority cannot be opened: {error}"
            )
        })?;
        Ok::<_, Failure>((trust(authority.anchors().to_vec())?, Issuer::Embedded(Box::new(authority)), None))
    };
    let (settings, now) = (AuthoritySettings::default(), SystemTime::now());
    let (trust, issuer, anchors) = match &config.ca {
        Ca::Folder(folder) => embedded(Authority::in_folder(folder, naming.clone(), settings, now))?,
        Ca::Memory(_) => embedded(Authority::in_memory(naming.clone(), settings, now))?,
        Ca::Remote(remote) => {
            let file = AnchorsFile::new(remote.trust_bundle.clone());
            let unusable = |error: String| {
                miette!(
                    help = "name the authority's ca.crt in `ca.trustBundle`",
                    "nobody can be trusted: {error}"
                )
            };
            let Bundle { bytes, anchors, lists } = file.read().map_err(unusable)?;
            let trust = trust(anchors.clone())?;
            trust.reload(anchors, &lists).map_err(|error| unusable(error.to_string()))?;
            let issuer = Remote::new(remote, &config.node, &trust, &tls)?;
            (trust, Issuer::Remote(Box::new(issuer)), Some(Anchors::File(file, bytes)))
        }
        Ca::Spire(socket) => {
            let spire = Spire::at(socket);
            let bundles = SpireBundles::new(spire.clone(), naming.trust_domain());
            let wait = || tokio::runtime::Handle::current().block_on(bundles.first());
            let anchors = tokio::task::block_in_place(wait).map_err(|error| {
                miette!(
                    help = "look at SPIRE's agent on this node, and at `ca.spire`",
                    "nobody can be trusted: {error}"
                )
            })?;
            let trust = trust_in(anchors, Profile::Spire)?;
            (trust, Issuer::Spire(Box::new(spire)), Some(Anchors::Spire(bundles)))
        }
    };
    let federation = config.federation.clone().map(|folder| Federation::new(folder, &trust));
    // A percentage: exact.
    let renew_after = config.renew_after_percent as f64 / 100.0;
    let renewal = RenewalSettings { renew_after, ..RenewalSettings::default() };
    let store = Arc::new(Store::new(trust, tls, renewal));
    Ok(Issuing { issuer: Arc::new(issuer), store, anchors, federation, renewal })
}

/// Said before anything is loaded, in the kernel's own words: what came later would be a verifier's log.
fn can_run_here() -> Result<(), Failure> {
    let lacking: Vec<String> = trial::features()
        .into_iter()
        .filter_map(|trial| Some(format!("{} (for {}): {}", trial.what, trial.purpose, trial.lacking?)))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(miette!(
        help = "`heddle check` says what to do; 6.1 is the oldest kernel that has it all",
        "this kernel lacks what enforcement needs, nothing was attached:\n  {}",
        lacking.join("\n  ")
    ))
}

/// A size that the configuration asks for and the kernel cannot give.
pub(super) fn kept_size(kept: &KeptSize) -> Problem {
    let KeptSize { map, asked, has } = kept;
    let reason = format!("asks for {asked} places; the map is pinned already, has {has} and keeps them");
    Problem::new(Severity::Warning, &Origin::default(), reason)
        .field(format!("capacity.{map}"), 0)
        .remedy("stop the agent, take its capture away with `heddle release`, start it and attach the pods again; or take the field out")
}

/// A pod that was let go of and whose namespace lives on.
pub(super) fn left_over_pod(name: &String) -> Problem {
    let reason =
        "its network namespace lives on though its path does not lead there: what is in it passes nothing";
    let remedy = "end its processes; or attach it by the path that leads there now; or let it out of the mesh by `heddle detach`";
    Problem::new(Severity::Warning, &Origin::default(), reason).resource(format!("Pod {name}")).remedy(remedy)
}

/// Takes down what no pin holds: below 6.6 the guard is a filter of the interface. Says what was removed.
///
/// # Errors
/// If the pinned pods cannot be read.
pub(in super::super) fn release(place: &Place) -> Result<Vec<String>, Failure> {
    crate::capture::release_guards(&place.bpffs)
        .map_err(|error| miette!("what guards pods' interfaces cannot be removed: {error}"))
}

/// The id by which the kernel knows the kubelet's cgroup: its directory's inode.
fn kubelet(path: Option<&Path>) -> Result<u64, Failure> {
    let Some(path) = path else { return Ok(0) };
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(error) => Err(miette!(
            help = "name the kubelet's cgroup (v2) in `kubeletCgroup`, or leave it out: then no probe passes",
            "kubeletCgroup {}: {error}",
            path.display()
        )),
    }
}
