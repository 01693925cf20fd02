//! A rule that changes takes effect within a second, on live connections too, and never by accident.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shop::{A, B, CLIENTS, OPAQUE, PATIENCE, RULES, Shop, UNKNOWN, answered, carries, clients, echoes, text};
use xtask::lab::{
    Events, Pod,
    apps::{Attempt, Talk},
    eventually,
};

/// What is promised on a machine of its own. The time that counts is the agents': from the edit to their event.
const PROMISED: Duration = Duration::from_secs(1);

/// One live connection of each kind: what it is, its client's end, its server's end.
fn live(shop: &Shop) -> Result<Vec<(&'static str, SocketAddr, Talk, Talk)>> {
    let ways = [
        ("direct", &shop.near, SocketAddr::from((shop.near.v4, shop::SPARE[0]))),
        ("direct over IPv6", &shop.near, SocketAddr::from((shop.near.v6, shop::SPARE[1]))),
        ("across the nodes", &shop.far, SocketAddr::from((shop.far.v4, shop::SPARE[0]))),
    ];
    ways.into_iter()
        .map(|(what, server, to)| {
            let mut server = server.attend(&format!("[::]:{}", to.port()))?;
            let mut client = shop.client.call(&Attempt::new(to, ""))?;
            server.accepted()?;
            ensure!(
                client.ask("send ping")? == "sent" && server.ask("read 4")? == "ping",
                "{what} carries nothing"
            );
            ensure!(
                server.ask("send pong")? == "sent" && client.ask("read 4")? == "pong",
                "{what} answers nothing"
            );
            Ok((what, to, client, server))
        })
        .collect()
}

fn refused(pod: &Pod, to: SocketAddr) -> Result<bool> {
    Ok(pod.connect(&Attempt::new(to, "knock"))?.refused())
}

/// Waits for an event among those that were heard and those to come.
fn told(
    events: &Events,
    heard: &mut Vec<Value>,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    eventually(&format!("an event that tells of {what}"), PATIENCE, || {
        heard.extend(events.drain());
        Ok(heard.iter().any(&wanted))
    })
    .with_context(|| format!("heard: {heard:#?}"))?;
    Ok(heard.iter().find(|event| wanted(event)).cloned().unwrap_or_default())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_narrowed_rule_ends_live_connections_within_a_second_and_both_ends_see_it() -> Result<()> {
    let shop = Shop::open("narrow")?;
    let mut lines = live(&shop)?;
    // The control: an edit that takes nothing from these connections leaves them alone.
    let other = "somebody.else.serviceaccount.identity.linkerd.cluster.local";
    let (on_a, on_b) = (shop.lab.agent(A)?.events()?, shop.lab.agent(B)?.events()?);
    let generation = || -> Result<u64> {
        let status = shop.lab.agent(A)?.status()?;
        Ok(status.pointer("/rules/kernelGeneration").and_then(Value::as_u64).unwrap_or(0))
    };
    let before = generation()?;
    shop.lab.apply(CLIENTS, &clients(&[&shop.client.identity(), other]))?;
    eventually("the widened rules to be in force", PATIENCE, || Ok(generation()? > before))?;
    for (what, _, client, server) in &mut lines {
        client.ask("send still")?;
        ensure!(server.ask("read 5")? == "still", "{what} did not live through an edit of others' rules");
    }

    for (_, _, client, server) in &mut lines {
        client.tell("finish")?;
        server.tell("finish")?;
    }
    let edited = Instant::now();
    shop.lab.apply(CLIENTS, &clients(&[other]))?;
    for (what, _, client, server) in &mut lines {
        for (side, end) in [("client", client), ("server", server)] {
            let came = end.answer(PATIENCE)?;
            let took = edited.elapsed();
            assert!(
                came.starts_with("ECONNRESET") || came.starts_with("ECONNABORTED"),
                "{what}: the {side} saw {came:?}: an end in order would look like all that there was to say"
            );
            assert!(took < PROMISED * 5, "{what}: the {side} saw it only after {took:?}");
        }
    }
    // Each is told of at its pods, with its reason and its rule.
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for (what, to, ..) in &lines {
        let of = |hook: &'static str| {
            let (address, port) = (to.ip().to_string(), to.port());
            move |event: &Value| {
                text(event, "/reason") == "revoked"
                    && text(event, "/hook") == hook
                    && text(event, "/destination/address") == address
                    && event.pointer("/destination/port") == Some(&port.into())
            }
        };
        let direct = *what != "across the nodes";
        let inbound = if direct {
            let outbound = told(&on_a, &mut of_a, &format!("{what}, at the client's"), of("outbound"))?;
            assert_eq!(text(&outbound, "/pod"), "shop/client", "{what}: {outbound}");
            told(&on_a, &mut of_a, &format!("{what}, at the server's"), of("inbound"))?
        } else {
            told(&on_b, &mut of_b, &format!("{what}, at the server's"), of("inbound"))?
        };
        assert_eq!(
            text(&inbound, "/pod"),
            if direct { "shop/near" } else { "shop/far" },
            "{what}: {inbound}"
        );
        assert_eq!(text(&inbound, "/source/workload"), "shop/client", "{what}: {inbound}");
        assert_eq!(text(&inbound, "/rule"), format!("Server shop/on-{}", to.port()), "{what}: {inbound}");
    }
    for (what, to, ..) in &lines {
        assert!(refused(&shop.client, *to)?, "{what}: a new connection is refused");
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_widened_rule_lets_in() -> Result<()> {
    let shop = Shop::open("widen")?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    let ways: Vec<SocketAddr> = vec![
        (shop.near.v4, OPAQUE).into(),
        (shop.near.v4, UNKNOWN).into(),
        (shop.far.v4, OPAQUE).into(),
        (shop.far.v6, UNKNOWN).into(),
    ];
    for to in &ways {
        assert!(refused(&shop.stranger, *to)?, "{to}: no rule names the stranger yet");
        answered(&shop.client, &Attempt::new(*to, "control"))?;
    }
    let mut lines = ways.iter().map(|to| Shop::line(&shop.client, *to)).collect::<Result<Vec<_>>>()?;
    shop.lab.apply(CLIENTS, &clients(&[&shop.client.identity(), &shop.stranger.identity()]))?;
    for to in &ways {
        let outcome = answered(&shop.stranger, &Attempt::new(*to, "at last"))?;
        assert_eq!(outcome.received, "at last", "{to}: {outcome:?}");
    }
    for (to, line) in ways.iter().zip(&mut lines) {
        assert!(carries(line, "undisturbed").is_ok(), "{to}: who was allowed before stays so");
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_broken_file_keeps_its_last_good_rules_and_is_named() -> Result<()> {
    let shop = Shop::open("broken")?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    let ways = [SocketAddr::from((shop.near.v4, OPAQUE)), SocketAddr::from((shop.far.v4, OPAQUE))];
    let stale = |file: &str| -> Result<Option<Value>> {
        let status = shop.lab.agent(A)?.status()?;
        let all = status.pointer("/manifests/stale").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(all.into_iter().find(|stale| text(stale, "/file").contains(file)))
    };
    assert_eq!(stale("")?, None, "nothing is stale before");
    for (file, broken) in [(CLIENTS, "spec: [unclosed\n"), (RULES, "\t- : :\n---\n{")] {
        let good = shop.lab.manifests().read(file)?;
        shop.lab.apply(file, broken)?;
        eventually(&format!("{file} to be told of"), PATIENCE, || Ok(stale(file)?.is_some()))?;
        let told = stale(file)?.unwrap_or_default();
        assert_eq!(told.get("lastGoodInForce"), Some(&true.into()), "{told}");
        assert!(!text(&told, "/error").is_empty() && !text(&told, "/remedy").is_empty(), "{told}");
        for to in ways {
            let outcome = answered(&shop.client, &Attempt::new(to, "as before"))?;
            assert_eq!(outcome.received, "as before");
            assert!(refused(&shop.stranger, to)?, "{to}: a broken file opens nothing");
        }
        shop.lab.apply(file, &good)?;
        eventually(&format!("{file} to be good again"), PATIENCE, || Ok(stale(file)?.is_none()))?;
    }
    // A file that was never good grants nothing, and takes nothing from the others.
    shop.lab.apply("new.yaml", "kind: [\n")?;
    eventually("the new file to be told of", PATIENCE, || Ok(stale("new.yaml")?.is_some()))?;
    assert_eq!(stale("new.yaml")?.unwrap_or_default().get("lastGoodInForce"), Some(&false.into()));
    answered(&shop.client, &Attempt::new(ways[1], "as before"))?;
    // The control for the whole test: the same file, well-formed and without the client, does take effect.
    shop.lab.apply(CLIENTS, &clients(&["nobody.shop.serviceaccount.identity.linkerd.cluster.local"]))?;
    for to in ways {
        eventually(&format!("{to} to be refused"), PATIENCE, || refused(&shop.client, to))?;
    }
    shop.shut()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_reference_to_what_is_not_there_grants_nothing_and_is_reported() -> Result<()> {
    let shop = Shop::open("dangling")?;
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);
    let ways = [SocketAddr::from((shop.near.v4, OPAQUE)), SocketAddr::from((shop.far.v4, OPAQUE))];
    for to in ways {
        answered(&shop.client, &Attempt::new(to, "control"))?;
    }
    let good = shop.lab.manifests().read(CLIENTS)?;
    // The authentication that every policy names is gone; the policies are still there.
    shop.lab.manifests().remove(CLIENTS)?;
    for to in ways {
        eventually(&format!("{to} to be refused"), PATIENCE, || refused(&shop.client, to))?;
    }
    let problems = shop.lab.agent(A)?.status()?.get("problems").cloned().unwrap_or_default().to_string();
    assert!(problems.contains("clients"), "the missing reference is named: {problems}");
    // A second reference that does exist does not make up for the missing one.
    shop.lab.apply(
        "half.yaml",
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: half, namespace: shop}\nspec:\n  \
         targetRef: {group: policy.linkerd.io, kind: Server, name: on-7000}\n  requiredAuthenticationRefs:\n    \
         - {group: policy.linkerd.io, kind: MeshTLSAuthentication, name: nowhere}\n    \
         - {group: policy.linkerd.io, kind: NetworkAuthentication, name: everywhere}\n---\n\
         apiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {name: everywhere, namespace: shop}\nspec:\n  \
         networks: [{cidr: 0.0.0.0/0}]\n",
    )?;
    eventually("the half policy to be reported", PATIENCE, || {
        Ok(shop
            .lab
            .agent(A)?
            .status()?
            .get("problems")
            .is_some_and(|all| all.to_string().contains("nowhere")))
    })?;
    for to in ways {
        assert!(refused(&shop.client, to)?, "{to}");
    }
    shop.lab.apply(CLIENTS, &good)?;
    for to in ways {
        answered(&shop.client, &Attempt::new(to, "again"))?;
    }
    shop.shut()
}
