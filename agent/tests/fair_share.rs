//! A pod that sends as fast as it can, over many streams, leaves its neighbors on the node what they had.

#[path = "common/shop.rs"]
#[allow(dead_code)]
mod shop;

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, ensure};
use shop::{A, B, SPARE, Shop};
use xtask::lab::{
    PodSpec,
    apps::{self, Flood},
    slowness,
};

/// What the neighbor sends, in bytes a second: more than most pods ever do, and less than would leave the machine
/// nothing for the others by itself.
const RATE: f64 = 64e6;
/// How long it is measured.
const WINDOW: Duration = Duration::from_secs(3);
/// As many greedy processes as there may be workers, and the streams of each.
const GREEDY: (usize, usize) = (4, 16);

fn rate(flood: &Flood) -> f64 {
    flood.bytes as f64 / flood.seconds
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_pod_at_full_rate_leaves_its_neighbor_nine_tenths() -> Result<()> {
    let mut shop = Shop::closed("fair-share")?;
    let greedy = shop.lab.pod(&PodSpec::new("greedy", A).namespace("shop").account("client").meshed())?;
    let spare = PodSpec::new("spare", B).namespace("shop").account("server").label("role", "server").meshed();
    let spare = shop.lab.pod(&spare)?;
    shop.lab.start_agents()?;
    let sink = |port: u16| format!("[::]:{port}");
    let _sinks = [shop.far.app(&["sink", &sink(SPARE[0])])?, spare.app(&["sink", &sink(SPARE[0])])?];
    let (own, others): (SocketAddr, SocketAddr) =
        ((shop.far.v4, SPARE[0]).into(), (spare.v4, SPARE[0]).into());
    let pace = || apps::pace(shop.client.place(), own, RATE, WINDOW).map(|flood| rate(&flood));
    let alone = pace()?;
    if alone <= RATE * 0.9 && slowness() > 1 {
        println!(
            "not applicable: alone a pod has {alone:.0} B/s on this machine, less than is shared out here"
        );
        return shop.shut();
    }
    ensure!(alone > RATE * 0.9, "control: alone it has {alone:.0} B/s");
    // Other work on the machine takes its share now and then.
    let mut seen = Vec::new();
    for _ in 0..6 {
        let (beside, greed) = thread::scope(|scope| -> Result<(f64, f64)> {
            let floods: Vec<_> = (0..GREEDY.0)
                .map(|_| {
                    scope.spawn(|| {
                        apps::floods(greedy.place(), others, GREEDY.1, WINDOW + Duration::from_secs(1))
                    })
                })
                .collect();
            // It has begun by then.
            thread::sleep(Duration::from_millis(500));
            let beside = pace()?;
            let mut greed = 0.0;
            for flood in floods {
                let flood = flood.join().map_err(|_| anyhow::anyhow!("a flood panicked"))??;
                greed += rate(&flood);
            }
            Ok((beside, greed))
        })?;
        if greed <= RATE * 2.0 && slowness() > 1 {
            println!(
                "not applicable: {greed:.0} B/s are all that a pod takes of this machine, too little to be greedy"
            );
            return shop.shut();
        }
        ensure!(greed > RATE * 2.0, "control: the greedy one has no more than {greed:.0} B/s");
        seen.push((beside / alone, greed));
        if beside > alone * 0.9 {
            println!("share kept, and the greedy one's B/s: {seen:?}");
            return shop.shut();
        }
    }
    anyhow::bail!("the neighbor keeps less than nine tenths; share kept, and the greedy one's B/s: {seen:?}")
}
