//! Root and issuer are replaced under load, and nothing restarts. An anchor that is taken away, and a certificate that is
//! revoked, end what rests on them.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod load;
    pub mod peers;
    pub mod shop;
}

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use common::{
    authority::{Ceremony, SOON},
    load::Load,
    shop::{A, B, SPARE, Shop, UNKNOWN, answered, carries, echoes},
};
use serde_json::Value;
use xtask::lab::{Lab, apps::Attempt, eventually};

const PORT: u16 = 8443;

/// The fingerprints of the anchors that a node's certificates rest on.
fn rests_on(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let told = lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
    let identities = told["identities"].as_array().context("no identities")?;
    let mut anchors: Vec<String> = identities
        .iter()
        .map(|identity| identity["certificate"]["anchor"].as_str().unwrap_or_default().to_owned())
        .collect();
    anchors.sort();
    anchors.dedup();
    Ok(anchors)
}

fn trusted(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let told = lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
    let anchors = told["anchors"].as_array().context("no anchors")?;
    Ok(anchors.iter().filter_map(|anchor| anchor["fingerprint"].as_str()).map(str::to_owned).collect())
}

/// Puts the keys of `issuer` into the authority's directory, as a mounted Secret changes.
fn put(ceremony: &Ceremony, issuer: &str) -> Result<()> {
    let live = ceremony.directory.join("live");
    std::fs::create_dir_all(&live)?;
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let fresh = live.join(format!("{name}.fresh"));
        std::fs::copy(ceremony.directory.join(issuer).join(name), &fresh)?;
        std::fs::rename(fresh, live.join(name))?;
    }
    Ok(())
}

fn nodes_trust(shop: &Shop, count: usize) -> Result<Vec<String>> {
    for node in [A, B] {
        eventually(&format!("{node} to trust {count}"), SOON, || {
            Ok(trusted(&shop.lab, node)?.len() == count)
        })?;
    }
    trusted(&shop.lab, A)
}

fn nodes_rest_on(shop: &Shop, anchor: &str) -> Result<()> {
    for node in [A, B] {
        eventually(&format!("{node} to rest on the right anchor"), SOON, || {
            Ok(rests_on(&shop.lab, node)? == [anchor])
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn root_and_issuer_roll_under_load_and_nothing_restarts() -> Result<()> {
    let wanted: u64 =
        std::env::var("HEDDLE_ROLL_REQUESTS").ok().and_then(|it| it.parse().ok()).unwrap_or(20_000);
    let mut shop = Shop::closed("roll")?;
    shop.lab.settings().set("log", serde_json::json!({"filter": "info,heddle::proxy=debug"}));
    let ceremony = Ceremony::hold(&shop.lab)?;
    ceremony.root("root-2")?;
    ceremony.issuer("root-2", "issuer-2")?;
    put(&ceremony, "issuer")?;
    let _authority = ceremony.serve("live", PORT, &[])?;
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let _servers = (echoes(&shop.far)?, shop.far.app(&["once", &format!("[::]:{}", SPARE[0])])?);
    let to = SocketAddr::from((shop.far.v4, UNKNOWN));
    answered(&shop.client, &Attempt::new(to, "certified"))?;
    let agents: Vec<_> =
        [A, B].iter().map(|node| shop.lab.agent(node).map(|agent| agent.pid())).collect::<Result<_>>()?;
    let [old] = &nodes_trust(&shop, 1)?[..] else { anyhow::bail!("one anchor") };
    let mut before = Shop::line(&shop.client, to)?;

    let (told_a, told_b) = (shop.lab.agent(A)?.events()?, shop.lab.agent(B)?.events()?);
    let load = Load::begin(&shop.client, (shop.far.v4, SPARE[0]).into());
    // 1. Everybody trusts both.
    ceremony.trust(&["root", "root-2"])?;
    let both = nodes_trust(&shop, 2)?;
    let new = both.iter().find(|anchor| *anchor != old).context("no new anchor")?;
    nodes_rest_on(&shop, old)?;
    // 2. The other issuer signs; everybody has its certificates.
    put(&ceremony, "issuer-2")?;
    eventually("the other issuer's certificates", SOON, || {
        for node in [A, B] {
            shop.lab.agent(node)?.request("POST", "/v1/identities/renew", None)?.accepted()?;
        }
        std::thread::sleep(Duration::from_millis(300));
        Ok([A, B].iter().all(|node| rests_on(&shop.lab, node).is_ok_and(|anchors| anchors == [new.as_str()])))
    })?;
    carries(&mut before, "still")?;
    let mut after = Shop::line(&shop.client, to)?;
    // 3. Nobody trusts the old one.
    ceremony.trust(&["root-2"])?;
    ensure!(nodes_trust(&shop, 1)? == [new.as_str()], "the new anchor alone");
    eventually(
        "what rested on the old anchor to end",
        SOON,
        || Ok(carries(&mut before, "no more").is_err()),
    )?;
    carries(&mut after, "as ever")?;
    nodes_rest_on(&shop, new)?;

    let counted = load.end(wanted)?;
    println!("{} requests, {} failed", counted.succeeded, counted.failed);
    let refusals: Vec<String> =
        [told_a, told_b].iter().flat_map(xtask::lab::Events::drain).map(|event| event.to_string()).collect();
    if counted.failed > 0 {
        for line in [A, B]
            .iter()
            .filter_map(|node| Some(shop.lab.agent(node).ok()?.log()))
            .collect::<String>()
            .lines()
        {
            if line.contains("DEBUG") {
                println!("{line}");
            }
        }
    }
    ensure!(counted.succeeded > wanted / 2, "control: {counted:?} is no load");
    ensure!(counted.failed == 0, "{counted:?}; the agents told: {refusals:#?}");
    let still: Vec<_> =
        [A, B].iter().map(|node| shop.lab.agent(node).map(|agent| agent.pid())).collect::<Result<_>>()?;
    assert_eq!(agents, still, "nothing was restarted");
    shop.shut()
}

/// The list by which the issuer revokes these certificates and those before (serial numbers in hexadecimal), in PEM.
fn revoking(ceremony: &Ceremony, serials: &[&str]) -> Result<String> {
    let (keys, list) = (ceremony.path("issuer"), ceremony.path("revoked.crl"));
    ceremony.heddle(&[&["ca", "revoke", "--keys", &keys, "--list", &list], serials].concat())?;
    Ok(std::fs::read_to_string(list)?)
}

/// The serial number of the certificate of an account on a node.
fn serial(lab: &Lab, node: &str, identity: &str) -> Result<String> {
    let told = lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
    let identities = told["identities"].as_array().context("no identities")?;
    let found = identities.iter().find(|one| one["identity"] == identity).context("no such identity")?;
    Ok(found["certificate"]["serial"].as_str().context("no certificate")?.to_owned())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_certificate_that_is_revoked_ends_what_rests_on_it_and_nothing_else() -> Result<()> {
    let mut shop = Shop::closed("revoked")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let _authority = ceremony.serve("issuer", PORT, &[])?;
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let _servers = (echoes(&shop.far)?, echoes(&shop.near)?);
    let (to_far, to_near) = ((shop.far.v4, UNKNOWN).into(), (shop.near.v4, UNKNOWN).into());
    answered(&shop.client, &Attempt::new(to_far, "before"))?;
    answered(&shop.buyer, &Attempt::new(to_near, "before"))?;
    // One account on two nodes has two certificates.
    let mut revoked = Shop::line(&shop.client, to_far)?;
    let mut other = Shop::line(&shop.buyer, to_near)?;
    let old = serial(&shop.lab, A, &shop.client.identity())?;
    ensure!(old != serial(&shop.lab, B, &shop.client.identity())?, "two certificates");

    let anchors = std::fs::read_to_string(ceremony.bundle())?;
    let put = |list: &str| {
        let fresh = ceremony.directory.join("bundle.fresh");
        std::fs::write(&fresh, format!("{anchors}{list}"))?;
        anyhow::Ok(std::fs::rename(fresh, ceremony.bundle())?)
    };
    // The control: a list that names somebody else ends nothing.
    put(&revoking(&ceremony, &["4a4b4c"])?)?;
    std::thread::sleep(Duration::from_secs(3));
    carries(&mut revoked, "not me")?;
    // A broken list changes nothing either, and is told.
    put("-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n")?;
    eventually("the broken list to be told of", SOON, || {
        Ok(shop.lab.agent(B)?.metric("heddle_trust_bundle_stale", &[])? > 0.0)
    })?;
    carries(&mut revoked, "still not")?;

    put(&revoking(&ceremony, &[&old])?)?;
    eventually("what rested on it to end", SOON, || Ok(carries(&mut revoked, "no more").is_err()))?;
    carries(&mut other, "as ever")?;
    // Every certificate was renewed by then, and the new one is nobody's list's.
    answered(&shop.client, &Attempt::new(to_far, "after"))?;
    ensure!(old != serial(&shop.lab, A, &shop.client.identity())?, "it was renewed");
    ensure!(shop.lab.agent(B)?.metric("heddle_trust_bundle_stale", &[])? == 0.0, "and all is well");
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_bundle_that_cannot_be_used_leaves_the_last_in_force_and_is_told() -> Result<()> {
    let mut shop = Shop::closed("bundle")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let _authority = ceremony.serve("issuer", PORT, &[])?;
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let _servers = echoes(&shop.far)?;
    let attempt = Attempt::new((shop.far.v4, UNKNOWN), "believed");
    answered(&shop.client, &attempt)?;
    let good = std::fs::read_to_string(ceremony.bundle())?;
    let leaf = std::fs::read_to_string(ceremony.directory.join("issuer/tls.key"))?;
    for broken in ["", "no certificate", &good.replace("MII", "MIJ"), &leaf] {
        std::fs::write(ceremony.bundle(), broken)?;
        let told = |node: &str| -> Result<Value> {
            shop.lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()
        };
        eventually("the broken bundle to be told of", SOON, || Ok(told(A)?["stale"].is_string()))?;
        eventually("the metric", SOON, || {
            Ok(shop.lab.agent(A)?.metric("heddle_trust_bundle_stale", &[])? > 0.0)
        })?;
        answered(&shop.client, &attempt)?;
        assert!(told(A)?["warnings"].to_string().contains("trust bundle"), "{}", told(A)?);
        std::fs::write(ceremony.bundle(), &good)?;
        eventually("the good bundle to be taken", SOON, || Ok(told(A)?["stale"].is_null()))?;
    }
    // The control: another bundle that can be used is put in force, and nobody believes the old certificates.
    ceremony.root("other")?;
    ceremony.trust(&["other"])?;
    eventually("nobody to be believed", SOON, || Ok(!shop.client.connect(&attempt)?.answered()))?;
    shop.shut()
}
