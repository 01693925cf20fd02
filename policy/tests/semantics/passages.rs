//! Pods on their way into the mesh or out of it: who speaks how with them, and whom they let in meanwhile.

use std::net::IpAddr;

use heddle_ebpf::{
    Address,
    codes::Reason,
    policy::{WORKLOAD_ASKED_PLAIN, WORKLOAD_MESHED, WORKLOAD_TAKES_PLAIN},
};
use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Index,
    resources::{Passage, Resource, parse_file},
    verdict::{self, Connect, TCP},
};

const CLIENT: &str = "10.1.0.1";
const SERVER: &str = "10.1.0.2";
const STRANGER: &str = "10.1.0.3";
const SCENE: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, uid: c}, spec: {nodeName: a, serviceAccountName: client, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop, uid: s}, spec: {nodeName: NODE, serviceAccountName: server, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: shop, uid: x}, spec: {nodeName: b, serviceAccountName: stranger, containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.1.0.3}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: all, namespace: shop}, spec: {podSelector: {}, port: 80, proxyProtocol: opaque}}
---
{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: r, namespace: shop}, spec: {action: Allow, podSelector: {}, ports: [80], from: [{serviceAccounts: [{name: client}]}]}}
";
const ALL: [Passage; 6] =
    [Passage::Over, Passage::Joining, Passage::Settling, Passage::Leaving, Passage::Parting, Passage::Left];

fn at(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The scene where pods of these names are on such a way, as an agent of node a has it.
fn scene(node: &str, on_their_way: &[(&str, Passage)]) -> Compiled {
    let mut parsed = parse_file("x.yaml", &SCENE.replace("NODE", node));
    for resource in &mut parsed.resources {
        if let Resource::Pod(pod) = resource {
            for (_, passage) in on_their_way.iter().filter(|(name, _)| *name == pod.meta.name) {
                pod.passage = *passage;
            }
        }
    }
    Index::of([parsed]).compile(&ClusterSettings::default(), "a")
}

/// What the kernel of node a says of a connect from the client to the server.
fn leaves(it: &Compiled, captured: bool) -> Reason {
    let view = it.tables.with_captured(|address| {
        let known = it.workload(address).map(|info| info.digest);
        if *address == at(SERVER) && !captured { None } else { known }
    });
    let connect = Connect { source: at(CLIENT), destination: at(SERVER), port: 80, protocol: TCP, random: 0 };
    verdict::outbound(&view, &connect).verdict.reason
}

#[test]
fn a_pod_that_leaves_is_of_the_mesh_until_its_way_is_over() {
    let left = SCENE.replace(
        "name: server, namespace: shop, uid: s",
        "name: server, namespace: shop, uid: s, annotations: {heddle.io/mesh: disabled}",
    );
    for passage in ALL {
        let mut parsed = parse_file("x.yaml", &left.replace("NODE", "b"));
        for resource in &mut parsed.resources {
            if let Resource::Pod(pod) = resource
                && pod.meta.name == "server"
            {
                pod.passage = passage;
            }
        }
        let it = Index::of([parsed]).compile(&ClusterSettings::default(), "a");
        let leaves = matches!(passage, Passage::Leaving | Passage::Parting | Passage::Left);
        assert_eq!(it.workload(&at(SERVER)).is_some_and(|info| info.meshed()), leaves, "{passage:?}");
    }
}

#[test]
fn others_speak_plain_text_with_a_pod_before_it_must_take_tls_and_after_it_need_not() {
    for passage in ALL {
        let plain = matches!(passage, Passage::Joining | Passage::Parting | Passage::Left);
        let it = scene("b", &[("server", passage)]);
        let wanted = if plain { Reason::PlainCluster } else { Reason::Meshed };
        assert_eq!(leaves(&it, false), wanted, "{passage:?}, of another node");
        // On its own node what is captured is in the mesh, and what is not captured is not.
        let own = scene("a", &[("server", passage)]);
        assert_eq!(leaves(&own, true), Reason::Authorized, "{passage:?}, captured here");
        let wanted = if plain { Reason::PlainCluster } else { Reason::NotCaptured };
        assert_eq!(leaves(&own, false), wanted, "{passage:?}, not captured here");

        let row = it.tables.workloads.get(&at(SERVER)).unwrap();
        let flag = |flag| row.flags & flag != 0;
        assert_eq!(
            [flag(WORKLOAD_MESHED), flag(WORKLOAD_ASKED_PLAIN), flag(WORKLOAD_TAKES_PLAIN)],
            [true, plain, passage != Passage::Over],
            "{passage:?}"
        );
    }
}

#[test]
fn a_client_in_plain_text_is_the_pod_of_its_address_only_while_the_server_is_on_its_way() {
    for passage in ALL {
        let it = scene("a", &[("server", passage), ("client", passage), ("stranger", passage)]);
        let lets_in = |client: &str| {
            let address = client.parse().unwrap();
            let identified = it.authorize(&at(SERVER), 80, &ClientIdentity::None, address).allowed();
            assert!(!identified, "{passage:?}: nobody is let in by the address alone");
            it.authorize_in_passage(&at(SERVER), 80, address).allowed()
        };
        assert_eq!(lets_in(CLIENT), passage != Passage::Over, "{passage:?}");
        assert!(!lets_in(STRANGER), "{passage:?}: whom no rule names");
        assert!(!lets_in("192.0.2.1"), "{passage:?}: who is nobody");
        assert!(!lets_in("10.1.0.77"), "{passage:?}: whom nobody knows");
    }
    // The client's own way lets it in nowhere.
    let it = scene("a", &[("client", Passage::Settling)]);
    assert!(!it.authorize_in_passage(&at(SERVER), 80, CLIENT.parse().unwrap()).allowed());
}

#[test]
fn a_client_on_its_way_is_let_in_in_plain_text_where_everybody_is() {
    let open = SCENE.replace("NODE", "a")
        + "---\n{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: open, namespace: shop}, \
           spec: {podSelector: {}, port: 81, proxyProtocol: opaque, accessPolicy: all-unauthenticated}}\n";
    for passage in ALL {
        let mut parsed = parse_file("x.yaml", &open);
        for resource in &mut parsed.resources {
            if let Resource::Pod(pod) = resource
                && pod.meta.name == "client"
            {
                pod.passage = passage;
            }
        }
        let it = Index::of([parsed]).compile(&ClusterSettings::default(), "a");
        let judged = it.authorize(&at(SERVER), 81, &ClientIdentity::None, CLIENT.parse().unwrap());
        assert_eq!(judged.allowed(), passage != Passage::Over, "{passage:?}: {:?}", judged.verdict.reason);
    }
}
