use super::*;
use crate::resources::{ObjectName, parse_file};
use crate::settings::ClusterSettings;

const ACCOUNT: &str = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n";

#[test]
fn a_resource_written_twice_is_an_error_that_names_both() {
    let files = [("b.yaml", ACCOUNT.to_owned()), ("a.yaml", format!("# first\n---\n{ACCOUNT}"))];
    let index = Index::of(files.iter().map(|(file, text)| parse_file(file, text)));
    assert_eq!(index.len(), 1);
    let first = index.resources().next().unwrap();
    assert_eq!(first.meta().origin.file, "a.yaml");
    let problems = index.compile(&ClusterSettings::default(), "a").problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "error: b.yaml:1 (document 1): ServiceAccount shop/web: metadata.name: is written twice: the one in a.yaml, \
         line 3 (document 1) is in force, this one is not (remove one of them)"
    );
}

#[test]
fn a_resource_twice_in_one_list_is_an_error_too() {
    let item = "- {apiVersion: v1, kind: ServiceAccount, metadata: {name: web}}\n";
    let index =
        Index::of([parse_file("l.yaml", &format!("apiVersion: v1\nkind: List\nitems:\n{item}{item}"))]);
    let problems = index.compile(&ClusterSettings::default(), "a").problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].line, 5);
}

#[test]
fn files_and_resources_go_again() {
    let mut index = Index::of([parse_file("a.yaml", ACCOUNT), parse_file("b.yaml", ACCOUNT)]);
    index.remove_file("a.yaml");
    assert_eq!(index.resources().next().unwrap().meta().origin.file, "b.yaml");
    let id = index.resources().next().unwrap().id();
    assert_eq!(id.to_string(), "ServiceAccount shop/web");
    assert_eq!(ObjectName::new("shop", "web").to_string(), "shop/web");
    index.remove(&id);
    assert!(index.is_empty());
}

#[test]
fn what_is_written_twice_is_told_until_one_is_left() {
    let told = |index: &Index| index.compile(&ClusterSettings::default(), "a").problems.len();
    let file = |file| parse_file(file, ACCOUNT);
    let mut index = Index::of([file("a.yaml"), file("b.yaml"), file("c.yaml")]);
    assert_eq!((index.len(), told(&index)), (1, 2));
    assert_eq!(index.remove_file("c.yaml").len(), 1);
    assert_eq!(told(&index), 1, "two are left");
    index.remove_file("b.yaml");
    assert_eq!((told(&index), index.is_empty()), (0, false));
    index.remove_file("a.yaml");
    assert!(index.is_empty());
    let account = ACCOUNT.replace("web", "other");
    assert_eq!(Index::of([file("a.yaml"), parse_file("b.yaml", &account)]).len(), 2);
}
