//! What `heddle ca` is told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

const SERVE: &str = "Runs one replica of the certificate authority until SIGTERM or SIGINT.

It certifies a key for a service account only while a pod of that account is scheduled on the node of the agent that asks. \
Replicas share nothing but the keys: run as many as you like. The keys are read again when they change; keys that cannot be \
used leave the last ones in force and are told in the log and by heddle_ca_keys_stale.

With Kubernetes:

  heddle ca serve --keys /var/run/secrets/heddle-issuer --kubernetes

With a folder of manifests (a laptop, a VM, a test):

  heddle ca serve --keys DIR --manifests DIR --agents-key agents.pub";

/// What can be done with an authority.
#[derive(Subcommand)]
pub enum CaCommand {
    /// Make an offline root: a key that is kept off every machine that is reachable
    Init(InitFlags),
    /// Make an issuer, signed by an offline root: what `serve` issues with
    Issuer(IssuerFlags),
    /// Make the key that signs agents' tokens where there is no Kubernetes
    AgentsKey(AgentsKeyFlags),
    /// Sign a token for the agent of a node, where there is no Kubernetes
    Token(TokenFlags),
    /// Revoke certificates: sign an issuer's revocation list, for every agent's bundle
    Revoke(RevokeFlags),
    /// Run a replica of the authority
    #[command(long_about = SERVE)]
    Serve(Box<ServeFlags>),
}

/// Whose identities an authority issues.
#[derive(Args, Clone, Debug)]
pub struct NamingFlags {
    /// The trust domain at the end of every identity
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The control-plane namespace inside identities
    #[arg(long, value_name = "NAME", default_value = "linkerd")]
    pub identity_namespace: String,
}

/// `heddle ca init`.
#[derive(Args, Clone, Debug)]
pub struct InitFlags {
    /// Where to put tls.key, tls.crt and ca.crt; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// What the root is called, for people
    #[arg(long, value_name = "TEXT", default_value = "Heddle root")]
    pub name: String,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
}

/// `heddle ca issuer`.
#[derive(Args, Clone, Debug)]
pub struct IssuerFlags {
    /// The root's directory, as `heddle ca init` made it
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Where to put tls.key, tls.crt and ca.crt; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
    #[command(flatten)]
    pub naming: NamingFlags,
}

/// `heddle ca agents-key`.
#[derive(Args, Clone, Debug)]
pub struct AgentsKeyFlags {
    /// Where to put agents.key and agents.pub; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
}

/// `heddle ca token`.
#[derive(Args, Clone, Debug)]
pub struct TokenFlags {
    /// agents.key, as `heddle ca agents-key` made it
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The agent's node
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
}

/// `heddle ca revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeFlags {
    /// The directory of whoever signed the certificates: an issuer's, or the root's to revoke an issuer
    #[arg(long, value_name = "DIR")]
    pub keys: PathBuf,
    /// The issuer's list: what it revokes already is kept; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub list: PathBuf,
    /// Until when its successor comes
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    pub valid: Duration,
    /// Serial numbers, as `heddle identity show` tells them; none: the list is signed anew
    #[arg(value_name = "SERIAL")]
    pub serials: Vec<String>,
}

/// `heddle ca serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeFlags {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8443")]
    pub listen: SocketAddr,
    /// The issuer's tls.key, tls.crt and ca.crt: a directory, or where a Secret of the type kubernetes.io/tls is mounted
    #[arg(long, value_name = "DIR")]
    pub keys: PathBuf,
    #[command(flatten)]
    pub naming: NamingFlags,
    /// How long certificates are valid
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
    /// How far clocks may be apart
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    pub clock_skew: Duration,
    /// The authority's own service account, whose identity nobody else gets
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = heddle_identity::authority::OWN_ACCOUNT)]
    pub own_account: String,
    /// Ask Kubernetes who an agent is and what runs where
    #[arg(long, conflicts_with_all = ["manifests", "agents_key"])]
    pub kubernetes: bool,
    /// How to reach Kubernetes [default: as a pod of the cluster does]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// The agents' service account
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "heddle-system/heddle-agent")]
    pub agent_account: String,
    /// Take what runs where from this folder of manifests
    #[arg(long, value_name = "DIR", requires = "agents_key", required_unless_present = "kubernetes")]
    pub manifests: Option<PathBuf>,
    /// agents.pub, as `heddle ca agents-key` made it: whose tokens are believed
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub agents_key: Option<PathBuf>,
    /// Where metrics are served (GET /metrics) and whether the replica is ready (GET /ready) [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<SocketAddr>,
    /// The form of the log: text or json
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: String,
    /// What is logged
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG", default_value = "info")]
    pub log_filter: String,
}
