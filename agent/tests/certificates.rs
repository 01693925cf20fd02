//! Certificates come from an authority that certifies only what runs, and whoever asks for more is refused and recorded.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod peers;
    pub mod shop;
    pub mod told;
}

use anyhow::{Context, Result, ensure};
use common::{
    authority::{ADDRESS, Asker, Asking, Ceremony, SOON, audited, csr, expiry, recorded},
    shop::{A, B, OPAQUE, Shop, UNKNOWN, answered, echoes},
    told::told,
};
use rcgen::{
    BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use tonic::Code;
use xtask::lab::{apps::Attempt, eventually};

const PORT: u16 = 8443;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn agents_ask_an_authority_for_what_runs_and_pods_wait_while_it_is_away() -> Result<()> {
    let mut shop = Shop::closed("ca-agents")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let _servers = echoes(&shop.far)?;
    // No authority yet: pods are captured and refused, and nothing passes in the clear.
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let events = shop.lab.agent(A)?.events()?;
    let attempt = Attempt::new((shop.far.v4, UNKNOWN), "certified");
    let refused = shop.client.connect(&attempt)?;
    assert!(!refused.answered(), "{refused:?}");
    told(&events, "no_certificate")?;
    assert_eq!(expiry(&shop.lab, A, &shop.client.identity())?, None);

    let authority = ceremony.serve("issuer", PORT, &[])?;
    answered(&shop.client, &attempt)?;
    answered(&shop.client, &Attempt::new((shop.far.v4, OPAQUE), "certified"))?;
    let record = recorded(&authority, &[("outcome", "issued"), ("account", "shop/client"), ("node", A)])?;
    assert_eq!(record["identity"], shop.client.identity());
    assert_eq!(record["agent"], "agent of node-a");
    assert!(record["peer"].as_str().is_some_and(|peer| peer.starts_with("10.79.1.2:")), "{record}");
    assert!(record["serial"].as_str().is_some_and(|serial| serial.len() == 32), "{record}");
    // Each account that has a pod on the node, and no other.
    let of = |node: &str| {
        let mut accounts: Vec<_> = audited(&authority, |record| record["node"] == node)
            .iter()
            .map(|record| record["account"].as_str().unwrap_or_default().to_owned())
            .collect();
        accounts.sort();
        accounts.dedup();
        accounts
    };
    eventually("all pods to be certified", SOON, || {
        Ok(of(A) == ["shop/client", "shop/server", "shop/stranger"]
            && of(B) == ["shop/client", "shop/server"])
    })?;
    // The same, as whoever runs the node sees it.
    let heddle = shop.lab.heddle()?;
    let identity = |words: &[&str]| shop.lab.agent(A)?.heddle(&heddle, &[&["identity"], words].concat());
    let serial = record["serial"].as_str().unwrap_or_default();
    eventually("list, show and verify to tell of it", SOON, || {
        let (listed, shown) = (identity(&["list"])?, identity(&["show", "shop/client"])?);
        Ok(listed.succeeded()
            && listed.stdout.contains("client.shop")
            && shown.stdout.contains(serial)
            && shown.stdout.contains("BEGIN CERTIFICATE")
            && identity(&["verify", "shop/client"])?.succeeded())
    })
    .with_context(|| format!("{:?}", identity(&["show", "shop/client"])))?;
    let nobody = identity(&["show", "shop/nobody"])?;
    ensure!(!nobody.succeeded(), "{nobody:?}");
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn whoever_asks_for_more_is_refused_and_recorded() -> Result<()> {
    let mut shop = Shop::closed("ca-refuses")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let authority = ceremony.serve("issuer", PORT, &["--clock-skew", "1s"])?;
    let asker = Asker::at(shop.lab.at(A)?.host(), &ceremony.bundle(), PORT)?;
    let token = ceremony.token(A, "1h")?;
    let proper = || Asking::properly(&token, A, "client");
    // The control for all that follows.
    let chain = asker.ask(&proper()?)?.map_err(|status| anyhow::anyhow!("{status}"))?;
    assert_eq!(chain.len(), 2, "the certificate and its issuer");

    let other_key = KeyPair::generate()?;
    let forged = ceremony.path("forged");
    ceremony.heddle(&["ca", "agents-key", "--directory", &forged])?;
    let key = format!("{forged}/agents.key");
    let forged = ceremony.heddle(&["ca", "token", "--key", &key, "--node", A])?.trim().to_owned();
    let expired = ceremony.token(A, "0s")?;
    ceremony.token(A, "1h")?;
    let far = ceremony.token(B, "1h")?;
    let with = |change: &dyn Fn(&mut Asking)| -> Result<Asking> {
        let mut asking = proper()?;
        change(&mut asking);
        Ok(asking)
    };
    let request =
        |change: &dyn Fn(&mut rcgen::CertificateParams)| csr(&other_key, "client", |params| change(params));
    let reused = KeyPair::generate()?;
    let reused_csr = csr(&reused, "client", |_| {})?;
    asker
        .ask(&with(&|asking| asking.csr.clone_from(&reused_csr))?)?
        .map_err(|status| anyhow::anyhow!("{status}"))?;
    let csrs = [
        (
            "an extra name",
            request(&|p| p.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap())))?,
        ),
        (
            "an extra URI",
            request(&|p| p.subject_alt_names.push(SanType::URI("spiffe://a/b".try_into().unwrap())))?,
        ),
        ("an address", request(&|p| p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into())))?),
        ("another's names", csr(&other_key, "server", |_| {})?),
        ("a subject", request(&|p| p.distinguished_name.push(DnType::CommonName, "client"))?),
        ("CA:TRUE", request(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))?),
        ("a usage", request(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))?),
        ("another usage", request(&|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning))?),
        ("P-384", csr(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?, "client", |_| {})?),
        ("Ed25519", csr(&KeyPair::generate_for(&PKCS_ED25519)?, "client", |_| {})?),
        ("nothing", Vec::new()),
        ("garbage", vec![0x30; 300]),
    ];
    let mut cases: Vec<(String, Asking, Code, &str)> = csrs
        .into_iter()
        .map(|(what, csr)| {
            Ok((
                what.to_owned(),
                with(&|asking| asking.csr.clone_from(&csr))?,
                Code::InvalidArgument,
                "request",
            ))
        })
        .collect::<Result<_>>()?;
    let mut case = |what: &str, change: &dyn Fn(&mut Asking), code, reason| -> Result<()> {
        cases.push((what.to_owned(), with(change)?, code, reason));
        Ok(())
    };
    case("no token", &|it| it.token.clear(), Code::Unauthenticated, "no_token")?;
    case("no token at all", &|it| it.token = "x".into(), Code::Unauthenticated, "token")?;
    case("a huge token", &|it| it.token = "x".repeat(9000), Code::Unauthenticated, "no_token")?;
    case("a forged token", &|it| it.token.clone_from(&forged), Code::Unauthenticated, "token")?;
    case("an expired token", &|it| it.token.clone_from(&expired), Code::Unauthenticated, "token")?;
    case("another node's token", &|it| it.token.clone_from(&far), Code::PermissionDenied, "other_node")?;
    case("a node that is claimed", &|it| it.node = B.into(), Code::PermissionDenied, "other_node")?;
    case(
        "a pod of another node",
        &|it| (it.node, it.token) = (B.into(), far.clone()),
        Code::PermissionDenied,
        "not_scheduled",
    )?;
    case("a pod of no node", &|it| it.account = "nobody".into(), Code::PermissionDenied, "not_scheduled")?;
    case("another namespace", &|it| it.namespace = "bank".into(), Code::PermissionDenied, "not_scheduled")?;
    case("dots", &|it| it.account = "..".into(), Code::InvalidArgument, "name")?;
    case("another case", &|it| it.account = "Client".into(), Code::InvalidArgument, "name")?;
    case("an escape", &|it| it.account = "%2e".into(), Code::InvalidArgument, "name")?;
    case("a look-alike", &|it| it.account = "\u{441}lient".into(), Code::InvalidArgument, "name")?;
    case(
        "a key that was certified",
        &|it| it.csr.clone_from(&reused_csr),
        Code::InvalidArgument,
        "key_reused",
    )?;
    case(
        "the authority itself",
        &|it| (it.namespace, it.account) = ("heddle-system".into(), "heddle-ca".into()),
        Code::PermissionDenied,
        "own_identity",
    )?;
    // The expired token has expired by the clocks' skew as well.
    std::thread::sleep(std::time::Duration::from_secs(3));
    for (what, asking, code, reason) in &mut cases {
        if *what == "a pod of another node" {
            // Only `stranger` runs on node a alone.
            asking.account = "stranger".into();
        }
        let before = audited(&authority, |record| record["reason"] == *reason).len();
        match asker.ask(asking)? {
            Ok(_) => panic!("{what}: was certified"),
            Err(status) => assert_eq!(status.code(), *code, "{what}: {status}"),
        }
        eventually(&format!("{what} to be recorded as {reason}"), SOON, || {
            Ok(audited(&authority, |record| record["reason"] == *reason).len() > before)
        })?;
    }
    // An agent of node b asks for a pod of node a: who, for whom, from where, why.
    let record = recorded(&authority, &[("reason", "not_scheduled"), ("node", B)])?;
    assert_eq!((&record["agent"], &record["account"]), (&"agent of node-b".into(), &"shop/stranger".into()));
    assert!(record["message"].as_str().is_some_and(|why| why.contains("is scheduled on node-b")), "{record}");

    // The pod goes, and with it the right to its identity.
    let stranger = || Asking::properly(&token, A, "stranger");
    asker.ask(&stranger()?)?.map_err(|status| anyhow::anyhow!("{status}"))?;
    let gone = shop.stranger.clone();
    shop.lab.remove_pod(&gone)?;
    eventually("the pod to be gone for the authority", SOON, || {
        Ok(asker.ask(&stranger()?)?.is_err_and(|status| status.code() == Code::PermissionDenied))
    })?;
    asker.ask(&proper()?)?.map_err(|status| anyhow::anyhow!("{status}"))?;
    // Tokens are in no log.
    assert!(!authority.stderr().contains(&token) && !authority.stderr().contains(&forged));
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_flood_is_bounded_and_others_are_served() -> Result<()> {
    let shop = Shop::closed("ca-flood")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let authority = ceremony.serve("issuer", PORT, &[])?;
    let from = |node: &str| Asker::at(shop.lab.at(node)?.host(), &ceremony.bundle(), PORT);
    let (flooder, other) = (from(A)?, from(B)?);
    let token = ceremony.token(B, "1h")?;
    std::thread::scope(|scope| -> Result<()> {
        let flood = scope.spawn(|| -> Result<(usize, usize)> {
            let asking = Asking::properly("not a token", A, "client")?;
            let answers = flooder.ask_all(&vec![asking; 2000])?;
            let count = |code| {
                answers.iter().filter(|answer| answer.as_ref().is_err_and(|it| it.code() == code)).count()
            };
            assert!(answers.iter().all(Result::is_err));
            Ok((count(Code::Unauthenticated), count(Code::ResourceExhausted)))
        });
        for _ in 0..20 {
            other
                .ask(&Asking::properly(&token, B, "server")?)?
                .map_err(|status| anyhow::anyhow!("{status}"))?;
        }
        let (believed_not, slowed) = flood.join().map_err(|_| anyhow::anyhow!("the flood failed"))??;
        assert!(believed_not >= 20 && slowed > 1000, "{believed_not} were judged and {slowed} slowed down");
        Ok(())
    })?;
    // Connections: one address has its share, and no more.
    let held = shop.lab.at(A)?.host().enter(|| {
        let to = (ADDRESS.parse::<std::net::IpAddr>()?, PORT);
        (0..64).map(|_| Ok(std::net::TcpStream::connect(to)?)).collect::<Result<Vec<_>>>()
    })?;
    other.ask(&Asking::properly(&token, B, "server")?)?.map_err(|status| anyhow::anyhow!("{status}"))?;
    assert!(flooder.ask(&Asking::properly(&token, B, "server")?).is_err(), "its share is taken");
    drop(held);
    // An issuer whose end is near says so by itself; one that has its time before it does not.
    ceremony.heddle(&[
        "ca",
        "issuer",
        "--root",
        &ceremony.path("root"),
        "--directory",
        &ceremony.path("old"),
        "--lifetime",
        "13d",
    ])?;
    let warning = "the issuer's certificate expires";
    ceremony.serve("old", PORT + 1, &[])?.wait_for_complaint(warning, SOON)?;
    assert!(!authority.stderr().contains(warning), "{}", authority.stderr());
    eventually("the flooder to have its share again", SOON, || {
        Ok(flooder.ask(&Asking::properly(&token, B, "server")?).is_ok_and(|answer| answer.is_ok()))
    })?;
    drop(authority);
    shop.shut()
}
