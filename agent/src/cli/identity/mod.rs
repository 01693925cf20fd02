//! `heddle identity`: certificates and anchors in force on a node.

use super::{
    Failure,
    client::{Client, run as ask},
    door::{Identities, IdentityStatus},
    render::{plain, print},
};
use clap::Subcommand;
use heddle_identity::{
    IdentityNaming, Profile, Trust, anchors_from_pem, lists_from_pem, provider, verify_chain,
};
use hyper::Method;
use miette::miette;
use std::{fmt::Write, path::Path, process::ExitCode, sync::Arc, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// What can be asked of a node's identities.
#[derive(Subcommand)]
pub(super) enum IdentityCommand {
    /// Every identity that this node holds, and the anchors that it trusts. Ends with 1 where something should be looked at
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// A pod's certificate: issued, expires, by whom, renewed, next
    Show {
        /// The pod
        #[arg(value_name = "NAMESPACE/NAME")]
        pod: String,
    },
    /// Verify a pod's certificate by the anchors in force, as its peers do. Ends with 1 if they would not believe it
    Verify {
        /// The pod
        #[arg(value_name = "NAMESPACE/NAME")]
        pod: String,
    },
    /// Renew every certificate now: after another issuer was put in force
    Renew,
}

pub(super) fn run(socket: &Path, command: &IdentityCommand) -> Result<ExitCode, Failure> {
    match command {
        IdentityCommand::List { json } => list(socket, *json),
        IdentityCommand::Show { pod } => {
            let identities = identities(socket)?;
            print(shown(of_pod(&identities, pod)?).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        IdentityCommand::Verify { pod } => verify(socket, pod),
        IdentityCommand::Renew => {
            let renewing = ask(async {
                Client::new(socket).ask(Method::POST, "/v1/identities/renew", Vec::new()).await
            })?;
            print(String::from_utf8_lossy(&renewing).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn answer(socket: &Path) -> Result<bytes::Bytes, Failure> {
    ask(async { Client::new(socket).ask(Method::GET, "/v1/identities", Vec::new()).await })
}

fn identities(socket: &Path) -> Result<Identities, Failure> {
    serde_json::from_slice(&answer(socket)?).map_err(|error| {
        miette!(help = "are agent and command of one version?", "the answer is not understood: {error}")
    })
}

fn of_pod<'a>(identities: &'a Identities, pod: &str) -> Result<&'a IdentityStatus, Failure> {
    let found = identities.identities.iter().find(|identity| identity.pods.iter().any(|name| name == pod));
    found.ok_or_else(|| {
        miette!(
            help = "`heddle status` lists the pods that are captured on this node",
            "pod {} has no identity here",
            plain(pod)
        )
    })
}

fn date(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn list(socket: &Path, json: bool) -> Result<ExitCode, Failure> {
    let mut identities = identities(socket)?;
    warn_of_who_is_not_believed(&mut identities, SystemTime::now());
    if json {
        let told = serde_json::to_string_pretty(&identities).map_err(|error| miette!("{error}"))?;
        print(&told)?;
    } else {
        print(listed(&identities).trim_end())?;
    }
    Ok(ExitCode::from(u8::from(!identities.warnings.is_empty())))
}

fn listed(identities: &Identities) -> String {
    let mut out = String::new();
    for identity in &identities.identities {
        let (expires, anchor) = match &identity.certificate {
            Some(certificate) => (date(certificate.expires), certificate.anchor.chars().take(12).collect()),
            None => ("NONE".to_owned(), String::new()),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{}  expires {expires}  next {}  anchor {anchor}  {}",
            plain(&identity.identity),
            date(identity.next_renewal),
            plain(&identity.pods.join(","))
        );
    }
    for anchor in &identities.anchors {
        let short: String = anchor.fingerprint.chars().take(12).collect();
        let _ = writeln!(out, "anchor {short}  expires {}  {}", date(anchor.expires), plain(&anchor.subject));
    }
    for (domain, anchors) in &identities.federated {
        for anchor in anchors {
            let short: String = anchor.fingerprint.chars().take(12).collect();
            let _ = writeln!(
                out,
                "federated {}  anchor {short}  expires {}  {}",
                plain(domain),
                date(anchor.expires),
                plain(&anchor.subject)
            );
        }
    }
    for warning in &identities.warnings {
        let _ = writeln!(out, "WARNING: {}", plain(warning));
    }
    out
}

fn shown(identity: &IdentityStatus) -> String {
    let mut out =
        format!("identity  {}\npods      {}\n", plain(&identity.identity), plain(&identity.pods.join(", ")));
    match &identity.certificate {
        None => out += "none yet\n",
        Some(certificate) => {
            for (what, value) in [
                ("serial", certificate.serial.clone()),
                ("issued", date(certificate.issued)),
                ("expires", date(certificate.expires)),
                ("obtained", date(certificate.obtained)),
                ("issuer", plain(&certificate.issuer)),
                ("anchor", certificate.anchor.clone()),
            ] {
                let _ = writeln!(out, "{what:<9} {value}");
            }
        }
    }
    let _ = writeln!(out, "next      {}", date(identity.next_renewal));
    if identity.failures > 0 {
        let _ = writeln!(out, "failed    {} times: {}", identity.failures, plain(&identity.error));
    }
    if let Some(certificate) = &identity.certificate {
        out += &certificate.chain;
    }
    out
}

fn verify(socket: &Path, pod: &str) -> Result<ExitCode, Failure> {
    let identities = identities(socket)?;
    match judge(&identities, of_pod(&identities, pod)?, SystemTime::now()) {
        Ok(()) => {
            print(&format!("{} is believed by its peers", plain(pod)))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            print(&format!("{} is NOT believed by its peers: {}", plain(pod), plain(&why)))?;
            Ok(ExitCode::from(1))
        }
    }
}

/// What the agent does not tell of each identity all the time: it takes a verification of each.
fn warn_of_who_is_not_believed(identities: &mut Identities, now: SystemTime) {
    let unbelieved: Vec<String> = (identities.identities.iter())
        .filter(|identity| identity.certificate.is_some())
        .filter_map(|identity| {
            let why = judge(identities, identity, now).err()?;
            Some(format!("{} is not believed by its peers: {why}", identity.identity))
        })
        .collect();
    identities.warnings.extend(unbelieved);
}

/// Holds what the agent told against what it trusts, as a peer with the same bundle would.
fn judge(identities: &Identities, identity: &IdentityStatus, now: SystemTime) -> Result<(), String> {
    let certificate = identity.certificate.as_ref().ok_or("it has no certificate yet")?;
    let chain = anchors_from_pem(certificate.chain.as_bytes()).map_err(|error| error.to_string())?;
    let pem: String = identities.anchors.iter().map(|anchor| anchor.pem.as_str()).collect();
    let anchors = anchors_from_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    // The names are those of the identity's own domain: `<account>.<namespace>.serviceaccount.identity.<namespace>.<domain>`.
    let (_, rest) = identity.identity.split_once(".serviceaccount.identity.").ok_or("it is no identity")?;
    let (namespace, domain) = rest.split_once('.').ok_or("it is no identity")?;
    let naming = IdentityNaming::new(namespace, domain).map_err(|error| error.to_string())?;
    let name = naming.parse_dns(&identity.identity).map_err(|error| error.to_string())?;
    let trust = Trust::new(naming, anchors, Arc::new(provider())).map_err(|error| error.to_string())?;
    let profile = if identities.by_spire { Profile::Spire } else { Profile::Heddle };
    let trust = trust.with_profile(profile);
    let lists =
        lists_from_pem(identities.revocation_lists.concat().as_bytes()).map_err(|error| error.to_string())?;
    trust.reload(trust.anchors(), &lists).map_err(|error| error.to_string())?;
    verify_chain(&Arc::new(trust), &chain, &name, now)
}

#[cfg(test)]
mod tests;
