//! The chart is sound, refuses values that it does not know, and the plain manifests are what it renders.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path};

use xtask::chart;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What the plain manifests begin with.
const HEAD: &str = "# Heddle in a cluster: an agent on every node, the certificate authority that they ask, and what tells of rules. Rendered from
# deploy/helm/heddle, where every value is described: `HEDDLE_WRITE=1 cargo test -p xtask --test chart` writes it anew.
#
# Beforehand: the issuer's keys as Secret heddle-issuer (tls.key, tls.crt, ca.crt; `heddle ca init` and `heddle ca issuer`
# make them) and its root as ConfigMap heddle-trust-roots (ca.crt), both in heddle-system. In ConfigMap heddle-agent the
# networks must be the cluster's own. Where nobody has brought Linkerd's kinds yet: deploy/crds/linkerd.
";

#[test]
#[ignore = "runs helm, which `cargo xtask cluster` builds"]
fn the_plain_manifests_are_what_the_chart_renders() {
    let Some(helm) = chart::installed() else { return };
    let folder = chart::folder(Path::new(ROOT)).display().to_string();
    let said = chart::run(&helm, &["lint", "--strict", &folder]).unwrap();
    assert!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{said}");
    let rendered = HEAD.to_owned() + &chart::render(&helm, Path::new(ROOT), &[]).unwrap();
    let path = format!("{ROOT}/deploy/kubernetes/heddle.yaml");
    if env::var_os("HEDDLE_WRITE").is_some() {
        fs::write(&path, &rendered).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    let differs = written.lines().zip(rendered.lines()).position(|(one, other)| one != other);
    assert!(
        written == rendered,
        "deploy/kubernetes/heddle.yaml is not what the chart renders, from line {}: HEDDLE_WRITE=1 writes it anew",
        differs.map_or(written.lines().count().min(rendered.lines().count()), |line| line) + 1
    );
}

#[test]
#[ignore = "runs helm, which `cargo xtask cluster` builds"]
fn values_that_are_not_known_or_not_sound_are_refused() {
    let Some(helm) = chart::installed() else { return };
    let render = |set: &str| chart::render(&helm, Path::new(ROOT), &["--set", set]);
    for (wrong, field) in [
        ("agents.config=x", "agents"),
        ("ca.replicas=0", "replicas"),
        ("ca.replicas=two", "replicas"),
        ("agent.config.podNetworks={everything}", "podNetworks"),
        ("agent.config.defaultOutbound=sometimes", "defaultOutbound"),
        ("agent.config.runDirectory=/tmp", "runDirectory"),
        ("agent.config.workloadApi=here", "workloadApi"),
        ("agent.config.ca.spire=here", "spire"),
        ("agent.config.ca.url=https://here", "ca"),
        ("agent.config.defaultOutbond=deny", "defaultOutbond"),
        ("agent.config.handOver.drainSeconds=86401", "drainSeconds"),
        ("agent.config.cluster.kubeconfig=/root/config", "kubeconfig"),
        ("agent.config.capacity.ports=many", "ports"),
        ("agent.federationConfigMap=Upper", "federationConfigMap"),
        ("agent.resources.requests.memory=much", "memory"),
        ("image.pullPolicy=Perhaps", "pullPolicy"),
        ("ca.apiServerPorts={70000}", "apiServerPorts"),
        ("controller.replicas=-1", "replicas"),
        ("crds=perhaps", "crds"),
    ] {
        let said = render(wrong).unwrap_err().to_string();
        assert!(said.contains(field), "{wrong}: {said}");
    }
    // What admission and the authority know the agents by.
    let elsewhere = |namespace: &str| chart::render_in(&helm, Path::new(ROOT), namespace, &[]);
    assert!(elsewhere("mesh").unwrap_err().to_string().contains("heddle-system"));
    assert!(elsewhere("heddle-system").is_ok());
    let changed = render("ca.replicas=3").unwrap();
    assert!(changed.contains("replicas: 3"), "control: a sound value is taken");
    let asked = render("agent.config.workloadApi=/run/workloads").unwrap();
    assert_eq!(asked.matches("{name: workloads, ").count(), 2, "mounted, and the host's");
    assert!(!changed.contains("{name: workloads, "), "nobody asked for it");
    let by_spire = render("agent.config.ca.spire=/run/spire/admin/admin.sock").unwrap();
    assert_eq!(by_spire.matches("{name: spire, ").count(), 2, "mounted, and the host's");
    for of_ours in ["--ca-url", "name: heddle-ca,", "ca.heddle.io", "heddle-trust-roots"] {
        assert!(changed.contains(of_ours) && !by_spire.contains(of_ours), "{of_ours}");
    }
    let named = render("agent.config.trustDomain=east.example,agent.config.identityNamespace=mesh").unwrap();
    for flag in ["--trust-domain=east.example", "--identity-namespace=mesh"] {
        assert!(named.contains(flag) && !changed.contains("--trust-domain"), "the authority's, too: {flag}");
    }
    assert!(!render("roles=false").unwrap().contains("heddle-tenant-editor"));
    let closed = |set: &str| render(set).unwrap().matches("kind: NetworkPolicy").count();
    assert_eq!((closed("roles=true"), closed("ca.networkPolicy=false")), (2, 1));
    for (without, kind) in [
        ("crds=false", "kind: CustomResourceDefinition"),
        ("admission=false", "kind: ValidatingAdmissionPolicy"),
        ("controller.replicas=0", "heddle-controller"),
    ] {
        assert!(changed.contains(kind) && !render(without).unwrap().contains(kind), "{without}");
    }
    // Linkerd's may be another's: none of them is a part of the release.
    assert!(!changed.contains("name: servers.policy.linkerd.io"));
}
