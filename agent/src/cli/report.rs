//! `heddle report`: what this program does, for whoever has to write it down.

use std::process::ExitCode;

use clap::Subcommand;
use heddle_identity::{Module, module, provider};
use rustls::{
    SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    version::{TLS12, TLS13},
};
use serde::Serialize;

use super::{Failure, render};

/// What can be reported.
#[derive(Subcommand)]
pub(super) enum ReportCommand {
    /// Which versions, suites, groups and signatures each kind of connection uses, and whose cryptography it is
    Crypto {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &ReportCommand) -> Result<ExitCode, Failure> {
    match command {
        ReportCommand::Crypto { json: true } => {
            let text = serde_json::to_string_pretty(&crypto())
                .map_err(|error| miette::miette!("the report cannot be written: {error}"))?;
            render::print(&text)?;
        }
        ReportCommand::Crypto { json: false } => render::print(&shown(&crypto()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The module, as `heddle version` says it too.
pub(super) fn described(module: &Module) -> String {
    match module.fips {
        Some(fips) => {
            let certificate = match module.certificate() {
                Some(number) => format!("certificate {number}"),
                None => "no certificate is known for it: look for its version at https://csrc.nist.gov/projects/cryptographic-module-validation-program".to_owned(),
            };
            format!("AWS-LC {} (FIPS module {fips}, in force; {certificate})", module.version)
        }
        None => format!("AWS-LC {} (no FIPS module)", module.version),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    module: String,
    fips: bool,
    connections: Vec<Configured>,
    keys: Vec<[&'static str; 2]>,
}

/// One kind of connection.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configured {
    what: &'static str,
    versions: Vec<String>,
    suites: Vec<String>,
    groups: Vec<String>,
    signatures: Vec<String>,
    certificates: &'static str,
}

fn configured(
    what: &'static str,
    versions: &[&SupportedProtocolVersion],
    provider: &CryptoProvider,
    certificates: &'static str,
) -> Configured {
    let spoken = |suite: &&rustls::SupportedCipherSuite| {
        versions.iter().any(|version| version.version == suite.version().version)
    };
    let name = |name: Option<&str>| name.unwrap_or("unknown").to_owned();
    Configured {
        what,
        versions: versions.iter().map(|it| name(it.version.as_str())).collect(),
        suites: provider.cipher_suites.iter().filter(spoken).map(|it| name(it.suite().as_str())).collect(),
        groups: provider.kx_groups.iter().map(|it| name(it.name().as_str())).collect(),
        signatures: provider
            .signature_verification_algorithms
            .supported_schemes()
            .iter()
            .map(|it| name(it.as_str()))
            .collect(),
        certificates,
    }
}

fn crypto() -> Report {
    let module = module();
    let mesh = provider();
    Report {
        module: described(&module),
        fips: module.in_force,
        connections: vec![
            configured("pods of the mesh, both sides", &[&TLS13], &mesh, "both sides"),
            configured(
                "the certificate authority, both sides",
                &[&TLS13],
                &mesh,
                "the authority's; agents show a token",
            ),
            configured(
                "to the Kubernetes API",
                &[&TLS13, &TLS12],
                &default_provider(),
                "as its kubeconfig or service account says",
            ),
        ],
        keys: vec![
            ["certificates of pods, issuers and roots that are made here", "ECDSA P-256, SHA-256"],
            ["issuers and roots that others made", "ECDSA P-256 or P-384"],
            ["tokens of agents without Kubernetes", "ES256"],
        ],
    }
}

fn shown(report: &Report) -> String {
    let mut lines = vec![format!("module: {}", report.module)];
    for one in &report.connections {
        lines.extend([String::new(), one.what.to_owned()]);
        for (field, values) in [
            ("versions", &one.versions),
            ("suites", &one.suites),
            ("groups", &one.groups),
            ("signatures", &one.signatures),
        ] {
            lines.push(format!("  {field:12} {}", values.join(", ")));
        }
        lines.push(format!("  certificates {}", one.certificates));
    }
    lines.push(String::new());
    lines.extend(report.keys.iter().map(|[what, key]| format!("{what}: {key}")));
    lines.push("no session of the mesh is resumed, and no early data is sent or taken".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_described_by_its_certificate_or_by_the_lack_of_one() {
        let of = |fips| described(&Module { version: "1.2.3", fips, in_force: fips.is_some() });
        assert!(of(Some(3)).ends_with("(FIPS module 3, in force; certificate 5314)"), "{}", of(Some(3)));
        assert!(of(Some(4)).contains("no certificate is known for it"), "{}", of(Some(4)));
        assert_eq!(of(None), "AWS-LC 1.2.3 (no FIPS module)");
    }

    #[test]
    fn what_is_reported_is_what_is_configured() {
        let report = crypto();
        let [mesh, authority, kubernetes] = &report.connections[..] else { panic!("three kinds") };
        for ours in [mesh, authority] {
            assert_eq!(ours.versions, ["TLSv1_3"]);
            assert!(ours.suites.iter().all(|suite| suite.starts_with("TLS13_")), "{:?}", ours.suites);
            assert_eq!(ours.suites.len(), provider().cipher_suites.len());
            assert_eq!(ours.groups[0], "X25519MLKEM768");
        }
        assert_eq!(kubernetes.versions, ["TLSv1_3", "TLSv1_2"]);
        let text = shown(&report);
        assert!(text.contains("TLS13_AES_128_GCM_SHA256") && text.contains(module().version), "{text}");
        assert_eq!(report.fips, cfg!(feature = "fips"));
    }
}
