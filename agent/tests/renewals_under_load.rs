//! Certificates are renewed under load and nobody notices; nor does anybody that the authority is away, until the end.
//!
//! `HEDDLE_LIVES_SECONDS=600` has certificates of two minutes renewed of themselves for that long, and waits for the end of
//! those that nobody renews. Without it renewals are asked for, one after the other.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod load;
    pub mod peers;
    pub mod shop;
    pub mod told;
}

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use common::{
    authority::{Ceremony, SOON},
    load::Load,
    shop::{A, B, SPARE, Shop, UNKNOWN, answered, echoes},
    told::reasons,
};
use serde_json::Value;
use xtask::lab::{
    Events, Lab,
    apps::{Attempt, Burst},
    eventually,
};

const PORT: u16 = 8443;

/// How long the long form goes on; `None`: the short one.
fn long() -> Option<Duration> {
    let seconds = std::env::var("HEDDLE_LIVES_SECONDS").ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Of the certificates: two minutes in the long form.
fn lifetime() -> &'static [&'static str] {
    if long().is_some() { &["--lifetime", "2m"] } else { &[] }
}

fn identities(lab: &Lab, node: &str) -> Result<Value> {
    lab.agent(node)?.request("GET", "/v1/identities", None)?.accepted()?.json()
}

/// The serial numbers of a node's certificates.
fn serials(lab: &Lab, node: &str) -> Result<BTreeSet<String>> {
    let told = identities(lab, node)?;
    let all = told["identities"].as_array().context("no identities")?;
    Ok(all.iter().filter_map(|one| one["certificate"]["serial"].as_str()).map(str::to_owned).collect())
}

fn renew(lab: &Lab) -> Result<()> {
    for node in [A, B] {
        lab.agent(node)?.request("POST", "/v1/identities/renew", None)?.accepted()?;
    }
    Ok(())
}

/// Otherwise what the agents said of it.
fn nobody_failed(shop: &Shop, counted: &Burst, events: &[Events]) -> Result<()> {
    let logs = || -> Result<String> {
        Ok([shop.lab.agent(A)?.log_tail(20), shop.lab.agent(B)?.log_tail(20)].join("\n"))
    };
    ensure!(counted.failed == 0, "{counted:?}; the agents told: {:#?}\n{}", reasons(events), logs()?);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn renewals_under_load_fail_nobody() -> Result<()> {
    let mut shop = Shop::closed("renewals")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let _authority = ceremony.serve("issuer", PORT, lifetime())?;
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let _servers = (echoes(&shop.far)?, shop.far.app(&["once", &format!("[::]:{}", SPARE[0])])?);
    answered(&shop.client, &Attempt::new((shop.far.v4, UNKNOWN), "certified"))?;

    let events = [shop.lab.agent(A)?.events()?, shop.lab.agent(B)?.events()?];
    let load = Load::begin(&shop.client, (shop.far.v4, SPARE[0]).into());
    let until = Instant::now() + long().unwrap_or(Duration::from_secs(8));
    let mut seen = BTreeSet::new();
    while Instant::now() < until {
        seen.extend(serials(&shop.lab, A)?);
        seen.extend(serials(&shop.lab, B)?);
        if long().is_none() {
            renew(&shop.lab)?;
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    let counted = load.end(500)?;
    println!("{} requests, {} failed, {} certificates", counted.succeeded, counted.failed, seen.len());
    // Five accounts' certificates on two nodes to begin with.
    ensure!(seen.len() >= 15, "control: {} certificates are few renewals", seen.len());
    nobody_failed(&shop, &counted, &events)?;
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_authority_that_is_away_costs_nothing_before_the_certificates_end() -> Result<()> {
    let mut shop = Shop::closed("ca-away")?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let authority = ceremony.serve("issuer", PORT, lifetime())?;
    ceremony.start_agents(&mut shop.lab, PORT)?;
    let _servers = (echoes(&shop.far)?, shop.far.app(&["once", &format!("[::]:{}", SPARE[0])])?);
    let attempt = Attempt::new((shop.far.v4, UNKNOWN), "certified");
    answered(&shop.client, &attempt)?;
    let events = [shop.lab.agent(A)?.events()?, shop.lab.agent(B)?.events()?];
    drop(authority);

    let load = Load::begin(&shop.client, (shop.far.v4, SPARE[0]).into());
    renew(&shop.lab)?;
    for node in [A, B] {
        eventually("failed renewals to be told of", SOON, || {
            Ok(identities(&shop.lab, node)?["warnings"].to_string().contains("could not be renewed"))
        })?;
    }
    eventually("the metric of failed renewals to grow", SOON, || {
        let label = format!("identity=\"{}\"", shop.client.identity());
        Ok(shop.lab.agent(A)?.metric("heddle_certificate_failed_renewals", &[&label])? > 0.0)
    })?;
    eventually("them to be logged as well", Duration::from_secs(60), || {
        Ok(shop.lab.agent(A)?.log().contains("could not be renewed"))
    })?;
    let counted = load.end(500)?;
    nobody_failed(&shop, &counted, &events)?;

    if long().is_some() {
        // Nobody renews: after the end connections are refused, and nothing passes in the clear.
        // Whose ends first refuses first; then neither side has one.
        eventually("the certificates to end", Duration::from_secs(180), || {
            let refused = !shop.client.connect(&attempt)?.answered();
            Ok(refused && reasons(&events).keys().any(|told| told.ends_with("no_certificate")))
        })?;
        let refused = shop.client.connect(&attempt)?;
        ensure!(!refused.answered(), "{refused:?}");
    }
    let _authority = ceremony.serve("issuer", PORT, lifetime())?;
    eventually("every certificate to be renewed", Duration::from_secs(60), || {
        Ok([A, B].iter().all(|node| {
            identities(&shop.lab, node)
                .is_ok_and(|told| told["warnings"].as_array().is_some_and(Vec::is_empty))
        }))
    })?;
    answered(&shop.client, &attempt)?;
    shop.shut()
}
