use super::*;
use crate::cli::policy::{
    port::Port,
    testing::{self, SHOP},
};

#[test]
fn the_shop_as_a_table_and_as_csv() {
    let picture = testing::shop();
    let grid = Grid::of(&picture, &[]);
    insta::assert_snapshot!(as_table(&grid, None));
    insta::assert_snapshot!("narrow", as_table(&grid, Some(80)));
    let csv = as_csv(&grid).unwrap();
    assert!(
        csv.contains(
            "shop/web,shop/redis,6379 (redis),allowed,authorized,AuthorizationPolicy shop/allow-web"
        ),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 1 + grid.clients.len() * grid.ends.len());
    assert!(Grid::of(&picture, &["elsewhere".into()]).ends.is_empty());
}

#[test]
fn the_page_holds_all_of_it_and_nothing_in_the_data_ends_it() {
    let grid = Grid::of(&testing::shop(), &[]);
    let page = page::write(&grid).unwrap();
    assert!(!page.contains("is put here") && page.contains("AuthorizationPolicy shop/allow-web"));
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}: the page needs nothing from elsewhere");
    }
    let mut evil = Grid::of(&testing::shop(), &[]);
    evil.clients[0] = "</script><script>alert(1)</script>".into();
    let page = page::write(&evil).unwrap();
    assert!(!page.contains("alert(1)</script>") && page.contains("\\u003cscript\\u003ealert(1)"));
}

#[test]
fn each_answer_is_the_picture_s() {
    let picture = testing::picture(SHOP);
    let grid = Grid::of(&picture, &["shop".into()]);
    let clients = picture.clients();
    let (end, client) = (
        grid.ends.iter().position(|end| end.to == "shop/redis" && end.port.starts_with("6379")).unwrap(),
        grid.clients.iter().position(|client| client == "shop/stranger").unwrap(),
    );
    let pod = picture.pods().find(|pod| pod.name == "redis-0").unwrap();
    let asked = clients.iter().find(|it| it.name == "shop/stranger").unwrap();
    assert_eq!(
        grid.answers[grid.cells[end][client]].verdict,
        picture.judge(asked, pod, Port::tcp(6379), None).word()
    );
    assert_eq!(grid.answers[grid.cells[end][client]].verdict, "refused");
}

#[test]
fn ports_for_udp_have_lines_of_their_own_where_a_rule_names_udp() {
    let rule = "---\n{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {name: stats, namespace: shop}, spec: {action: Allow, \
                protocol: UDP, podSelector: {matchLabels: {app: redis}}, ports: [8125], from: [{serviceAccounts: [{name: web}]}]}}\n";
    let csv = as_csv(&Grid::of(&testing::picture(&format!("{SHOP}{rule}")), &[])).unwrap();
    for line in [
        "shop/web,shop/redis,8125/udp,allowed,authorized,AccessRule shop/stats",
        "shop/stranger,shop/redis,8125/udp,refused,unauthorized,default policy deny (cluster)",
        "shop/web,shop/redis,others/udp,refused,unauthorized,default policy deny (cluster)",
    ] {
        assert!(csv.contains(line), "{line} is not in {csv}");
    }
    assert!(!as_csv(&Grid::of(&testing::shop(), &[])).unwrap().contains("/udp"));
}
