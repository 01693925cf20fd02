use super::*;
use proptest::prelude::*;

#[test]
fn both_forms_are_linkerds_and_spiffes() {
    let naming = IdentityNaming::default();
    let name = naming.name("shop", "web").unwrap();
    assert_eq!(name.dns(), "web.shop.serviceaccount.identity.linkerd.cluster.local");
    assert_eq!(name.spiffe(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((name.namespace(), name.service_account()), ("shop", "web"));
    assert_eq!((naming.identity_namespace(), naming.trust_domain()), ("linkerd", "cluster.local"));
    assert_eq!(naming.parse(name.dns()).unwrap(), name);
    assert_eq!(naming.parse(name.spiffe()).unwrap(), name);
}

#[test]
fn an_account_with_dots_belongs_to_one_namespace_only() {
    let naming = IdentityNaming::default();
    let name = naming.name("c", "a.b").unwrap();
    assert_eq!(naming.parse_dns(name.dns()).unwrap(), name);
    assert_eq!(naming.parse_spiffe(name.spiffe()).unwrap(), name);
    assert_eq!(naming.name("b.c", "a"), Err(NameError::BadNamespace));
}

#[test]
fn a_label_and_a_name_are_as_long_as_dns_lets_them_and_no_longer() {
    let naming = IdentityNaming::default();
    let label = |length: usize| "a".repeat(length);
    assert!(naming.name(&label(63), &label(63)).is_ok());
    assert_eq!(naming.name(&label(64), "web"), Err(NameError::LabelTooLong));
    assert_eq!(naming.name("shop", &label(64)), Err(NameError::LabelTooLong));
    let name = |last: usize| [label(63), label(63), label(63), label(last)].join(".");
    assert_eq!((check_dns_name(&name(61)), name(61).len()), (Ok(()), 253));
    assert_eq!(check_dns_name(&name(62)), Err(NameError::TooLong));
    // What breaks a rule is told as it is, of a namespace too.
    assert_eq!(naming.name("Shop", "web"), Err(NameError::BadCharacter));
    assert_eq!(naming.name("a.b", "web"), Err(NameError::BadNamespace));
}

#[test]
fn trust_domains_are_apart_when_no_name_ends_as_one_of_both() {
    let of = |namespace: &str, domain: &str| IdentityNaming::new(namespace, domain).unwrap();
    let own = IdentityNaming::default();
    assert!(own.is_apart_from(&of("linkerd", "other.example")));
    assert!(own.is_apart_from(&of("heddle", "cluster.local")));
    assert!(!own.is_apart_from(&own));
    // In which a name of ours could be read as one of theirs, or the other way around.
    let inner = of("a", "serviceaccount.identity.linkerd.cluster.local");
    assert!(!own.is_apart_from(&inner) && !inner.is_apart_from(&own));
}

#[test]
fn a_spiffe_form_is_split_only_where_both_parts_and_the_dns_form_are_sound() {
    let naming = IdentityNaming::default();
    let split = |namespace: &str, account: &str| {
        let text = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        naming.split_spiffe(&text).map(|(namespace, account)| (namespace.to_owned(), account.to_owned()))
    };
    assert_eq!(split("shop", "web"), Some(("shop".into(), "web".into())));
    assert_eq!((split("Shop", "web"), split("shop", "Web"), split("a.b", "web")), (None, None, None));
    let label = |length: usize| "a".repeat(length);
    let account = |last: usize| [label(63), label(63), label(last)].join(".");
    for (last, fits) in [(15, true), (16, false), (17, false)] {
        assert_eq!(split(&label(63), &account(last)).is_some(), fits, "{last}");
        assert_eq!(naming.name(&label(63), &account(last)).is_ok(), fits, "{last}");
    }
    assert_eq!(naming.parse_spiffe("spiffe://other.example/ns/a/sa/b"), Err(NameError::OtherTrustDomain));
    assert_eq!(naming.parse_spiffe("spiffe://other.example/b"), Err(NameError::OtherForm));
}

#[test]
fn a_name_is_owned_when_both_its_forms_are_of_the_trust_domain() {
    let own = IdentityNaming::default();
    let of = |namespace: &str, domain: &str| {
        IdentityNaming::new(namespace, domain).unwrap().name("shop", "web").unwrap()
    };
    assert!(own.owns(&of("linkerd", "cluster.local")));
    assert!(!own.owns(&of("other", "cluster.local")), "the same SPIFFE form, another DNS form");
    assert!(!own.owns(&of("linkerd", "other.local")));
    let longer = IdentityNaming::new("x", "serviceaccount.identity.linkerd.cluster.local").unwrap();
    assert!(!own.owns(&longer.name("shop", "web").unwrap()), "a DNS form that ends alike");
}

#[test]
fn look_alikes_are_refused() {
    let naming = IdentityNaming::default();
    let long = format!("{}.shop.serviceaccount.identity.linkerd.cluster.local", "a".repeat(64));
    let longer = format!(
        "{}.shop.serviceaccount.identity.linkerd.cluster.local",
        ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60)].join(".")
    );
    for text in [
        "",
        ".",
        "web",
        "web.shop",
        "web.shop.serviceaccount.identity.linkerd.cluster.local.",
        ".web.shop.serviceaccount.identity.linkerd.cluster.local",
        "web..shop.serviceaccount.identity.linkerd.cluster.local",
        "WEB.shop.serviceaccount.identity.linkerd.cluster.local",
        "web.shop.serviceaccount.identity.linkerd.CLUSTER.local",
        "wéb.shop.serviceaccount.identity.linkerd.cluster.local",
        "w%65b.shop.serviceaccount.identity.linkerd.cluster.local",
        "*.shop.serviceaccount.identity.linkerd.cluster.local",
        "-web.shop.serviceaccount.identity.linkerd.cluster.local",
        "web-.shop.serviceaccount.identity.linkerd.cluster.local",
        "web.shop.serviceaccount.identity.other.cluster.local",
        "web.shop.serviceaccount.identity.linkerd.evil.local",
        "web.shop.serviceaccount.identity.linkerd.cluster.local.evil.com",
        "shop.serviceaccount.identity.linkerd.cluster.local",
        "web.shop.serviceaccount.identity.linkerd.cluster.local\0",
        "web.shop.serviceaccount.identity.linkerd.cluster.local ",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop/sa/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local//ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/..",
        "spiffe://cluster.local/ns/shop/sa/.",
        "spiffe://cluster.local/ns/../sa/web",
        "spiffe://cluster.local/ns/shop/sa/web/../db",
        "spiffe://cluster.local/ns/shop/../shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%2eb",
        "spiffe://cluster.local/ns/shop/sa/Web",
        "spiffe://cluster.local/ns/shop/sa/web?x",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://user@cluster.local/ns/shop/sa/web",
        "spiffe://evil.local/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "https://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/sa/web/ns/shop",
        "spiffe:/cluster.local/ns/shop/sa/web",
        "URI:spiffe://cluster.local/ns/shop/sa/web",
        "DNS:web.shop.serviceaccount.identity.linkerd.cluster.local",
        &long,
        &longer,
    ] {
        assert!(naming.parse(text).is_err(), "{text:?} was taken for an identity");
    }
}

#[test]
fn one_form_is_not_read_as_the_other() {
    let naming = IdentityNaming::default();
    let name = naming.name("shop", "web").unwrap();
    assert!(naming.parse_dns(name.spiffe()).is_err());
    assert!(naming.parse_spiffe(name.dns()).is_err());
}

#[test]
fn a_naming_is_checked() {
    assert!(IdentityNaming::new("linkerd", "cluster.local").is_ok());
    for (namespace, domain) in
        [("a.b", "cluster.local"), ("", "cluster.local"), ("l", ""), ("l", "Cluster.local"), ("l", "a..b")]
    {
        assert!(IdentityNaming::new(namespace, domain).is_err(), "{namespace:?} {domain:?}");
    }
}

proptest! {
    #[test]
    fn a_glance_finds_sound_what_the_labels_are(text in "[ab0.\\-A]{1,9}|[a-b.\\-]{60,70}|[a-c]{62,64}(\\.[a-c]{1,64}){0,2}") {
        let labels = text.split('.').try_for_each(check_label).is_ok();
        prop_assert_eq!(sound_at_a_glance(text.as_bytes()), labels, "{}", text);
    }

    #[test]
    fn a_spiffe_form_is_compared_as_it_is_split(ns in "[ab]{1,2}", sa in "[ab.]{1,3}", other in "(ns/)?[ab]{1,2}/sa/[ab./]{1,4}") {
        let naming = IdentityNaming::default();
        let text = format!("spiffe://cluster.local/ns/{other}");
        if check_dns_name(&sa).is_ok() {
            prop_assert_eq!(naming.is_spiffe_of(&text, &ns, &sa), naming.split_spiffe(&text) == Some((&ns, &sa)));
            let own = format!("spiffe://cluster.local/ns/{ns}/sa/{sa}");
            prop_assert!(naming.is_spiffe_of(&own, &ns, &sa));
        }
    }

    #[test]
    fn names_round_trip(sa in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,2}", ns in "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?") {
        let naming = IdentityNaming::new("heddle", "mesh.example").unwrap();
        let name = naming.name(&ns, &sa).unwrap();
        prop_assert_eq!(&naming.parse(name.dns()).unwrap(), &name);
        prop_assert_eq!(&naming.parse(name.spiffe()).unwrap(), &name);
        prop_assert_eq!((name.namespace(), name.service_account()), (&*ns, &*sa));
    }

    /// Whatever parses is the canonical spelling itself: no two texts of one form give one identity.
    #[test]
    fn what_parses_is_canonical(text in "(spiffe://|)[a-z.]{0,6}[a-zA-Z0-9./%*-]{0,12}(\\.serviceaccount\\.identity\\.linkerd\\.cluster\\.local|)") {
        if let Ok(name) = IdentityNaming::default().parse(&text) {
            prop_assert!(text == name.dns() || text == name.spiffe());
        }
    }

    #[test]
    fn one_changed_byte_is_another_name(position in 0usize..200, byte in any::<u8>()) {
        let naming = IdentityNaming::default();
        let name = naming.name("shop", "web").unwrap();
        for form in [name.dns(), name.spiffe()] {
            let mut bytes = form.as_bytes().to_vec();
            let at = position % bytes.len();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes)
                && text != form
            {
                prop_assert_ne!(naming.parse(&text).ok(), Some(name.clone()));
            }
        }
    }
}

#[test]
fn a_name_is_as_sound_at_a_glance_as_label_by_label() {
    let letters = ["", "a", "0", "-", ".", "A"];
    let places = 6;
    let (mut glanced, mut refused) = (0, 0);
    for mut number in 0..letters.len().pow(places) {
        let mut text = String::new();
        for _ in 0..places {
            text += letters[number % letters.len()];
            number /= letters.len();
        }
        let each = text.split('.').try_for_each(check_label);
        let glance = sound_at_a_glance(text.as_bytes());
        assert!(!glance || each.is_ok(), "{text}");
        assert!(text.is_empty() || check_dns_name(&text) == each, "{text}");
        glanced += u32::from(glance);
        refused += u32::from(each.is_err());
    }
    assert!(glanced > 1000 && refused > 1000, "{glanced} {refused}");
}
