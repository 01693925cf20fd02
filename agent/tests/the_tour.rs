//! The operator's tour (`docs/bpftool.md`) is true: every command of it runs, shows what it says, and takes Heddle off.

#[path = "common/tables_shop.rs"]
mod shop;

use anyhow::{Context, Result, ensure};
use xtask::lab::{apps::Attempt, eventually};

use shop::Shop;

const TOUR: &str = include_str!("../../docs/bpftool.md");
const SOON: std::time::Duration = std::time::Duration::from_secs(20);

/// The commands between lines that begin with three backticks and `kind`.
fn blocks(kind: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = TOUR.lines();
    while let Some(line) = lines.next() {
        if line.strip_prefix("```") == Some(kind) {
            found.push(lines.by_ref().take_while(|line| *line != "```").fold(
                String::new(),
                |mut text, line| {
                    text.push_str(line);
                    text.push('\n');
                    text
                },
            ));
        }
    }
    found
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_command_shows_what_the_tour_says_and_the_last_ones_take_it_all_off() -> Result<()> {
    let shop = Shop::open("tour")?;
    let _echo = [shop.near.app(&["echo", "[::]:7000"])?, shop.far.app(&["echo", "[::]:7000"])?];
    let attempt = |text: &str| {
        shop.client.connect(&Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), text) })
    };
    let strange = || {
        shop.stranger
            .connect(&Attempt { milliseconds: 1000, ..Attempt::new((shop.near.v4, 7000), "strange") })
    };
    eventually("the client to be let in", SOON, || Ok(attempt("let me in")?.answered()))?;
    ensure!(!strange()?.answered(), "control: the stranger is refused");

    // One shell for all, as an operator would have: later commands use what earlier ones found.
    let tour = blocks("sh");
    ensure!(tour.len() > 10, "the tour has {} blocks", tour.len());
    let host = shop.lab.at("node-a")?.host();
    let script: String =
        tour.iter().enumerate().map(|(number, block)| format!("echo '== {number}'\n{block}")).collect();
    let said = host.shell(&script)?;
    let mut shown = said.split("== ").skip(1).map(|part| part.split_once('\n').unwrap_or((part, "")).1);
    // The first only sets variables.
    ensure!(shown.next() == Some(""), "{said}");
    for (block, shown) in tour.iter().skip(1).zip(shown.by_ref()) {
        ensure!(!shown.trim().is_empty(), "shows nothing: {block}");
    }
    for wanted in [
        "shop/client has the cookie ",
        "from_pod",
        "generation ",
        "AuthorizationPolicy shop/near",
        "client.shop.",
    ] {
        ensure!(said.contains(wanted), "nowhere `{wanted}` in {said}");
    }
    let cookie =
        said.split("has the cookie ").nth(1).and_then(|rest| rest.lines().next()).context("no cookie")?;
    ensure!(cookie.parse::<u64>().is_ok(), "the tour finds no single cookie: {cookie:?}");

    // By hand, with the agent dead.
    shop.lab.agent("node-a")?.kill()?;
    ensure!(!strange()?.answered(), "control: what is pinned stands without the agent");
    let last = blocks("sh last");
    let (shows, takes_off) = last.split_last().context("what takes it off, and what shows it")?;
    let prelude = tour.first().context("the variables")?;
    host.shell(&format!("{prelude}{}", takes_off.concat()))?;
    let left = host.shell(shows)?;
    ensure!(!left.lines().any(|line| line.contains("/sys/fs/bpf")), "pins are left: {left}");
    ensure!(strange()?.answered(), "nothing is left that would refuse anybody");
    shop.lab.close()
}
