//! What holds for a pod before any Server: annotations of the pod override those of its namespace, which override
//! the cluster's settings. What cannot be read refuses.

use crate::{
    problems::{Problem, Severity},
    resources::{DefaultPolicy, Kind, Meta, Pod, PortSet},
    settings::ClusterSettings,
};

/// Whether a pod is meshed: `enabled`, `required`, or `disabled`.
pub const MESH: &str = "heddle.io/mesh";
/// Linkerd's wish for a proxy, which [`ClusterSettings::linkerd_inject`] has taken for one to be in this mesh.
pub const INJECT: &str = "linkerd.io/inject";
/// The default policy of a pod's ports.
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";
/// Ports that carry bytes which nobody reads.
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// Ports on which an allowing default policy demands an identity.
pub const REQUIRE_IDENTITY_PORTS: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";
/// Ports that are opaque where a pod declares them and no annotation says otherwise: Linkerd's list of protocols in
/// which the server speaks first.
pub const DEFAULT_OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// An annotation that lists more ports than this, and not all of them, is refused: each port is a row in the kernel's tables, and
/// one pod must not fill them for the whole node.
const MAX_LISTED_PORTS: u32 = 1024;

/// What holds for a pod before any Server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PodDefaults {
    pub(crate) policy: DefaultPolicy,
    /// Who says so: `cluster`, `namespace`, `pod`.
    pub(crate) source: &'static str,
    pub(crate) opaque: PortSet,
    pub(crate) require_identity: PortSet,
}

/// An annotation and who wrote it.
struct Annotation<'a> {
    value: &'a str,
    source: &'static str,
    kind: Kind,
    meta: &'a Meta,
}

fn annotation<'a>(pod: &'a Pod, namespace: Option<&'a Meta>, key: &str) -> Option<Annotation<'a>> {
    let on_pod = pod.meta.annotations.get(key).map(|value| (value, "pod", Kind::Pod, &pod.meta));
    let on_namespace = || {
        let meta = namespace?;
        Some((meta.annotations.get(key)?, "namespace", Kind::Namespace, meta))
    };
    on_pod.or_else(on_namespace).map(|(value, source, kind, meta)| Annotation { value, source, kind, meta })
}

impl Annotation<'_> {
    fn problem(&self, key: &str, reason: &str, remedy: &str) -> Problem {
        let field = format!("metadata.annotations.{key}");
        self.meta
            .problem(self.kind, Severity::Error, &field, format!("{:?} {reason}", self.value))
            .remedy(remedy)
    }
}

/// Whether a pod is meshed. A value that cannot be read counts as meshed: nothing then leaves in the clear.
/// Where `inject` says so, Linkerd's annotation is a wish like any other, save for a pod that has a proxy of Linkerd's.
pub(crate) fn is_meshed(
    pod: &Pod,
    namespace: Option<&Meta>,
    inject: bool,
    problems: &mut Vec<Problem>,
) -> bool {
    let Some(annotation) = annotation(pod, namespace, MESH) else {
        let wish = inject && !pod.linkerd_proxy;
        return wish && annotation(pod, namespace, INJECT).is_some_and(|it| it.value == "enabled");
    };
    match annotation.value {
        "enabled" | "required" => true,
        "disabled" => false,
        _ => {
            problems.push(annotation.problem(
                MESH,
                "is not a value: it counts as enabled",
                "write enabled, required or disabled",
            ));
            true
        }
    }
}

impl PodDefaults {
    pub(crate) fn of(
        pod: &Pod,
        namespace: Option<&Meta>,
        settings: &ClusterSettings,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let (policy, source) = match annotation(pod, namespace, DEFAULT_INBOUND_POLICY) {
            None => (settings.default_inbound_policy, "cluster"),
            Some(annotation) => match annotation.value.parse() {
                Ok(policy) => (policy, annotation.source),
                Err(error) => {
                    let reason = format!("{error}: the default policy is deny");
                    problems.push(annotation.problem(DEFAULT_INBOUND_POLICY, &reason, "write one of them"));
                    (DefaultPolicy::Deny, annotation.source)
                }
            },
        };
        let mut list = |key, unreadable: PortSet, consequence| {
            let annotation = annotation(pod, namespace, key)?;
            let remedy = "write numbers, ranges and names of the pod's ports, divided by commas";
            Some(match PortSet::parse(annotation.value, pod) {
                Ok(ports) if ports.is_all() || ports.size() <= MAX_LISTED_PORTS => ports,
                Ok(_) => {
                    let reason =
                        format!("lists more than {MAX_LISTED_PORTS} ports, but not all: {consequence}");
                    problems.push(annotation.problem(key, &reason, "list fewer ports, or 1-65535"));
                    unreadable
                }
                Err(entry) => {
                    let reason = format!("has {entry:?}, which is not a port: {consequence}");
                    problems.push(annotation.problem(key, &reason, remedy));
                    unreadable
                }
            })
        };
        let opaque = list(OPAQUE_PORTS, PortSet::default(), "no port is opaque");
        let require = list(REQUIRE_IDENTITY_PORTS, PortSet::all(), "every port demands an identity");
        let declared = || {
            let numbers = DEFAULT_OPAQUE_PORTS.into_iter().filter(|port| pod.declares_tcp(*port));
            PortSet::of(numbers)
        };
        Self {
            policy,
            source,
            opaque: opaque.unwrap_or_else(declared),
            require_identity: require.unwrap_or_default(),
        }
    }
}
