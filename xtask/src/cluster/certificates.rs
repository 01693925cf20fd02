//! The certificates by which the parts of a cluster know each other: one authority, made for one cluster.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The cluster's own authority, and the folder that everything it signs is in.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one, and the key that signs service accounts' tokens.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "heddle-cluster");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        let authority = Self { folder: folder.to_owned(), issuer };
        authority.write("ca.crt", &authority.issuer.pem())?;
        let accounts = KeyPair::generate()?;
        authority.write("accounts.key", &accounts.serialize_pem())?;
        authority.write("accounts.pub", &accounts.public_key_pem())?;
        Ok(authority)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// A file of this folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn sign(&self, file: &str, user: &str, group: Option<&str>, names: Vec<String>) -> Result<()> {
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    /// A server's certificate, `<file>.crt` and `<file>.key`.
    pub fn server(&self, file: &str, names: &[&str]) -> Result<()> {
        self.sign(file, file, None, names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// A user's certificate and the kubeconfig that uses it, whose path is returned.
    pub fn user(&self, file: &str, user: &str, group: Option<&str>, server: &str) -> Result<String> {
        self.sign(file, user, group, Vec::new())?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "heddle", "cluster": { "server": server, "certificate-authority": self.path("ca.crt") } }],
            "users": [{ "name": "own", "user": {
                "client-certificate": self.path(&format!("{file}.crt")),
                "client-key": self.path(&format!("{file}.key")),
            } }],
            "contexts": [{ "name": "own", "context": { "cluster": "heddle", "user": "own" } }],
            "current-context": "own",
        });
        let name = format!("{file}.kubeconfig");
        self.write(&name, &serde_json::to_string_pretty(&config)?)?;
        Ok(self.path(&name))
    }
}
