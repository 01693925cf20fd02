//! Peers that an agent may meet: with certificates of any making, speaking TLS and the framing by hand.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use heddle::proxy::wire::{self, frame};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use xtask::lab::Lab;

/// A certificate and its key.
pub type Own = (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>);

/// The names of a service account of namespace `shop`.
pub fn names(account: &str) -> [String; 2] {
    [
        format!("{account}.shop.serviceaccount.identity.linkerd.cluster.local"),
        format!("spiffe://cluster.local/ns/shop/sa/{account}"),
    ]
}

/// A certificate for these names: by the lab's own authority, or by nobody's.
pub fn certificate(lab: &Lab, [dns, uri]: &[String; 2], by_the_authority: bool) -> Result<Own> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        vec![SanType::DnsName(dns.as_str().try_into()?), SanType::URI(uri.as_str().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(20)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    let key = KeyPair::generate()?;
    let certificate = if by_the_authority {
        let pem = authority(lab.directory())?;
        // One file holds both.
        let at = pem.find("-----BEGIN CERTIFICATE-----").context("no certificate in the authority's file")?;
        let issuer = Issuer::from_ca_cert_pem(&pem[at..], KeyPair::from_pem(&pem)?)?;
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&key, &issuer)?
    } else {
        params.self_signed(&key)?
    };
    Ok((certificate.der().clone(), key.serialize_der().into()))
}

fn authority(lab: &Path) -> Result<String> {
    let path = lab.join("ca/authority.pem");
    std::fs::read_to_string(&path).with_context(|| format!("no authority at {}", path.display()))
}

/// A client that believes every server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How a peer speaks TLS.
pub struct Manner<'a> {
    /// The name that it asks for.
    pub sni: &'a str,
    /// What it shows.
    pub own: Option<Own>,
    /// What it offers.
    pub alpn: &'a [u8],
    /// The version that it speaks.
    pub version: &'static SupportedProtocolVersion,
}

impl<'a> Manner<'a> {
    /// As an agent would.
    pub fn proper(sni: &'a str, own: Option<Own>) -> Self {
        Self { sni, own, alpn: wire::ALPN, version: &rustls::version::TLS13 }
    }

    /// A connection that has said nothing yet.
    pub fn tls(self) -> Result<ClientConnection> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups.insert(0, aws_lc_rs::kx_group::X25519MLKEM768);
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[self.version])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match self.own {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key.into())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Ok(ClientConnection::new(Arc::new(config), ServerName::try_from(self.sni.to_owned())?)?)
    }

    /// Its ClientHello.
    pub fn hello(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.tls()?.write_tls(&mut bytes)?;
        Ok(bytes)
    }
}

/// Connects, with every wait bounded.
pub fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// What a peer got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Got {
    /// The application's echo.
    Echo,
    /// The agent's refusal of the stream, with its reason.
    Refused(u32),
    /// The connection was ended, and nothing of the application's came.
    Ended,
}

/// Opens one stream to the echo at `to` and asks it, as an agent would.
pub fn ask(to: SocketAddr, manner: Manner<'_>, question: &[u8]) -> Result<Got> {
    Ok(converse(to, manner, question).unwrap_or(Got::Ended))
}

fn converse(to: SocketAddr, manner: Manner<'_>, question: &[u8]) -> Result<Got> {
    let mut tls = manner.tls()?;
    let mut stream = dial(to)?;
    let client = stream.local_addr()?;
    let mut tls = rustls::Stream::new(&mut tls, &mut stream);
    let mut said = frame::open(1, &wire::Open { client, destination: to }).to_vec();
    said.extend(frame::data(1, u16::try_from(question.len())?));
    said.extend(question);
    tls.write_all(&said)?;
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut at = 0;
        // Frames never cross records, and this echo fits one.
        while let Some(parsed) = frame::parse(&heard, at)? {
            match parsed.frame {
                wire::Frame::Refused(code) | wire::Frame::Reset(code) => return Ok(Got::Refused(code)),
                wire::Frame::Data(_) => return Ok(Got::Echo),
                _ => at = parsed.next,
            }
        }
        match tls.read(&mut buffer)? {
            0 => return Ok(Got::Ended),
            count => heard.extend(&buffer[..count]),
        }
    }
}

/// Everything that comes until the connection ends.
pub fn to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        heard.extend(&buffer[..count]);
    }
    heard
}
