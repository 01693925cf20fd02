use super::*;
use crate::{
    cli::policy::testing::{self, SHOP, flow},
    observe::flows::record::FlowOutcome,
};

fn compare(old: &str, new: &str) -> Difference {
    difference(&testing::picture(old), &testing::picture(new), false)
}

#[test]
fn the_same_rules_change_nothing() {
    let it = compare(SHOP, SHOP);
    assert!(it.text(40, None).ends_with("no flow is newly allowed or refused"), "{}", it.text(40, None));
}

#[test]
fn what_is_newly_refused_and_allowed_reads_with_its_rules() {
    let new = SHOP.replace("  accessPolicy: audit\n", "").replace("name: web}]", "name: stranger}]");
    let it = compare(SHOP, &new);
    insta::assert_snapshot!(it.text(40, None));
    insta::assert_snapshot!("narrow", it.text(40, Some(100)));
}

#[test]
fn what_happened_and_would_break_is_told_first() {
    let (old, new) =
        (testing::picture(SHOP), testing::picture(&SHOP.replace("name: web}]", "name: stranger}]")));
    let mut refused = flow("shop/stranger", "shop/redis", 6379);
    refused.outcome = FlowOutcome::Refused;
    let mut gone = flow("shop/web", "shop/redis", 6379);
    gone.destination.pod = Some("shop/gone-1".into());
    gone.destination.workload = Some("shop/gone".into());
    let mut many = flow("shop/web", "shop/redis", 6379);
    many.count = 41;
    let observed = observed::Observed { flows: vec![many, refused, gone], left_out: 3, cut: false };
    let mut it = difference(&old, &new, false);
    it.observed = Some(happened(&observed, &old, &new));
    insta::assert_snapshot!(it.text(40, None));
    let same = happened(&observed, &old, &old);
    assert!(same.broken.is_empty() && same.opened.is_empty(), "the control");
}

#[test]
fn ten_thousand_flows_read_as_a_few() {
    use std::fmt::Write as _;
    let mut many = String::from(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: big, annotations: {heddle.io/mesh: enabled}}\n",
    );
    for i in 0..100 {
        write!(
            many,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: big, labels: {{app: p{i}}}}}\n\
             spec: {{nodeName: n{}, serviceAccountName: p{i}, containers: [{{name: c, image: i, ports: [{{containerPort: 80}}]}}]}}\n\
             status: {{podIP: 10.2.0.{i}}}\n",
            i % 7
        )
        .unwrap();
    }
    let open = many.replace(
        "mesh: enabled",
        "mesh: enabled, config.linkerd.io/default-inbound-policy: all-authenticated",
    );
    let it = compare(&open, &many);
    let flows: usize = it.newly_refused.iter().map(Group::flows).sum();
    assert_eq!(flows, 100 * 100 * 2, "each to each, on the declared port and any other");
    assert!(it.newly_refused.len() <= 2, "{:#?}", it.newly_refused.len());
    assert!(it.text(40, None).lines().count() < 12, "{}", it.text(40, None));
}

#[test]
fn a_pod_that_a_roll_out_replaced_is_the_same_destination() {
    let rolled = SHOP
        .replace("web-7d9f-x2x4z", "web-55aa-q1q1q")
        .replace("7d9f", "55aa")
        .replace("10.1.0.1}", "10.1.0.77}");
    assert_ne!(rolled, SHOP);
    let it = compare(SHOP, &rolled);
    assert!(it.newly_refused.is_empty() && it.newly_allowed.is_empty(), "{}", it.text(40, None));
}

#[test]
fn a_rule_for_udp_changes_what_udp_may_and_nothing_of_tcp() {
    let rule = "---\n{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: stats, namespace: shop}, spec: {action: Allow, \
                protocol: UDP, podSelector: {matchLabels: {app: redis}}, ports: [8125], from: [{serviceAccounts: [{name: web}]}]}}\n";
    let it = compare(SHOP, &format!("{SHOP}{rule}"));
    let [group] = &it.newly_allowed[..] else { panic!("{:#?}", it.newly_allowed) };
    assert_eq!((&*group.port, &group.from[..]), ("8125/udp", &["shop/web".to_owned()][..]));
    assert!(it.newly_refused.is_empty());
    let mut seen = flow("shop/web", "shop/redis", 8125);
    seen.protocol = "udp".into();
    let observed = observed::Observed { flows: vec![seen], ..Default::default() };
    let (with, without) = (testing::picture(&format!("{SHOP}{rule}")), testing::picture(SHOP));
    assert_eq!(happened(&observed, &with, &without).broken.len(), 1);
    assert!(happened(&observed, &with, &with).broken.is_empty(), "the control");
}
