//! Private keys are in the agent's memory while they are in use, and nowhere when they are not: no file, no log, no core.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod peers;
    pub mod shop;
    pub mod told;
}

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use common::{
    authority::Ceremony,
    shop::{A, B, Shop, UNKNOWN, answered, echoes},
    told::SOON,
};
use heddle_identity::{CertificateFacts, anchors_from_pem};
use xtask::lab::{Lab, apps::Attempt, eventually};

/// A private key on P-256.
type Scalar = [u8; 32];

/// The public point of the certificate that an identity has on a node.
fn public_key(lab: &Lab, node: &str, identity: &str) -> Result<Vec<u8>> {
    let told = lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
    let identities = told["identities"].as_array().context("no identities")?;
    let of = identities.iter().find(|it| it["identity"] == identity).context("no such identity")?;
    let chain = anchors_from_pem(of["certificate"]["chain"].as_str().context("no certificate")?.as_bytes())?;
    let key = CertificateFacts::of(&chain)?.public_key;
    // SubjectPublicKeyInfo ends with the uncompressed point.
    Ok(key.get(key.len() - 65..).context("no point")?.to_vec())
}

fn is_key_of(scalar: &Scalar, public: &[u8]) -> bool {
    EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, scalar, public).is_ok()
}

/// A key looks like noise: this spares most of memory the multiplication on the curve.
fn may_be_a_key(bytes: &[u8]) -> bool {
    bytes.iter().filter(|byte| **byte >= 0x80).count() >= 5
        && bytes.iter().filter(|byte| **byte == 0).count() <= 3
        && bytes.chunks_exact(8).all(|word| word[6..] != [0, 0] && word[6..] != [0xff, 0xff])
}

/// Looks through all that a process may write to for the private key of `public`: as the words of a number, as the
/// cryptography keeps it, and in the encodings that files have.
fn find_key(pid: u32, public: &[u8]) -> Result<Option<Scalar>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    for line in maps.lines() {
        let line = line?;
        let mut fields = line.split_whitespace();
        let (Some(range), Some(mode)) = (fields.next(), fields.next()) else { continue };
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').context("no range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // A region that is gone by now holds nothing.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        for at in (0..bytes.len().saturating_sub(31)).step_by(8) {
            let window = &bytes[at..at + 32];
            if may_be_a_key(window) {
                let mut scalar = Scalar::default();
                scalar.copy_from_slice(window);
                scalar.reverse();
                if is_key_of(&scalar, public) {
                    return Ok(Some(scalar));
                }
            }
        }
        for at in 2..bytes.len().saturating_sub(31) {
            // OCTET STRING of 32 bytes: a key in PKCS #8 or SEC 1.
            if bytes[at - 2..at] == [0x04, 0x20] {
                let mut scalar = Scalar::default();
                scalar.copy_from_slice(&bytes[at..at + 32]);
                if is_key_of(&scalar, public) {
                    return Ok(Some(scalar));
                }
            }
        }
    }
    Ok(None)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_key_is_gone_with_the_last_pod_of_its_account() -> Result<()> {
    let mut shop = Shop::closed("keys")?;
    shop.lab.settings().set("log", serde_json::json!({"filter": "trace"}));
    shop.lab.start_agents()?;
    let _servers = echoes(&shop.far)?;
    // In use: the client's node has shown the certificate and signed with its key.
    answered(&shop.client, &Attempt::new((shop.far.v4, UNKNOWN), "signed"))?;
    let agent = shop.lab.agent(A)?;
    let pid = agent.pid().context("the agent does not run")?;
    let identity = shop.client.identity();
    let public = public_key(&shop.lab, A, &identity)?;
    let key = find_key(pid, &public)?.context("the control: a key in use is in memory")?;
    // Another node has another key for the same account, and another account of the node another key too.
    let elsewhere = shop.lab.agent(B)?.pid().context("the agent does not run")?;
    assert_eq!(find_key(elsewhere, &public)?, None);
    assert_ne!(public_key(&shop.lab, B, &identity)?, public);
    assert_ne!(public_key(&shop.lab, A, &shop.stranger.identity())?, public);

    agent.detach(&shop.client)?;
    eventually("the key to be gone", SOON, || Ok(find_key(pid, &public)?.is_none()))?;
    assert!(agent.is_running());

    // It was never anywhere else, in no form that a log or a file would have.
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let debug = format!("{key:?}");
    let log = agent.log();
    assert!(log.contains("TRACE"), "the control: the log tells everything");
    for secret in [hex.as_str(), debug.trim_matches(['[', ']']), "PRIVATE KEY"] {
        assert!(!log.contains(secret), "a key is in the log");
    }
    shop.shut()
}

/// How a program ends that may leave a core and is told to abort: whether it left one.
fn aborted(program: &str, until: &str) -> Result<bool> {
    use std::os::unix::process::ExitStatusExt;
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log");
    let mut child = std::process::Command::new("sh")
        .args(["-c", &format!("ulimit -c unlimited; exec {program}")])
        .current_dir(directory.path())
        .stdin(std::process::Stdio::null())
        .stderr(File::create(&log)?)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let told = eventually(until, SOON, || {
        let said = std::fs::read_to_string(&log)?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", child.id()))?;
        Ok(said.contains(until) || name.trim() == until)
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).context("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT)?;
    let status = child.wait()?;
    told?;
    assert_eq!(status.signal(), Some(6));
    Ok(status.core_dumped())
}

/// The authority has keys as the agent has, and keeps them by the same means.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_authority_that_is_aborted_leaves_no_core() -> Result<()> {
    let shop = Shop::closed("abort")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let serve = format!(
        "{} ca serve --keys {} --manifests {} --agents-key {} --listen 127.0.0.1:0",
        shop.lab.heddle()?.display(),
        ceremony.path("issuer"),
        shop.lab.manifests().directory().display(),
        ceremony.path("agents/agents.pub"),
    );
    assert!(!aborted(&serve, "is ready")?);
    // Whether this host lets anybody leave a core is not ours to say; where it does, the control shows it.
    println!("the control left a core: {}", aborted("sleep 60", "sleep")?);
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_agent_may_leave_no_core() -> Result<()> {
    let shop = Shop::open("core")?;
    let agent = shop.lab.agent(A)?;
    let pid = agent.pid().context("the agent does not run")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no such limit")?;
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    shop.shut()
}

/// Where a private key in PEM begins, if there is one.
fn pem_key(bytes: &[u8]) -> Option<usize> {
    const LABEL: &str = "PRIVATE KEY-----\n";
    let text = String::from_utf8_lossy(bytes);
    // An encoded key begins with a sequence; the words alone stand in every program that reads keys.
    let found = text.match_indices(LABEL).find(|(at, _)| text[at + LABEL.len()..].starts_with('M'));
    found.map(|(at, _)| at)
}

#[test]
fn no_key_is_in_the_program_or_in_what_is_deployed() -> Result<()> {
    let own = rcgen::KeyPair::generate()?.serialize_pem().replace('\r', "");
    assert!(pem_key(format!("text\n{own}").as_bytes()).is_some(), "the control: {own}");
    let program = std::path::PathBuf::from(env!("CARGO_BIN_EXE_heddle"));
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let (mut open, mut looked) = (vec![program, deploy], 0);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)?
                    .map(|entry| entry.map(|it| it.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            continue;
        }
        looked += 1;
        assert_eq!(pem_key(&std::fs::read(&path)?), None, "{}", path.display());
    }
    assert!(looked > 5, "{looked} files");
    Ok(())
}
