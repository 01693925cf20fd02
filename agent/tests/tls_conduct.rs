//! How agents and the authority speak TLS, seen by an implementation that is not ours: OpenSSL.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod peers;
    pub mod shop;
}

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::{
    authority::{ADDRESS, Ceremony, SOON},
    peers::{certificate, names},
    shop::{MARKER, OPAQUE, Shop, UNKNOWN, echoes},
};
use rustls::pki_types::CertificateDer;
use xtask::lab::{Lab, Place, Pod, PodSpec, Running, apps::Attempt, eventually, missing_tools};

const PORT: u16 = 8443;
const CA: &str = "heddle-ca.heddle-system.serviceaccount.identity.linkerd.cluster.local";

/// What `openssl s_client` says of one handshake.
fn s_client(from: &Place, to: &str, arguments: &[&str]) -> Result<String> {
    let fixed = ["timeout", "20", "openssl", "s_client", "-connect", to];
    let mut running = from.spawn(&[&fixed, arguments].concat())?;
    running.close_input();
    let output = running.finish(std::time::Duration::from_secs(30))?;
    Ok(format!("{}\n{}", output.stdout, output.stderr))
}

fn pem_files(lab: &Lab, account: &str, by_the_authority: bool) -> Result<[PathBuf; 2]> {
    let (leaf, key) = certificate(lab, &names(account), by_the_authority)?;
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = lab.directory().join(format!("{account}-{by_the_authority}.{name}"));
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let key = pem::encode(&pem::Pem::new("PRIVATE KEY", key.secret_pkcs8_der().to_vec()));
    Ok([write("crt", heddle_identity::pem(&[CertificateDer::from(leaf.to_vec())]))?, write("key", key)?])
}

/// Stands at the address of a meshed pod of this account, but no agent captures it: it speaks for itself.
fn rogue(shop: &mut Shop, account: &str) -> Result<Pod> {
    let rogue = shop.lab.pod(&PodSpec::new("rogue", common::shop::A))?;
    shop.lab.apply(
        "rogue.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: twin, namespace: shop, uid: twin, annotations: {{heddle.io/mesh: enabled}}}}\n\
             spec: {{nodeName: elsewhere, serviceAccountName: {account}, containers: [{{name: c, image: i}}]}}\n\
             status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}]}}\n",
            v4 = rogue.v4
        ),
    )?;
    shop.lab.manifests().remove(&format!("pod-default-{}.yaml", rogue.name))?;
    Ok(rogue)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("no text")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_agent_speaks_tls_1_3_with_both_certificates_or_not_at_all() -> Result<()> {
    assert_eq!(missing_tools(&["openssl"]), []);
    let mut shop = Shop::closed("openssl")?;
    let rogue = rogue(&mut shop, "client")?;
    shop.lab.start_agents()?;
    let _servers = echoes(&shop.far)?;
    let to = format!("{}:{OPAQUE}", shop.far.v4);
    let sni = shop.far.identity();
    let [leaf, key] = pem_files(&shop.lab, "client", true)?;
    let [strange, strange_key] = pem_files(&shop.lab, "client", false)?;
    let (leaf, key, strange, strange_key) = (text(&leaf)?, text(&key)?, text(&strange)?, text(&strange_key)?);
    let proper = ["-servername", &sni, "-alpn", "heddle/1", "-cert", leaf, "-key", key];
    let ask = |arguments: &[&str]| s_client(rogue.place(), &to, arguments);
    // The control: with everything right OpenSSL shakes hands.
    let mut said = String::new();
    // On a machine that is busy the agent's heartbeat may be late for a moment.
    eventually("the agent to be reached", std::time::Duration::from_secs(10), || {
        said = ask(&[&proper[..], &["-tls1_3"]].concat())?;
        Ok(!said.contains("Connection refused"))
    })?;
    assert!(said.contains("TLSv1.3") && said.contains("ALPN protocol: heddle/1"), "{said}");
    assert!(said.contains("Early data was not sent") && !said.contains("New Session Ticket"), "{said}");
    assert!(said.contains("server.shop.serviceaccount") || said.contains("BEGIN CERTIFICATE"), "{said}");
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let said = ask(&[&proper[..], &["-ciphersuites", suite]].concat())?;
        assert!(said.contains(&format!("Cipher is {suite}")), "{said}");
    }
    for group in ["X25519", "P-256"] {
        let said = ask(&[&proper[..], &["-groups", group]].concat())?;
        assert!(said.contains("Cipher is TLS_AES"), "{group}: {said}");
    }
    let refused: [(&str, Vec<&str>); 6] = [
        ("TLS 1.2", [&proper[..], &["-tls1_2"]].concat()),
        ("a group that nobody needs", [&proper[..], &["-groups", "P-521"]].concat()),
        ("another protocol", vec!["-servername", &sni, "-alpn", "h2", "-cert", leaf, "-key", key]),
        ("no protocol", vec!["-servername", &sni, "-cert", leaf, "-key", key]),
        ("another name", vec!["-servername", CA, "-alpn", "heddle/1", "-cert", leaf, "-key", key]),
        ("no name", vec!["-noservername", "-alpn", "heddle/1", "-cert", leaf, "-key", key]),
    ];
    for (what, arguments) in &refused {
        let said = ask(arguments)?;
        assert!(said.contains("Cipher is (NONE)") && !said.contains("BEGIN CERTIFICATE"), "{what}: {said}");
    }
    // TLS 1.3's client learns of the server's refusal of its certificate only behind its own handshake.
    for (what, arguments) in [
        ("no certificate", vec!["-servername", &sni, "-alpn", "heddle/1"]),
        (
            "a strange certificate",
            vec!["-servername", &sni, "-alpn", "heddle/1", "-cert", strange, "-key", strange_key],
        ),
    ] {
        let mut arguments: Vec<&str> = arguments;
        arguments.push("-ign_eof");
        let said = ask(&arguments)?;
        assert!(said.contains("alert"), "{what}: {said}");
    }
    shop.shut()
}

/// The client's side: OpenSSL's server at a meshed pod's address. What it was sent it prints.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_agent_sends_nothing_to_a_server_that_is_another_or_speaks_otherwise() -> Result<()> {
    assert_eq!(missing_tools(&["openssl"]), []);
    let mut shop = Shop::closed("openssl-server")?;
    let rogue = rogue(&mut shop, "server")?;
    shop.lab.start_agents()?;
    let [leaf, key] = pem_files(&shop.lab, "server", true)?;
    let [strange, strange_key] = pem_files(&shop.lab, "server", false)?;
    let [other, other_key] = pem_files(&shop.lab, "client", true)?;
    let (leaf, key) = (text(&leaf)?, text(&key)?);
    let port = UNKNOWN.to_string();
    let serve = |arguments: &[&str], until: &str| -> Result<String> {
        let fixed = ["openssl", "s_server", "-accept", port.as_str()];
        let mut server = rogue.spawn(&[&fixed[..], arguments].concat())?;
        server.wait_for("ACCEPT", SOON)?;
        let attempt = Attempt { milliseconds: 2000, ..Attempt::new((rogue.v4, UNKNOWN), MARKER) };
        let said = |server: &Running| format!("{}\n{}", server.stdout(), server.stderr());
        eventually("the server to be spoken to", SOON, || {
            let outcome = shop.client.connect(&attempt)?;
            anyhow::ensure!(!outcome.answered(), "nobody answers there: {outcome:?}");
            Ok(said(&server).contains(until))
        })
        .with_context(|| format!("it said {}", said(&server)))?;
        server.end();
        Ok(said(&server))
    };
    let own = ["-cert", leaf, "-key", key];
    let ours = ["-alpn", "heddle/1"];
    // The control: with everything right it is sent what the application said, and shown the client's certificate. Tickets and
    // early data are offered, and nobody takes them.
    let said = serve(&[&own[..], &ours, &["-Verify", "1", "-early_data"]].concat(), MARKER)?;
    assert!(said.contains("BEGIN CERTIFICATE") && said.contains("CIPHER is TLS_AES"), "{said}");
    assert!(
        said.contains("No early data received") && said.contains("Secure Renegotiation IS NOT supported"),
        "{said}"
    );
    for (what, arguments, until) in [
        ("TLS 1.2", [&own[..], &ours, &["-no_tls1_3"]].concat(), "ERROR"),
        (
            "a strange certificate",
            vec!["-cert", text(&strange)?, "-key", text(&strange_key)?, ours[0], ours[1]],
            "alert",
        ),
        (
            "another's certificate",
            vec!["-cert", text(&other)?, "-key", text(&other_key)?, ours[0], ours[1]],
            "alert",
        ),
        ("another protocol", [&own[..], &["-alpn", "h2"]].concat(), "ERROR"),
        ("no protocol", own.to_vec(), "CONNECTION CLOSED"),
    ] {
        let said = serve(&arguments, until).with_context(|| what.to_owned())?;
        assert!(!said.contains(MARKER), "{what}: {said}");
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_authority_speaks_tls_1_3_to_who_asks_for_it() -> Result<()> {
    assert_eq!(missing_tools(&["openssl"]), []);
    let shop = Shop::closed("openssl-ca")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let _authority = ceremony.serve("issuer", PORT, &[])?;
    let (to, root) = (format!("{ADDRESS}:{PORT}"), ceremony.path("root/ca.crt"));
    let ask = |arguments: &[&str]| s_client(shop.lab.outside(), &to, arguments);
    let proper = ["-servername", CA, "-alpn", "h2", "-CAfile", &root, "-verify_hostname", CA];
    let said = ask(&proper)?;
    assert!(said.contains("Verify return code: 0 (ok)") && said.contains("TLSv1.3"), "{said}");
    assert!(said.contains("ALPN protocol: h2") && !said.contains("New Session Ticket"), "{said}");
    for (what, arguments) in [
        ("TLS 1.2", [&proper[..], &["-tls1_2"]].concat()),
        ("another name", vec!["-servername", "localhost", "-alpn", "h2"]),
        ("no name", vec!["-noservername", "-alpn", "h2"]),
        ("HTTP/1", vec!["-servername", CA, "-alpn", "http/1.1"]),
    ] {
        let said = ask(&arguments)?;
        assert!(said.contains("Cipher is (NONE)") && !said.contains("BEGIN CERTIFICATE"), "{what}: {said}");
    }
    shop.shut()
}
