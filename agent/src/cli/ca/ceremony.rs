//! Keys made by hand: each command says what it made and what comes next.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};

use heddle_identity::{
    IdentityNaming, IssuerFiles,
    authority::{self, Made, intermediate, offline_root},
    files::{self, Readers},
};
use miette::miette;
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::{
    super::{Failure, render::print},
    AGENTS_KEY_BYTES, attest,
    flags::{AgentsKeyFlags, InitFlags, IssuerFlags, RevokeFlags, TokenFlags},
};

fn directory(path: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => Ok(()),
        Err(error) => Err(miette!("{} cannot be made: {error}", path.display())),
    }
}

/// A file that was not there before: nobody's key is ever overwritten.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).map_err(
        |error| {
            miette!(
                help = "choose an empty directory: what is there is never overwritten",
                "{} cannot be written: {error}",
                path.display()
            )
        },
    )
}

fn put(to: &Path, made: &Made, anchors: &str) -> Result<(), Failure> {
    directory(to)?;
    let files = IssuerFiles::in_directory(to);
    write(&files.key, &made.key, 0o400)?;
    write(&files.certificate, &made.certificate, 0o444)?;
    write(&files.anchors, anchors, 0o444)
}

/// `heddle ca init`.
pub fn init(flags: &InitFlags) -> Result<ExitCode, Failure> {
    let root =
        offline_root(&flags.name, flags.lifetime, SystemTime::now()).map_err(|error| miette!("{error}"))?;
    put(&flags.directory, &root, &root.certificate)?;
    let shown = flags.directory.display();
    print(&format!(
        "made the root: {shown}/tls.key (secret), {shown}/tls.crt, {shown}/ca.crt

next:
  1. make an issuer:  heddle ca issuer --root {shown} --directory ISSUER
  2. take {shown}/tls.key off this machine: it is needed for the next issuer only (every 90 days, or as you choose)
  3. give {shown}/ca.crt to every agent, as `ca.trustBundle`"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `heddle ca issuer`.
pub fn issuer(flags: &IssuerFlags) -> Result<ExitCode, Failure> {
    let naming = IdentityNaming::new(&flags.naming.identity_namespace, &flags.naming.trust_domain)
        .map_err(|error| miette!("identities cannot be named: the name {error}"))?;
    let files = IssuerFiles::in_directory(&flags.root);
    let root = files.read().map_err(|error| {
        miette!(
            help = "make a root with `heddle ca init --directory DIR`",
            "the root cannot be used: {error}"
        )
    })?;
    let issuer =
        intermediate(root, &naming, flags.lifetime, SystemTime::now()).map_err(|error| miette!("{error}"))?;
    let anchors = std::fs::read_to_string(&files.anchors).map_err(|error| {
        miette!(
            help = "it lies beside the root's key, as `heddle ca init` made it",
            "{} cannot be read: {error}",
            files.anchors.display()
        )
    })?;
    put(&flags.directory, &issuer, &anchors)?;
    let shown = flags.directory.display();
    print(&format!(
        "made an issuer for {}: {shown}/tls.key (secret), {shown}/tls.crt, {shown}/ca.crt

next, one of:
  - with Kubernetes:
      kubectl -n heddle-system create secret generic heddle-issuer \\
        --from-file={shown}/tls.key --from-file={shown}/tls.crt --from-file={shown}/ca.crt
      and mount it into the authority's pods (defaultMode: 0440): heddle ca serve --kubernetes --keys MOUNT
  - without:  heddle ca agents-key --directory {shown}
      heddle ca serve --keys {shown} --manifests MANIFESTS --agents-key {shown}/agents.pub

to replace an issuer that is in force, put the new files in place of the old: it is taken within a second, nothing restarts",
        flags.naming.trust_domain
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `heddle ca agents-key`.
pub fn agents_key(flags: &AgentsKeyFlags) -> Result<ExitCode, Failure> {
    let key = KeyPair::generate().map_err(|error| miette!("no key could be made: {error}"))?;
    directory(&flags.directory)?;
    write(&flags.directory.join("agents.key"), &Zeroizing::new(key.serialize_pem()), 0o400)?;
    write(&flags.directory.join("agents.pub"), &key.public_key_pem(), 0o444)?;
    let shown = flags.directory.display();
    print(&format!(
        "made {shown}/agents.key (secret) and {shown}/agents.pub

next:
  1. for each node:  heddle ca token --key {shown}/agents.key --node NODE > NODE.token
     and give it to that node's agent, as `ca.tokenFile` (mode 0400)
  2. run the authority with --agents-key {shown}/agents.pub"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `heddle ca token`.
pub fn token(flags: &TokenFlags) -> Result<ExitCode, Failure> {
    let key = files::read(&flags.key, Readers::Group, AGENTS_KEY_BYTES).map_err(|error| {
        miette!(help = "name agents.key, as `heddle ca agents-key` made it", "--key {error}")
    })?;
    let token = attest::sign(&key, &flags.node, flags.lifetime, SystemTime::now())
        .map_err(|error| miette!("no token: {error}"))?;
    print(&token)?;
    Ok(ExitCode::SUCCESS)
}

/// `heddle ca revoke`.
pub fn revoke(flags: &RevokeFlags) -> Result<ExitCode, Failure> {
    let keys = IssuerFiles::in_directory(&flags.keys).read().map_err(|error| {
        miette!(help = "name the directory of the issuer that signed the certificates", "no issuer: {error}")
    })?;
    let failed = |error: std::io::Error| {
        miette!(
            help = "name a file that this user may read and write, or one that is not there yet",
            "the list {} cannot be used: {error}",
            flags.list.display()
        )
    };
    let before = match std::fs::read(&flags.list) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let made = authority::revoke(keys, before.as_deref(), &flags.serials, flags.valid, SystemTime::now())
        .map_err(|error| miette!("nothing is revoked: {error}"))?;
    // All at once: a list that is half there would be a list that is broken.
    let mut fresh = flags.list.clone().into_os_string();
    fresh.push(format!(".{}", std::process::id()));
    write(Path::new(&fresh), &made.list, 0o444)?;
    std::fs::rename(&fresh, &flags.list).map_err(failed)?;
    let shown = flags.list.display();
    print(&format!(
        "signed {shown}: it revokes {}, of which {} new, and its successor comes within {}

next:
  1. put it behind the anchors in every agent's bundle, in the place of this issuer's earlier list:
     cat ca.crt {shown} > bundle.new && mv bundle.new bundle.pem
     (written beside it and moved: an agent that reads a bundle that is half written finds no list in it)
  2. `heddle identity list` on a node tells a list that cannot be used, or whose successor is late
  3. a revoked certificate's owner gets a new one as soon as it asks: if it is not to, take away its pod, its agent's
     token or its node first
  4. sign it anew in time: heddle ca revoke --keys {} --list {shown}",
        made.revoked,
        made.added,
        humantime::format_duration(flags.valid),
        flags.keys.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
