//! SPIRE issues: a real one, whose agents hand out what a registration entry says, node by node.

#[allow(dead_code)]
mod common {
    pub mod load;
    pub mod shop;
    pub mod spire;
}

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{
    load::Load,
    shop::{A, B, CLIENTS, SPARE, Shop, UNKNOWN, answered, clients, echoes},
    spire::Spire,
};
use serde_json::{Value, json};
use xtask::lab::{Pod, apps::Attempt, eventually};

/// SPIRE's agents ask its server for changes every 5 seconds.
const SOON: Duration = Duration::from_secs(60);

fn identities(shop: &Shop, node: &str) -> Result<Value> {
    shop.lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()
}

/// What a node's agent tells of the certificate of an identity.
fn told(shop: &Shop, node: &str, identity: &str) -> Result<Value> {
    let told = identities(shop, node)?;
    let all = told["identities"].as_array().context("no identities")?;
    all.iter().find(|one| one["identity"] == identity).cloned().context("no such identity")
}

fn start(shop: &mut Shop, spire: &Spire) -> Result<()> {
    let heddle = shop.lab.heddle()?;
    for node in [A, B] {
        let mut settings = shop.lab.settings().clone();
        settings.set("ca", json!({"spire": spire.socket(node)}));
        shop.lab.agent(node)?.start(&heddle, &settings)?;
        shop.lab.start_agent(node)?;
    }
    Ok(())
}

fn refused(pod: &Pod, attempt: &Attempt) -> Result<()> {
    let outcome = pod.connect(attempt)?;
    ensure!(!outcome.answered(), "{}: {outcome:?}", pod.name);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_spires_agents_hand_out_is_what_pods_speak_with() -> Result<()> {
    let Some(programs) = xtask::spire::installed() else { return Ok(()) };
    let mut shop = Shop::closed("spire")?;
    let (client, stranger) = (shop.client.identity(), shop.stranger.identity());
    let spire = Spire::serve(&shop.lab, &programs)?;
    let mut agents = [spire.agent(A)?, spire.agent(B)?];
    spire.account(A, "client", &["-dns", &client])?;
    spire.account(B, "server", &["-dns", &shop.far.identity()])?;
    // An entry that matches every account of the namespace is nobody's.
    spire.entry(A, "/ns/shop", &["k8s:ns:shop"], &["-dns", "shop.example"])?;
    spire.account(A, "stranger", &[])?;
    start(&mut shop, &spire)?;
    let _servers = (echoes(&shop.far)?, echoes(&shop.near)?);
    let attempt = Attempt::new((shop.far.v4, UNKNOWN), "by SPIRE");
    eventually("the client to be answered", SOON, || Ok(shop.client.connect(&attempt)?.answered()))?;

    let certificate = &told(&shop, A, &client)?["certificate"];
    ensure!(certificate["issuer"].to_string().contains("O=SPIFFE"), "{certificate}");
    let anchors = identities(&shop, A)?["anchors"].as_array().map_or(0, Vec::len);
    ensure!(
        anchors == 1 && !certificate["anchor"].to_string().is_empty(),
        "{anchors} anchors, {certificate}"
    );
    let verified = shop.lab.agent(A)?.heddle(&shop.lab.heddle()?, &["identity", "verify", "shop/client"])?;
    ensure!(verified.succeeded(), "{verified:?}");

    // Whoever has no entry on its node has no certificate there, though the account has one elsewhere.
    let bought = Attempt::new((shop.near.v4, UNKNOWN), "no entry");
    refused(&shop.buyer, &bought)?;
    let missing = told(&shop, B, &client)?;
    ensure!(missing["error"].to_string().contains("is missing"), "{missing}");
    spire.account(B, "client", &["-dns", &client])?;
    spire.account(A, "server", &["-dns", &shop.near.identity()])?;
    eventually("the entries to be served", SOON, || Ok(shop.buyer.connect(&bought)?.answered()))?;

    // A SPIFFE name alone: told, and let in by rules that name it whole, by no other.
    eventually("the stranger to have its certificate", SOON, || {
        Ok(identities(&shop, A)?["warnings"]
            .to_string()
            .contains(&format!("{stranger} has a SPIFFE name alone")))
    })?;
    let name = "spiffe://cluster.local/ns/shop/sa/stranger";
    for wide in ["'*'", "'*.shop.serviceaccount.identity.linkerd.cluster.local'"] {
        shop.lab.apply(CLIENTS, &clients(&[wide]))?;
        answered(&shop.client, &attempt)?;
        refused(&shop.stranger, &attempt)?;
    }
    shop.lab.apply(CLIENTS, &clients(&[&client, name]))?;
    answered(&shop.stranger, &attempt)?;
    let verified =
        shop.lab.agent(A)?.heddle(&shop.lab.heddle()?, &["identity", "verify", "shop/stranger"])?;
    ensure!(!verified.succeeded(), "{verified:?}");

    // SPIRE's agent away: nothing but that is told; back, and all is well by itself.
    agents[0].end();
    let stale = || shop.lab.agent(A)?.metric("heddle_trust_bundle_stale", &[]);
    eventually("the missing agent to be told of", SOON, || Ok(stale()? > 0.0))?;
    shop.lab.agent(A)?.request("POST", "/v1/identities/renew", None)?.accepted()?;
    eventually("renewals to fail", SOON, || {
        Ok(identities(&shop, A)?["warnings"].to_string().contains("could not be renewed"))
    })?;
    answered(&shop.client, &attempt)?;
    agents[0] = spire.agent(A)?;
    eventually("all to be well", SOON, || {
        let warnings = identities(&shop, A)?["warnings"].to_string();
        Ok(stale()? == 0.0 && !warnings.contains("could not be renewed"))
    })?;
    answered(&shop.client, &attempt)?;
    // SPIRE's anchors are of a day: that is no matter.
    let warnings = identities(&shop, A)?["warnings"].to_string();
    ensure!(!warnings.contains("expires"), "{warnings}");
    shop.shut()
}

/// SPIRE's own authority is rolled under load: its agents renew every certificate, and nobody asks for it or notices.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn spire_rolls_its_authority_and_its_certificates_under_load() -> Result<()> {
    let Some(programs) = xtask::spire::installed() else { return Ok(()) };
    let mut shop = Shop::closed("spire-roll")?;
    let client = shop.client.identity();
    let spire = Spire::serve(&shop.lab, &programs)?;
    let _agents = [spire.agent(A)?, spire.agent(B)?];
    spire.account(A, "client", &["-dns", &client])?;
    spire.account(B, "server", &["-dns", &shop.far.identity()])?;
    start(&mut shop, &spire)?;
    let _servers = (echoes(&shop.far)?, shop.far.app(&["once", &format!("[::]:{}", SPARE[0])])?);
    let attempt = Attempt::new((shop.far.v4, UNKNOWN), "by SPIRE");
    eventually("the client to be answered", SOON, || Ok(shop.client.connect(&attempt)?.answered()))?;
    let anchors = || -> Result<Vec<usize>> {
        [A, B]
            .iter()
            .map(|node| Ok(identities(&shop, node)?["anchors"].as_array().map_or(0, Vec::len)))
            .collect()
    };
    let anchor = |node: &str, identity: &str| {
        Ok::<_, anyhow::Error>(told(&shop, node, identity)?["certificate"]["anchor"].clone())
    };
    let before = anchor(A, &client)?;

    let load = Load::begin(&shop.client, (shop.far.v4, SPARE[0]).into());
    spire.tell(&["localauthority", "x509", "prepare"])?;
    eventually("both nodes to trust both", SOON, || Ok(anchors()? == [2, 2]))?;
    let shown = spire.tell(&["localauthority", "x509", "show"])?;
    let authorities: Vec<&str> =
        shown.lines().filter_map(|line| Some(line.split_once("Authority ID: ")?.1.trim())).collect();
    // The active one first, then the one that was prepared.
    let [old, new] = authorities[..] else { anyhow::bail!("{shown}") };
    spire.tell(&["localauthority", "x509", "activate", "-authorityID", new])?;
    spire.tell(&["localauthority", "x509", "taint", "-authorityID", old])?;
    eventually("every certificate to rest on the new one", SOON * 2, || {
        Ok(anchor(A, &client)? != before && anchor(B, &shop.far.identity())? != before)
    })?;
    spire.tell(&["localauthority", "x509", "revoke", "-authorityID", old])?;
    eventually("nobody to trust the old one", SOON, || Ok(anchors()? == [1, 1]))?;
    let counted = load.end(500)?;
    println!("{} requests, {} failed", counted.succeeded, counted.failed);
    ensure!(counted.failed == 0, "{counted:?}");
    answered(&shop.client, &attempt)?;
    shop.shut()
}
