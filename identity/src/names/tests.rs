use super::*;
use proptest::prelude::*;

fn naming() -> IdentityNaming {
    IdentityNaming::new("linkerd", "cluster.local").unwrap()
}

#[test]
fn both_forms_are_spelled_as_linkerd_and_spiffe_do() {
    let name = naming().name("shop", "web").unwrap();
    assert_eq!(name.dns(), "web.shop.serviceaccount.identity.linkerd.cluster.local");
    assert_eq!(name.spiffe(), "spiffe://cluster.local/ns/shop/sa/web");
}

#[test]
fn a_service_account_with_dots_keeps_its_namespace() {
    let name = naming().name("shop", "web.v2").unwrap();
    assert_eq!(naming().parse_dns(name.dns()).unwrap(), name);
    assert_eq!(naming().parse_spiffe(name.spiffe()).unwrap(), name);
    // The longest look-alike: an account whose own name looks like the rest of an identity.
    let tricky = naming().name("b", "a.x.serviceaccount.identity.linkerd.cluster.local").unwrap();
    assert_eq!(naming().parse_dns(tricky.dns()).unwrap(), tricky);
}

#[test]
fn nothing_is_normalized() {
    let naming = naming();
    for bad in [
        "",
        ".",
        "..",
        "web.shop",
        "Web.shop.serviceaccount.identity.linkerd.cluster.local",
        "web.SHOP.serviceaccount.identity.linkerd.cluster.local",
        "web.shop.serviceaccount.identity.linkerd.cluster.local.",
        "web.shop.serviceaccount.identity.linkerd.CLUSTER.local",
        ".shop.serviceaccount.identity.linkerd.cluster.local",
        "shop.serviceaccount.identity.linkerd.cluster.local",
        "web..shop.serviceaccount.identity.linkerd.cluster.local",
        "web%2e.shop.serviceaccount.identity.linkerd.cluster.local",
        "*.shop.serviceaccount.identity.linkerd.cluster.local",
        "wеb.shop.serviceaccount.identity.linkerd.cluster.local", // Cyrillic е
        "web\0.shop.serviceaccount.identity.linkerd.cluster.local",
        "web.shop.serviceaccount.identity.other.cluster.local",
        "web.shop.serviceaccount.identity.linkerd.evil.local",
        "-web.shop.serviceaccount.identity.linkerd.cluster.local",
        "web-.shop.serviceaccount.identity.linkerd.cluster.local",
    ] {
        assert!(naming.parse_dns(bad).is_err(), "{bad:?}");
    }
    for bad in [
        "",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/shop/sa/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local//ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop/sa/./web",
        "spiffe://cluster.local/ns/shop/sa/../web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "spiffe://cluster.local/ns/shop/sa/web?x",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://Cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://user@cluster.local/ns/shop/sa/web",
        "spiffe://evil.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/a.b/sa/web",
        "spiffe://cluster.local/ns/shop/sa/WEB",
    ] {
        assert!(naming.parse_spiffe(bad).is_err(), "{bad:?}");
    }
    assert!(IdentityNaming::new("linkerd", "Cluster.local").is_err());
    assert!(IdentityNaming::new("linkerd", "cluster..local").is_err());
    assert!(IdentityNaming::new("a.b", "cluster.local").is_err());
}

#[test]
fn lengths_are_bounded() {
    assert!(naming().name(&"n".repeat(63), "a").is_ok());
    assert!(naming().name(&"n".repeat(64), "a").is_err());
    let long = vec!["a".repeat(60); 4].join(".");
    assert!(matches!(naming().name("shop", &long), Err(NameError::TooLong { .. })));
}

proptest! {
    #[test]
    fn whatever_parses_is_spelled_exactly_so(text in ".{0,80}", account in "[a-z0-9.-]{1,20}", space in "[a-z0-9.-]{1,20}") {
        let naming = naming();
        for dns in [text.clone(), format!("{account}.{space}.serviceaccount.identity.linkerd.cluster.local")] {
            if let Ok(name) = naming.parse_dns(&dns) {
                prop_assert_eq!(name.dns(), dns.as_str());
                prop_assert_eq!(naming.parse_spiffe(name.spiffe()).unwrap(), name);
            }
        }
        for uri in [text, format!("spiffe://cluster.local/ns/{space}/sa/{account}")] {
            if let Ok(name) = naming.parse_spiffe(&uri) {
                prop_assert_eq!(name.spiffe(), uri.as_str());
                prop_assert_eq!(naming.parse_dns(name.dns()).unwrap(), name);
            }
        }
    }
}
