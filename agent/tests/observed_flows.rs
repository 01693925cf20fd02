//! What happens is recorded, rules are suggested from it, and with them in force and everything else closed nothing that
//! happened breaks, while everybody else is refused.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shop::{A, B, CLIENTS, OPAQUE, PATIENCE, RULES, Shop, UNKNOWN, answered, echoes, text};
use xtask::lab::{apps::Attempt, eventually};

/// The records of a file, each a line of JSON.
fn records(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// How many connections were recorded from a workload to a port of another, of those for which `wanted` holds.
fn recorded(file: &Path, from: &str, to: &str, port: u16, wanted: impl Fn(&Value) -> bool) -> Result<u64> {
    let alike = |it: &&Value| {
        text(it, "/source/workload") == from
            && text(it, "/destination/workload") == to
            && it.pointer("/destination/port") == Some(&port.into())
            && wanted(it)
    };
    Ok(records(file)?.iter().filter(alike).filter_map(|it| it.get("count").and_then(Value::as_u64)).sum())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn rules_suggested_from_what_happened_keep_it_and_refuse_everybody_else() -> Result<()> {
    let mut shop = Shop::closed("observed")?;
    // Every Server lets everybody in and tells whom a deny would have refused; no rule names anybody.
    let open = shop
        .lab
        .manifests()
        .read(RULES)?
        .replace("  proxyProtocol:", "  accessPolicy: audit\n  proxyProtocol:");
    let servers: Vec<&str> = open.split("---\n").filter(|part| part.contains("kind: Server\n")).collect();
    shop.lab.apply(RULES, &servers.join("---\n"))?;
    shop.lab.manifests().remove(CLIENTS)?;
    let files = [A, B].map(|node| (node, shop.lab.directory().join(format!("flows-{node}.jsonl"))));
    for (node, file) in &files {
        let mut settings = shop.lab.settings().clone();
        settings.set("flowLog", serde_json::json!({"file": file, "megabytes": 8}));
        shop.lab.agent(node)?.start(&shop.lab.heddle()?, &settings)?;
        shop.lab.start_agent(node)?;
    }
    let (on_a, on_b) = (&files[0].1, &files[1].1);
    let _servers = (echoes(&shop.near)?, echoes(&shop.far)?);

    // What happens: on one node carried by the kernel alone and by the agent, and across the nodes.
    let ways = [
        (on_a, "shop/near", (shop.near.v4, OPAQUE)),
        (on_a, "shop/near", (shop.near.v4, UNKNOWN)),
        (on_b, "shop/far", (shop.far.v4, OPAQUE)),
    ];
    for (file, to, way) in ways {
        for word in ["one", "two", "three"] {
            answered(&shop.client, &Attempt::new(way, word))?;
        }
        let seen = || recorded(file, "shop/client", to, way.1, |it| text(it, "/outcome") == "allowed");
        eventually(
            &format!("3 connections to {to}:{} to be recorded", way.1),
            PATIENCE,
            || Ok(seen()? >= 3),
        )?;
        assert_eq!(seen()?, 3, "{to}:{}: each connection counts once: {:#?}", way.1, records(file)?);
        let audited = recorded(file, "shop/client", to, way.1, |it| {
            text(it, "/audit") == "unauthorized" && text(it, "/source/identity") == shop.client.identity()
        })?;
        assert_eq!(audited, 3, "{to}:{}: a deny would have refused it, and it is told why", way.1);
    }
    for (node, server, port) in [(A, "near", OPAQUE), (A, "near", UNKNOWN), (B, "far", OPAQUE)] {
        let rule = format!("rule=\"Server shop/on-{port} (accessPolicy audit)\"");
        let labels = [rule.as_str(), "reason=\"unauthorized\"", &format!("pod=\"{server}\"")];
        let counted = shop.lab.agent(node)?.metric("heddle_audit_would_refuse_total", &labels)?;
        assert!(counted >= 3.0, "{node} {server}:{port}: {counted}");
    }
    let denied = |it: &Value| text(it, "/outcome") == "refused";
    assert_eq!(recorded(on_a, "shop/client", "shop/near", OPAQUE, denied)?, 0, "audit changes nothing");

    // Both nodes' records, judged and turned into rules by the command itself.
    let all = shop.lab.directory().join("flows.jsonl");
    let text_of = |file: &Path| fs::read_to_string(file).context("a file of flows");
    fs::write(&all, text_of(on_a)? + &text_of(on_b)?)?;
    let heddle = shop.lab.heddle()?;
    let ask = |arguments: &[&str]| -> Result<(i32, String)> {
        let output = std::process::Command::new(&heddle).arg("policy").args(arguments).output()?;
        let told =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().unwrap_or(-1), told))
    };
    let path = |path: &Path| path.display().to_string();
    let (flows, manifests) = (path(&all), path(shop.lab.manifests().directory()));
    let (code, suggested) = ask(&["suggest", "--observed", &flows, &manifests])?;
    ensure!(code == 0 && suggested.contains("AuthorizationPolicy"), "{code}: {suggested}");

    // Closed, before the suggestion: what happened is refused. This is the control for what follows.
    let closed = servers.join("---\n").replace("  accessPolicy: audit\n", "");
    shop.lab.apply(RULES, &closed)?;
    let (code, told) = ask(&["diff", &manifests, &manifests, "--observed", &flows])?;
    ensure!(code == 1 && told.contains("HAPPENED AND WOULD BE REFUSED"), "{code}: {told}");
    let refused = |pod: &xtask::lab::Pod, to: (std::net::Ipv4Addr, u16)| -> Result<bool> {
        Ok(!pod.connect(&Attempt::new(to, "let me in"))?.answered())
    };
    for (_, to, way) in ways {
        eventually(&format!("{to}:{} to be closed", way.1), PATIENCE, || refused(&shop.client, way))?;
    }

    shop.lab.apply("suggested.yaml", &suggested)?;
    let (code, told) = ask(&["check", &manifests])?;
    ensure!(code == 0, "{code}: {told}");
    let (code, told) = ask(&["diff", &manifests, &manifests, "--observed", &flows])?;
    ensure!(code == 0, "{code}: {told}");
    for (_, to, way) in ways {
        let outcome = answered(&shop.client, &Attempt::new(way, "as before"))?;
        assert_eq!(outcome.received, "as before", "{to}:{}", way.1);
        assert!(refused(&shop.stranger, way)?, "{to}:{}: another client", way.1);
    }
    // Nothing more than what happened: nobody reached this port.
    let spare = format!("shop/far:{}", shop::SPARE[0]);
    let (code, told) = ask(&["explain", "--from", "shop/client", "--to", &spare, &manifests])?;
    ensure!(code == 0 && told.contains("REFUSED"), "{code}: {told}");
    // A refusal is recorded as one.
    let denied = || recorded(on_a, "shop/stranger", "shop/near", OPAQUE, denied);
    eventually("the stranger's refusal to be recorded", PATIENCE, || Ok(denied()? >= 1))?;

    // The agent's own rules, asked for at its door, are the same.
    let socket = path(&shop.lab.agent(A)?.socket());
    let near = format!("shop/near:{OPAQUE}");
    let (code, told) = ask(&["explain", "--from", "shop/client", "--to", &near, "--socket", &socket])?;
    ensure!(
        code == 0 && told.contains("ALLOWED") && told.contains(&format!("on-{OPAQUE}-observed")),
        "{code}: {told}"
    );
    let (code, told) = ask(&["explain", "--from", "198.51.100.77", "--to", &near, "--socket", &socket])?;
    ensure!(code == 0 && told.contains("REFUSED"), "{code}: {told}");
    let assertion = shop.lab.directory().join("assertion.yaml");
    fs::write(&assertion, format!("tests:\n- {{from: shop/client, to: '{near}', expect: allowed}}\n"))?;
    let assertion = path(&assertion);
    for (words, expected, part) in [
        (&["check", "--socket", &socket][..], 0, "0 errors"),
        (&["matrix", "--output", "csv", "--socket", &socket], 0, &format!("on-{OPAQUE}-observed")),
        (&["test", &assertion, "--socket", &socket], 0, "1 hold, 0 do not"),
        (&["suggest", "--observed", &flows, "--socket", &socket], 0, ""),
        (&["diff", &socket, &manifests, "--observed", &flows], 0, "0 would be refused"),
        (&["diff", &manifests, &socket, "--observed", &flows], 0, "0 would be refused"),
    ] {
        let (code, told) = ask(words)?;
        ensure!(code == expected && told.contains(part), "{words:?}: {code}: {told}");
    }
    shop.shut()
}
