//! One decision, two enforcers: over the same tables the kernel's programs and the agent give the same verdict, with
//! the same reason, the same rule and the same endpoint.

#![allow(clippy::expect_used, reason = "a test may fail so")]

#[path = "common/clusters.rs"]
mod clusters;
#[path = "common/kernel.rs"]
mod kernel;

use std::collections::BTreeMap;

use anyhow::Result;
use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason},
    judge::{Answer, INBOUND, OUTBOUND, Question},
    policy::{WORKLOAD_LOCAL, WORKLOAD_MESHED},
};
use heddle_policy::{
    Index, TableSet,
    resources::parse_file,
    verdict::{self, Connect, TCP, UDP},
};

use xtask::lab::Lab;

use clusters::Dice;
use kernel::Loaded;

const CLUSTERS: u64 = 100;
const FLOWS: u64 = 1000;
const ICMP: u8 = 1;

/// What the agent says over the tables that it holds in memory.
fn agents_answer(
    tables: &TableSet,
    captured: &BTreeMap<Address, u64>,
    asked: &Question,
    generation: u64,
) -> Answer {
    let view = tables.with_captured(|address: &Address| captured.get(address).copied());
    let port = u16::try_from(asked.port).expect("a port");
    let (verdict, destination, port) = if asked.direction == OUTBOUND {
        let protocol = u8::try_from(asked.protocol).expect("a protocol");
        let connect = Connect {
            source: asked.source,
            destination: asked.destination,
            port,
            protocol,
            random: asked.random,
        };
        let found = verdict::outbound(&view, &connect);
        (found.verdict, found.destination, found.port)
    } else {
        let protocol = u8::try_from(asked.protocol).expect("a protocol");
        let found = verdict::inbound(&view, &asked.source, &asked.destination, port, protocol);
        (found, asked.destination, port)
    };
    Answer {
        generation,
        destination,
        outcome: verdict.outcome as u32,
        reason: verdict.reason as u32,
        rule: verdict.rule,
        port: u32::from(port),
    }
}

fn is_own(tables: &TableSet, address: &Address) -> bool {
    let both = WORKLOAD_LOCAL | WORKLOAD_MESHED;
    tables.workloads.get(address).is_some_and(|workload| workload.flags & both == both)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_hundred_thousand_random_flows_meet_one_verdict() -> Result<()> {
    let lab = Lab::new("agree")?.node("node-a")?;
    let loaded = Loaded::on(&lab, "node-a")?;
    let mut dice = Dice(0x0dd5_eed5);
    let (mut outcomes, mut reasons) = (BTreeMap::<u32, u64>::new(), BTreeMap::<u32, u64>::new());
    let mut datagrams = BTreeMap::<(u32, u32), u64>::new();
    let mut by_rule = 0;

    // Before anything is published both refuse everything that leaves the pod's own address.
    let mut asked = Question { direction: INBOUND, port: 80, protocol: 6, ..Question::default() };
    asked.destination = Address::from(clusters::address(&mut dice));
    assert_eq!(loaded.capture.kernel().judge(&asked)?.reason, Reason::TablesClosed as u32);

    for cluster in 1..=CLUSTERS {
        let parsed = parse_file("cluster.yaml", &clusters::cluster(&mut dice));
        let compiled = Index::of([parsed]).compile(&clusters::settings(&mut dice), "a");
        let tables = compiled.tables;
        let rows = loaded.capture.publish(&tables, cluster)?;
        assert_eq!(rows.full, None);

        // Most of the node's pods are captured, some are another pod at the same address.
        let mut captured = BTreeMap::new();
        loaded.capture_none()?;
        for (netns, (address, workload)) in (1u64..).zip(tables.workloads.iter()) {
            let uid = match dice.roll(8) {
                0 => continue,
                1 => workload.uid.wrapping_add(1),
                _ => workload.uid,
            };
            loaded.capture_at(address.to_ip(), netns, uid)?;
            captured.insert(*address, uid);
        }

        // Most questions are about a pod of the node's, with somebody known at the other end.
        let known: Vec<Address> = tables.workloads.keys().copied().collect();
        let own: Vec<Address> = captured.keys().copied().filter(|address| is_own(&tables, address)).collect();
        let some = |dice: &mut Dice, from: &[Address]| match from.len() as u64 {
            many if many > 0 && dice.roll(5) > 0 => from[dice.roll(many) as usize],
            _ => Address::from(clusters::address(dice)),
        };
        for _ in 0..FLOWS {
            let port = match dice.roll(10) {
                0 => dice.roll(65536) as u16,
                _ => clusters::PORTS[dice.roll(8) as usize],
            };
            let protocol = [TCP, TCP, TCP, UDP, UDP, ICMP][dice.roll(6) as usize];
            let (here, there) = (some(&mut dice, &own), some(&mut dice, &known));
            let outbound = dice.roll(2) == 0;
            let asked = Question {
                source: if outbound { here } else { there },
                destination: if outbound { there } else { here },
                direction: if outbound { OUTBOUND } else { INBOUND },
                port: u32::from(port),
                protocol: u32::from(protocol),
                random: dice.roll(1 << 31) as u32,
            };
            let kernels = loaded.capture.kernel().judge(&asked)?;
            let agents = agents_answer(&tables, &captured, &asked, cluster);
            assert_eq!(kernels, agents, "cluster {cluster}: {asked:?} in {tables:#?}");
            *outcomes.entry(kernels.outcome).or_default() += 1;
            *reasons.entry(kernels.reason).or_default() += 1;
            by_rule += u64::from(kernels.rule != 0);
            if protocol == UDP {
                *datagrams.entry((asked.direction, kernels.reason)).or_default() += 1;
            }
        }
    }

    // Agreement about nothing but refusals would be cheap: every outcome and every reason of a verdict was met.
    let seen: Vec<_> =
        reasons.iter().map(|(code, times)| (Reason::from_code(*code).map(Reason::as_str), times)).collect();
    eprintln!("{outcomes:?}, {by_rule} by a rule, {seen:?}");
    for outcome in [Outcome::Direct, Outcome::Proxy, Outcome::Refuse] {
        assert!(
            outcomes.get(&(outcome as u32)).is_some_and(|times| *times > 1000),
            "{outcome:?}: {outcomes:?}"
        );
    }
    use Reason::*;
    for reason in [
        Authorized,
        Loopback,
        Meshed,
        PlainCluster,
        PlainOutside,
        Unauthenticated,
        Unauthorized,
        NoIdentity,
        NeedsRequest,
        OutboundDenied,
        OutboundOutsideCluster,
        UnknownClusterAddress,
        NoServicePort,
        NoEndpoints,
        NotCaptured,
        Protocol,
        PlainToMeshed,
        Denied,
    ] {
        assert!(reasons.contains_key(&(reason as u32)), "{reason:?} was never met: {seen:?}");
    }
    assert!(by_rule > 1000, "{by_rule}");
    for (direction, reasons) in [
        (OUTBOUND, [Authorized, Unauthorized, Denied, PlainToMeshed, PlainCluster]),
        (INBOUND, [Authorized, Unauthorized, Denied, PlainToMeshed, Unauthenticated]),
    ] {
        for reason in reasons {
            let met = datagrams.get(&(direction, reason as u32)).copied().unwrap_or_default();
            assert!(met >= 10, "{reason:?} of datagrams ({direction}): {met} times, {datagrams:?}");
        }
    }
    drop(loaded);
    lab.close()
}
