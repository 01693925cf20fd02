//! A certificate and its key for a workload that speaks TLS itself (an X.509-SVID).
//!
//! It bears the SPIFFE name of its identity and no DNS name, so that it is nobody's in the mesh: what leaves the agent
//! can be stolen, and must not be able to speak as a pod to the mesh's agents. Its key is made for it, handed over once
//! and forgotten here.

use std::{sync::Arc, time::SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use crate::{
    authority::{CertificateRequest, Issued},
    key::FreshKey,
    names::IdentityName,
    profile::{self, CertificateFacts, Side},
    trust::Trust,
};

/// A fresh key and the request for its certificate.
#[derive(Debug)]
pub struct SvidRequest {
    key: FreshKey,
    request: CertificateRequest,
}

/// A workload's certificate and its key.
pub struct Svid {
    /// The certificate, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8 in DER.
    pub key: Zeroizing<Vec<u8>>,
    /// The certificate's serial number, in hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl SvidRequest {
    /// Makes a key for `identity`.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(identity: &IdentityName) -> Result<Self, String> {
        let (key, request) = FreshKey::with_svid_request(identity).map_err(|error| error.to_string())?;
        Ok(Self { key, request })
    }

    /// What to ask the authority for.
    pub fn request(&self) -> &CertificateRequest {
        &self.request
    }

    /// Joins the key with the certificate that was issued for it.
    ///
    /// # Errors
    /// What is wrong with it: whoever trusts the anchors in force would not believe it, it is for another key, or bears
    /// something else than the identity's SPIFFE name.
    pub fn complete(self, issued: Issued, trust: &Arc<Trust>, now: SystemTime) -> Result<Svid, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (leaf, intermediates) = issued.chain.split_first().ok_or("there is no certificate")?;
        let facts = CertificateFacts::of(&issued.chain).map_err(|error| text(&error))?;
        if facts.public_key != self.key.public() {
            return Err("it is for another key".to_owned());
        }
        profile::bounded(leaf, intermediates).map_err(|error| text(&error))?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|error| text(&error))?;
        let at = UnixTime::since_unix_epoch(since);
        let bundle = trust.bundle();
        bundle.clients.verify_client_cert(leaf, intermediates, at).map_err(|error| text(&error))?;
        bundle.lists.check(leaf, intermediates, Side::Client, at).map_err(|error| text(&error))?;
        profile::svid(leaf, &self.request.identity).map_err(|error| text(&error))?;
        Ok(Svid {
            serial: facts.serial,
            not_after: facts.not_after,
            key: self.key.into_pkcs8(),
            chain: issued.chain,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls::{pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey};

    use super::*;
    use crate::{
        HandshakeFault, PeerFault, PeerNameError,
        testing::{Failed, Mesh, connect, db, start, web},
    };

    fn svid(mesh: &Mesh) -> Svid {
        let request = SvidRequest::new(&web()).unwrap();
        let issued = mesh.authority.issue(request.request(), start()).unwrap();
        request.complete(issued, &mesh.trust, start()).unwrap()
    }

    #[test]
    fn a_workload_gets_its_spiffe_name_and_a_key_of_its_own() {
        let mesh = Mesh::new();
        let (one, other) = (svid(&mesh), svid(&mesh));
        let facts = CertificateFacts::of(&one.chain).unwrap();
        assert_eq!(facts.names, [web().spiffe()]);
        assert_ne!(one.key, other.key);
        let pair = KeyPair::try_from(&one.key[..]).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&pair), facts.public_key);
        assert!(!format!("{one:?}").contains("key"));
    }

    /// What a workload holds speaks for nobody in the mesh, on either side; the mesh's own certificate is the control.
    #[test]
    fn a_workloads_own_certificate_is_nobodys_in_the_mesh() {
        let mesh = Mesh::new();
        let own = svid(&mesh);
        let key = PrivatePkcs8KeyDer::from(own.key.to_vec());
        let key = Arc::new(CertifiedKey::from_der(own.chain, key.into(), &mesh.tls.provider).unwrap());
        let (client, server) = (mesh.workload(&web()), mesh.workload(&db()));
        let to_db = || client.client(&db(), start()).unwrap().config;
        connect(to_db(), &db(), server.server_config(start()).unwrap()).unwrap();
        let nameless = |error: &rustls::Error| {
            let fault = HandshakeFault::accepting(error);
            let names = PeerNameError::Names { dns: 0, uri: 1, other: 0 };
            assert_eq!(fault, PeerFault::Name(names).into(), "{error}");
        };
        let stolen = mesh.client(Arc::clone(&key));
        match connect(stolen, &db(), server.server_config(start()).unwrap()) {
            Err(Failed::Server(error)) => nameless(&error),
            other => panic!("{:?}", other.map(drop)),
        }
        let stolen = mesh.server(&web(), key);
        let db_to_web = server.client(&web(), start()).unwrap().config;
        assert!(matches!(connect(db_to_web, &web(), stolen), Err(Failed::Client(_))));
    }

    #[test]
    fn what_is_not_the_workloads_own_is_not_handed_over() {
        let mesh = Mesh::new();
        let ask = || SvidRequest::new(&web()).unwrap();
        let issue = |request: &CertificateRequest| mesh.authority.issue(request, start()).unwrap();
        let refused = |request: SvidRequest, issued| {
            request.complete(issued, &mesh.trust, start()).map(drop).unwrap_err()
        };
        let (request, other) = (ask(), ask());
        assert!(refused(request, issue(other.request())).contains("another key"));
        // Both names: that would be the mesh's.
        let (key, both) = FreshKey::with_request(&web()).unwrap();
        let request = SvidRequest { key, request: both };
        let issued = issue(request.request());
        assert!(refused(request, issued).contains("1 DNS"));
        let stranger = Mesh::new();
        let request = ask();
        let issued = stranger.authority.issue(request.request(), start()).unwrap();
        assert!(refused(request, issued).contains("invalid peer certificate"));
        assert!(refused(ask(), Issued { chain: Vec::new(), key: None }).contains("no certificate"));
        // Another's name on the own key, whoever signed it.
        let (key, of_db) = FreshKey::with_svid_request(&db()).unwrap();
        let issued = issue(&of_db);
        let request = SvidRequest { key, request: CertificateRequest { identity: web(), csr: of_db.csr } };
        refused(request, issued);
    }
}
