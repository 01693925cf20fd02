use super::*;
use crate::compile::tests::{SHOP, address, compiled};
use crate::{Hop, Route, names::IdentityNaming};

fn named(dns: Option<&str>, spiffe: Option<&str>) -> ClientIdentity {
    ClientIdentity::Mesh { dns: dns.map(str::to_owned), spiffe: spiffe.map(str::to_owned) }
}

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const WEB_URI: &str = "spiffe://cluster.local/ns/shop/sa/web";
const REDIS: &str = "redis.shop.serviceaccount.identity.linkerd.cluster.local";

fn judge(text: &str, client: &ClientIdentity) -> Decision {
    compiled(text).authorize(&address("10.1.0.2"), 6379, client, "10.9.9.9".parse().unwrap())
}

#[test]
fn either_spelling_of_an_identity_serves() {
    let read = ClientIdentity::from(&IdentityNaming::default().parse(WEB).unwrap());
    for client in [named(Some(WEB), None), named(None, Some(WEB_URI)), named(Some(WEB), Some(WEB_URI)), read]
    {
        let decision = judge(SHOP, &client);
        assert_eq!(decision.verdict.reason, Reason::Authorized, "{client:?}");
        assert_eq!(&*decision.rule, "AuthorizationPolicy shop/allow-web");
    }
}

#[test]
fn other_names_do_not() {
    for client in [
        named(Some(REDIS), None),
        named(Some("web.shop.serviceaccount.identity.linkerd.other.local"), None),
        named(None, Some("spiffe://other.local/ns/shop/sa/web")),
        named(None, Some("spiffe://cluster.local/ns/shop/sa/web/")),
    ] {
        let decision = judge(SHOP, &client);
        assert_eq!(
            (decision.verdict.reason, &*decision.rule),
            (Reason::Unauthorized, "Server shop/redis"),
            "{client:?}"
        );
    }
}

#[test]
fn names_that_are_malformed_or_disagree_are_no_identity() {
    let anyone = SHOP.replace("[{kind: ServiceAccount, name: web}]", "[]");
    for client in [
        ClientIdentity::Mesh { dns: None, spiffe: None },
        named(Some("WEB.shop.serviceaccount.identity.linkerd.cluster.local"), None),
        named(Some("*.shop.serviceaccount.identity.linkerd.cluster.local"), None),
        named(Some(""), None),
        named(Some(REDIS), Some(WEB_URI)),
        named(Some("vm.example"), Some(WEB_URI)),
        named(Some(WEB), Some("spiffe://other.local/vm")),
        named(Some(WEB), Some("")),
    ] {
        assert_eq!(judge(&anyone, &client).verdict.reason, Reason::NoIdentity, "{client:?}");
    }
    assert!(judge(&anyone, &named(Some(WEB), None)).allowed());
    assert!(judge(&anyone, &ClientIdentity::None).allowed());
}

#[test]
fn audit_says_so() {
    let audit = SHOP.replace("  proxyProtocol: opaque", "  proxyProtocol: opaque\n  accessPolicy: audit");
    let decision = judge(&audit, &ClientIdentity::None);
    assert!(decision.allowed() && decision.audited);
    assert_eq!(&*decision.rule, "Server shop/redis (accessPolicy audit)");
    assert!(
        !judge(&audit, &named(Some(WEB), None)).audited,
        "a rule that names the client is credited first"
    );
}

#[test]
fn an_identity_is_not_needed_to_be_known_to_the_snapshot() {
    let ghost = SHOP.replace("name: web}]", "name: ghost}]");
    let ghost_name = "ghost.shop.serviceaccount.identity.linkerd.cluster.local";
    assert!(judge(&ghost, &named(Some(ghost_name), None)).allowed());
}

#[test]
fn routes_tell_whom_to_demand() {
    let it = compiled(SHOP);
    let web = address("10.1.0.1");
    let captured = |address: &Address| it.workload(address).map(|info| info.digest);
    let Route::To { service, endpoints, chosen } =
        it.outbound(&web, &address("10.96.0.2"), 6379, captured, 9)
    else {
        panic!("refused")
    };
    assert_eq!((service.unwrap().to_string(), chosen, endpoints.len()), ("shop/redis".to_owned(), 0, 1));
    assert_eq!((endpoints[0].address, endpoints[0].port), (address("10.1.0.2"), 6379));
    assert!(matches!(&endpoints[0].hop, Hop::Mesh { identity, local: true, .. } if identity.dns() == REDIS));
    let plain = it.outbound(&web, &address("192.0.2.1"), 443, captured, 0);
    assert!(matches!(plain, Route::To { endpoints, .. } if matches!(endpoints[0].hop, Hop::Plain(_))));
    let nobody = it.outbound(&web, &address("10.1.0.2"), 6379, |_| None, 0);
    assert!(matches!(nobody, Route::Refuse(decision) if decision.verdict.reason == Reason::NotCaptured));
}

#[test]
fn a_pod_of_another_node_is_demanded_by_name() {
    let it = compiled(&SHOP.replace("nodeName: a # redis", "nodeName: b"));
    let captured = |address: &Address| it.workload(address).map(|info| info.digest);
    let route = it.outbound(&address("10.1.0.1"), &address("10.1.0.2"), 6379, captured, 0);
    let Route::To { endpoints, .. } = route else { panic!("refused") };
    assert!(matches!(&endpoints[0].hop, Hop::Mesh { identity, local: false, .. } if identity.dns() == REDIS));
    let info = it.workload(&address("10.1.0.2")).unwrap();
    assert_eq!((info.local, &*info.node, info.meshed()), (false, "b", true));
    assert_eq!(
        it.authorize(&address("10.1.0.2"), 6379, &named(Some(WEB), None), "10.1.0.1".parse().unwrap())
            .verdict
            .reason,
        Reason::NotCaptured
    );
}

#[test]
fn each_refusal_is_told_to_clients_of_http_and_grpc_in_their_own_codes() {
    for (reason, status) in [
        (Reason::Unauthorized, (403, 7)),
        (Reason::Denied, (403, 7)),
        (Reason::NoIdentity, (403, 7)),
        (Reason::NoRoute, (404, 5)),
        (Reason::RateLimited, (429, 8)),
        (Reason::InvalidPolicy, (500, 13)),
        (Reason::BadRequest, (400, 3)),
    ] {
        let decision = Decision::of(Verdict::refuse(reason, 0), Arc::default());
        assert_eq!((decision.status(), decision.allowed()), (status, false), "{reason:?}");
    }
}
