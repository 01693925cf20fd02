//! Who opens or takes a connection in the kernel is the pod that the tables mean: meshed, of this node, and the one that
//! is captured at its address.

use std::net::IpAddr;

use heddle_ebpf::{Address, codes::Reason};
use heddle_policy::{
    ClusterSettings, Compiled, Index,
    resources::parse_file,
    verdict::{self, Connect, TCP},
};

const SCENE: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, uid: c}, spec: {nodeName: a, serviceAccountName: client, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop, uid: s}, spec: {nodeName: a, serviceAccountName: server, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.2}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: all, namespace: shop}, spec: {podSelector: {}, port: 80, proxyProtocol: opaque, accessPolicy: all-authenticated}}
";

fn at(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The kernel's verdicts about client to server, where it leaves and where it arrives.
fn asked(it: &Compiled, captured: impl Fn(&Address) -> Option<u64>) -> [Reason; 2] {
    let (client, server) = (at("10.1.0.1"), at("10.1.0.2"));
    let view = it.tables.with_captured(captured);
    let connect = Connect { source: client, destination: server, port: 80, protocol: TCP, random: 0 };
    [
        verdict::outbound(&view, &connect).verdict.reason,
        verdict::inbound(&view, &client, &server, 80, TCP).reason,
    ]
}

fn compiled(text: &str, node: &str) -> Compiled {
    Index::of([parse_file("x.yaml", text)]).compile(&ClusterSettings::default(), node)
}

#[test]
fn only_the_pod_that_the_tables_mean_opens_or_takes_a_connection() {
    let it = compiled(SCENE, "a");
    let digest = |it: &Compiled, address: &Address| it.workload(address).map(|info| info.digest);
    assert_eq!(asked(&it, |it_at| digest(&it, it_at)), [Reason::Authorized, Reason::Meshed], "the control");
    // Nobody, or another than the tables know, is captured at the address.
    for other in [None, Some(7)] {
        let client =
            |address: &Address| if *address == at("10.1.0.1") { other } else { digest(&it, address) };
        assert_eq!(asked(&it, client), [Reason::NotCaptured, Reason::Meshed]);
        let server =
            |address: &Address| if *address == at("10.1.0.2") { other } else { digest(&it, address) };
        assert_eq!(asked(&it, server), [Reason::NotCaptured; 2]);
    }
    // Captured still, but to the tables on another node, or not meshed (any more).
    let elsewhere = compiled(SCENE, "b");
    assert_eq!(asked(&elsewhere, |address| digest(&elsewhere, address)), [Reason::NotCaptured; 2]);
    let plain = compiled(&SCENE.replace("enabled", "disabled"), "a");
    assert_eq!(asked(&plain, |address| digest(&plain, address)), [Reason::NotCaptured; 2]);
}
